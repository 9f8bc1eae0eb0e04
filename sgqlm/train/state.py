"""What a run carries from step to step, and which parameters it trains."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from sgqlm import types
from sgqlm.models import lora


class Guard(NamedTuple):
    """What the spike guard remembers."""

    norms: jax.Array  # float32[W]: gradient norms of the last good steps, a ring
    good: jax.Array  # int32: good steps of this stage; the ring is full from W on
    spikes: jax.Array  # int32: steps of this stage that were left out as spikes
    run: jax.Array  # int32: those in a row, up to now


class State(NamedTuple):
    """Everything the train step changes."""

    step: jax.Array  # int32: steps of this stage done
    trainable: types.Params  # float32 master weights of the parts that train
    opt: Any  # optimizer state, over `trainable` only
    bad_run: jax.Array  # int32: non-finite steps in a row, up to now
    skipped: jax.Array  # int32: non-finite steps of this stage
    guard: Guard | None = None  # None: no spike guard


class PartRow(NamedTuple):
    """One row of the parameter table."""

    part: str
    count: int
    learning_rate: float  # 0: frozen
    dtypes: tuple[str, ...]
    bytes: int
    device_bytes: int  # of them on one device


def path_name(keys: tuple) -> str:
    """Join the keys of a `jax.tree_util` path over nested dicts: `llm/blocks/attn/q/kernel`."""
    return "/".join(str(key.key) for key in keys)


def partition(tree: types.Params, parts: Collection[str]) -> tuple[types.Params, types.Params]:
    """Divide a parameter-shaped tree into the leaves of `parts` and the others."""
    chosen, rest = {}, {}
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        (chosen if lora.part_of(path) in parts else rest)[path] = leaf
    unflatten = traverse_util.unflatten_dict
    return unflatten(chosen, sep="/"), unflatten(rest, sep="/")


def split(params: types.Params, parts: Collection[str]) -> tuple[types.Params, types.Params]:
    """Divide parameters into those that train and those that do not.

    Args:
        params: a whole tree.
        parts: the parts that train, as `models.lora.PARTS` names them.

    Returns:
        The trainable tree, cast to float32 master weights, and the frozen tree as it is.
    """
    trainable, frozen = partition(params, parts)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable), frozen


def join(trainable: types.Params, frozen: types.Params) -> types.Params:
    """Put the two trees of `split` together again."""
    both = traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trainable)
    return traverse_util.unflatten_dict(both)


def part_table(params: types.Params, learning_rates: Mapping[str, float]) -> list[PartRow]:
    """Summarise parameters by part.

    Args:
        params: a whole tree of arrays or shapes.
        learning_rates: part -> peak learning rate; absent means frozen.

    Returns:
        One row a part that has parameters, in the order of `models.lora.PARTS`.
    """
    leaves: dict[str, list] = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        leaves.setdefault(lora.part_of(path), []).append(leaf)
    rows = []
    for part in lora.PARTS:
        if part in leaves:
            group = leaves[part]
            count = sum(leaf.size for leaf in group)
            dtypes = tuple(sorted({str(leaf.dtype) for leaf in group}))
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in group)
            held = sum(_bytes_on_one(leaf) for leaf in group)
            rows.append(PartRow(part, count, learning_rates.get(part, 0.0), dtypes, size, held))
    return rows


def format_table(rows: list[PartRow]) -> str:
    """Return the parameter table as text: part, count, trainable, dtype, bytes, rate."""
    head = "part          parameters  trains  dtype             MiB  MiB/device  learning rate"
    lines = [head]
    for row in rows:
        trains = "yes" if row.learning_rate else "no"
        rate = f"{row.learning_rate:.3g}" if row.learning_rate else "-"
        dtype, size, held = ",".join(row.dtypes), row.bytes / 2**20, row.device_bytes / 2**20
        sizes = f"{dtype:12s} {size:8.1f} {held:11.1f}"
        lines.append(f"{row.part:12s} {row.count:11,d}  {trains:6s}  {sizes}  {rate}")
    total, trained = sum(r.count for r in rows), sum(r.count for r in rows if r.learning_rate)
    held = sum(row.device_bytes for row in rows) / 2**20
    lines.append(
        f"{'total':12s} {total:11,d}  of which {trained:,d} train; {held:.1f} MiB on each device"
    )
    return "\n".join(lines)


def _bytes_on_one(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize
