"""`sgqlm eval --tasks=...` on several devices and by several processes, as a user types it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.evals import benchmark, sharing
from tests import paths, xla
from tests.evals import benchmark_files as files
from tests.parallel import launching

FAST = ("--max-new-tokens=4", "--template=trained", "--entities=none")
TASKS = "seed,mmbench"


def words(trained, root, out, *more, tasks=TASKS):
    given = [f"--tasks={tasks}", f"--checkpoint={trained}", f"--root={root}", f"--out={out}"]
    return ["eval", *map(str, given), *FAST, *more]


def start(count, arguments, logs, *, devices=2):
    """Start `sgqlm eval` in processes on this machine; give what they say in files."""
    port, started = launching.free_port(), []
    logs.mkdir(parents=True)
    for index in range(count):
        flags = {"XLA_FLAGS": xla.flags(devices)}
        env = launching.environment(index, port, count=count) | flags
        with (logs / f"{index}.out").open("w") as out, (logs / f"{index}.err").open("w") as err:
            command = [sys.executable, "-m", "sgqlm", *arguments]
            started.append(
                subprocess.Popen(command, env=env, cwd=paths.ROOT, stdout=out, stderr=err)
            )
    return started


def said(logs, index=0):
    return (logs / f"{index}.err").read_text()


def bytes_of(out):
    return [(out / name / benchmark.ANSWERS).read_bytes() for name in TASKS.split(",")]


@pytest.fixture(scope="module")
def alone(trained, ours, tmp_path_factory):
    """Return what one process with one device writes, question by question."""
    out = tmp_path_factory.mktemp("alone")
    assert main.main(words(trained, ours, out, "--batch-size=1")) == errors.OK
    return out


def test_two_processes_on_meshes_write_the_file_of_one(trained, ours, alone, tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    started = start(2, words(trained, ours, out, "--batch-size=2", "--mesh=data=2"), logs)
    assert launching.finish(started, timeout=100) == [0, 0], said(logs) + said(logs, 1)
    assert bytes_of(out) == bytes_of(alone)
    for name in TASKS.split(","):
        first, second = (len(path.read_text().splitlines()) - 1 for path in progress(out / name))
        assert abs(first - second) <= 4 and second  # the four rolls of an item stay together
        assert {path.name for path in (out / name).glob(".*")} == set()
    assert "process 0 of 2: 2 of 4 devices" in said(logs) and "seed, process 0 of 2" in said(logs)
    assert "seed, process" not in said(logs, 1)
    report = (out / "seed" / benchmark.REPORT).read_text()
    assert json.loads(report)["score"]["count"] == 3
    told = [(logs / f"{index}.out").read_text() for index in range(2)]
    assert benchmark.REPORT in told[0] and benchmark.REPORT not in told[1]
    # one process goes on with what two have, also where one of them was killed while it wrote
    path = sharing.files(out / "mmbench" / benchmark.PROGRESS)[1]
    text = path.read_text()
    path.write_text(text[:-30])
    os.unlink(out / "mmbench" / benchmark.ANSWERS)
    assert main.main(words(trained, ours, out, "--batch-size=1")) == errors.OK
    assert bytes_of(out) == bytes_of(alone)
    assert path.read_text() == "".join(text.splitlines(keepends=True)[:-1])


def progress(folder):
    return sharing.files(folder / benchmark.PROGRESS)


def test_a_folder_in_which_an_evaluation_works_is_refused(trained, ours, tmp_path, capsys):
    for name in ("seed", "scenes"):
        (tmp_path / name).mkdir()
    script = (
        "import pathlib, sys; from sgqlm.data import lock\n"
        "with lock.hold(pathlib.Path(sys.argv[1]), 'it', ''), "
        "lock.hold(pathlib.Path(sys.argv[2]), 'it', ''): print('held', flush=True); input()"
    )
    files_held = [str(tmp_path / name / sharing.LOCK) for name in ("seed", "scenes")]
    command = [sys.executable, "-c", script, *files_held]
    with subprocess.Popen(
        command, cwd=paths.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        assert main.main(words(trained, ours, tmp_path)) == errors.USAGE
        assert main.main(words(trained, ours, tmp_path, tasks="pope,seed")) == errors.USAGE
        few = ("--limit=2", "--batch-size=2", f"--checkpoint={trained}", f"--out={tmp_path}")
        assert main.main(["eval", "--tasks=scenes", *few]) == errors.USAGE
        other.communicate("\n")
    seen = capsys.readouterr().err
    assert seen.count("the folder of the results is locked by process") == 3
    assert not list(tmp_path.rglob("*.jsonl")) and not (tmp_path / "pope").exists()


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=3", "the mesh {'data': 3} does not fit"),
        ("data=2,tensor=-1,fsdp=-1", "does not fit"),
        ("rows=2", "unknown mesh axis 'rows'"),
        ("data", "'data' is no axis of a mesh"),
        ("data=0", "does not fit"),
    ],
)
def test_a_wrong_mesh_is_told(trained, ours, tmp_path, capsys, mesh, message):
    out = tmp_path / "out"
    assert main.main(words(trained, ours, out, f"--mesh={mesh}")) == errors.USAGE
    seen = capsys.readouterr().err
    assert message in seen and f"--mesh {mesh}" in seen
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["", "data=4", "data=2,tensor=2", "tensor=4", "fsdp=2,data=2"])
def test_every_mesh_and_batch_gives_the_same(trained, ours, alone, tmp_path, mesh):
    for size in (1, 4, 5):
        out = tmp_path / str(size)
        more = [f"--batch-size={size}"] + ([f"--mesh={mesh}"] if mesh else [])
        started = start(1, words(trained, ours, out, *more), tmp_path / f"logs{size}", devices=4)
        assert launching.finish(started) == [0], said(tmp_path / f"logs{size}")
        assert bytes_of(out) == bytes_of(alone)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Return a benchmark that takes some seconds, question by question."""
    root = files.make(tmp_path_factory.mktemp("larger"), ("seed",))
    path = root / "seed_bench" / "SEED-Bench.json"
    content = json.loads(path.read_text())
    first = content["questions"][0]
    content["questions"] = [{**first, "question_id": str(at)} for at in range(300)]
    path.write_text(json.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_nothing_is_repeated(
    trained, larger, tmp_path, victim
):
    out, logs = tmp_path / "out", tmp_path / "logs"
    given = words(trained, larger, out, "--batch-size=1", tasks="seed")
    started = start(2, given, logs, devices=1)
    kill_when(started, out, lambda: (started[victim].kill(), started[victim].wait()))
    codes = launching.finish(started, timeout=200)
    assert codes[victim] == -signal.SIGKILL
    if victim == 1:
        assert codes[0] == errors.RESOURCES
        assert "process 1 of the evaluation is gone" in said(logs)
        assert "start the same command again" in said(logs)
    else:  # jax ends the others when the process that coordinates them is gone
        assert codes[1] != 0
    kept = [path.read_text() for path in progress(out / "seed")]
    started = start(2 if victim else 3, given, tmp_path / "again", devices=1)
    assert not any(launching.finish(started)), said(tmp_path / "again")
    files_now = progress(out / "seed")
    for path, before in zip(files_now, kept, strict=False):
        assert path.read_text().startswith(before[: before.rfind("\n") + 1])
    lines = [line for path in files_now for line in path.read_text().splitlines()[1:]]
    assert len(lines) == 300
    assert main.main(words(trained, larger, tmp_path / "one", tasks="seed")) == errors.OK
    name = f"seed/{benchmark.ANSWERS}"
    assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_and_failures_of_one_process_end_all(trained, larger, tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    given = words(trained, larger, out, "--batch-size=1", tasks="seed")
    started = start(2, given, logs, devices=1)
    kill_when(started, out, lambda: started[1].terminate())
    assert launching.finish(started, timeout=100) == [errors.PREEMPTED] * 2
    assert "process 1 of the evaluation failed" in said(logs) and "SIGTERM" in said(logs)
    # the two are given different settings: as a host on which the command was mistyped
    port, started = launching.free_port(), []
    for index, tokens in enumerate(("4", "5")):
        env = launching.environment(index, port)
        command = [sys.executable, "-m", "sgqlm", *given, f"--max-new-tokens={tokens}"]
        with (tmp_path / f"{index}.err").open("w") as err:
            started.append(
                subprocess.Popen(command, env=env, cwd=paths.ROOT, stderr=err, stdout=err)
            )
    codes = launching.finish(started, timeout=100)
    assert all(codes)
    assert "max_new_tokens" in said(tmp_path) + said(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, errors.PREEMPTED), (signal.SIGINT, errors.INTERRUPTED)],
)
def test_a_signal_while_programs_are_compiled_gives_its_code(trained, ours, tmp_path, number, code):
    out, logs = tmp_path / "out", tmp_path / "logs"
    (one,) = start(1, words(trained, ours, out, tasks="seed"), logs, devices=1)
    limit = time.monotonic() + 100
    while not progress(out / "seed") and one.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.5)  # it has just begun, and compiles for seconds
    one.send_signal(number)
    assert launching.finish([one], timeout=60) == [code], said(logs)


def kill_when(started, out, action):
    limit = time.monotonic() + 200
    while all(p.poll() is None for p in started) and time.monotonic() < limit:
        with contextlib.suppress(OSError):
            if all(len(path.read_text().splitlines()) > 5 for path in progress(out / "seed")) and (
                len(progress(out / "seed")) == 2
            ):
                action()
                return
        time.sleep(0.02)
    raise AssertionError("it ended too early")
