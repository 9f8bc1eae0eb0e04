"""`--mesh data=2,tensor=2`: on which devices of this process a model lies that only answers."""

import math
from collections.abc import Mapping

import jax

from sgqlm import config
from sgqlm.cli import common
from sgqlm.parallel import mesh as mesh_lib

HELP = (
    "devices of a process, such as data=2,tensor=2; -1 is what is left (default data=-1: each has "
    "the whole model and answers other questions)"
)


def force(text: str) -> None:
    """Let the CPU backend show as many devices as fixed sizes need; before the first array."""
    sizes = common.parse_mesh(text) if text else {}
    if min(sizes.values(), default=1) > 0:
        common.force_devices(math.prod(sizes.values()))


def choose(text: str, settings: config.Config | None = None) -> dict[str, int] | None:
    """Return the mesh of the devices of this process, for `model.load`.

    Without --mesh all of them share the questions. A tensor size of the training settings is kept,
    since a model that needs it may not fit otherwise; data and fsdp are what is there.

    Args:
        text: the value of --mesh; empty for the default.
        settings: those of --config; None where there is none.

    Returns:
        Axis -> size; None where the process has one device.

    Raises:
        SgqlmError: the sizes do not give the devices.
    """
    sizes: Mapping[str, int] = common.parse_mesh(text) if text else {"data": -1}
    where = f"--mesh {text}"
    tensor = settings.train.mesh.get("tensor", 1) if settings else 1
    if not text and tensor > 1:
        sizes, where = {"data": -1, "tensor": tensor}, "config.train.mesh (give --mesh)"
    made = mesh_lib.make(sizes, jax.local_devices(), where=where)
    return dict(made.shape) if made.size > 1 else None
