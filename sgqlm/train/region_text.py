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


def region_loss(
    params: types.Params,
    cfg: config.ModelConfig,
    batch: types.Batch,
    *,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Return the cross-entropy of the label words of every entity.

    Args:
        params: the whole tree, with `regions`.
        cfg: the model, `region_words` at least one.
        batch: `graph.label_ids` holds the annotated label; word w of it is target w.
        key: turns dropout on.

    Returns:
        The sum of losses, the number of words, and metrics as `loss.lm_loss` gives them.
    """
    features = vlm.encode_images(params, cfg, batch.images, dropout_key=key)
    logits = vlm.region_logits(params, cfg, features, batch.graph.coverage)
    targets = batch.graph.label_ids[..., : cfg.region_words]
    known = (targets >= 0) & batch.graph.valid[..., None] & (batch.row >= 0)[:, None, None]
    chosen = jnp.maximum(targets, 0)
    scores = jax.nn.log_softmax(logits[:, :, : targets.shape[-1]])
    losses = -jnp.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    hits = scores.argmax(-1) == chosen
    weight = known.sum().astype(jnp.float32)
    total = jnp.where(known, losses, 0.0).sum()
    metrics = {
        "answer_loss": (total, weight),
        "answer_accuracy": ((hits & known).sum(), weight),
        "samples": (batch.row >= 0).sum(),
        "dummies": (batch.row < 0).sum(),
    }
    return total, weight, metrics


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
        logits = vlm.region_logits(params, plain, features, coverage)
        return jnp.where(valid[..., None], logits.argmax(-1), -1).astype(jnp.int32)

    for images, coverage, valid in batches:
        yield np.asarray(classify(params, images, coverage, valid))


def without_lora(cfg: config.ModelConfig) -> config.ModelConfig:
    """Return `cfg` with the adapters switched off; their parameters are then ignored."""
    none = config.LoraConfig()
    return dataclasses.replace(cfg, vision_lora=none, llm_lora=none)
