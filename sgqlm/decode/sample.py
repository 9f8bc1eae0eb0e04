"""Choose the next token: greedy, temperature, top-k and top-p, one key a row."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How a token is drawn from the logits.

    Attributes:
        temperature: divides the logits; 0 is greedy and ignores the rest.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p, at least one token; 1 keeps all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def mode(self) -> str:
        """The part that a compiled program depends on: `greedy`, `plain` or `truncated`."""
        if self.temperature <= 0:
            return "greedy"
        return "truncated" if self.top_k > 0 or self.top_p < 1 else "plain"


def row_keys(seed: int | Sequence[int], rows: jax.Array) -> jax.Array:
    """Make one key a row, so that a row's draws do not depend on the batch it stands in.

    Args:
        seed: seed of the whole request, or one a row.
        rows: int32[B], the number of each row among those of its seed.

    Returns:
        Typed keys [B].
    """
    if isinstance(seed, Sequence):
        made = {value: jax.random.key(value) for value in seed}
        return jax.vmap(jax.random.fold_in)(jnp.stack([made[v] for v in seed]), jnp.asarray(rows))
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.asarray(rows))


def choose(
    logits: jax.Array, keys: jax.Array, *, step: int | jax.Array, sampling: Sampling, mode: str
) -> jax.Array:
    """Draw one token a row.

    Filters work in the usual order: temperature, then top-k, then top-p on what is left. Equal
    logits keep the order of their ids, so the result is always defined.

    Args:
        logits: f32[B, V].
        keys: typed keys [B] of the rows.
        step: int32 scalar, number of the generated token; the draw depends on (key, step).
        sampling: the settings, which may be traced.
        mode: `Sampling.mode`, static.

    Returns:
        int32[B] token ids.
    """
    if mode == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    scaled = logits.astype(jnp.float32) / sampling.temperature
    draw = jax.vmap(jax.random.categorical)
    if mode == "plain":
        return draw(keys, scaled).astype(jnp.int32)
    order = jnp.argsort(-scaled, axis=-1, stable=True)
    kept = truncate(jnp.take_along_axis(scaled, order, axis=-1), sampling.top_k, sampling.top_p)
    index = draw(keys, kept)[:, None]
    return jnp.take_along_axis(order, index, axis=-1)[:, 0].astype(jnp.int32)


def truncate(ordered: jax.Array, top_k: jax.Array | int, top_p: jax.Array | float) -> jax.Array:
    """Apply top-k, then top-p, to logits in descending order.

    Example: probabilities (.5, .3, .2) with top_p=.6 keep the first two, since the first alone
    does not reach .6.

    Args:
        ordered: f32[B, V], each row descending.
        top_k: tokens to keep; 0 keeps all.
        top_p: probability to reach.

    Returns:
        f32[B, V] with -inf at what is left out; the first column always stays.
    """
    rank = jnp.arange(ordered.shape[-1])
    kept = jnp.where((top_k <= 0) | (rank < top_k), ordered, -jnp.inf)
    probability = jax.nn.softmax(kept, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    return jnp.where((before < top_p) | (rank == 0), kept, -jnp.inf)
