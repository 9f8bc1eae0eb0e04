"""Where every parameter lies on a mesh, as rows and as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jax.sharding import PartitionSpec

from sgqlm.parallel import rules


class Row(NamedTuple):
    """One parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    bytes: int  # of the whole array
    device_bytes: int  # of the part that one device holds


def table(
    shapes: Mapping[str, Any],
    mesh: Mapping[str, int],
    *,
    parameters: tuple[rules.Rule, ...] = rules.PARAMETERS,
) -> list[Row]:
    """Place every parameter and count its bytes.

    Args:
        shapes: nested dict of anything with `.shape` and `.dtype`.
        mesh: mesh axis name -> size.
        parameters: the rules, first match wins.

    Returns:
        One row a parameter, by path.

    Raises:
        SgqlmError: as `rules.param_specs`.
    """
    placed = rules.param_specs(shapes, mesh, parameters)
    specs: dict[str, Any] = traverse_util.flatten_dict(placed, sep="/")
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(shapes), sep="/")
    rows = []
    for path in sorted(flat):
        leaf, spec = flat[path], specs[path]
        size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        parts = math.prod(mesh.get(axis, 1) for axis in _axes(spec))
        rows.append(Row(path, tuple(leaf.shape), str(leaf.dtype), spec, size, size // parts))
    return rows


def bytes_per_device(
    shapes: Mapping[str, Any],
    mesh: Mapping[str, int],
    *,
    parameters: tuple[rules.Rule, ...] = rules.PARAMETERS,
) -> int:
    """Return the bytes of all parameters that one device holds; see `table` for the arguments."""
    return sum(row.device_bytes for row in table(shapes, mesh, parameters=parameters))


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as text, one line a parameter, with the sums below."""
    wide = max((len(row.path) for row in rows), default=0)
    lines = [f"{'parameter':{wide}}  {'shape':20}  {'dtype':8}  bytes/device  placed over"]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        placed = ", ".join("-" if axes is None else _name(axes) for axes in row.spec)
        lines.append(
            f"{row.path:{wide}}  {shape:20}  {row.dtype:8}  {row.device_bytes:12,d}  {placed}"
        )
    total, own = sum(row.bytes for row in rows), sum(row.device_bytes for row in rows)
    lines.append(f"{len(rows)} parameters, {total:,d} bytes, of which a device holds {own:,d}")
    return "\n".join(line.rstrip() for line in lines)


def _axes(spec: PartitionSpec) -> list[str]:
    entries = [entry for entry in spec if entry is not None]
    return [axis for e in entries for axis in ((e,) if isinstance(e, str) else e)]


def _name(axes: str | tuple[str, ...]) -> str:
    return axes if isinstance(axes, str) else "+".join(axes)
