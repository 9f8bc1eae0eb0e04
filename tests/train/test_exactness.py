import dataclasses

from sgqlm import config
from sgqlm.train import checkpoint, exactness
from tests.train import toys


def test_what_rounds_otherwise_is_told():
    settings, here = config.Config(), exactness.where(toys.mesh())
    assert here == {"axes": {}, "processes": 1, "device": "cpu"}
    versions = checkpoint.versions()
    meta = checkpoint.Meta(config.to_dict(settings), "a", 0, 1, False, mesh=here, versions=versions)
    assert exactness.notes(meta, settings, toys.mesh()) == []
    train = dataclasses.replace(settings.train, remat="dots")
    changed = dataclasses.replace(settings, train=train)
    assert exactness.notes(meta, changed, toys.mesh()) == ["with remat none, this run has dots"]
    axes = {"axes": {"data": 2, "fsdp": 4}, "processes": 2, "device": "TPU v5"}
    other = dataclasses.replace(meta, mesh=axes, versions=versions | {"jax": "0.1"})
    assert exactness.notes(other, settings, toys.mesh()) == [
        "on data 2 x fsdp 4 (TPU v5, processes: 2), this run has one device (cpu, processes: 1)",
        "by jax 0.1",
    ]
    old = dataclasses.replace(meta, mesh={})
    assert exactness.notes(old, settings, toys.mesh())[0].startswith("on an unknown mesh")
