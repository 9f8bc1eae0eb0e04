"""The launchers as a user runs them, with recording stand-ins for the programs of the clouds."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from tests import paths

SCRIPTS = sorted(p for p in (paths.ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch"))
# whatever a user may type as a value
WORDS = ["--config=a b.py:x", '--config.text.system=it\'s "$HOME" `id` \\ *;&|<> é\nend', ""]
SLICE = ["--name=run", "--zone=here", "--bucket=b"]
LAUNCHES = {
    "gpu_node.sh": ["--workdir=my runs/a"],
    "tpu_vm.sh": [*SLICE, "--workdir=bucket/my runs"],
    "queued_resource.sh": [*SLICE, "--type=v4-8", "--spot", "--workdir=bucket/my runs"],
    "gke.sh": [
        "--name=run",
        "--type=v5e-16",
        "--image=i",
        "--bucket=b",
        "--workdir=bucket/my runs",
    ],
    "slurm.sbatch": ["--workdir=my runs/a", "--gpus=8"],
    "sky.sh": ["--bucket=b", "--workdir=bucket/my runs"],
}
SSH = ("launch/env.sh", 0, "", "run")  # the train command is really run, as the worker would
ABSENT, ACTIVE = ("describe", 1), ("describe", 0, "ACTIVE")


def _workdir(words):
    return next(w.split("=", 1)[1] for w in words if w.startswith("--workdir="))


def test_shellcheck():
    tool = pathlib.Path(sys.executable).parent / "shellcheck"
    scripts = [*SCRIPTS, paths.ROOT / "scripts" / "setup_env.sh"]
    command = [tool, "--external-sources", "--source-path=SCRIPTDIR", *scripts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_launcher_is_tested():
    assert {p.name for p in SCRIPTS} == {*LAUNCHES, "env.sh", "common.sh"}


@pytest.mark.parametrize("script", LAUNCHES)
def test_help_and_mistakes(place, script):
    words = LAUNCHES[script]
    shown = place.run(script, "--help")
    assert shown.returncode == 0
    assert f"launch/{script} " in shown.stdout and "#" not in shown.stdout
    faulty = {
        "unknown argument --nam": [*words, "--nam=x", "--", *WORDS],
        "unknown argument stray": [*words, "stray", "--", *WORDS],
        "--workdir needs a value": ["--workdir"],
        "--print takes no value|unknown argument --print=1": [*words, "--print=1", "--", *WORDS],
        "the words of sgqlm train are missing": words,
        "give the work directory as --workdir": [*words, "--", "--config.train.workdir=x"],
        "mount the bucket": [*words, "--workdir=gs://b/x", "--", *WORDS],
        " is missing": [*words[1:], "--", *WORDS],
    }
    # all read their arguments by the same lines: one of them is asked everything
    asked = (
        faulty
        if script == "gke.sh"
        else {k: faulty[k] for k in ("mount the bucket", " is missing")}
    )
    for message, arguments in asked.items():
        done = place.run(script, *arguments)
        assert done.returncode == 2, (message, done)
        assert any(part in done.stderr for part in message.split("|")), done.stderr
        assert "--help" in done.stderr
    assert not place.calls()


@pytest.mark.parametrize("script", LAUNCHES)
def test_print_shows_and_sends_nothing(place, script):
    before = set(place.folder.rglob("*"))
    done = place.run(script, *LAUNCHES[script], "--print", "--", *WORDS)
    assert done.returncode == 0, done.stderr
    assert "config.train.workdir" in done.stdout or script == "slurm.sbatch"
    assert not [call for call in place.calls() if call["name"] != "git"]
    assert set(place.folder.rglob("*")) - before <= {place.folder / "calls.jsonl"}


@pytest.mark.parametrize(
    ("script", "codes", "ends", "times"),
    [
        ("gpu_node.sh", [0], 0, 1),
        ("gpu_node.sh", [75, 75, 0], 0, 3),
        ("gpu_node.sh", [75], 75, 3),
        ("gpu_node.sh", [5, 0], 5, 1),
        ("tpu_vm.sh", [75, 0], 0, 2),
        ("tpu_vm.sh", [5, 0], 5, 1),
    ],
)
def test_only_75_is_started_again(place, script, codes, ends, times):
    place.answer(sgqlm=[("train", code) for code in codes], gcloud=[SSH])
    done = place.run(script, *LAUNCHES[script], "--retries=2", "--", *WORDS)
    assert done.returncode == ends, done.stderr
    given = f"--config.train.workdir={_workdir(LAUNCHES[script])}"
    assert place.trained() == [["train", given, *WORDS]] * times


def test_a_lost_connection_is_taken_up_again(place):
    place.answer(gcloud=[("launch/env.sh", 255), SSH])
    assert place.run("tpu_vm.sh", *LAUNCHES["tpu_vm.sh"], "--", *WORDS).returncode == 0
    assert len(place.trained()) == 1


def test_tpu_vm_copies_sets_up_and_runs_on_all_workers(place):
    done = place.run("tpu_vm.sh", *LAUNCHES["tpu_vm.sh"], "--project=p", "--", *WORDS)
    assert done.returncode == 0, done.stderr
    calls = [call["words"] for call in place.calls("gcloud")]
    assert [call[3] for call in calls] == ["scp", "ssh", "ssh"]
    for call in calls:
        assert {"--zone=here", "--project=p", "--worker=all"} <= set(call)
    archive = place.repo / "build" / "launch" / "sgqlm.tar.gz"
    assert f"--output={archive}" in place.calls("git")[-1]["words"]
    assert str(archive) in calls[0]
    setup = next(w for w in calls[1] if w.startswith("--command="))
    subprocess.run(["bash", "-n", "-c", setup.removeprefix("--command=")], check=True)
    assert "ACCEL=tpu scripts/setup_env.sh core" in setup
    assert "gcsfuse --implicit-dirs --rename-dir-limit=200000 b bucket" in setup


def test_a_failed_set_up_of_the_workers_stops(place):
    place.answer(gcloud=[("setup_env.sh", 6)])
    done = place.run("tpu_vm.sh", *LAUNCHES["tpu_vm.sh"], "--", *WORDS)
    assert done.returncode == 6
    assert not place.trained()


@pytest.mark.parametrize(
    ("script", "number"),
    [("gpu_node.sh", signal.SIGTERM), ("tpu_vm.sh", signal.SIGTERM), ("tpu_vm.sh", signal.SIGINT)],
)
def test_a_signal_stops_the_run_for_good(place, script, number):
    place.answer(
        sgqlm=[("", 75, "", "until TERM")], gcloud=[SSH, ("--stop sgqlm.pid", 0, "", "run")]
    )
    process = place.start(script, *LAUNCHES[script], "--", *WORDS)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert "saved" in out
    assert len(place.trained()) == 1


def test_stop_reaches_all_workers(place):
    assert place.run("tpu_vm.sh", "--name=run", "--zone=here", "--stop").returncode == 0
    words = place.calls("gcloud")[0]["words"]
    assert "--command=sgqlm/launch/env.sh --stop sgqlm.pid" in words
    assert "--worker=all" in words


def test_gpu_node_without_gpu(place):
    place.answer(nvidia_smi=[("", 9)])
    done = place.run("gpu_node.sh", "--workdir=r", "--", *WORDS)
    assert done.returncode == 6
    assert "no GPU" in done.stderr
    assert place.run("gpu_node.sh", "--cpu", "--workdir=r", "--", *WORDS).returncode == 0
    assert len(place.trained()) == 1


def _verbs(place):
    calls = [call["words"][2:4] for call in place.calls("gcloud")]
    return [verb for group, verb in calls if group == "queued-resources" and verb != "describe"]


def _queue(place, *answers, **settings):
    place.answer(gcloud=[SSH, *answers], sgqlm=settings.pop("sgqlm", []))
    return place.run(
        "queued_resource.sh", *LAUNCHES["queued_resource.sh"], "--", *WORDS, **settings
    )


def test_a_slice_is_made_and_deleted(place):
    waiting = ("describe", 0, "WAITING_FOR_RESOURCES")
    done = _queue(place, ABSENT, waiting, ("describe", 1), ACTIVE)
    assert done.returncode == 0, done.stderr
    assert _verbs(place) == ["create", "delete"]
    create = next(c["words"] for c in place.calls("gcloud") if "create" in c["words"])
    assert {"--spot", "--node-id=run", "--accelerator-type=v4-8", "--scopes=cloud-platform"} <= {
        *create
    }
    assert "--runtime-version=tpu-ubuntu2204-base" in create
    assert "--valid-until-duration=12h" in create
    delete = next(c["words"] for c in place.calls("gcloud") if "delete" in c["words"])
    assert {"run", "--zone=here", "--force", "--quiet"} <= set(delete)
    assert place.trained() == [["train", "--config.train.workdir=bucket/my runs", *WORDS]]


def test_a_slice_deletes_itself_when_nobody_else_can(place):
    _queue(place, ABSENT, ACTIVE)
    guard = (place.repo / "build" / "launch" / "run.guard.sh").read_text()
    subprocess.run(["bash", "-n"], input=guard, text=True, check=True)
    command = shlex.split(guard.splitlines()[1])[3]
    assert command.startswith(
        f"sleep {24 * 3600 + 900}; gcloud compute tpus queued-resources delete"
    )
    create = next(c["words"] for c in place.calls("gcloud") if "create" in c["words"])
    assert any(w.startswith("--metadata-from-file=startup-script=") for w in create)


def test_a_failing_run_deletes_the_slice_and_is_not_repeated(place):
    done = _queue(place, ABSENT, ACTIVE, sgqlm=[("", 3)])
    assert done.returncode == 3
    assert _verbs(place) == ["create", "delete"]
    assert len(place.trained()) == 1


def test_a_preempted_slice_is_made_again(place):
    states = [ABSENT, ACTIVE, ("describe", 0, "SUSPENDED"), ABSENT, ACTIVE]
    done = _queue(place, *states, sgqlm=[("", 75), ("", 0)])
    assert done.returncode == 0, done.stderr
    assert _verbs(place) == ["create", "delete", "create", "delete"]
    assert len(place.trained()) == 2


def test_a_slice_that_is_still_there_is_used_again(place):
    done = _queue(place, ABSENT, ACTIVE, sgqlm=[("", 75), ("", 0)])
    assert done.returncode == 0, done.stderr
    assert _verbs(place) == ["create", "delete"]
    assert len(place.trained()) == 2


def test_no_capacity(place):
    done = _queue(place, ABSENT, ("describe", 0, "FAILED"))
    assert done.returncode == 6
    assert "became FAILED" in done.stderr
    assert _verbs(place) == ["create", "delete"]
    assert not place.trained()


def test_a_resource_of_that_name_is_left_alone(place):
    done = _queue(place, ACTIVE)
    assert done.returncode == 2
    assert "already" in done.stderr
    assert not _verbs(place)


def test_a_refused_request_is_told_and_tidied(place):
    done = _queue(place, ABSENT, ("create", 1))
    assert done.returncode == 1
    assert _verbs(place) == ["create", "delete"]


def test_the_slice_ends_with_its_hours(place):
    place.answer(
        gcloud=[SSH, ("--stop sgqlm.pid", 0, "", "run"), ABSENT, ACTIVE],
        sgqlm=[("", 75, "", "until TERM")],
    )
    words = [*LAUNCHES["queued_resource.sh"], "--", *WORDS]
    process = place.start("queued_resource.sh", *words, SGQLM_DEADLINE_SECONDS="2")
    err = process.communicate(timeout=25)[1]
    assert process.returncode == 75, err
    assert "24 hours are over" in err
    assert _verbs(place) == ["create", "delete"]
    assert len(place.trained()) == 1


def test_ctrl_c_deletes_the_slice(place):
    place.answer(
        gcloud=[SSH, ("--stop sgqlm.pid", 0, "", "run"), ABSENT, ACTIVE],
        sgqlm=[("", 75, "", "until TERM")],
    )
    process = place.start("queued_resource.sh", *LAUNCHES["queued_resource.sh"], "--", *WORDS)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=25)[1]
    assert process.returncode == 75, err
    assert _verbs(place) == ["create", "delete"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--type=v9-1"], "give --runtime"),
        (["--bucket="], "--spot needs --bucket"),
        (["--max-hours=two"], "--max-hours must be a whole number"),
        (["--max-hours=0"], "--max-hours must be at least 1"),
    ],
)
def test_queued_resource_refuses(place, change, message):
    words = [*LAUNCHES["queued_resource.sh"], *change, "--", *WORDS]
    done = place.run("queued_resource.sh", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not place.calls("gcloud")


def _submitted(place):
    """Return the job that `sbatch` was given: its options, and the words for the script."""
    words = place.calls("sbatch")[0]["words"]
    at = next(i for i, word in enumerate(words) if word.endswith("slurm.sbatch"))
    return words[:at], words[at:]


def _job(place, **settings):
    """Run what was submitted as Slurm does: a copy of the script, elsewhere."""
    _, (script, *words) = _submitted(place)
    copy = place.folder / "spool"
    copy.write_bytes(pathlib.Path(script).read_bytes())
    env = place.environment(SLURM_JOB_ID="7", **settings)
    command = ["bash", copy, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=20)


def test_slurm_submits_itself(place):
    words = ["--nodes=2", "--gpus=8", "--partition=p q", "--time=1:00:00", "--wait"]
    place.answer(sbatch=[("", 5, "Submitted batch job 7\n")])
    done = place.run("slurm.sbatch", "--workdir=my runs/a", *words, "--", *WORDS)
    assert (done.returncode, done.stdout) == (5, "Submitted batch job 7\n")
    options, _ = _submitted(place)
    wanted = {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=p q", "--wait"}
    assert wanted <= set(options)
    assert (place.folder / "my runs" / "a" / "logs").is_dir()
    text = (paths.ROOT / "launch" / "slurm.sbatch").read_text()
    assert "\n#SBATCH --requeue\n#SBATCH --signal=B:TERM@120\n" in text


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, "0", 0), (75, "", 1), (75, "9", 1), (75, "10", 0), (3, "0", 0)],
)
def test_slurm_queues_again_after_75_only(place, code, restarts, requeued):
    assert place.run("slurm.sbatch", *LAUNCHES["slurm.sbatch"], "--", *WORDS).returncode == 0
    place.answer(srun=[("", 0, "", "run")], sgqlm=[("", code)])
    counted = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    done = _job(place, SLURM_PROCID="0", **counted)
    assert done.returncode == code, done.stderr
    assert [c["words"] for c in place.calls("scontrol")] == [["requeue", "7"]] * requeued
    workdir = place.folder / "my runs" / "a"
    assert place.trained() == [["train", f"--config.train.workdir={workdir}", *WORDS]]
    assert (workdir / "logs" / "process-0.log").exists()


def test_slurm_gives_the_tasks_time_to_save(place):
    place.run("slurm.sbatch", *LAUNCHES["slurm.sbatch"], "--", *WORDS)
    place.answer(srun=[("", 0, "", "run")], sgqlm=[("", 75, "", "until TERM")])
    _, (_script, *words) = _submitted(place)
    process = place.start("slurm.sbatch", *words, SLURM_JOB_ID="7")
    os.kill(process.pid, signal.SIGTERM)  # as --signal=B: the script alone
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert "saved" in out
    assert place.calls("scancel")[0]["words"] == ["--signal=TERM", "7"]
    assert place.calls("scontrol")[0]["words"] == ["requeue", "7"]


def _manifest(place, *words):
    done = place.run("gke.sh", *LAUNCHES["gke.sh"], *words, "--print", "--", *WORDS)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_gke_sends_the_manifest_it_shows(place):
    shown = _manifest(place)
    done = place.run("gke.sh", *LAUNCHES["gke.sh"], "--namespace=n", "--", *WORDS)
    assert done.returncode == 0, done.stderr
    call = place.calls("kubectl")[0]
    assert call["words"] == ["--namespace=n", "create", "-f", "-"]
    assert yaml.safe_load(call["stdin"]) == shown


def test_gke_runs_the_words_as_given(place):
    job = _manifest(place)["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = job["template"]["spec"]["containers"][0]["command"]
    env = place.environment(JOB_COMPLETION_INDEX="2")
    subprocess.run(command, cwd=place.repo, env=env, check=True, capture_output=True)
    assert place.trained() == [["train", "--config.train.workdir=bucket/my runs", *WORDS]]
    assert (place.repo / "bucket" / "my runs" / "logs" / "process-2.log").exists()


@pytest.mark.parametrize(
    ("conditions", "codes", "ends"),
    [("Completed", "", 0), ("StartupPolicyInProgress Failed", "0 3", 3), ("Failed", "", 1)],
)
def test_gke_waits_and_gives_the_code(place, conditions, codes, ends):
    place.answer(
        kubectl=[
            ("get jobset", 1),
            ("get jobset", 0, ""),
            ("get jobset", 0, conditions),
            ("get pods", 0, codes),
        ]
    )
    assert place.run("gke.sh", *LAUNCHES["gke.sh"], "--wait", "--", *WORDS).returncode == ends


def test_gke_does_not_wait_for_what_was_refused(place):
    place.answer(kubectl=[("create", 1)])
    assert place.run("gke.sh", *LAUNCHES["gke.sh"], "--wait", "--", *WORDS).returncode == 1
    assert len(place.calls("kubectl")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--type=v9"], "known: v5e-8, v5e-16, v4-8, v4-16"),
        (["--name=Run_1"], "--name must be"),
        (["--workdir=runs/a"], "must be in bucket/"),
    ],
)
def test_gke_refuses(place, change, message):
    done = place.run("gke.sh", *LAUNCHES["gke.sh"], *change, "--", *WORDS)
    assert done.returncode == 2
    assert message in done.stderr
    assert not place.calls("kubectl")


def test_sky_runs_the_words_as_given(place):
    place.answer(sky=[("", 4)])
    done = place.run("sky.sh", *LAUNCHES["sky.sh"], "--gpus=H200:1", "--on-demand", "--", *WORDS)
    assert done.returncode == 4
    call = place.calls("sky")[0]
    assert call["words"][:3] == ["jobs", "launch", "--yes"]
    assert {"--gpus=H200:1", "--no-use-spot", "launch/sky.yaml"} <= set(call["words"])
    assert call["cwd"] == str(place.repo)
    given = [b for a, b in zip(call["words"], call["words"][1:], strict=False) if a == "--env"]
    env = dict(pair.split("=", 1) for pair in given)
    assert env["SGQLM_ACCEL"] == "cuda"
    (place.folder / "home" / "sgqlm-bucket").mkdir()
    task = yaml.safe_load((paths.ROOT / "launch" / "sky.yaml").read_text())
    assert set(task["envs"]) == set(env)
    env = place.environment(**env)
    subprocess.run(["bash", "-c", task["run"]], cwd=place.repo, env=env, check=True)
    assert place.trained() == [["train", "--config.train.workdir=bucket/my runs", *WORDS]]
    assert (place.folder / "home" / "sgqlm-bucket" / "my runs" / "logs").is_dir()
