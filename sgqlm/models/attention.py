"""Attention over full sequences and over a cache; softmax in float32."""

import jax.numpy as jnp
from jaxtyping import Float, Int

from sgqlm import types
from sgqlm.models import functional


def attend(
    q: Float[types.Array, "B T N F"],
    k: Float[types.Array, "B S M F"],
    v: Float[types.Array, "B S M F"],
    *,
    is_causal: bool,
) -> Float[types.Array, "B T N F"]:
    """Attend with N query heads over M key heads, N a multiple of M (grouped queries).

    Sequences are padded on the right, so under a causal mask no valid query ever sees padding
    and no other mask is needed.

    Args:
        q: queries.
        k: keys.
        v: values.
        is_causal: position t sees positions 0..t.

    Returns:
        The attended values in the dtype of `q`.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, width)
    logits = jnp.einsum("btgrf,bsgf->bgrts", q * width**-0.5, k).astype(jnp.float32)
    if is_causal:
        mask = jnp.arange(k.shape[1])[None, :] <= jnp.arange(length)[:, None]
        logits = jnp.where(mask, logits, functional.MASKED)
    weights = _softmax(logits).astype(v.dtype)
    out = jnp.einsum("bgrts,bsgf->btgrf", weights, v)
    return out.reshape(batch, length, heads, width)


def attend_cache(
    q: Float[types.Array, "B N F"],
    k: Float[types.Array, "B M S F"],
    v: Float[types.Array, "B M S F"],
    last: Int[types.Array, " B"],
) -> Float[types.Array, "B N F"]:
    """Attend one query a row over the cache slots 0..last[b] (head-major cache)."""
    batch, heads, width = q.shape
    groups = k.shape[1]
    q = q.reshape(batch, groups, heads // groups, width)
    logits = jnp.einsum("bgrf,bgsf->bgrs", q * width**-0.5, k).astype(jnp.float32)
    mask = jnp.arange(k.shape[2]) <= last[:, None, None, None]
    weights = _softmax(jnp.where(mask, logits, functional.MASKED)).astype(v.dtype)
    return jnp.einsum("bgrs,bgsf->bgrf", weights, v).reshape(batch, heads, width)


def _softmax(logits):
    shifted = jnp.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
