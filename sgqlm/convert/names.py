"""The name table: parameter path <-> Hugging Face LLaVA tensor name, and the layout between them.

Names on the right are the hub layout (transformers 4, `vision_tower.vision_model.*`); `canonical`
turns the other layouts in circulation into it.
"""

import re
from typing import NamedTuple

import numpy as np

from sgqlm import config


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
        rows.append(Entry("llm/head/kernel", "language_model.lm_head.weight", "linear"))
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


def projector_entries() -> list[Entry]:
    """Return the rows of LLaVA's two-layer projector."""
    rows = []
    for i in ("1", "2"):
        name = f"multi_modal_projector.linear_{i}."
        rows.append(Entry(f"projector/fc{i}/kernel", name + "weight", "linear"))
        rows.append(Entry(f"projector/fc{i}/bias", name + "bias"))
    return rows


def num_layers(entry: Entry, cfg: config.ModelConfig) -> int | None:
    """Return how many layers a stacked entry holds; None for a single tensor."""
    if "{i}" not in entry.name:
        return None
    is_text = entry.path.startswith("llm/")
    return cfg.llm.num_layers if is_text else cfg.vision.num_used_layers


def is_carried(name: str, cfg: config.ModelConfig) -> bool:
    """Tell whether a canonical name belongs to the tower behind the feature layer.

    Such tensors take no part in the model and are kept for a bit-equal round trip.
    """
    if name.startswith(_VISION + "post_layernorm."):
        return True
    match = re.match(re.escape(_VISION) + r"encoder\.layers\.(\d+)\.", name)
    return bool(match) and int(match.group(1)) >= cfg.vision.num_used_layers


def from_torch(array: np.ndarray, layout: str) -> np.ndarray:
    """Turn one tensor's axes into ours."""
    if layout == "linear":
        return array.T
    return array.transpose(2, 3, 1, 0) if layout == "conv" else array


def to_torch(array: np.ndarray, layout: str) -> np.ndarray:
    """Turn one array's axes into torch's, contiguous as safetensors needs them."""
    if layout == "linear":
        array = array.T
    elif layout == "conv":
        array = array.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(array)
