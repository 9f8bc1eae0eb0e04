"""Both towers of a CLIP up to the space they share (Radford et al., 2021)."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from sgqlm import config as config_lib
from sgqlm import types
from sgqlm.models import clip_vit, functional, layers


class ClipText(nn.Module):
    """The text tower: causal blocks over token and position embeddings."""

    config: config_lib.ClipTextConfig

    @nn.compact
    def __call__(self, ids, last):
        """Map int32[B, T] and the position int32[B] of each end token to float[B, D]."""
        cfg = self.config
        init = nn.initializers.normal(0.02)
        table = self.param("embed", init, (cfg.vocab_size, cfg.width))
        places = self.param("pos", init, (cfg.max_positions, cfg.width))
        x = jnp.take(table, ids, axis=0) + places[: ids.shape[1]]
        blocks = layers.stack(clip_vit.Block, length=cfg.num_layers, remat="none", num_broadcast=0)
        x, _ = blocks(cfg, layers.NO_LORA, is_causal=True, name="blocks")(x)
        x = layers.LayerNorm(cfg.layer_norm_eps, name="norm")(x)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


def embed_images(
    params: types.Params, images: types.Array, *, config: config_lib.VisionConfig
) -> jax.Array:
    """Return the unit vectors of images in the shared space.

    Args:
        params: `vision` (the tower), `post_norm` and `image_projection`.
        images: uint8[B, S, S, 3].
        config: of the vision tower; its last layer is read.

    Returns:
        f32[B, E] of length 1: the class token, normalised and projected.
    """
    tower = clip_vit.ClipViT(config, layers.NO_LORA, keep_class=True)
    pixels = clip_vit.normalise(images, jnp.float32)
    x = cast(jax.Array, tower.apply({"params": params["vision"]}, pixels))[:, 0]
    norm = params["post_norm"]
    x = functional.layer_norm(x, norm["scale"], norm["bias"], eps=config.layer_norm_eps)
    return _unit(x @ params["image_projection"]["kernel"])


def embed_texts(
    params: types.Params,
    ids: types.Array,
    last: types.Array,
    *,
    config: config_lib.ClipTextConfig,
) -> jax.Array:
    """Return the unit vectors of texts in the shared space.

    Args:
        params: `text` (the tower) and `text_projection`.
        ids: int32[B, T], padded on the right with anything.
        last: int32[B], the position of the end token, whose feature is the text's.
        config: of the text tower.

    Returns:
        f32[B, E] of length 1.
    """
    x = ClipText(config).apply({"params": params["text"]}, ids, last)
    return _unit(x @ params["text_projection"]["kernel"])


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
