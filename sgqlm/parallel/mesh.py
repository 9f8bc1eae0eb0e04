"""The device mesh, and batches on it.

A batch is divided over the axes data and fsdp and is whole along tensor. Which rows a process needs
follows from where its devices lie on the mesh, not from its number: `jax.make_mesh` may reorder
devices, and processes along the tensor axis need the same rows.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sgqlm import errors
from sgqlm.parallel import rules


def make(
    sizes: Mapping[str, int],
    devices: list[Any] | None = None,
    *,
    where: str = "config.train.mesh",
) -> Mesh:
    """Build the mesh with the axes data, fsdp and tensor.

    Args:
        sizes: axis name -> size; an absent axis is 1, at most one may be -1 (what is left).
        devices: the `jax.Device`s to use, default all.
        where: the setting or argument that gives the sizes, for messages.

    Returns:
        The mesh; all its axes are of type Auto.

    Raises:
        SgqlmError: an axis is unknown or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _resolve(dict(sizes), len(devices), where)
    if devices == jax.devices():
        types = (AxisType.Auto,) * len(shape)
        return jax.make_mesh(shape, rules.MESH_AXES, axis_types=types)
    grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, rules.MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def for_decode(mesh: Mesh) -> Mesh:
    """Return the mesh that the same devices generate on.

    It has the axes data and tensor. Without fsdp every weight lies whole along data, so that no
    token waits for weights of other devices; a model that does not fit so needs a larger tensor.

    Args:
        mesh: any mesh with the axes of `rules.MESH_AXES`, or some of them.

    Returns:
        The mesh; data is what data and fsdp were.

    Raises:
        SgqlmError: the mesh has another axis.
    """
    if unknown := set(mesh.axis_names) - set(rules.MESH_AXES):
        fix = "place the parameters with sgqlm.parallel.rules.param_shardings"
        raise errors.SgqlmError(f"the parameters lie on a mesh axis {unknown.pop()!r}", fix=fix)
    order = [axis for axis in rules.MESH_AXES if axis in mesh.axis_names]
    grid = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in order])
    grid = grid.reshape(-1, mesh.shape.get("tensor", 1))
    return Mesh(grid, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, rules.spec(("batch",), mesh=mesh.axis_names))


def num_batch_shards(mesh: Mesh) -> int:
    """Return over how many devices a batch is divided."""
    return math.prod(mesh.shape[axis] for axis in rules.present(rules.BATCH_AXES, mesh.axis_names))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Return which rows of a global batch the devices of this process hold.

    Args:
        mesh: the mesh.
        batch_size: rows of the global batch, a multiple of `num_batch_shards`.

    Returns:
        int64[n], ascending and without repeats. Example: with tensor over two processes both get
        all rows; with data over two processes and the devices in order, the second gets the second
        half.

    Raises:
        SgqlmError: the batch does not divide over the devices.
    """
    shards = num_batch_shards(mesh)
    if batch_size % shards:
        raise errors.SgqlmError(
            f"a batch of {batch_size} samples does not divide over {shards} devices",
            where="batch_size",
            fix=f"give a multiple of {shards}",
        )
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    parts = [np.arange(batch_size)[index] for index in places.values() if index is not None]
    return np.unique(np.concatenate(parts))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Place this process's rows of a batch; every array has the batch as its first axis.

    Args:
        batch: a tree of arrays that hold the rows `local_rows` names, in that order.
        mesh: the mesh.

    Returns:
        The same tree of global arrays.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    shards = num_batch_shards(mesh)
    share = len(local_rows(mesh, shards))  # shards whose rows lie here

    def put(x):
        x = np.asarray(x)
        rows = local_rows(mesh, len(x) // share * shards)
        shape = (len(x) // share * shards, *x.shape[1:])

        def pick(index):
            first, stop, _ = index[0].indices(shape[0])
            return x[np.searchsorted(rows, first) :][: stop - first]

        return jax.make_array_from_callback(shape, sharding, pick)

    return jax.tree.map(put, batch)


def put(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Place a host array that every process holds whole; each device takes its part."""
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def fetch(x: jax.Array) -> np.ndarray:
    """Return the whole array on every process; all processes must call it.

    Args:
        x: an array that may lie on devices of several processes.
    """
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _resolve(sizes: dict[str, int], num_devices: int, where: str) -> tuple[int, ...]:
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
