"""Load a Hugging Face LLaVA folder: config, safetensors in any known key layout."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from sgqlm import config, errors, types
from sgqlm.convert import names

_ACTIVATIONS = ("gelu", "quick_gelu")


class Imported(NamedTuple):
    """A model read from a folder."""

    config: config.ModelConfig
    params: types.Params
    carried: dict[str, np.ndarray]  # tensors behind the feature layer, by hub name
    tokenizer: pathlib.Path | None  # `tokenizer.model`, where the folder has one


def is_llava_folder(folder: pathlib.Path) -> bool:
    """Tell whether `folder` holds a config.json of a LLaVA model."""
    file = pathlib.Path(folder) / "config.json"
    return file.is_file() and json.loads(file.read_text()).get("model_type") == "llava"


def load_llava(folder: str | pathlib.Path) -> Imported:
    """Read a LLaVA folder (`LlavaForConditionalGeneration`), every tensor used exactly once.

    Args:
        folder: config.json beside model.safetensors, or shards with their index.

    Returns:
        The model without prototypes and graph, parameters in the dtype of the file.

    Raises:
        SgqlmError: config or weights are missing, or the tensors do not match the table.
    """
    folder = pathlib.Path(folder)
    cfg = read_config(folder)
    files = _tensor_files(folder)
    entries = names.llm_entries(cfg.llm) + names.vision_entries() + names.projector_entries()
    wanted = {}
    for entry in entries:
        count = names.num_layers(entry, cfg)
        for i in range(count or 1):
            wanted[entry.name.format(i=i)] = None
    carried = [name for name in files if names.is_carried(name, cfg)]
    _check_names(folder, set(wanted), set(files) - set(carried), cfg)
    params: types.Params = {}
    with _Reader(files) as read:
        for entry in entries:
            count = names.num_layers(entry, cfg)
            parts = [
                names.from_torch(read(entry.name.format(i=i)), entry.layout)
                for i in range(count or 1)
            ]
            _set(params, entry.path, parts[0] if count is None else np.stack(parts))
        kept = {name: read(name) for name in carried}
    tokenizer = folder / "tokenizer.model"
    return Imported(cfg, params, kept, tokenizer if tokenizer.is_file() else None)


def read_config(folder: pathlib.Path) -> config.ModelConfig:
    """Translate config.json, in the spelling of transformers 4 or 5.

    Raises:
        SgqlmError: the file is missing, broken, or asks for something this model does not do.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise _error("there is no config.json", file, "give the folder of a LLaVA model")
    try:
        tree = json.loads(file.read_text())
    except ValueError as error:
        raise _error(f"config.json is not JSON: {error}", file, "fetch it again") from error
    if tree.get("model_type") != "llava":
        why = f"its model_type is {tree.get('model_type')!r}"
        raise _error(f"not a LLaVA model: {why}", file, "give a folder with model_type llava")
    return config.ModelConfig(
        vision=_vision_config(tree, file),
        llm=_llm_config(tree, file),
        projector=config.ProjectorConfig(
            activation=_one_of(tree.get("projector_hidden_act", "gelu"), _ACTIVATIONS, file)
        ),
        graph=config.GraphConfig(enabled=False),
        compute_dtype="float32" if _dtype(tree) == "float32" else "bfloat16",
    )


def _vision_config(tree: Mapping[str, Any], file) -> config.VisionConfig:
    vision = tree.get("vision_config", {})
    strategy = tree.get("vision_feature_select_strategy", "default")
    _one_of(strategy, ("default",), file)
    layer = tree.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise _error(f"vision_feature_layer {layer} is not one layer", file, "one layer only")
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
        feature_layer=layer,
    )


def _llm_config(tree: Mapping[str, Any], file) -> config.LlmConfig:
    text = tree.get("text_config", {})
    _one_of(text.get("model_type", "llama"), ("llama",), file)
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


def _tensor_files(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
    """Return canonical name -> (file, name in the file), names without reading tensors."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text()).get("weight_map")
        if not isinstance(weight_map, dict):
            raise _error("the index has no weight_map", index, "fetch it again")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if pathlib.PurePath(shard).name != shard:
                raise _error(f"the index names {shard!r}, outside the folder", index, "refused")
    else:
        shards = ["model.safetensors"]
    found: dict[str, tuple[pathlib.Path, str]] = {}
    for shard in shards:
        file = folder / shard
        if not file.is_file():
            raise _error(f"the weights {shard} are missing", file, "give the complete folder")
        try:
            with safetensors.safe_open(file, framework="numpy") as tensors:
                keys = list(tensors.keys())
        except safetensors.SafetensorError as error:
            raise _error(f"{shard} cannot be read: {error}", file, "fetch it again") from error
        for key in keys:
            name = names.canonical(key)
            if name in found:
                raise _error(f"two tensors are both {name}", file, "one of them must go")
            found[name] = (file, key)
    return found


def _check_names(folder, wanted: set[str], found: set[str], cfg: config.ModelConfig) -> None:
    tied_head = "language_model.lm_head.weight"
    if cfg.llm.tie_embeddings:
        found = found - {tied_head}
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if not missing and not extra:
        return
    table = [f"missing     {name}" for name in missing]
    table += [f"unexpected  {name}" for name in extra]
    shown = "\n    ".join(table[:20] + [f"... {len(table) - 20} more"] * (len(table) > 20))
    raise _error(
        f"{len(missing)} tensors are missing and {len(extra)} are unexpected",
        folder,
        "the weights must match config.json exactly",
        why="\n    " + shown,
    )


class _Reader:
    """Reads tensors by canonical name, each file opened once."""

    def __init__(self, files: dict[str, tuple[pathlib.Path, str]]):
        self._files, self._open = files, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self._open.values():
            handle.__exit__(None, None, None)

    def __call__(self, name: str) -> np.ndarray:
        file, key = self._files[name]
        if file not in self._open:
            self._open[file] = safetensors.safe_open(file, framework="numpy").__enter__()
        return self._open[file].get_tensor(key)


def _set(tree: types.Params, path: str, value: np.ndarray) -> None:
    *parents, leaf = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[leaf] = value


def _dtype(tree: Mapping[str, Any]) -> str:
    text = tree.get("text_config", {})
    known = [tree.get("dtype"), tree.get("torch_dtype"), text.get("dtype"), text.get("torch_dtype")]
    return next((name for name in known if name), "float32")


def _one_of(value, allowed, file):
    if value not in allowed:
        raise _error(
            f"the setting {value!r} is not supported",
            file,
            "supported: " + ", ".join(map(repr, allowed)),
        )
    return value


def _error(what: str, where, fix: str, why: str = "") -> errors.SgqlmError:
    return errors.SgqlmError(what, where=str(where), why=why, fix=fix, code=errors.CHECKPOINT)
