"""Linen modules that declare a layer's parameters and call the pure function."""

import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from sgqlm import config
from sgqlm.models import attention, functional

UNROLLED = 4  # a stack of so many layers is no loop
NO_LORA = config.LoraConfig()
# Last layer in front of the LLM: a fresh visual token is then shorter than a word's row, so
# it neither drowns the words nor hides a label added to it.
TOKEN_INIT = nn.initializers.variance_scaling(1.0 / 1024.0, "fan_in", "normal")


def _lora_a_init(key, shape, dtype=jnp.float32):
    bound = 1.0 / math.sqrt(shape[0])  # kaiming_uniform with a = sqrt(5), as peft does
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """y = x W (+ b) (+ scale * drop(x) A B), with `lora_a` and `lora_b` beside `kernel`.

    The kernel is float[in, out]. Dropout acts on the adapter's input and only when the caller
    gives a `dropout` stream, as in peft.
    """

    features: int
    use_bias: bool = True
    lora: config.LoraConfig = NO_LORA
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(
        1.0, "fan_in", "normal"
    )

    @nn.compact
    def __call__(self, x):
        """Map float[..., in] to float[..., out] in the dtype of `x`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x @ kernel.astype(x.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(x.dtype)
        if self.lora.rank:
            shape_a, shape_b = (x.shape[-1], self.lora.rank), (self.lora.rank, self.features)
            a = self.param("lora_a", _lora_a_init, shape_a).astype(x.dtype)
            b = self.param("lora_b", nn.initializers.zeros, shape_b).astype(x.dtype)
            y = y + ((self._drop(x) @ a) @ b) * jnp.asarray(self.lora.scale, x.dtype)
        return y

    def _drop(self, x):
        rate = self.lora.dropout
        if not rate or not self.has_rng("dropout"):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, computed in float32."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        """Return `x` normalised, in its own dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return functional.layer_norm(x, scale, bias, eps=self.eps)


class RmsNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        """Return `x` normalised, in its own dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return functional.rms_norm(x, scale, eps=self.eps)


def remat_policy(name: str):
    """Return the checkpoint policy called `name`; None saves nothing but a layer's input.

    `full` saves nothing, `dots` the matrix products, `qkv` the inputs and the result of attention;
    `offload` keeps the same as `qkv` in the memory of the host.
    """
    policies = jax.checkpoint_policies
    if name == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(attention.SAVED),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return {
        "full": None,
        "dots": policies.dots_with_no_batch_dims_saveable,
        "qkv": policies.save_only_these_names(*attention.SAVED),
    }[name]


def stack(block: type, *, length: int, remat: str, num_broadcast: int):
    """Scan `block` over `length` stacked layers, rematerialised as `remat` says.

    Short stacks are unrolled by the scan itself: the parameters stay stacked, the program is
    the plain one (XLA:CPU runs it faster).
    """
    is_unrolled = length <= UNROLLED
    if remat != "none":
        # in a loop nothing is merged; in a plain program the second computation would be
        block = nn.remat(block, policy=remat_policy(remat), prevent_cse=is_unrolled)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=cast(Any, (nn.broadcast,) * num_broadcast),  # flax declares an int
        length=length,
        unroll=length if is_unrolled else 1,
    )
