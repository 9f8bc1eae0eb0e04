"""What decides the order of sums, and so whether a resumed run is bit-identical."""

from typing import Any

import jax
from jax.sharding import Mesh

from sgqlm import config
from sgqlm.train import checkpoint


def where(mesh: Mesh) -> dict[str, Any]:
    """Return what decides the order of sums; a run that resumes elsewhere is not bit-identical.

    Args:
        mesh: of the run.

    Returns:
        `{"axes", "processes", "device"}`, plain JSON.
    """
    device = mesh.devices.flat[0]
    axes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    return {"axes": axes, "processes": jax.process_count(), "device": device.device_kind}


def notes(meta: checkpoint.Meta, settings: config.Config, mesh: Mesh) -> list[str]:
    """Return what makes sums round otherwise than in the run that wrote a checkpoint.

    Args:
        meta: of the checkpoint.
        settings: of the run that goes on from it.
        mesh: of that run.

    Returns:
        One text a difference, to follow "the checkpoint was written".
    """
    now = where(mesh)
    found = [f"on {_text(meta.mesh)}, this run has {_text(now)}"] if meta.mesh != now else []
    tree = config.to_dict(settings)
    for group, name in (("model", "attention"), ("train", "remat")):
        before, after = meta.config.get(group, {}).get(name), tree[group][name]
        found += [f"with {name} {before}, this run has {after}"] if before != after else []
    before, after = meta.versions, checkpoint.versions()
    unlike = [name for name in after if before.get(name) != after[name]]
    changed = [f"{name} {before.get(name, 'unknown')}" for name in unlike]
    return found + ([f"by {', '.join(changed)}"] if changed else [])


def _text(where: dict[str, Any]) -> str:
    if not where:
        return "an unknown mesh"
    axes = " x ".join(f"{axis} {size}" for axis, size in where["axes"].items()) or "one device"
    return f"{axes} ({where['device']}, processes: {where['processes']})"
