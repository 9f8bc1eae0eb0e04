"""Prefill and decode: one loop body for whole answers and for streaming."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config as config_lib
from sgqlm import errors, types
from sgqlm.decode import prefixes, sample
from sgqlm.models import llama, lora, vlm
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules

SHARED_FLOPS = (
    1e10  # that shared beginnings must save of a batch: less than compiling for them costs
)


class State(NamedTuple):
    """Everything the decode loop carries.

    Attributes:
        step: int32 scalar, tokens written so far.
        token: int32[B], the newest token of each row.
        done: bool[B], rows that have written EOS.
        written: int32[B, M], the generated ids; EOS from the end of a row on.
        cache: keys and values of all positions so far.
        keys: typed keys [B].
    """

    step: jax.Array
    token: jax.Array
    done: jax.Array
    written: jax.Array
    cache: llama.Cache
    keys: jax.Array


class Plan(NamedTuple):
    """What a decode program is compiled for, beside its shapes.

    Attributes:
        config: the model.
        eos_id: the token that ends a row.
        max_new_tokens: tokens a row may write at most.
        mode: of `sample.Sampling`.
        sizes: padded lengths of shared beginnings and of what follows them; None without.
    """

    config: config_lib.ModelConfig
    eos_id: int
    max_new_tokens: int
    mode: str
    sizes: tuple[int, int] | None = None


class Generator:
    """Generates token ids with one model.

    LoRA is merged once and the layers are unstacked once, so that each decode step reads every
    weight in place. Programs are compiled per shape: embedding per (batch, length), the loop also
    per (new tokens, sampling mode).

    Parameters that lie on a mesh make batches run on all its devices, as `mesh.for_decode` lays
    them: rows and their caches over data, heads and weights over tensor. Weights are moved there
    once, so each device then holds a whole copy but for tensor. Rows that do not divide over data
    run on all of it alike.

    Where rows of a batch are about one image, what they share runs once (see `prefixes`).

    Args:
        config: the model's configuration.
        params: the model's parameters as they train (stacked layers, adapters apart).
        eos_id: the token that ends a row.
    """

    def __init__(self, config: config_lib.ModelConfig, params: types.Params, *, eos_id: int):
        self.mesh = _mesh_of(params)
        params, self.config = lora.merge(params, config)
        self.params = _unstack(params, self.mesh)
        self.eos_id = eos_id

    def generate(
        self,
        batch: types.Batch,
        *,
        max_new_tokens: int,
        sampling: sample.Sampling = sample.Sampling(),
        seed: int | Sequence[int] = 0,
        rows: Sequence[int] | None = None,
        edge_permutation: np.ndarray | None = None,
    ) -> list[list[int]]:
        """Complete every row of a batch.

        Args:
            batch: right-padded prompts.
            max_new_tokens: tokens a row may write at most.
            sampling: how a token is drawn.
            seed: seed of the request, or one a row.
            rows: number of each row among those of its seed, which picks its random draws; None
                counts from 0.
            edge_permutation: int32[B, N], diagnostics: see `vlm.graph_tokens`.

        Returns:
            Per row the generated ids, without EOS.
        """
        plan = self._plan(max_new_tokens, sampling)
        groups, sizes = None, None
        if edge_permutation is None and (found := self._groups(batch)):
            groups, sizes = found
        begin = self._start_from(batch, max_new_tokens, seed, rows, edge_permutation, groups)
        with self.on_mesh():
            written = _run(*begin, groups, sampling, plan._replace(sizes=sizes))
        return [self._until_end(row) for row in np.asarray(written)]

    def stream(
        self,
        batch: types.Batch,
        *,
        max_new_tokens: int,
        sampling: sample.Sampling = sample.Sampling(),
        seed: int = 0,
    ) -> Iterator[int]:
        """Yield the ids of a batch of one row as they are generated, without EOS.

        Args:
            batch: one right-padded prompt.
            max_new_tokens: tokens to write at most.
            sampling: how a token is drawn.
            seed: seed of the request.

        Yields:
            Token ids, the same as `generate` returns.
        """
        plan = self._plan(max_new_tokens, sampling)
        begin = self._start_from(batch, max_new_tokens, seed, None, None)
        with self.on_mesh():
            state = _start(*begin, sampling, plan)
        for _ in range(max_new_tokens):
            if (token := int(state.token[0])) == self.eos_id:
                return
            yield token
            with self.on_mesh():  # not around the yield: there the caller's mesh holds
                state = _step(self.params["llm"], state, sampling, plan)

    def _groups(self, batch) -> tuple[prefixes.Groups, tuple[int, int]] | None:
        """Return the rows that begin alike and their padded lengths, if that saves enough."""
        count, length = batch.tokens.shape
        if count == 1:
            return None
        groups = prefixes.find(batch)
        rest = batch.lengths - groups.lengths[groups.group]
        sizes = min(bucket(int(groups.lengths.max())), length), min(bucket(int(rest.max())), length)
        shards = 1 if self.mesh is None else mesh_lib.num_batch_shards(self.mesh)
        rows = count // shards if count % shards == 0 else count
        plain, shared = rows * length, len(groups.first) * sizes[0] + rows * sizes[1]
        weights = sum(leaf.size for leaf in jax.tree.leaves(self.params["llm"]["blocks"]))
        saves = 4 * shared <= 3 * plain and 2 * weights * (plain - shared) >= SHARED_FLOPS
        return (groups, sizes) if saves else None

    def _start_from(self, batch, max_new_tokens, seed, rows, edge_permutation, groups=None):
        most = self.config.llm.max_positions
        if (longest := int(np.max(batch.lengths))) + max_new_tokens > most:
            raise errors.SgqlmError(
                f"the prompt has {longest} tokens and {max_new_tokens} more are asked for, but the "
                f"model has {most} positions",
                fix="shorten the prompt or ask for fewer tokens",
            )
        rows = np.arange(len(batch.tokens)) if rows is None else np.asarray(rows)
        keys = sample.row_keys(seed, jnp.asarray(rows, jnp.int32))
        batch = self.place(batch)
        with self.on_mesh():
            inputs = _embed(self.params, batch, edge_permutation, groups, config=self.config)
        return self.params["llm"], inputs, batch.lengths, keys

    def place(self, batch: types.Batch) -> types.Batch:
        """Lay the rows of a batch over the devices; all of it on each where they do not divide."""
        if self.mesh is None:
            return batch
        divides = len(batch.tokens) % mesh_lib.num_batch_shards(self.mesh) == 0
        place = mesh_lib.batch_sharding if divides else mesh_lib.replicated
        return jax.device_put(batch, place(self.mesh))

    def whole_rows(self, count: int) -> int:
        """Return the smallest number of rows from `count` on that divides over the devices."""
        shards = 1 if self.mesh is None else mesh_lib.num_batch_shards(self.mesh)
        return -(-count // shards) * shards

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """Return the context in which programs of this model run."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _plan(self, max_new_tokens, sampling):
        return Plan(self.config, self.eos_id, max_new_tokens, sampling.mode)

    def _until_end(self, row):
        end = np.flatnonzero(row == self.eos_id)
        return row[: end[0] if len(end) else None].tolist()


def bucket(length: int) -> int:
    """Round a length up so that few shapes are compiled; long rows get at most a quarter more.

    Example: 70 becomes 96, 600 becomes 640.

    Args:
        length: tokens of the longest prompt.

    Returns:
        The padded length, a multiple of 32.
    """
    unit = max(32, 1 << max(length.bit_length() - 3, 0))
    return -(-length // unit) * unit


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`, for batch sizes."""
    return 1 << max(count - 1, 0).bit_length()


def _mesh_of(params: types.Params) -> jax.sharding.Mesh | None:
    """Return the decode mesh of the devices that hold the parameters; None on one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or sharding.mesh.size == 1:
        return None
    return mesh_lib.for_decode(cast(jax.sharding.Mesh, sharding.mesh))


def _unstack(params: types.Params, mesh: jax.sharding.Mesh | None) -> types.Params:
    """Return the parameters with single layers, each weight where the mesh wants it."""
    if mesh is None:
        return {**params, "llm": llama.unstack(params["llm"])}
    places = rules.param_shardings(params, mesh)
    params = jax.device_put(params, places)
    llm = llama.unstack(params["llm"])

    def one_layer(place):  # a layer is placed as in the stack, whose first axis is whole
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*place.spec[1:]))

    layer = jax.tree.map(one_layer, places["llm"]["blocks"])
    blocks = tuple(jax.device_put(block, layer) for block in llm["blocks"])
    return {**params, "llm": {**llm, "blocks": blocks}}


@functools.partial(jax.jit, static_argnames="config")
def _embed(params, batch, edge_permutation, groups, *, config):
    features = None
    if groups is not None:
        features = vlm.encode_images(params, config, batch.images[groups.first])[groups.group]
    found = vlm.embed(params, config, batch, features=features, edge_permutation=edge_permutation)
    return found[0]


@functools.partial(jax.jit, static_argnames="plan")
def _start(llm, inputs, lengths, keys, sampling, plan):
    return _prefill(llm, inputs, lengths, keys, None, sampling, plan)


@functools.partial(jax.jit, static_argnames="plan", donate_argnums=1)
def _step(llm, state, sampling, plan):
    return _advance(llm, state, sampling, plan)


@functools.partial(jax.jit, static_argnames="plan")
def _run(llm, inputs, lengths, keys, groups, sampling, plan):
    state = _prefill(llm, inputs, lengths, keys, groups, sampling, plan)
    state = jax.lax.while_loop(
        lambda s: (s.step < plan.max_new_tokens) & ~jnp.all(s.done),
        lambda s: _advance(llm, s, sampling, plan),
        state,
    )
    return state.written


def _prefill(llm, inputs, lengths, keys, groups, sampling, plan: Plan):
    config, eos_id, room, mode, sizes = plan
    if groups is None or sizes is None:
        hidden, cache = llama.prefill(llm, config, inputs, lengths, inputs.shape[1] + room)
    else:
        hidden, cache = _prefill_groups(llm, inputs, lengths, groups, plan)
    logits = llama.head(llm, config.llm, hidden)
    step = jnp.int32(0)
    token = sample.choose(logits, keys, step=step, sampling=sampling, mode=mode)
    written = jnp.full((len(token), room), eos_id, jnp.int32).at[:, 0].set(token)
    return State(step + 1, token, token == eos_id, written, _shard(cache), keys)


def _prefill_groups(llm, inputs, lengths, groups: prefixes.Groups, plan: Plan):
    """Run the beginning of each group once, then the rest of each row; as `llama.prefill`."""
    (front, back), config = plan.sizes or (0, 0), plan.config
    # whole on each device, as its rows may belong to any of the groups
    begin = rules.shard(inputs[groups.first, :front], None, None, "embed")
    _, prefix = llama.prefill(llm, config, begin, groups.lengths, front)
    start = groups.lengths[groups.group]
    positions = start[:, None] + jnp.arange(back)
    taken = jnp.minimum(positions, inputs.shape[1] - 1)
    rest = jnp.take_along_axis(inputs, taken[..., None], axis=1)

    def of_rows(parts):
        return tuple(rules.shard(part, None, "heads", None, None)[groups.group] for part in parts)

    shared = _shard(llama.Cache(of_rows(prefix.k), of_rows(prefix.v), start))
    visible = jnp.tril(jnp.ones((back, back), bool))
    hidden, own = llama.extend(llm, config, rest, positions, [shared], visible)
    room = ((0, 0), (0, 0), (0, back + plan.max_new_tokens), (0, 0))
    write = jax.vmap(lambda slots, new, at: jax.lax.dynamic_update_slice_in_dim(slots, new, at, 1))

    def join(before, after):
        pairs = zip(before, after, strict=True)
        return tuple(write(jnp.pad(old, room), new.astype(old.dtype), start) for old, new in pairs)

    cache = llama.Cache(join(shared.k, own[0]), join(shared.v, own[1]), lengths)
    last = jnp.take_along_axis(hidden, (lengths - start - 1)[:, None, None], axis=1)[:, 0]
    return last, cache


def _advance(llm, state, sampling, plan: Plan):
    logits, cache = llama.decode_step(llm, plan.config, state.token, state.cache)
    token = sample.choose(logits, state.keys, step=state.step, sampling=sampling, mode=plan.mode)
    token = jnp.where(state.done, plan.eos_id, token)
    written = state.written.at[:, state.step].set(token)
    done = state.done | (token == plan.eos_id)
    return State(state.step + 1, token, done, written, _shard(cache), state.keys)


def _shard(cache: llama.Cache) -> llama.Cache:
    """Keep every row's keys and values with the device that runs its row and head."""

    def place(x):
        return rules.shard(x, "batch", "heads", None, None)

    return cache._replace(k=tuple(map(place, cache.k)), v=tuple(map(place, cache.v)))
