"""Settings of Hugging Face folders: config.json in its spellings, image processor, tokenizer."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from sgqlm import config, errors

_ACTIVATIONS = ("gelu", "quick_gelu")
_PROJECTORS: dict[str, Literal["mlp2x", "linear"]] = {"mlp2x_gelu": "mlp2x", "linear": "linear"}


def read_json(folder: pathlib.Path, name: str = "config.json", *, kind: str = "") -> dict[str, Any]:
    """Read a settings file of a folder.

    Args:
        folder: of a model.
        name: of the file.
        kind: what the folder should hold, for messages; empty: a missing file is an empty dict.

    Raises:
        SgqlmError: the file is missing, or no JSON object.
    """
    file = pathlib.Path(folder) / name
    if not file.is_file():
        if not kind:
            return {}
        raise error(f"there is no {name}", file, f"give the folder of a {kind} model")
    try:
        tree = json.loads(file.read_text())
    except (ValueError, RecursionError) as caught:
        raise error(f"{name} is not JSON: {caught}", file, "fetch it again") from caught
    if not isinstance(tree, dict):
        raise error(f"{name} holds no settings", file, "fetch it again")
    return tree


def llava(folder: pathlib.Path, *, vision: pathlib.Path | None = None) -> config.ModelConfig:
    """Translate config.json of a LLaVA: the nested one of transformers 4 or 5, or the original one.

    Args:
        folder: of the model.
        vision: the CLIP folder, where the model has no tower of its own.

    Raises:
        SgqlmError: the file is missing, broken, or asks for something this model does not do.
    """
    file = pathlib.Path(folder) / "config.json"
    tree = read_json(folder, kind="LLaVA")
    if tree.get("model_type") not in ("llava", "llava_llama"):
        why = f"its model_type is {tree.get('model_type')!r}"
        raise error(f"not a LLaVA model: {why}", file, "give a folder with model_type llava")
    is_nested = "text_config" in tree
    return config.ModelConfig(
        vision=_vision(tree, file, None if vision is None else clip(vision)),
        llm=_llm(tree.get("text_config") or {} if is_nested else tree, tree, file),
        projector=_projector(tree, file, is_nested=is_nested),
        graph=config.GraphConfig(enabled=False),
        compute_dtype="float32" if _dtype(tree) == "float32" else "bfloat16",
        image_fit=_image_fit(folder, tree, is_nested=is_nested),
    )


def clip(folder: pathlib.Path) -> config.VisionConfig:
    """Translate config.json of a CLIP, or of its vision tower alone.

    Raises:
        SgqlmError: the file is missing or belongs to another model.
    """
    file = pathlib.Path(folder) / "config.json"
    tree = read_json(folder, kind="CLIP")
    if tree.get("model_type") not in ("clip", "clip_vision_model"):
        why = f"its model_type is {tree.get('model_type')!r}"
        raise error(f"not a CLIP model: {why}", file, "give a CLIP folder")
    return _tower(tree.get("vision_config", tree), file)


def llama(folder: pathlib.Path) -> config.LlmConfig:
    """Translate config.json of a LLaMA.

    Raises:
        SgqlmError: the file is missing or belongs to another model.
    """
    file = pathlib.Path(folder) / "config.json"
    tree = read_json(folder, kind="LLaMA")
    if tree.get("model_type") not in ("llama", "llava", "llava_llama"):
        why = f"its model_type is {tree.get('model_type')!r}"
        raise error(f"not a LLaMA model: {why}", file, "give a LLaMA folder, such as Vicuna's")
    if "text_config" in tree:
        raise error("this is a whole LLaVA, not a LLaMA", file, "import it with the kind llava")
    return _llm({**tree, "model_type": "llama"}, tree, file)


def text(folder: pathlib.Path) -> tuple[config.TextConfig, bytes]:
    """Return the text settings and the SentencePiece model of a folder; empty if it has none."""
    settings = read_json(folder, "tokenizer_config.json")
    file = pathlib.Path(folder) / "tokenizer.model"
    words = file.read_bytes() if file.is_file() else b""
    is_legacy = settings.get("legacy", True) is not False
    return config.TextConfig(
        tokenizer=file.name if words else "", legacy=is_legacy, template="vicuna_v1"
    ), words


def error(what: str, where: Any, fix: str, why: str = "") -> errors.SgqlmError:
    """Return an error of a checkpoint."""
    return errors.SgqlmError(what, where=str(where), why=why, fix=fix, code=errors.CHECKPOINT)


def _vision(tree, file, tower: config.VisionConfig | None) -> config.VisionConfig:
    strategy = tree.get("vision_feature_select_strategy", "default")
    _one_of(strategy, ("default",), file)
    _one_of(tree.get("mm_vision_select_feature", "patch"), ("patch",), file)
    layer = tree.get("vision_feature_layer", tree.get("mm_vision_select_layer", -2))
    if not isinstance(layer, int):
        raise error(f"vision_feature_layer {layer} is not one layer", file, "one layer only")
    found = _tower(tree.get("vision_config", {}), file) if tower is None else tower
    return dataclasses.replace(found, feature_layer=layer)


def _tower(vision: Mapping[str, Any], file) -> config.VisionConfig:
    default = config.VisionConfig()
    return config.VisionConfig(
        image_size=vision.get("image_size", default.image_size),
        patch_size=vision.get("patch_size", default.patch_size),
        width=vision.get("hidden_size", default.width),
        num_layers=vision.get("num_hidden_layers", default.num_layers),
        num_heads=vision.get("num_attention_heads", default.num_heads),
        mlp_dim=vision.get("intermediate_size", default.mlp_dim),
        layer_norm_eps=vision.get("layer_norm_eps", default.layer_norm_eps),
        activation=_one_of(vision.get("hidden_act", "quick_gelu"), _ACTIVATIONS, file),
    )


def _llm(text: Mapping[str, Any], tree: Mapping[str, Any], file) -> config.LlmConfig:
    _one_of(text.get("model_type", "llama"), ("llama", "llava", "llava_llama"), file)
    _one_of(text.get("hidden_act", "silu"), ("silu",), file)
    for key in ("attention_bias", "mlp_bias"):
        _one_of(text.get(key, False), (False,), file)
    rope = text.get("rope_parameters") or {}
    scaling = text.get("rope_scaling") or {}
    kind = rope.get("rope_type", scaling.get("rope_type", scaling.get("type", "default")))
    _one_of(kind, ("default",), file)
    default = config.LlmConfig()
    heads = text.get("num_attention_heads", default.num_heads)
    width = text.get("hidden_size", default.width)
    theta = rope.get("rope_theta", text.get("rope_theta", default.rope_theta))
    tied = text.get("tie_word_embeddings", tree.get("tie_word_embeddings", False))
    return config.LlmConfig(
        vocab_size=text.get("vocab_size", default.vocab_size),
        width=width,
        num_layers=text.get("num_hidden_layers", default.num_layers),
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or width // heads,
        mlp_dim=text.get("intermediate_size", default.mlp_dim),
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        rope_theta=float(theta),
        max_positions=text.get("max_position_embeddings", 2048),
        tie_embeddings=bool(tied),
    )


def _projector(tree, file, *, is_nested: bool) -> config.ProjectorConfig:
    if is_nested:
        _one_of(tree.get("multimodal_projector_bias", True), (True,), file)
        activation = _one_of(tree.get("projector_hidden_act", "gelu"), _ACTIVATIONS, file)
        return config.ProjectorConfig(activation=activation)
    kind = tree.get("mm_projector_type", "linear")
    if kind == "cluster":
        raise error(
            "this is a SQ-LLaVA, not a LLaVA", file, "import it with `sgqlm import sq-llava`"
        )
    return config.ProjectorConfig(kind=_PROJECTORS[_one_of(kind, tuple(_PROJECTORS), file)])


def _image_fit(folder, tree, *, is_nested: bool):
    if not is_nested:
        return "pad" if tree.get("image_aspect_ratio") == "pad" else "crop"
    processor = read_json(folder, "processor_config.json")
    processor = processor or read_json(folder, "preprocessor_config.json")
    processor = processor.get("image_processor", processor)
    is_cropped = processor.get("do_center_crop", False) and not processor.get("do_pad", False)
    return "crop" if is_cropped else "pad"


def _dtype(tree: Mapping[str, Any]) -> str:
    text = tree.get("text_config") or {}
    known = [tree.get("dtype"), tree.get("torch_dtype"), text.get("dtype"), text.get("torch_dtype")]
    return next((name for name in known if name), "float32")


def _one_of(value, allowed, file):
    if value not in allowed:
        raise error(
            f"the setting {value!r} is not supported",
            file,
            "supported: " + ", ".join(map(repr, allowed)),
        )
    return value
