"""Parts of a parameter tree, and folding adapters into their kernels."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sgqlm import config, types

PARTS = (
    "vision",
    "vision_lora",
    "prototypes",
    "projector",
    "graph",
    "llm",
    "llm_lora",
    "regions",
)


def part_of(path: str) -> str:
    """Return the part of the stage table that the parameter at `path` belongs to.

    Example: `llm/blocks/attn/q/lora_a` is `llm_lora`, `llm/blocks/attn/q/kernel` is `llm`.
    """
    head = path.split("/", 1)[0]
    is_lora = path.rsplit("/", 1)[-1] in ("lora_a", "lora_b")
    return f"{head}_lora" if is_lora else head


def map_with_path(function: Callable, params: types.Params) -> types.Params:
    """Apply `function(path, leaf)` to every leaf; paths are joined by slashes."""

    def call(keys, leaf):
        return function("/".join(str(key.key) for key in keys), leaf)

    return jax.tree_util.tree_map_with_path(call, params)


def merge(params: types.Params, cfg: config.ModelConfig) -> tuple[types.Params, config.ModelConfig]:
    """Fold every adapter into its kernel: W + scale * A B, computed in float32.

    Args:
        params: a whole tree, stacked or not.
        cfg: its configuration.

    Returns:
        The tree without adapters, kernels in their own dtype, and the configuration to match.
    """
    scales = {"llm": cfg.llm_lora.scale, "vision": cfg.vision_lora.scale}

    def visit(node, scale):
        if not isinstance(node, dict):
            return node
        if "lora_a" in node:
            kernel = node["kernel"]
            product = jnp.einsum(
                "...ir,...ro->...io",
                node["lora_a"].astype(jnp.float32),
                node["lora_b"].astype(jnp.float32),
            )
            merged = (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)
            rest = {k: v for k, v in node.items() if k not in ("lora_a", "lora_b")}
            return {**rest, "kernel": merged}
        return {key: visit(value, scale) for key, value in node.items()}

    merged = {key: visit(value, scales.get(key, 0.0)) for key, value in params.items()}
    none = config.LoraConfig()
    return merged, dataclasses.replace(cfg, llm_lora=none, vision_lora=none)


def graft(params: types.Params, target: types.Params) -> types.Params:
    """Put the values of `params` into the tree of `target`, which may hold more adapters.

    Args:
        params: trained values.
        target: a freshly initialised tree; only `lora_a` and `lora_b` may be missing in `params`.

    Returns:
        The tree of `target` with every known value taken from `params`.

    Raises:
        KeyError: another parameter is missing, or `params` holds one that `target` lacks.
        ValueError: a shape differs.
    """
    known = {}
    map_with_path(lambda path, leaf: known.setdefault(path, leaf), params)
    used = set()

    def pick(path, leaf):
        if path not in known:
            if path.rsplit("/", 1)[-1] in ("lora_a", "lora_b"):
                return leaf
            raise KeyError(path)
        if known[path].shape != leaf.shape:
            raise ValueError(f"{path}: {known[path].shape} does not fit {leaf.shape}")
        used.add(path)
        return known[path]

    merged = map_with_path(pick, target)
    if unused := set(known) - used:
        raise KeyError(", ".join(sorted(unused)))
    return merged
