"""A whole CLIP (both towers and projections) from a Hugging Face folder."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from sgqlm import config as config_lib
from sgqlm import types
from sgqlm.convert import hf_config, leaves, names, tensors
from sgqlm.models import clip_text, clip_vit, layers

_END = 49407  # CLIP's <|endoftext|>, where a configuration does not name it


class Clip(NamedTuple):
    """A CLIP: the configurations of its towers, and the parameters of `models.clip_text`.

    Attributes:
        vision: of the image tower.
        text: of the text tower.
        params: of both.
        end: `eos_token_id` of its configuration, see `end_of`.
    """

    vision: config_lib.VisionConfig
    text: config_lib.ClipTextConfig
    params: types.Params
    end: int

    def end_of(self, tokens: Sequence[int]) -> int:
        """Return the position whose feature is that of a text, as transformers finds it.

        It is that of the first `end`, or 0 without one; in old configurations, whose `end` is 2 by
        mistake, that of the highest number.
        """
        ids = np.asarray(tokens)
        return int(ids.argmax() if self.end == 2 else (ids == self.end).argmax())


def load(folder: str | pathlib.Path) -> Clip:
    """Read a CLIP in float32.

    Args:
        folder: `config.json` and weights as `transformers.CLIPModel` writes them.

    Returns:
        The CLIP.

    Raises:
        SgqlmError: the folder is of another model or lacks the text tower, or its tensors do not
            match its configuration.
    """
    folder = pathlib.Path(folder)
    tree = hf_config.read_json(folder, kind="CLIP")
    vision = dataclasses.replace(hf_config.clip(folder), feature_layer=-1)
    if tree.get("model_type") != "clip":
        raise hf_config.error(
            "this CLIP has no text tower",
            folder,
            "give a whole CLIP, such as openai/clip-vit-large-patch14",
        )
    about = tree.get("text_config") or {}
    text = _text_config(about, folder)
    with tensors.open_folder(folder) as given:
        flat = _read(given, vision, text, folder)
    params = traverse_util.unflatten_dict(flat, sep="/")
    _check(params, vision, text, folder)
    return Clip(vision, text, params, about.get("eos_token_id", _END))


def _text_config(tree: dict[str, Any], folder: pathlib.Path) -> config_lib.ClipTextConfig:
    default = config_lib.ClipTextConfig()
    activation = tree.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise hf_config.error(
            f"the activation {activation!r} is unknown", folder, "give another CLIP"
        )
    return config_lib.ClipTextConfig(
        vocab_size=tree.get("vocab_size", default.vocab_size),
        max_positions=tree.get("max_position_embeddings", default.max_positions),
        width=tree.get("hidden_size", default.width),
        num_layers=tree.get("num_hidden_layers", default.num_layers),
        num_heads=tree.get("num_attention_heads", default.num_heads),
        mlp_dim=tree.get("intermediate_size", default.mlp_dim),
        layer_norm_eps=tree.get("layer_norm_eps", default.layer_norm_eps),
        activation=activation,
    )


def _entries() -> list[names.Entry]:
    """Return the rows of both towers; the blocks of the text tower are named as those of vision."""
    vision = [
        row._replace(name=row.name.removeprefix("vision_tower.")) for row in names.vision_entries()
    ]
    text = [
        names.Entry(
            row.path.replace("vision/", "text/"),
            row.name.replace("vision_model.", "text_model."),
            row.layout,
        )
        for row in vision
        if "/blocks/" in row.path
    ]
    embeddings = "text_model.embeddings."
    return [
        *vision,
        names.Entry("post_norm/scale", "vision_model.post_layernorm.weight"),
        names.Entry("post_norm/bias", "vision_model.post_layernorm.bias"),
        names.Entry("image_projection/kernel", "visual_projection.weight", "linear"),
        *text,
        names.Entry("text/embed", embeddings + "token_embedding.weight"),
        names.Entry("text/pos", embeddings + "position_embedding.weight"),
        names.Entry("text/norm/scale", "text_model.final_layer_norm.weight"),
        names.Entry("text/norm/bias", "text_model.final_layer_norm.bias"),
        names.Entry("text_projection/kernel", "text_projection.weight", "linear"),
    ]


def _read(given: tensors.TensorFiles, vision, text, folder) -> dict[str, np.ndarray]:
    wanted = {}
    for row in _entries():
        count = (vision if row.path.startswith("vision/") else text).num_layers
        numbers = range(count) if "/blocks/" in row.path else range(1)
        wanted[row] = [row.name.format(i=i) for i in numbers]
    known = {name for found in wanted.values() for name in found}
    table = [f"missing     {name}" for name in sorted(known - set(given.names))]
    table += [
        f"unexpected  {name}"
        for name in sorted(set(given.names) - known - {"logit_scale"})
        if not names.is_ignored(name)
    ]
    if table:
        raise leaves.mismatch(table, str(folder), "the weights must match config.json exactly")
    out = {}
    for row, sources in wanted.items():
        parts = [
            names.from_torch(given.read(name).astype(np.float32), row.layout) for name in sources
        ]
        out[row.path] = (
            np.stack(parts) if "/blocks/" in row.path else np.ascontiguousarray(parts[0])
        )
    return out


def _check(params, vision, text, folder) -> None:
    """Refuse shapes that the configuration does not describe."""
    key, size = jax.random.key(0), vision.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    ids = jax.ShapeDtypeStruct((1, text.max_positions), np.int32)
    last = jax.ShapeDtypeStruct((1,), np.int32)
    towers = {
        "vision": jax.eval_shape(clip_vit.ClipViT(vision, layers.NO_LORA).init, key, pixels),
        "text": jax.eval_shape(clip_text.ClipText(text).init, key, ids, last),
    }
    table = []
    for name, wanted in towers.items():
        found: dict[str, Any] = traverse_util.flatten_dict(params[name], sep="/")
        described: dict[str, Any] = traverse_util.flatten_dict(wanted["params"], sep="/")
        for path, leaf in described.items():
            if found[path].shape != leaf.shape:
                at = f"{name}/{path}"
                table.append(f"shape       {at}: {found[path].shape}, wanted {leaf.shape}")
    if table:
        raise leaves.mismatch(table, str(folder), "the weights must match config.json exactly")
