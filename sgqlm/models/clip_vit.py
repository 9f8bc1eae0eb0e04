"""CLIP vision tower up to the feature layer LLaVA reads (Radford et al., 2021)."""

import flax.linen as nn
import jax.numpy as jnp

from sgqlm import config as config_lib
from sgqlm.models import attention, functional, layers
from sgqlm.parallel import rules

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# A fresh layer starts near the identity: patches are then not blurred before they are read, and
# small towers learn fine detail, such as shapes, sooner.
_RESIDUAL_INIT = nn.initializers.variance_scaling(0.01, "fan_in", "normal")


def normalise(images, dtype):
    """Turn uint8[B, S, S, 3] into CLIP's normalised pixels of `dtype`."""
    mean, std = jnp.asarray(MEAN, jnp.float32), jnp.asarray(STD, jnp.float32)
    return ((images.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)


class Attention(nn.Module):
    """Multi-head attention with biases, bidirectional unless told otherwise."""

    num_heads: int
    lora: config_lib.LoraConfig
    program: str = "auto"
    is_causal: bool = False

    @nn.compact
    def __call__(self, x):
        """Map float[B, T, D] to float[B, T, D]."""
        shape = (*x.shape[:2], self.num_heads, -1)
        width = x.shape[-1]
        q, k, v = (
            layers.Dense(width, lora=self.lora, name=name)(x).reshape(shape) for name in "qkv"
        )
        y = attention.attend(q, k, v, is_causal=self.is_causal, wanted=self.program)
        y = y.reshape(x.shape)
        return layers.Dense(width, lora=self.lora, kernel_init=_RESIDUAL_INIT, name="out")(y)


class Mlp(nn.Module):
    """Two dense layers with CLIP's activation between them."""

    config: config_lib.VisionConfig | config_lib.ClipTextConfig
    lora: config_lib.LoraConfig

    @nn.compact
    def __call__(self, x):
        """Map float[B, T, D] to float[B, T, D]."""
        y = layers.Dense(self.config.mlp_dim, lora=self.lora, name="fc1")(x)
        y = functional.activation(self.config.activation)(y)
        return layers.Dense(x.shape[-1], lora=self.lora, kernel_init=_RESIDUAL_INIT, name="fc2")(y)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    config: config_lib.VisionConfig | config_lib.ClipTextConfig
    lora: config_lib.LoraConfig
    program: str = "auto"  # of attention, see `attention.choose`
    is_causal: bool = False

    @nn.compact
    def __call__(self, x):
        """Map float[B, T, D] to (float[B, T, D], None), as a scan body."""
        eps = self.config.layer_norm_eps
        heads = self.config.num_heads
        x = rules.shard(x, "batch", None, "embed")
        y = layers.LayerNorm(eps, name="norm1")(x)
        x = x + Attention(heads, self.lora, self.program, self.is_causal, name="attn")(y)
        y = layers.LayerNorm(eps, name="norm2")(x)
        return x + Mlp(self.config, self.lora, name="mlp")(y), None


class ClipViT(nn.Module):
    """The tower without the layers behind `feature_layer` and without the class token.

    `keep_class` leaves that token in front of the patches, as a pooled feature needs it.
    """

    config: config_lib.VisionConfig
    lora: config_lib.LoraConfig
    remat: str = "none"
    program: str = "auto"
    keep_class: bool = False

    @nn.compact
    def __call__(self, pixels):
        """Map normalised pixels float[B, S, S, 3] to patch features float[B, P, D]."""
        cfg = self.config
        batch, size, patch = pixels.shape[0], cfg.grid, cfg.patch_size
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2))
        kernel = _Kernel((patch, patch, 3, cfg.width), init, name="patch")()
        x = pixels[:, : size * patch, : size * patch]
        x = x.reshape(batch, size, patch, size, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, size * size, -1) @ kernel.reshape(-1, cfg.width).astype(x.dtype)
        cls = self.param("cls", nn.initializers.normal(cfg.width**-0.5), (cfg.width,))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (batch, 1, cfg.width))
        x = jnp.concatenate([cls, x], axis=1)
        table = nn.initializers.normal(cfg.width**-0.5)
        pos = _Embedding((1 + cfg.num_patches, cfg.width), table, name="pos")()
        x = layers.LayerNorm(cfg.layer_norm_eps, name="pre_norm")(x + pos.astype(x.dtype))
        blocks = layers.stack(Block, length=cfg.num_used_layers, remat=self.remat, num_broadcast=0)
        x, _ = blocks(cfg, self.lora, self.program, name="blocks")(x)
        return x if self.keep_class else x[:, 1:]


class _Kernel(nn.Module):
    shape: tuple[int, ...]
    init: nn.initializers.Initializer

    @nn.compact
    def __call__(self):
        return self.param("kernel", self.init, self.shape)


class _Embedding(nn.Module):
    shape: tuple[int, ...]
    init: nn.initializers.Initializer

    @nn.compact
    def __call__(self):
        return self.param("embedding", self.init, self.shape)
