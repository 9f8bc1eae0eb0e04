"""Array maths shared by the models: arrays in, arrays out, no parameters owned."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from sgqlm import types

MASKED = -1e9  # finite, so that a fully masked row has finite gradients


def quick_gelu(x: Float[types.Array, "..."]) -> Float[types.Array, "..."]:
    """Return x * sigmoid(1.702 x), the activation of CLIP and of the released connector."""
    return x * jax.nn.sigmoid(1.702 * x)


def activation(name: str):
    """Return the activation called `name` (`quick_gelu`, exact `gelu` or `silu`)."""
    table = {
        "quick_gelu": quick_gelu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "silu": jax.nn.silu,
    }
    return table[name]


def layer_norm(x, scale, bias, *, eps: float):
    """Normalise the last axis in float32 and return the dtype of `x`."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * scale + bias).astype(x.dtype)


def rms_norm(x, scale, *, eps: float):
    """Scale the last axis to unit root mean square in float32 (Zhang and Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def masked_softmax(logits, mask, *, axis: int = -1):
    """Softmax in float32 over the entries where `mask` holds; zero where none does.

    Example: logits [[1, 2]] with mask [[True, False]] give [[1, 0]]; with [[False, False]],
    [[0, 0]], with finite gradients.
    """
    weights = jax.nn.softmax(jnp.where(mask, logits.astype(jnp.float32), MASKED), axis=axis)
    return weights * mask


def rope_angles(
    positions: Int[types.Array, "*S"], *, head_dim: int, theta: float
) -> tuple[Float[types.Array, "*S half"], Float[types.Array, "*S half"]]:
    """Return cosine and sine of the rotary angles (LLaMA: first half with second half)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[types.Array, "B T N F"], cos, sin) -> Float[types.Array, "B T N F"]:
    """Apply rotary position embedding; `cos` and `sin` are float[B or 1, T, F / 2]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def merge_patches(x: Float[types.Array, "B P D"], merge: int) -> Float[types.Array, "B I M"]:
    """Join every merge x merge block of the square patch grid into one row (pixel unshuffle).

    Example: a 4 x 4 grid with merge 2 gives 4 rows; row 0 holds patches 0, 1, 4, 5 in that order.
    """
    if merge == 1:
        return x
    batch, patches, width = x.shape
    side = round(patches**0.5)
    x = x.reshape(batch, side // merge, merge, side // merge, merge, width)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, (side // merge) ** 2, -1)


def run_positions(
    is_member: Bool[types.Array, "B T"],
) -> tuple[Int[types.Array, "B T"], Int[types.Array, "B T"]]:
    """Number the runs of neighbouring members, and the members inside each run.

    Example: [0 1 1 0 1] gives runs [-1 0 0 0 1] and positions [. 0 1 . 0]; values outside
    members are meaningless but in range after clipping.
    """
    before = jnp.pad(is_member[:, :-1], ((0, 0), (1, 0)))
    starts = is_member & ~before
    seen = jnp.cumsum(is_member, axis=1)
    start_count = jax.lax.cummax(jnp.where(starts, seen, 0), axis=1)
    return jnp.cumsum(starts, axis=1) - 1, seen - start_count
