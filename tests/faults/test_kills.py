"""Processes that are stopped or killed, and what the next one makes of it."""

import shutil
import signal
import socket

import pytest

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.train import checkpoint, metrics, workdir, writing
from tests.faults import runs


def unfinished(folder):
    return list((folder / checkpoint.FOLDER).glob(f"{writing.ASIDE}*"))


def test_killed_during_a_save_and_locked_meanwhile(plan, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    first = runs.Process(plan, folder, "--config.train.save_every=10")
    first.until(lambda: (folder / workdir.LOCK).is_file(), "the lock")
    capsys.readouterr()
    assert main.main(["train", plan, f"--config.train.workdir={folder}"]) == errors.USAGE
    assert f"locked by process {first.process.pid} on" in capsys.readouterr().err
    first.until(lambda: runs.names(folder) and unfinished(folder), "a save")
    first.send(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    (left,) = unfinished(folder)  # it was killed in time
    newest = runs.names(folder)[-1]
    second = runs.Process(plan, folder)
    assert second.end() == errors.OK, second.text
    assert f"taken over from process {first.process.pid}" in second.text
    assert (
        f"removed the unfinished checkpoint {left.name.removeprefix(writing.ASIDE)}" in second.text
    )
    assert f"resuming {newest}" in second.text
    assert not unfinished(folder)
    assert runs.same(whole, folder)
    found = list(metrics.read(folder, "goodput")["run"].values())[-1]
    assert found["step_seconds"] > 0
    assert found["lost_seconds"] > 0
    assert (folder / workdir.LOCK).read_text() == ""


def test_sigterm_saves_and_leaves_with_75(plan, whole, tmp_path):
    folder = tmp_path / "run"
    first = runs.Process(plan, folder)
    first.until_step(7)
    first.send(signal.SIGTERM)
    assert first.end() == errors.PREEMPTED, first.text
    done = checkpoint.newest(folder)[1].step
    assert done not in (0, runs.SAVE_EVERY, runs.STEPS)
    assert done - runs.last_step(folder) == 0
    assert "stopped by SIGTERM" in first.text
    assert "goodput" in first.text
    assert "Traceback" not in first.text
    second = runs.Process(plan, folder)
    assert second.end() == errors.OK, second.text
    assert runs.same(whole, folder)


def test_a_second_ctrl_c_stops_at_once(plan, tmp_path):
    folder = tmp_path / "run"
    process = runs.Process(plan, folder)
    process.until(lambda: runs.last_step(folder) > runs.SAVE_EVERY, "the first checkpoint")
    process.send(signal.SIGINT)
    process.until_text("press it again")
    process.send(signal.SIGINT)
    assert process.end() == errors.INTERRUPTED
    assert "stopped at once, Ctrl-C came twice" in process.text
    assert "the state was saved first" not in process.text
    assert all(not checkpoint.verify(found) for found in checkpoint.find(folder))


@pytest.mark.parametrize(
    ("number", "seen", "code"),
    [
        (signal.SIGINT, "/.lock", errors.INTERRUPTED),  # tokenizer and first parameters
        (signal.SIGTERM, "stage align", errors.PREEMPTED),  # compiling
    ],
)
def test_before_the_first_step_there_is_nothing_to_save(plan, tmp_path, number, seen, code):
    folder = tmp_path / "run"
    process = runs.Process(plan, folder)
    process.until(lambda: (tmp_path / f"run{seen}").exists() or seen in process.text, seen)
    process.send(number)
    assert process.end() == code, process.text
    assert "nothing to save yet" in process.text
    assert not runs.names(folder)
    assert "Traceback" not in process.text


@pytest.mark.slow
def test_on_other_meshes_the_batches_are_the_same(plan, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for step in (80, runs.STEPS):
        shutil.rmtree(folder / "checkpoints" / f"00-align-{step:07d}")
    kept = (folder / metrics.FILE).read_text()
    (folder / metrics.FILE).unlink()
    mesh = '--config.train.mesh={"data": 2, "fsdp": 2}'
    four = runs.Process(plan, folder, mesh, devices=4)
    four.until_step(80)
    four.send(signal.SIGTERM)
    assert four.end() == errors.PREEMPTED, four.text
    assert "not bit-identical: the checkpoint was written on one device" in four.text
    two = runs.Process(plan, folder, '--config.train.mesh={"fsdp": 2}', devices=2)
    assert two.end() == errors.OK, two.text
    assert "written on data 2 x fsdp 2" in two.text
    found = metrics.read(folder)["align"]
    (tmp_path / metrics.FILE).write_text(kept)
    expected = metrics.read(tmp_path)["align"]
    assert sorted(found) == list(range(41, runs.STEPS + 1))
    unlike = {s: abs(found[s]["loss"] - expected[s]["loss"]) for s in found}
    assert max(unlike.values()) < 1e-5, unlike  # float32 sums in another order
    assert found[100]["tokens"] == expected[100]["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, errors.PREEMPTED), (signal.SIGINT, errors.INTERRUPTED)],
)
def test_two_processes_stop_together_whichever_is_told(plan, tmp_path, number, code):
    folder = tmp_path / "run"
    words = ["--config.train.stages.align.cache_features=false", '--config.train.mesh={"fsdp": 2}']

    def start():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        common = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
        return [
            runs.Process(plan, folder, *words, JAX_PROCESS_ID=str(index), **common)
            for index in range(2)
        ]

    first = start()
    first[0].until_step(7)
    first[1].send(number)
    assert [process.end() for process in first] == [code, code], first[0].text + first[1].text
    done = checkpoint.newest(folder)[1].step
    assert done == runs.last_step(folder)
    assert all(f"{done:07d}" in process.text for process in first)
    second = start()
    assert [process.end() for process in second] == [0, 0], second[0].text + second[1].text
    assert sorted(metrics.read(folder)["align"]) == list(range(1, runs.STEPS + 1))
    assert checkpoint.newest(folder)[1].is_final
