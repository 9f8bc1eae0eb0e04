import os

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.train import checkpoint, crash, stage_loop
from tests.train import toys


@pytest.fixture
def bundle(tmp_path):
    """A work directory with a bundle of two steps."""
    meta = checkpoint.Meta({}, "toy", 0, 4, False)
    state = checkpoint.save(tmp_path / "checkpoints", meta, toys.params())
    batches = [(toys.batch(4), None), (toys.batch(5), np.ones((8, 2), np.float16))]
    found = stage_loop.Crash(4, [{"loss": float("nan")}, {"loss": 2.5}], batches, [1])
    job = toys.job(toys.stage(), 9)._replace(records=lambda step: [f"record {step}"])
    options = {"about": {"seed": 3}, "state": state, "mesh": toys.mesh()}
    return crash.write(tmp_path, job, found, **options)


def test_a_bundle_is_read_back(bundle, tmp_path):
    assert bundle == tmp_path / "crash" / "toy-0000004"
    read = crash.read(tmp_path)
    assert read == crash.read(bundle)
    assert read.about["seed"] == 3
    assert read.about["records"] == [["record 4"], ["record 5"]]
    assert np.isnan(read.about["reports"][0]["loss"])
    batch, features = crash.batch(read, 4)
    assert features is None
    assert toys.same(batch, toys.batch(4))
    assert (crash.batch(read, 5)[1] == 1).all()
    assert checkpoint.verify(read.checkpoint) == []
    original = tmp_path / "checkpoints" / read.checkpoint.name / "meta.json"
    (saved,) = checkpoint.find(tmp_path / "checkpoints")
    assert os.path.samefile(saved / "meta.json", read.checkpoint / "meta.json")  # a link
    assert not original.exists()


def test_the_rows_of_several_processes_are_put_in_order(bundle):
    file = bundle / "step-0000004.0.npz"
    whole = dict(np.load(file))
    for process, rows in enumerate(([4, 5, 6, 7], [0, 1, 2, 3, 4])):
        part = {name: value[rows] for name, value in whole.items()}
        np.savez(bundle / f"step-0000004.{process}.npz", **part)
    read = crash.Bundle(bundle, {}, bundle)
    assert toys.same(crash.batch(read, 4)[0], toys.batch(4))


def test_a_graph_is_kept(bundle):
    batch = toys.batch(0)
    graph = crash.types.GraphBatch(*(np.full((8, 1), i) for i in range(6)))
    packed = crash._packed(batch._replace(graph=graph), None)
    assert toys.same(crash._unpacked(packed)[0], batch._replace(graph=graph))


@pytest.mark.parametrize("name", ["step-0000005.0.npz", "bundle.json", "checkpoint/meta.json"])
def test_a_damaged_bundle_is_refused(bundle, name):
    (bundle / name).unlink()
    where = bundle if name != "bundle.json" else bundle.parent.parent
    with pytest.raises(errors.SgqlmError) as caught:
        crash.read(where)
    assert caught.value.code == errors.CHECKPOINT
