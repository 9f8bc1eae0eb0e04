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

from sgqlm import config, types
from sgqlm.models import vlm


NO_RELATION = 2  # class of pairs without an annotated relation: the end-of-text token
NO_RELATION_WEIGHT = 0.1  # most pairs have none


def region_loss(
    params: types.Params,
    cfg: config.ModelConfig,
    batch: types.Batch,
    *,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Return the cross-entropy of label words and, where annotated, of predicates.

    Args:
        params: the whole tree, with `regions`.
        cfg: the model, `region_words` at least one.
        batch: `graph.label_ids` holds the annotated label; word w of it is target w.
            `graph.predicate_ids`, if any, holds the annotated predicates. Both are targets only.
        key: turns dropout on.

    Returns:
        The sum of losses, the number of words, and metrics as `loss.lm_loss` gives them.
    """
    graph = batch.graph
    boxes = None if graph.predicate_ids is None else graph.boxes
    features = vlm.encode_images(params, cfg, batch.images, dropout_key=key)
    logits, pairs = vlm.region_logits(params, cfg, features, graph.coverage, boxes=boxes)
    targets = graph.label_ids[..., : cfg.region_words]
    is_used = graph.valid & (batch.row >= 0)[:, None]
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
    if pairs is not None:
        pair_loss, accuracy = _pair_loss(pairs, graph.predicate_ids[..., 0], is_used)
        metrics["predicate_loss"], metrics["predicate_accuracy"] = (pair_loss, 1.0), accuracy
        total = total + pair_loss * weight
    return total, weight, metrics


def _pair_loss(logits, predicates, is_used):
    num = is_used.shape[1]
    exists = is_used[:, :, None] & is_used[:, None] & ~jnp.eye(num, dtype=bool)
    related = exists & (predicates >= 0)
    targets = jnp.where(predicates >= 0, predicates, NO_RELATION)
    losses, hits = _cross_entropy(logits, targets)
    weights = jnp.where(related, 1.0, NO_RELATION_WEIGHT) * exists
    mean = (losses * weights).sum() / jnp.maximum(weights.sum(), 1.0)
    return mean, ((hits & related).sum(), related.sum())


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
        yield np.asarray(classify(params, images, coverage, valid))


def without_lora(cfg: config.ModelConfig) -> config.ModelConfig:
    """Return `cfg` with the adapters switched off; their parameters are then ignored."""
    none = config.LoraConfig()
    return dataclasses.replace(cfg, vision_lora=none, llm_lora=none)
