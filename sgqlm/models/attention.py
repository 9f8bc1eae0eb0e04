"""Attention over full sequences and over a cache; softmax in float32.

Three programs give the same values: `xla` runs everywhere, `cudnn` is the flash attention of NVIDIA
GPUs, `splash` that of TPUs. `choose` says which fits.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int

from sgqlm import errors, types
from sgqlm.models import functional
from sgqlm.parallel import rules

# names that `layers.remat_policy` may keep: the inputs of attention, and what it returns
SAVED = ("q", "k", "v", "attended", "attention_residuals")
_CUDNN_MULTIPLE = 64  # odd lengths are padded to it: cuDNN has given NaN gradients there
_CUDNN_SHORTEST = 128
_SPLASH_SHORTEST = 512
_LANES = 128  # lengths and head sizes of splash are multiples of it
_SPLASH_BLOCK = 768  # largest block: a pair of float32 blocks stays far below the chip's memory


class Choice(NamedTuple):
    """An attention program and why it was taken."""

    name: str
    reason: str


def choose(
    wanted: str, *, platform: str, dtype: str, length: int, head_dim: int, batch_fits: bool = True
) -> Choice:
    """Pick the program for one kind of layer.

    Args:
        wanted: `auto`, or the program that must be taken.
        platform: `cpu`, `gpu` or `tpu`.
        dtype: of queries and keys.
        length: of the sequence, padding included.
        head_dim: width of a head.
        batch_fits: rows and heads divide over the mesh.

    Returns:
        The choice. `auto` takes the fast program of the platform where it fits, else `xla`.

    Raises:
        SgqlmError: the wanted program cannot do this; the reason is told.
    """
    lacks = {
        "xla": "",
        "cudnn": _lacks_cudnn(platform, dtype, length, head_dim),
        "splash": _lacks_splash(platform, length, head_dim, batch_fits),
    }
    shape = f"{platform}, {dtype}, {length} positions, heads of {head_dim}"
    if wanted == "auto":
        fast = {"gpu": "cudnn", "tpu": "splash"}.get(platform, "xla")
        name = fast if not lacks[fast] else "xla"
        return Choice(name, f"{shape}; {lacks[fast]}" if lacks[fast] else shape)
    if lacks[wanted]:
        raise errors.SgqlmError(
            f"{wanted} attention cannot run here",
            where="config.model.attention",
            why=f"{lacks[wanted]} ({shape})",
            fix="set config.model.attention=auto",
        )
    return Choice(wanted, f"{shape}; as config.model.attention says")


def platform() -> str:
    """Return the platform of the current mesh, which may be one that is only compiled for."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    found = getattr(device, "platform", None) or jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def fits_mesh(batch: int, heads: int) -> bool:
    """Return whether rows and heads divide over the current mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    parts = [
        functools.reduce(lambda n, axis: n * sizes.get(axis, 1), rules.LOGICAL[name], 1)
        for name in ("batch", "heads")
    ]
    return batch % parts[0] == 0 and heads % parts[1] == 0


def attend(
    q: Float[types.Array, "B T N F"],
    k: Float[types.Array, "B S M F"],
    v: Float[types.Array, "B S M F"],
    *,
    is_causal: bool,
    lengths: Int[types.Array, " B"] | None = None,
    wanted: str = "auto",
) -> Float[types.Array, "B T N F"]:
    """Attend with N query heads over M key heads, N a multiple of M (grouped queries).

    Sequences are padded on the right, so under a causal mask no valid query ever sees padding
    and no other mask is needed. What stands at padded positions of the result depends on the
    program.

    Args:
        q: queries.
        k: keys.
        v: values.
        is_causal: position t sees positions 0..t.
        lengths: int32[B], valid positions under a causal mask; lets a program skip the rest.
        wanted: the program, see `choose`.

    Returns:
        The attended values in the dtype of `q`.
    """
    found = choose(
        wanted,
        platform=platform(),
        dtype=str(q.dtype),
        length=q.shape[1],
        head_dim=q.shape[-1],
        batch_fits=fits_mesh(q.shape[0], k.shape[2]),
    )
    q, k, v = (checkpoint_name(x, name) for x, name in zip((q, k, v), SAVED, strict=False))
    programs = {"xla": _xla, "cudnn": _cudnn, "splash": splash}
    return checkpoint_name(programs[found.name](q, k, v, is_causal, lengths), "attended")


def _xla(q, k, v, is_causal, lengths):
    del lengths
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


def _cudnn(q, k, v, is_causal, lengths):
    length = q.shape[1]
    extra = -length % _CUDNN_MULTIPLE
    if extra:
        q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, k, v))
    if not is_causal or lengths is None:
        lengths = jnp.full(q.shape[:1], length, jnp.int32) if extra or not is_causal else None
    found = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=is_causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return found[:, :length]


def splash(q, k, v, is_causal, lengths, *, interpret: bool = False):
    """Attend with the TPU kernel, every device on its own rows and heads.

    Args:
        q: float[B, T, N, F]; T and F are multiples of 128.
        k: float[B, T, M, F].
        v: float[B, T, M, F].
        is_causal: position t sees positions 0..t.
        lengths: not used; what the kernel skips is decided by the causal mask alone.
        interpret: run without a TPU, slowly, to test it.

    Returns:
        float[B, T, N, F].
    """
    del lengths
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    heads_first = [x.transpose(0, 2, 1, 3) for x in (q * jnp.asarray(scale, dtype), k, v)]

    def local(q, k, v):
        return jax.vmap(_splash_kernel(q.shape[1], q.shape[2], is_causal, interpret))(q, k, v)

    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.empty or mesh.size == 1 or mesh.manual_axes):
        spec = rules.spec(("batch", "heads", None, None), mesh=mesh.axis_names)
        local = jax.shard_map(local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    found = cast(jax.Array, local(*heads_first))
    return found.transpose(0, 2, 1, 3).astype(dtype)


def _splash_kernel(heads: int, length: int, is_causal: bool, interpret: bool):
    # not at the top: nobody else needs Pallas, which takes a second to import
    from jax.experimental.pallas.ops.tpu import splash_attention as tpu

    size = max(b for b in range(_LANES, _SPLASH_BLOCK + 1, _LANES) if length % b == 0)
    blocks = tpu.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    mask = tpu.CausalMask((length, length)) if is_causal else tpu.FullMask((length, length))
    return tpu.make_splash_mha(
        tpu.MultiHeadMask([mask] * heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention_residuals",
        interpret=interpret,
    )


def _lacks_cudnn(platform: str, dtype: str, length: int, head_dim: int) -> str:
    if platform != "gpu":
        return "cuDNN needs an NVIDIA GPU"
    if dtype not in ("bfloat16", "float16"):
        return "cuDNN takes bfloat16 and float16"
    if head_dim % 8 or head_dim > 128:
        return "cuDNN takes heads of at most 128, a multiple of 8"
    if length < _CUDNN_SHORTEST:
        return f"below {_CUDNN_SHORTEST} positions plain XLA is taken"
    return ""


def _lacks_splash(platform: str, length: int, head_dim: int, batch_fits: bool) -> str:
    if platform != "tpu":
        return "splash needs a TPU"
    if head_dim % _LANES or length % _LANES:
        return f"splash takes lengths and heads that are multiples of {_LANES}"
    if length < _SPLASH_SHORTEST:
        return f"below {_SPLASH_SHORTEST} positions plain XLA is taken"
    return "" if batch_fits else "rows or heads do not divide over the mesh"


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


class Segment(NamedTuple):
    """Keys and values of one stretch of the context, head-major.

    Attributes:
        k: float[B, M, S, F], or float[1, M, S, F] that all rows share.
        v: the same shape.
        visible: bool, broadcasts to [B, T, S]: which queries see which slots.
    """

    k: types.Array
    v: types.Array
    visible: types.Array


def attend_segments(
    q: Float[types.Array, "B T N F"], segments: Sequence[Segment]
) -> Float[types.Array, "B T N F"]:
    """Attend over the slots of all segments together, without copying those that rows share."""
    batch, length, heads, width = q.shape
    groups = segments[0].k.shape[1]
    q = (q * width**-0.5).reshape(batch, length, groups, heads // groups, width)
    logits, shared = [], [k.shape[0] == 1 for k, _, _ in segments]
    for (k, _, visible), is_shared in zip(segments, shared, strict=True):
        form = "btgrf,gsf->bgrts" if is_shared else "btgrf,bgsf->bgrts"
        found = jnp.einsum(form, q, k[0] if is_shared else k).astype(jnp.float32)
        logits.append(jnp.where(visible[:, None, None], found, functional.MASKED))
    weights = _softmax(jnp.concatenate(logits, axis=-1))
    out, start = jnp.zeros_like(q), 0
    for (_, v, _), is_shared in zip(segments, shared, strict=True):
        form = "bgrts,gsf->btgrf" if is_shared else "bgrts,bgsf->btgrf"
        part = weights[..., start : start + v.shape[2]].astype(v.dtype)
        out = out + jnp.einsum(form, part, v[0] if is_shared else v)
        start += v.shape[2]
    return out.reshape(batch, length, heads, width)


def _softmax(logits):
    shifted = jnp.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
