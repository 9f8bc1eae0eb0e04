"""The device mesh, and batches on it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sgqlm import errors
from sgqlm.parallel import rules


def make(sizes: Mapping[str, int], devices: list[Any] | None = None) -> Mesh:
    """Build the mesh with the axes data, fsdp and tensor.

    Args:
        sizes: axis name -> size; an absent axis is 1, at most one may be -1 (what is left).
        devices: the `jax.Device`s to use, default all.

    Returns:
        The mesh; all its axes are of type Auto.

    Raises:
        SgqlmError: an axis is unknown or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _resolve(dict(sizes), len(devices))
    if devices == jax.devices():
        types = (AxisType.Auto,) * len(shape)
        return jax.make_mesh(shape, rules.MESH_AXES, axis_types=types)
    grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, rules.MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(rules.BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Return over how many devices a batch is divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Place this process's share of a batch; every array has the batch as its first axis."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    put = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: put(sharding, np.asarray(x)), batch)


def _resolve(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    where = "config.train.mesh"
    if unknown := set(sizes) - set(rules.MESH_AXES):
        fix = "the axes are " + ", ".join(rules.MESH_AXES)
        raise errors.SgqlmError(f"unknown mesh axis {unknown.pop()!r}", where=where, fix=fix)
    shape = [sizes.get(axis, 1) for axis in rules.MESH_AXES]
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) == 1 and known > 0 and num_devices % known == 0:
        shape[shape.index(-1)] = num_devices // known
        known = num_devices
    if -1 in shape or known != num_devices or min(shape) < 1:
        raise errors.SgqlmError(
            f"the mesh {sizes} does not fit {num_devices} devices",
            where=where,
            fix="give sizes whose product is the number of devices; -1 takes what is left",
        )
    return tuple(shape)
