"""Region-text pretraining: the tower learns to name what lies under each mask.

Also where the trained classifier labels entities from the pixels, so that no annotated label is
ever given to the model.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config, errors, types
from sgqlm.models import vlm
from sgqlm.parallel import mesh as mesh_lib

NO_RELATION = 2  # class of pairs without an annotated relation: the end-of-text token
NUM_PAIRS = 16  # pairs an image that are scored; a scene has up to five relations


def region_loss(
    params: types.Params,
    cfg: config.ModelConfig,
    batch: types.Batch,
    *,
    key: jax.Array | None = None,
    pair_weight: float = 1.0,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Return the cross-entropy of label words and, where annotated, of predicates.

    Args:
        params: the whole tree, with `regions`.
        cfg: the model, `region_words` at least one.
        batch: `graph.label_ids` holds the annotated label; word w of it is target w.
            `graph.predicate_ids`, if any, holds the annotated predicates. Both are targets only.
        key: turns dropout on.
        pair_weight: of the mean loss over pairs, beside that over words.

    Returns:
        The sum of losses, the number of words, and metrics as `loss.lm_loss` gives them.

    Raises:
        SgqlmError: the batch has no graph.
    """
    graph = batch.graph
    if graph is None:
        raise errors.SgqlmError(
            "a batch has no entities to name",
            where="stage objective region_text",
            fix="set config.model.graph.enabled=True",
        )
    is_used = graph.valid & (batch.row >= 0)[:, None]
    boxes, chosen = None, None
    if graph.predicate_ids is not None:
        boxes = graph.boxes
        draw = jax.random.fold_in(jax.random.key(0) if key is None else key, 1)
        chosen, predicates, is_pair = _choose_pairs(graph.predicate_ids[..., 0], is_used, draw)
    features = vlm.encode_images(params, cfg, batch.images, dropout_key=key)
    args = (params, cfg, features, graph.coverage)
    logits, pairs = vlm.region_logits(*args, boxes=boxes, chosen=chosen)
    targets = graph.label_ids[..., : cfg.region_words]
    known = (targets >= 0) & is_used[..., None]
    losses, hits = _cross_entropy(logits[:, :, : targets.shape[-1]], targets)
    weight = known.sum().astype(jnp.float32)
    total = (losses * known).sum()
    metrics = {
        "answer_loss": (total, weight),
        "answer_accuracy": ((hits & known).sum(), weight),
        "samples": (batch.row >= 0).sum(),
        "dummies": (batch.row < 0).sum(),
    }
    if pairs is not None and graph.predicate_ids is not None:
        losses, hits = _cross_entropy(pairs, predicates)
        count = jnp.maximum(is_pair.sum(), 1).astype(jnp.float32)
        pair_loss = (losses * is_pair).sum() / count
        related = is_pair & jnp.not_equal(predicates, NO_RELATION)
        metrics["predicate_loss"] = (pair_loss * count, count)
        metrics["predicate_accuracy"] = ((hits & related).sum(), related.sum())
        total = total + pair_weight * pair_loss * weight
    return total, weight, metrics


def _choose_pairs(predicates, is_used, key) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw pairs: every related one first, then others at random.

    Returns:
        int32[B, K] as `models.regions` takes them, their targets int32[B, K], and bool[B, K],
        False where an image has fewer pairs.
    """
    batch, num = is_used.shape
    exists = is_used[:, :, None] & is_used[:, None] & ~jnp.eye(num, dtype=bool)
    noise = jax.random.uniform(key, exists.shape)
    rank = jnp.where(exists, noise + (predicates >= 0), -1.0).reshape(batch, -1)
    found, chosen = jax.lax.top_k(rank, min(NUM_PAIRS, num * num))
    targets = jnp.take_along_axis(predicates.reshape(batch, -1), chosen, axis=1)
    return chosen, jnp.where(targets >= 0, targets, NO_RELATION), jnp.greater_equal(found, 0)


def _cross_entropy(logits, targets):
    chosen = jnp.maximum(targets, 0)
    scores = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    return losses, scores.argmax(-1) == chosen


def predict_labels(
    params: types.Params,
    cfg: config.ModelConfig,
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Iterator[np.ndarray]:
    """Label entities from the pixels with the frozen tower, adapters left out.

    Args:
        params: the whole tree, with `regions`.
        cfg: the model.
        batches: images uint8[B, S, S, 3], coverage uint8[B, N, P] and valid bool[B, N]; one
            shape throughout, so that one program serves.

    Yields:
        int32[B, N, W] token ids, -1 where there is no entity.
    """
    plain = without_lora(cfg)

    @jax.jit
    def classify(params, images, coverage, valid):
        features = vlm.encode_images(params, plain, images)
        logits, _ = vlm.region_logits(params, plain, features, coverage)
        return jnp.where(valid[..., None], logits.argmax(-1), -1).astype(jnp.int32)

    for images, coverage, valid in batches:
        yield mesh_lib.fetch(classify(params, images, coverage, valid))


def without_lora(cfg: config.ModelConfig) -> config.ModelConfig:
    """Return `cfg` with the adapters switched off; their parameters are then ignored."""
    none = config.LoraConfig()
    return dataclasses.replace(cfg, vision_lora=none, llm_lora=none)
