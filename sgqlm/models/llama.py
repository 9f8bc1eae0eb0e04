"""LLaMA decoder: training on full sequences, prefill and single steps over a cache."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from sgqlm import config as config_lib
from sgqlm import types
from sgqlm.models import attention, functional, layers
from sgqlm.parallel import rules


class Cache(NamedTuple):
    """Keys and values of every layer; slots at and behind `lengths` hold nothing yet."""

    k: tuple[types.Array, ...]  # one [B, KV, S, F] a layer
    v: tuple[types.Array, ...]
    lengths: types.Array  # int32[B]


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key heads."""

    config: config_lib.LlmConfig
    lora: config_lib.LoraConfig
    program: str = "auto"

    def setup(self):
        """Declare the four projections."""
        cfg = self.config

        def dense(features):
            return layers.Dense(features, use_bias=False, lora=self.lora)

        self.q = dense(cfg.num_heads * cfg.head_dim)
        self.k = dense(cfg.num_kv_heads * cfg.head_dim)
        self.v = dense(cfg.num_kv_heads * cfg.head_dim)
        self.o = dense(cfg.width)

    def __call__(self, x, cos, sin, lengths=None):
        """Attend over the sequence itself and return also its keys and values."""
        q, k, v = self._project(x, cos, sin)
        y = attention.attend(q, k, v, is_causal=True, lengths=lengths, wanted=self.program)
        return self.o(y.reshape(*x.shape[:2], -1)), (k, v)

    def step(self, x, cos, sin, cache, lengths):
        """Attend from float[B, 1, H] over a layer's cache, which is returned updated."""
        q, k, v = self._project(x, cos, sin)
        # by row under vmap: on a mesh every device then writes its own rows, nothing is gathered
        write = jax.vmap(lambda slots, new, at: slots.at[:, at].set(new.astype(slots.dtype)))
        keys, values = write(cache[0], k[:, 0], lengths), write(cache[1], v[:, 0], lengths)
        y = attention.attend_cache(q[:, 0], keys, values, lengths)
        return self.o(y.reshape(x.shape[0], 1, -1)), (keys, values)

    def extend(self, x, cos, sin, segments, visible):
        """Attend from float[B, T, H] over segments and, as `visible` says, over x itself."""
        q, k, v = self._project(x, cos, sin)
        keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        own = attention.Segment(keys, values, visible[None])
        y = attention.attend_segments(q, [*segments, own])
        return self.o(y.reshape(*x.shape[:2], -1)), (keys, values)

    def _project(self, x, cos, sin):
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q, k, v = (dense(x).reshape(heads) for dense in (self.q, self.k, self.v))
        return functional.rotate(q, cos, sin), functional.rotate(k, cos, sin), v


class Mlp(nn.Module):
    """SwiGLU feed-forward layer."""

    config: config_lib.LlmConfig
    lora: config_lib.LoraConfig

    @nn.compact
    def __call__(self, x):
        """Map float[..., H] to float[..., H]."""

        def dense(features, name):
            return layers.Dense(features, use_bias=False, lora=self.lora, name=name)

        gate = jax.nn.silu(dense(self.config.mlp_dim, "gate")(x))
        return dense(x.shape[-1], "down")(gate * dense(self.config.mlp_dim, "up")(x))


class Block(nn.Module):
    """One decoder layer."""

    config: config_lib.LlmConfig
    lora: config_lib.LoraConfig
    program: str = "auto"  # of attention, see `attention.choose`

    def setup(self):
        """Declare norms, attention and feed-forward layer."""
        self.attn_norm = layers.RmsNorm(self.config.rms_norm_eps)
        self.attn = Attention(self.config, self.lora, self.program)
        self.mlp_norm = layers.RmsNorm(self.config.rms_norm_eps)
        self.mlp = Mlp(self.config, self.lora)

    def __call__(self, x, cos, sin, lengths):
        """Run the layer over a full sequence, as a scan body without outputs."""
        return self.full(x, cos, sin, lengths)[0], None

    def full(self, x, cos, sin, lengths):
        """Run the layer over a full sequence and return also its keys and values."""
        x = rules.shard(x, "batch", None, "embed")
        y, kv = self.attn(self.attn_norm(x), cos, sin, lengths)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), kv

    def step(self, x, cos, sin, cache, lengths):
        """Run the layer for one new position."""
        y, cache = self.attn.step(self.attn_norm(x), cos, sin, cache, lengths)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), cache

    def extend(self, x, cos, sin, segments, visible):
        """Run the layer for several new positions behind cached ones."""
        y, kv = self.attn.extend(self.attn_norm(x), cos, sin, segments, visible)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), kv


class Llama(nn.Module):
    """Embedding table, layers, final norm and output head."""

    config: config_lib.LlmConfig
    lora: config_lib.LoraConfig
    remat: str = "none"
    program: str = "auto"

    def setup(self):
        """Declare the parameters; the layers are stacked on a leading axis."""
        cfg = self.config
        self.embed = _Table(cfg.vocab_size, cfg.width)
        stacked = layers.stack(Block, length=cfg.num_layers, remat=self.remat, num_broadcast=3)
        self.blocks = stacked(cfg, self.lora, self.program)
        self.norm = layers.RmsNorm(cfg.rms_norm_eps)
        if not cfg.tie_embeddings:
            self.head = layers.Dense(cfg.vocab_size, use_bias=False)

    def __call__(self, inputs, lengths=None):
        """Map embedded inputs float[B, T, H] to normalised hidden states float[B, T, H].

        `lengths` int32[B] are the valid positions; behind them the result means nothing.
        """
        positions = jnp.arange(inputs.shape[1])[None]
        cos, sin = _angles(positions, self.config)
        x, _ = self.blocks(inputs, cos, sin, lengths)
        return self.norm(rules.shard(x, "batch", None, "embed"))

    def embed_rows(self, ids):
        """Look up int32[...] in the embedding table: float32[..., H]."""
        return self.embed()[ids]

    def logits(self, hidden):
        """Map hidden states float[..., H] to float32[..., V]."""
        if self.config.tie_embeddings:
            return (hidden @ self.embed().T.astype(hidden.dtype)).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)


class _Table(nn.Module):
    rows: int
    width: int

    @nn.compact
    def __call__(self):
        init = nn.initializers.normal(self.width**-0.5)
        return self.param("embedding", init, (self.rows, self.width))


def mimetic(params, cfg: config_lib.LlmConfig):
    """Let fresh attention start by finding like tokens and copying them.

    Queries begin equal to keys and outputs as the transpose of values, after the mimetic
    initialisation of Trockman and Kolter (2023); a small model learns look-ups much sooner.

    Args:
        params: fresh `llm` parameters, stacked.
        cfg: the decoder.

    Returns:
        The same tree with other `q` and `o` kernels.
    """
    attn = dict(params["blocks"]["attn"])
    repeats = cfg.num_heads // cfg.num_kv_heads

    def spread(kernel):
        shape = (cfg.num_layers, cfg.width, cfg.num_kv_heads, cfg.head_dim)
        kernel = jnp.repeat(kernel.reshape(shape), repeats, axis=2)
        return kernel.reshape(cfg.num_layers, cfg.width, -1)

    attn["q"] = {**attn["q"], "kernel": spread(attn["k"]["kernel"])}
    attn["o"] = {**attn["o"], "kernel": spread(attn["v"]["kernel"]).transpose(0, 2, 1)}
    return {**params, "blocks": {**params["blocks"], "attn": attn}}


def unstack(params):
    """Return the `llm` parameters with `blocks` as a tuple of single layers, for decoding."""
    count = params["blocks"]["attn_norm"]["scale"].shape[0]
    blocks = tuple(jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(count))
    return {**params, "blocks": blocks}


def prefill(
    params,
    cfg: config_lib.ModelConfig,
    inputs: Float[types.Array, "B T H"],
    lengths,
    cache_length: int,
) -> tuple[Float[types.Array, "B H"], Cache]:
    """Run the prompt and fill a cache.

    Args:
        params: the `llm` parameters after `unstack`.
        cfg: the model.
        inputs: embedded prompts, padded on the right.
        lengths: int32[B], valid positions of each row.
        cache_length: slots of the cache; at least T.

    Returns:
        The normalised hidden state of each row's last valid position, and the cache.
    """
    block = Block(cfg.llm, cfg.llm_lora, cfg.attention)
    cos, sin = _angles(jnp.arange(inputs.shape[1])[None], cfg.llm)
    x, keys, values = inputs, [], []
    room = ((0, 0), (0, 0), (0, cache_length - inputs.shape[1]), (0, 0))
    for layer in params["blocks"]:
        x, (k, v) = _apply(block, layer, x, cos, sin, lengths, method="full")
        keys.append(jnp.pad(k.transpose(0, 2, 1, 3), room))
        values.append(jnp.pad(v.transpose(0, 2, 1, 3), room))
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    last = functional.rms_norm(last, params["norm"]["scale"], eps=cfg.llm.rms_norm_eps)
    return last, Cache(tuple(keys), tuple(values), lengths)


def extend(
    params,
    cfg: config_lib.ModelConfig,
    inputs: Float[types.Array, "B T H"],
    positions: Int[types.Array, "B T"],
    caches: Sequence[Cache],
    visible: Bool[types.Array, "T T"],
) -> tuple[Float[types.Array, "B T H"], tuple[tuple[types.Array, ...], tuple[types.Array, ...]]]:
    """Run new positions behind cached ones, which stay as they are.

    Args:
        params: the `llm` parameters after `unstack`.
        cfg: the model.
        inputs: embedded tokens.
        positions: of the inputs; several may have the same one.
        caches: what comes before, in any number of pieces; a piece of one row serves all rows.
        visible: which input (row) sees which (column); the lower triangle for plain text, the
            ancestors of each token for continuations that share their beginnings.

    Returns:
        The normalised hidden states, and the keys and values of the inputs as in `Cache`.
    """
    block = Block(cfg.llm, cfg.llm_lora)
    cos, sin = _angles(positions, cfg.llm)
    seen = [(jnp.arange(cache.k[0].shape[2]) < cache.lengths[:, None])[:, None] for cache in caches]
    x, keys, values = inputs, [], []
    for number, layer in enumerate(params["blocks"]):
        segments = [
            attention.Segment(cache.k[number], cache.v[number], mask)
            for cache, mask in zip(caches, seen, strict=True)
        ]
        x, (k, v) = _apply(block, layer, x, cos, sin, segments, visible, method="extend")
        keys.append(k)
        values.append(v)
    hidden = functional.rms_norm(x, params["norm"]["scale"], eps=cfg.llm.rms_norm_eps)
    return hidden, (tuple(keys), tuple(values))


def decode_step(
    params, cfg: config_lib.ModelConfig, tokens: Int[types.Array, " B"], cache: Cache
) -> tuple[Float[types.Array, "B V"], Cache]:
    """Append one token a row and return the logits of the next.

    The same function serves the generation loop, streaming and the server.
    """
    block = Block(cfg.llm, cfg.llm_lora)
    cos, sin = _angles(cache.lengths[:, None], cfg.llm)
    x = params["embed"]["embedding"][tokens][:, None].astype(cache.k[0].dtype)
    keys, values = [], []
    for layer, kv in zip(params["blocks"], zip(cache.k, cache.v, strict=True), strict=True):
        x, (k, v) = _apply(block, layer, x, cos, sin, kv, cache.lengths, method="step")
        keys.append(k)
        values.append(v)
    hidden = functional.rms_norm(x[:, 0], params["norm"]["scale"], eps=cfg.llm.rms_norm_eps)
    return head(params, cfg.llm, hidden), Cache(tuple(keys), tuple(values), cache.lengths + 1)


def head(
    params, cfg: config_lib.LlmConfig, hidden: Float[types.Array, "... H"]
) -> Float[types.Array, "... V"]:
    """Map normalised hidden states to float32 logits with the `llm` parameters."""
    return project(head_kernel(params, cfg), hidden)


def head_kernel(params, cfg: config_lib.LlmConfig) -> Float[types.Array, "H V"]:
    """Return the matrix of the output head, gathered over fsdp."""
    tied = cfg.tie_embeddings
    kernel = params["embed"]["embedding"].T if tied else params["head"]["kernel"]
    return rules.shard(jnp.asarray(kernel), None, "vocab")


def project(kernel: Float[types.Array, "H V"], hidden: Float[types.Array, "... H"]):
    """Map normalised hidden states to float32 logits."""
    return (hidden @ kernel.astype(hidden.dtype)).astype(jnp.float32)


def _apply(block, layer, *args, method) -> Any:
    return block.apply({"params": layer}, *args, method=method)


def _angles(positions, cfg: config_lib.LlmConfig):
    return functional.rope_angles(positions, head_dim=cfg.head_dim, theta=cfg.rope_theta)
