"""Two processes with four CPU devices each, joined on localhost, make one run."""

import dataclasses
import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from flax import traverse_util

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.train import checkpoint, metrics
from tests.parallel import launching
from tests.train import micro

STEPS = 30
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def settings_file(folder, workdir, scenes, *, is_plain=False):
    """Write the settings of a run; a plain model, without graph and adapters, compiles sooner."""
    row = micro.stage("align", STEPS, "projector", batch_size=8, learning_rates={"projector": 1e-3})
    settings = micro.settings(row, mesh=MESH, workdir=str(workdir))
    placed = dataclasses.replace(settings.scenes, path=str(scenes))
    model = micro.plain(settings.model) if is_plain else settings.model
    settings = dataclasses.replace(settings, scenes=placed, model=model)
    common.write_config(settings, folder / f"{workdir.name}.json")
    return f"--config={folder / f'{workdir.name}.json'}"


def steps_of(workdir) -> dict[int, dict]:
    return metrics.read(workdir).get("align", {})


def params_of(workdir):
    _, params, _ = checkpoint.load_model(workdir)
    return traverse_util.flatten_dict(params, sep="/")


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        # float32 sums in another order over 30 steps of 1e-3
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def seen(logs, tmp_path_factory):
    """Return what each of two processes says it sees."""
    shared = tmp_path_factory.mktemp("shared")
    started = launching.start(["tests.parallel.processes", str(shared)], logs / "seen")
    codes = launching.finish(started)
    assert codes == [0, 0], (logs / "seen" / "0.err").read_text()[-3000:]
    outputs = [(logs / "seen" / f"{i}.out").read_text().splitlines()[-1] for i in range(2)]
    return [json.loads(output) for output in outputs]


def train_and_stop(logs, workdir, *, is_plain=False):
    """Train in two processes and send SIGTERM to the second."""
    config = settings_file(logs, workdir, logs / "scenes", is_plain=is_plain)
    started = launching.start(["sgqlm", "train", config], logs / "first")
    limit = time.monotonic() + 400
    while all(p.poll() is None for p in started) and time.monotonic() < limit:
        if len(steps_of(workdir)) >= 2:
            started[1].send_signal(signal.SIGTERM)
            break
        time.sleep(0.05)
    codes = launching.finish(started)
    assert codes == [errors.PREEMPTED] * 2, errors_of(logs / "first")


def errors_of(folder) -> str:
    return "\n".join((folder / f"{i}.err").read_text()[-2000:] for i in range(2))


def test_rows_follow_from_the_mesh(seen):
    first, second = (report["rows"] for report in seen)
    for mesh, rows in first.items():
        whole = range(16)
        if mesh == "(1, 1, 8)":  # tensor over both: both need all rows
            assert rows == second[mesh] == list(whole)
        else:
            assert len(rows) == 8
            assert sorted(rows + second[mesh]) == list(whole)
    assert first["mixed"] == [0, 1, 4, 5, 8, 9, 12, 13]  # devices of both in turn


def test_processes_agree(seen):
    assert [report["bytes"] for report in seen] == ["same", "same"]
    (code, what, _), (other_code, other, why) = (report["failed"] for report in seen)
    assert (code, what) == (errors.RESOURCES, "the disk is full")
    assert (other_code, other) == (errors.RESOURCES, "another process of the run failed")
    assert "process 0" in why
    assert [report["about"][:27] for report in seen] == [
        f"process {i} of 2: 4 of 8 devi" for i in range(2)
    ]


def test_a_folder_that_is_not_shared_is_found(seen):
    for report in seen:
        assert report["shared"] == []
        code, what, why = report["not shared"]
        assert (code, what) == (
            errors.RESOURCES,
            "the processes do not share the work directory",
        )
        assert why.startswith("process 1 ")


@pytest.mark.timeout(900)
def test_a_signal_to_one_process_stops_both_at_one_step(logs, tmp_path):
    workdir = tmp_path / "two"
    train_and_stop(logs, workdir, is_plain=True)
    [folder] = checkpoint.find(workdir)
    told = [(logs / "first" / f"{i}.err").read_text() for i in range(2)]
    where = [re.search(r"where: (\S+)", text)[1] for text in told]
    assert where == [str(folder)] * 2
    meta = checkpoint.read_meta(folder)
    assert 0 < meta.step < STEPS
    assert not checkpoint.verify(folder)
    assert max(steps_of(workdir)) == meta.step


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_end_where_one_does(tmp_path_factory, tmp_path):
    logs, workdir = tmp_path_factory.mktemp("logs"), tmp_path / "two"
    train_and_stop(logs, workdir)
    copy = shutil.copytree(workdir, tmp_path / "copy" / "two")
    started = launching.start(
        ["sgqlm", "train", settings_file(logs, workdir, logs / "scenes")], logs / "second"
    )
    assert launching.finish(started) == [0, 0], errors_of(logs / "second")
    config = settings_file(tmp_path, tmp_path / "one", logs / "scenes")
    started = launching.start(["sgqlm", "train", config], logs / "one", count=1)
    assert launching.finish(started) == [0], (logs / "one" / "0.err").read_text()[-2000:]
    one, two = steps_of(tmp_path / "one"), steps_of(workdir)
    assert one.keys() == two.keys() == set(range(1, STEPS + 1))
    for step, values in one.items():
        assert abs(values["loss"] - two[step]["loss"]) < 1e-5
        assert values["samples"] == two[step]["samples"] == 8
    same(params_of(workdir), params_of(tmp_path / "one"))
    # what two processes saved goes on in one
    config = settings_file(tmp_path, copy, logs / "scenes")
    started = launching.start(["sgqlm", "train", config], logs / "alone", count=1)
    assert launching.finish(started) == [0], (logs / "alone" / "0.err").read_text()[-2000:]
    assert "resuming" in (logs / "alone" / "0.err").read_text()
    same(params_of(copy), params_of(workdir))
