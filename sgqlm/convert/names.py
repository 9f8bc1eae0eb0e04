"""The name table: parameter path <-> Hugging Face LLaVA tensor name, and the layout between them.

Names on the right are the hub layout (transformers 4, `vision_tower.vision_model.*`); `canonical`
turns the other layouts in circulation into it.
"""

import functools
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from sgqlm import config
from sgqlm.models import vlm


class Entry(NamedTuple):
    """One parameter of the table.

    Attributes:
        path: our path; parameters under `/blocks/` are stacked on a leading axis.
        name: the tensor's name, with `{i}` for the layer.
        layout: `same`, `linear` ([out, in] there, [in, out] here) or `conv` (OIHW there, HWIO).
    """

    path: str
    name: str
    layout: str = "same"


_TEXT, _VISION = "language_model.model.", "vision_tower.vision_model."
HEAD = "language_model.lm_head.weight"
POST_NORM = _VISION + "post_layernorm."
EMBEDDING = _TEXT + "embed_tokens.weight"
# what older programs store and no program needs
_IGNORED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
_CANONICAL = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.model.\1."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.vision_tower\.vision_tower\.vision_model\.", _VISION),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^vision_tower\.(?!vision_model\.)", _VISION),
)


def canonical(name: str) -> str:
    """Return the hub-layout name of a tensor in any of the known LLaVA layouts.

    Example: `model.vision_tower.encoder.layers.0.mlp.fc1.bias` (transformers 5, in memory) gives
    `vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias`.
    """
    for pattern, replacement in _CANONICAL:
        name = re.sub(pattern, replacement, name)
    return name


def of_clip(name: str) -> str:
    """Return the hub-layout name of a tensor of a CLIP model or of its vision tower.

    The text side of a whole CLIP keeps its own names.
    """
    name = re.sub(
        r"^(vision_model\.)?(?=embeddings|pre_layrnorm|encoder|post_layernorm)", _VISION, name
    )
    return canonical(name)


def of_adapter(name: str) -> str:
    """Return the hub-layout name of a tensor of an adapter, whatever model it was wrapped around.

    Example: `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight` gives
    `language_model.model.layers.0.mlp.up_proj.lora_A.weight`.
    """
    name = re.sub(r"\.lora_([AB])\.(?:\w+\.)?weight$", r".lora_\1.weight", name)
    return canonical(name.removeprefix("base_model.model."))


def is_clip_text(name: str) -> bool:
    """Tell whether a tensor belongs to the half of a CLIP that a vision model does not have."""
    return name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))


def llm_entries(cfg: config.LlmConfig) -> list[Entry]:
    """Return the rows of the language model."""
    layer, block = _TEXT + "layers.{i}.", "llm/blocks/"
    rows = [Entry("llm/embed/embedding", _TEXT + "embed_tokens.weight")]
    for name in ("q", "k", "v", "o"):
        source = layer + f"self_attn.{name}_proj.weight"
        rows.append(Entry(f"{block}attn/{name}/kernel", source, "linear"))
    for name in ("gate", "up", "down"):
        rows.append(Entry(f"{block}mlp/{name}/kernel", layer + f"mlp.{name}_proj.weight", "linear"))
    rows += [
        Entry(block + "attn_norm/scale", layer + "input_layernorm.weight"),
        Entry(block + "mlp_norm/scale", layer + "post_attention_layernorm.weight"),
        Entry("llm/norm/scale", _TEXT + "norm.weight"),
    ]
    if not cfg.tie_embeddings:
        rows.append(Entry("llm/head/kernel", HEAD, "linear"))
    return rows


def vision_entries() -> list[Entry]:
    """Return the rows of the CLIP tower."""
    layer, block = _VISION + "encoder.layers.{i}.", "vision/blocks/"
    embeddings = _VISION + "embeddings."
    rows = [
        Entry("vision/patch/kernel", embeddings + "patch_embedding.weight", "conv"),
        Entry("vision/cls", embeddings + "class_embedding"),
        Entry("vision/pos/embedding", embeddings + "position_embedding.weight"),
        Entry("vision/pre_norm/scale", _VISION + "pre_layrnorm.weight"),
        Entry("vision/pre_norm/bias", _VISION + "pre_layrnorm.bias"),
    ]
    dense = [(f"attn/{n}", f"self_attn.{n}_proj") for n in ("q", "k", "v")]
    dense += [("attn/out", "self_attn.out_proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")]
    for ours, theirs in dense:
        rows.append(Entry(f"{block}{ours}/kernel", f"{layer}{theirs}.weight", "linear"))
        rows.append(Entry(f"{block}{ours}/bias", f"{layer}{theirs}.bias"))
    for norm in ("1", "2"):
        rows.append(Entry(f"{block}norm{norm}/scale", f"{layer}layer_norm{norm}.weight"))
        rows.append(Entry(f"{block}norm{norm}/bias", f"{layer}layer_norm{norm}.bias"))
    return rows


def projector_entries(cfg: config.ProjectorConfig) -> list[Entry]:
    """Return the rows of the projector."""
    rows = []
    for i in ("1",) if cfg.kind == "linear" else ("1", "2"):
        name = f"multi_modal_projector.linear_{i}."
        rows.append(Entry(f"projector/fc{i}/kernel", name + "weight", "linear"))
        rows.append(Entry(f"projector/fc{i}/bias", name + "bias"))
    return rows


def llava_entries(cfg: config.ModelConfig) -> list[Entry]:
    """Return the rows of a whole LLaVA, without prototypes, graph and adapters."""
    return [*llm_entries(cfg.llm), *vision_entries(), *projector_entries(cfg.projector)]


def own_entries(cfg: config.ModelConfig) -> list[Entry]:
    """Return the rows of every parameter a configuration has, adapters beside their weights.

    What LLaVA has keeps its name; any other path becomes a dotted one, with torch's layout:
    `graph/round_0/send/kernel` is `graph.round_0.send.weight`.
    """
    known = {entry.path: entry for entry in llava_entries(cfg)}
    return [known.get(path) or _own(path, known) for path in sorted(param_shapes(cfg))]


def _own(path: str, known: dict[str, Entry]) -> Entry:
    folder, leaf = path.rsplit("/", 1)
    if leaf in ("lora_a", "lora_b"):
        return Entry(path, known[folder + "/kernel"].name.removesuffix("weight") + leaf)
    name = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)
    layout = "linear" if leaf == "kernel" else "same"
    return Entry(path, f"{folder}/{name}".replace("/", "."), layout)


def adapter_entries(
    cfg: config.ModelConfig, *, text: str = _TEXT, vision: str = _VISION
) -> list[Entry]:
    """Return the rows of the adapters that a model has, as peft names them.

    Args:
        cfg: the model.
        text: what stands in place of `language_model.model.` before `layers.0...`.
        vision: what stands in place of `vision_tower.vision_model.` before `encoder...`.
    """
    rows = []
    for entry in (*llm_entries(cfg.llm), *vision_entries()):
        is_text = entry.path.startswith("llm/")
        prefix, old = (text, _TEXT) if is_text else (vision, _VISION)
        rank = (cfg.llm_lora if is_text else cfg.vision_lora).rank
        if not rank or "/blocks/" not in entry.path or not entry.path.endswith("/kernel"):
            continue
        module = prefix + entry.name.removeprefix(old).removesuffix(".weight")
        path = entry.path.removesuffix("kernel")
        rows.append(Entry(path + "lora_a", f"{module}.lora_A.weight", "linear"))
        rows.append(Entry(path + "lora_b", f"{module}.lora_B.weight", "linear"))
    return rows


@functools.cache
def param_shapes(cfg: config.ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every parameter of a model by its path."""
    flat: dict[str, Any] = traverse_util.flatten_dict(vlm.param_shapes(cfg), sep="/")
    return types.MappingProxyType({path: tuple(leaf.shape) for path, leaf in flat.items()})


def is_ignored(name: str) -> bool:
    """Tell whether a tensor is a buffer that older programs stored and nothing needs."""
    return bool(_IGNORED.search(name))


def num_layers(entry: Entry, cfg: config.ModelConfig) -> int | None:
    """Return how many layers a stacked entry holds; None for a single tensor."""
    if "{i}" not in entry.name:
        return None
    return cfg.llm.num_layers if entry.path.startswith("llm/") else cfg.vision.num_used_layers


def is_carried(name: str, cfg: config.ModelConfig) -> bool:
    """Tell whether a canonical name belongs to the tower behind the feature layer.

    Such tensors take no part in the model and are kept for a bit-equal round trip.
    """
    if name.startswith(POST_NORM):
        return True
    match = re.match(re.escape(_VISION) + r"encoder\.layers\.(\d+)\.", name)
    return bool(match) and int(match.group(1)) >= cfg.vision.num_used_layers


def from_torch(array: np.ndarray, layout: str) -> np.ndarray:
    """Turn one tensor's axes into ours."""
    if layout == "linear":
        return array.T
    return array.transpose(2, 3, 1, 0) if layout == "conv" else array


def shape_from_torch(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the shape that `from_torch` gives."""
    if layout == "linear":
        return tuple(shape[::-1])
    return tuple(shape[i] for i in (2, 3, 1, 0)) if layout == "conv" else tuple(shape)


def shape_to_torch(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the shape that `to_torch` gives."""
    if layout == "linear":
        return tuple(shape[::-1])
    return tuple(shape[i] for i in (3, 2, 0, 1)) if layout == "conv" else tuple(shape)


def to_torch(array: np.ndarray, layout: str) -> np.ndarray:
    """Turn one array's axes into torch's, contiguous as safetensors needs them."""
    if layout == "linear":
        array = array.T
    elif layout == "conv":
        array = array.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array)
