"""env.sh, which every process of a run goes through."""

import os
import signal

import pytest

TRAIN = ["--workdir=my run", "--", "sgqlm", "train", "a b"]


def _env(place):
    return place.calls("sgqlm")[-1]["env"]


def test_the_command_its_environment_and_its_code(place):
    place.answer(sgqlm=[("", 5, "the answer\n")])
    done = place.run("env.sh", *TRAIN)
    assert (done.returncode, done.stdout) == (5, "the answer\n")
    assert place.trained() == [["train", "a b"]]
    assert _env(place) == {
        "JAX_COMPILATION_CACHE_DIR": "my run/compile_cache",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    }
    log = (place.folder / "my run" / "logs" / "process-0.log").read_text()
    assert log.endswith("the answer\n")
    assert "sgqlm train a\\ b" in log.splitlines()[0]


def test_what_the_user_has_set_stays(place):
    place.run("env.sh", *TRAIN, JAX_COMPILATION_CACHE_DIR="cache", JAX_COORDINATOR_ADDRESS="c:1")
    assert _env(place)["JAX_COMPILATION_CACHE_DIR"] == "cache"
    assert _env(place)["JAX_COORDINATOR_ADDRESS"] == "c:1"


def test_other_processes_write_only_their_log(place):
    place.answer(sgqlm=[("", 0, "hello\n"), ("", 3, "what went wrong\n")])
    for number, code in (("1", 0), ("2", 3)):
        done = place.run("env.sh", *TRAIN, SLURM_PROCID=number)
        assert done.returncode == code
        assert done.stdout == ""
        assert ("what went wrong" in done.stderr) == bool(code)
    log = place.folder / "my run" / "logs" / "process-1.log"
    assert log.read_text().endswith("hello\n")


@pytest.mark.parametrize(
    ("endpoints", "address"),
    [("10.0.0.2,10.0.0.3,10.0.0.4", "10.0.0.2"), ("a:0:10.1.0.2,b:1:10.1.0.3,c:2:d", "10.1.0.2")],
)
def test_the_workers_of_a_tpu_slice_find_each_other(place, endpoints, address):
    place.answer(curl=[("worker-network-endpoints", 0, endpoints), ("agent-worker", 0, "2")])
    done = place.run("env.sh", "--tpu-vm", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert _env(place)["JAX_COORDINATOR_ADDRESS"] == f"{address}:8482"
    assert _env(place)["JAX_NUM_PROCESSES"] == "3"
    assert _env(place)["JAX_PROCESS_ID"] == "2"
    assert (place.folder / "my run" / "logs" / "process-2.log").exists()


def test_a_slice_of_one_host_needs_no_coordinator(place):
    place.answer(curl=[("worker-network-endpoints", 0, "10.0.0.2")])
    assert place.run("env.sh", "--tpu-vm", *TRAIN).returncode == 0
    assert "JAX_COORDINATOR_ADDRESS" not in _env(place)


def test_no_metadata_server(place):
    place.answer(curl=[("", 6)])
    done = place.run("env.sh", "--tpu-vm", *TRAIN)
    assert done.returncode == 6
    assert "metadata server" in done.stderr
    assert not place.trained()


def test_the_nodes_of_skypilot_find_each_other(place):
    ips = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NODE_RANK": "1"}
    assert place.run("env.sh", *TRAIN, **ips).returncode == 0
    assert _env(place)["JAX_COORDINATOR_ADDRESS"] == "10.0.0.7:8482"
    assert _env(place)["JAX_NUM_PROCESSES"] == "2"
    assert _env(place)["JAX_PROCESS_ID"] == "1"
    ips["SKYPILOT_NODE_IPS"] = "10.0.0.7"
    assert place.run("env.sh", *TRAIN, **ips).returncode == 0
    assert "JAX_NUM_PROCESSES" not in _env(place)


def test_a_signal_reaches_the_run_and_its_last_words_the_log(place):
    place.answer(sgqlm=[("", 75, "", "until TERM")])
    process = place.start("env.sh", *TRAIN)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert out.endswith("saved\n")
    log = place.folder / "my run" / "logs" / "process-0.log"
    assert log.read_text().endswith("saved\n")


def test_a_second_run_stops_the_first(place):
    place.answer(sgqlm=[("", 75, "", "until TERM"), ("", 0)])
    first = place.start("env.sh", "--exclusive=pid", *TRAIN)
    second = place.run("env.sh", "--exclusive=pid", *TRAIN)
    assert second.returncode == 0, second.stderr
    assert "stopping process" in second.stderr
    assert first.wait(timeout=5) == 75
    first.communicate()
    assert not (place.folder / "pid").exists()


def test_stop_waits_until_it_is_saved(place):
    place.answer(sgqlm=[("", 75, "", "until TERM")])
    first = place.start("env.sh", "--exclusive=pid", *TRAIN)
    assert place.run("env.sh", "--stop=pid").returncode == 0
    assert first.wait(timeout=5) == 75
    first.communicate()
    assert place.run("env.sh", "--stop=pid").returncode == 0  # nothing runs


def test_a_number_that_belongs_to_another_program_is_left_alone(place):
    (place.folder / "pid").write_text(str(os.getpid()))
    assert place.run("env.sh", "--stop=pid").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--workdir=r"], 2, "the command is missing"),
        (["--", "sgqlm"], 2, "--workdir is missing"),
        (["--workdir=gs://b/r", "--", "sgqlm"], 2, "mount the bucket"),
        (["--workdir=r", "--", "nothing"], 6, "nothing is not installed"),
        (["--workdir=file/r", "--", "sgqlm"], 6, "cannot be written"),
    ],
)
def test_mistakes(place, words, code, message):
    (place.folder / "file").write_text("")
    done = place.run("env.sh", *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert not place.trained()


def test_print(place):
    done = place.run("env.sh", "--print", *TRAIN)
    assert done.returncode == 0
    assert "JAX_COMPILATION_CACHE_DIR=my\\ run/compile_cache" in done.stdout
    assert done.stdout.endswith("sgqlm train a\\ b\n")
    assert not place.calls()
