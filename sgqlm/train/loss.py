"""Token loss over labelled positions, as sums that a global division turns into a mean."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sgqlm import config, types
from sgqlm.models import llama, vlm
from sgqlm.parallel import rules

LOGITS_LIMIT = 2**24  # float32 logits of a device alive at once (64 MiB); more come in pieces
PIECE = 128  # positions of a piece at most, so that few unlabelled ones are computed along


def lm_loss(
    params: types.Params,
    cfg: config.ModelConfig,
    batch: types.Batch,
    *,
    features: jax.Array | None = None,
    key: jax.Array | None = None,
    remat: str = "none",
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Return the weighted next-token loss of a batch.

    Args:
        params: the whole tree.
        cfg: the model.
        batch: see `types.Batch`; `labels[t]` is predicted from position t - 1.
        features: cached tower features float[B, P, D] instead of the images.
        key: turns dropout on.
        remat: rematerialisation of the layers, as `vlm.forward` takes it.

    Returns:
        The sum of weight * loss, the sum of the weights, and metrics: a pair is a numerator with
        its denominator, a scalar is a count. All are sums, so micro-batches and hosts add up.
    """
    hidden, aux = vlm.forward(params, cfg, batch, features=features, dropout_key=key, remat=remat)
    targets, weights, kinds = (shift(x, fill) for x, fill in _targets(batch))
    kernel = vlm.head_kernel(params, cfg)
    losses, hits = token_losses(lambda h: llama.project(kernel, h), hidden, targets)
    is_answer, is_question = kinds == types.ANSWER, kinds == types.QUESTION
    is_used = weights > 0
    total, weight = (losses * weights).sum(), weights.sum()
    metrics = {
        "answer_loss": _mean(losses, is_answer & is_used),
        "question_loss": _mean(losses, is_question & is_used),
        "answer_accuracy": _mean(hits, is_answer & is_used),
        "tokens": jnp.where(batch.row >= 0, batch.lengths, 0).sum(),
        "labelled": is_used.sum(),
        "samples": (batch.row >= 0).sum(),
        "dummies": (batch.row < 0).sum(),
    }
    if "mask_guidance" in aux:
        total = total + cfg.prototypes.mask_guidance * aux["mask_guidance"] * weight
    metrics |= {name: (value * weight, weight) for name, value in aux.items()}
    return total, weight, metrics


def token_losses(head, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the cross-entropy and the hits of every labelled position.

    Where all logits at once would be large, the labelled positions of every row are moved to its
    front and the vocabulary matmul runs in pieces along the sequence, as far as the row with the
    most labels reaches. A piece's logits are computed again for its gradient.

    Args:
        head: function from float[..., H] to float32 logits[..., V].
        hidden: float[B, T, H].
        targets: int32[B, T], `types.IGNORE` where nothing is predicted.

    Returns:
        float32[B, T] losses, 0 at ignored positions, and float32[B, T] of 1 where the largest
        logit is the target.
    """
    batch, length = targets.shape
    vocab = jax.eval_shape(head, jax.ShapeDtypeStruct((1, hidden.shape[-1]), hidden.dtype))
    pieces = num_pieces(batch, length, vocab.shape[-1])
    if pieces == 1:
        return _cross_entropy(head(hidden), targets)
    is_target = targets != types.IGNORE
    order = jnp.argsort(~is_target, axis=1, stable=True)
    front = jnp.take_along_axis(targets, order, axis=1)
    rows = jnp.take_along_axis(hidden, order[..., None], axis=1)

    def compute(rows, front):
        return _cross_entropy(head(rows), front)

    def skip(rows, front):
        nothing = jnp.zeros(front.shape, jnp.float32)
        return nothing, nothing

    @jax.checkpoint  # around the choice: inside it, the head's matrix would be kept once a piece
    def chosen(rows, front):
        return jax.lax.cond((front != types.IGNORE).any(), compute, skip, rows, front)

    def piece(_, args):
        return None, chosen(*args)

    def cut(x):
        return jnp.moveaxis(x.reshape(batch, pieces, length // pieces, *x.shape[2:]), 1, 0)

    _, found = jax.lax.scan(piece, None, (cut(rows), cut(front)))
    back = jnp.argsort(order, axis=1)
    losses, hits = (
        jnp.take_along_axis(jnp.moveaxis(x, 0, 1).reshape(batch, length), back, axis=1)
        for x in found
    )
    return losses, hits


def num_pieces(batch: int, length: int, vocab: int) -> int:
    """Return in how many pieces the logits of a batch are computed on the current mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    shards = math.prod(sizes.get(axis, 1) for axis in rules.BATCH_AXES)
    rows = max(batch // shards, 1)
    if rows * length * vocab <= LOGITS_LIMIT:
        return 1
    fits = (
        n
        for n in range(1, length + 1)
        if length % n == 0 and length // n <= PIECE and rows * length * vocab // n <= LOGITS_LIMIT
    )
    return next(fits, length)


def shift(x: jax.Array, fill) -> jax.Array:
    """Move the values of position t + 1 to t; the last position gets `fill`.

    Example: labels [-100, 5, 6] become [5, 6, -100].
    """
    return jnp.concatenate([x[:, 1:], jnp.full_like(x[:, :1], fill)], axis=1)


def _targets(batch: types.Batch):
    return (
        (batch.labels, types.IGNORE),
        (batch.weights.astype(jnp.float32), 0),
        (batch.target_kind, types.NOT_TRAINED),
    )


def _cross_entropy(logits, targets):
    is_target = targets != types.IGNORE
    safe = jnp.where(is_target, targets, 0)
    picked = jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    hits = (logits.argmax(-1) == safe) & is_target
    return jnp.where(is_target, losses, 0.0), hits.astype(jnp.float32)


def _mean(values, mask):
    return (values * mask).sum(), mask.sum().astype(jnp.float32)
