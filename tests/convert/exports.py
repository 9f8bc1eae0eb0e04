"""Small models, their exports and rows of inputs, for the tests of exported folders."""

import contextlib
import dataclasses
import re
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import numpy as safe_numpy

from sgqlm import config
from sgqlm import model as model_lib
from sgqlm.convert import sgqlm_folder
from sgqlm.data import graphs
from sgqlm.decode import inputs
from sgqlm.models import lora, vlm
from tests import tiny_model
from tests.models import helpers

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "out": "out_proj"}
RENAMED = {
    "llm/embed/embedding": "language_model.model.embed_tokens.weight",
    "llm/norm/scale": "language_model.model.norm.weight",
    "llm/head/kernel": "language_model.lm_head.weight",
    "vision/cls": "vision_tower.vision_model.embeddings.class_embedding",
    "vision/pos/embedding": "vision_tower.vision_model.embeddings.position_embedding.weight",
    "vision/patch/kernel": "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "vision/pre_norm/scale": "vision_tower.vision_model.pre_layrnorm.weight",
    "vision/pre_norm/bias": "vision_tower.vision_model.pre_layrnorm.bias",
}
LAYERS = {
    "llm": "language_model.model.layers.{}.",
    "vision": "vision_tower.vision_model.encoder.layers.{}.",
}
NORMS = {
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}


@contextlib.contextmanager
def module_cache(folder):
    """Let transformers copy the code of folders to `folder`, and forget it at the end."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(str(folder))
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            patch.delitem(sys.modules, name)
        yield
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]


def torch_tensors(params) -> dict[str, np.ndarray]:
    """Name and turn every parameter as an export does; written apart from the library's table."""
    out = {}

    def put(path, leaf):
        parts, leaf = path.split("/"), np.asarray(leaf)
        if path == "vision/patch/kernel":
            leaf = leaf.transpose(3, 2, 0, 1)
        elif parts[-1] == "kernel":
            leaf = leaf.swapaxes(-1, -2)
        last = {"kernel": "weight", "scale": "weight"}.get(parts[-1], parts[-1])
        if path in RENAMED:
            out[RENAMED[path]] = leaf
        elif parts[1] == "blocks":
            module = ".".join(NORMS.get(part, part) for part in parts[2:-1])
            if module.startswith("attn."):
                module = "self_attn." + PROJECTIONS[module.removeprefix("attn.")]
            module = re.sub(r"^mlp\.(gate|up|down)$", r"mlp.\1_proj", module)
            for i, layer in enumerate(leaf):
                out[f"{LAYERS[parts[0]].format(i)}{module}.{last}"] = layer
        elif parts[0] == "projector":
            out[f"multi_modal_projector.linear_{parts[1][-1]}.{last}"] = leaf
        else:
            out[".".join([*parts[:-1], last])] = leaf

    lora.map_with_path(put, params)
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def write_folder(folder, model, words):
    """Write a whole export of a model."""
    folder.mkdir(exist_ok=True)
    for name, content in sgqlm_folder.side_files(model.config, words).items():
        (folder / name).write_bytes(content)
    safe_numpy.save_file(
        torch_tensors(model.params), folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


def settings(**changes):
    """Return a small model; keys like `graph__width` change one setting of a part."""
    base = helpers.small_config()
    parts = {"region_words": 2, "graph": dataclasses.replace(base.graph, label_skip=True)}
    parts["llm"] = dataclasses.replace(base.llm, vocab_size=tiny_model.words().vocab_size)
    for key, value in changes.items():
        name, _, field = key.partition("__")
        old = parts.get(name, getattr(base, name))
        parts[name] = dataclasses.replace(old, **{field: value}) if field else value
    return dataclasses.replace(base, **parts)


def random_model(cfg, *, template="v1_sq", seed=0):
    """Return a model whose every parameter matters, those that start at zero as well."""
    rng = np.random.default_rng(seed)
    params = lora.map_with_path(
        lambda path, leaf: rng.normal(path.endswith("scale"), 0.2, leaf.shape).astype(np.float32),
        vlm.param_shapes(cfg),
    )
    whole = config.Config(model=cfg, text=config.TextConfig(template=template))
    return model_lib.VisionLanguageModel.from_parts(whole, params, tiny_model.words())


def picture(width, height, seed=0):
    """Return a picture of noise."""
    rng = np.random.default_rng(seed)
    return as_picture(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))


def as_picture(array):
    """Return uint8[h, w, 3] as a picture."""
    return Image.fromarray(array)


def from_boxes(boxes, size):
    """Return entities without labels whose masks are their boxes."""
    return graphs.Entities.from_boxes(boxes, size)


def entities(count, size, *, labels=(), seed=0):
    """Return random entities with ragged masks, some coded, for an image of (height, width)."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], -1) * np.tile(
        size[::-1], 2
    )
    found = graphs.Entities.from_boxes(boxes, size, scores=rng.integers(0, 3, count))
    masks = found.dense_masks() & (rng.random((count, *size)) < 0.8)
    masks = masks if count % 2 else [graphs.encode_rle(mask) for mask in masks]
    return dataclasses.replace(found, masks=masks, labels=list(labels))


def rows(cfg):
    """Return rows with few, too many, no and empty entities, one without image, some dialogue."""
    many, known = cfg.graph.num_nodes + 2, ["red circle", "a big  ring", "12"]
    talk = [
        {"from": "human", "value": "What is left of the square?"},
        {"from": "gpt", "value": "a ring"},
        {"from": "human", "value": "Is it red?\nPlease answer yes or no."},
    ]
    wide, tall = picture(60, 40, 1), picture(31, 52, 2)
    return [
        inputs.Row(talk, wide, entities(3, (40, 60), labels=known, seed=1)),
        inputs.Row([inputs.human("is the ring blue")], tall, entities(many, (52, 31), seed=2)),
        inputs.Row(talk[:1], tall),
        inputs.Row([inputs.human("hello  there")]),
        inputs.Row([inputs.human("what is it?")], wide, entities(0, (40, 60))),
    ]


def labelled(model, given):
    """Return the rows with the labels that the model predicts where there are none."""
    cfg = model.config.model
    bare = [row for row in given if row.entities is not None and not any(row.entities.labels)]
    if not (cfg.region_words and cfg.graph.enabled and cfg.graph.labels == "predicted"):
        return given
    found = model.tag([row.image for row in bare], [row.entities for row in bare])
    return [
        dataclasses.replace(row, entities=found[bare.index(row)]) if row in bare else row
        for row in given
    ]


def our_batch(model, given):
    """Return the batch that our model makes of the rows, right-padded."""
    words, cfg = tiny_model.words(), model.config
    prepared = [inputs.prepare(row, cfg, words) for row in labelled(model, given)]
    return inputs.collate(prepared, max(row.length for row in prepared), cfg.model)
