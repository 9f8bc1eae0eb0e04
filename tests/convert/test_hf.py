"""Loading of LLaVA folders: five spellings of names, two of config.json, and broken folders."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safe_numpy

from sgqlm import errors
from sgqlm.convert import hf
from tests import paths

HEAD = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def golden():
    folder = paths.fixture("llava/tiny_llava_hf/config.json").parent  # layout B
    with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return folder, tensors, hf.load_llava(folder)


@pytest.fixture
def copy(golden, tmp_path):
    """Return a function that writes the golden folder with other tensors or settings."""
    folder, tensors, _ = golden

    def write(changed=tensors, **settings):
        tree = json.loads((folder / "config.json").read_text()) | settings
        (tmp_path / "config.json").write_text(json.dumps(tree))
        shutil.copy(folder / "processor_config.json", tmp_path)
        safe_numpy.save_file(changed, tmp_path / "model.safetensors")
        return tmp_path

    return write


def respell(name: str, layout: str) -> str:
    """Rename a tensor from layout B."""
    text = {"A": "language_model.model.", "E": "model."}.get(layout, "model.language_model.")
    vision = {
        "A": "vision_tower.vision_model.",
        "C": "model.vision_tower.",
        "D": "model.vision_tower.vision_model.",
        "E": "model.vision_tower.vision_tower.vision_model.",
    }[layout]
    name = name.replace("language_model.model.", text).replace("vision_tower.", vision)
    if layout != "A":
        name = name.replace(HEAD, "lm_head.weight")
        name = name.replace("multi_modal_projector.", "model.multi_modal_projector.")
    if layout == "E":
        name = name.replace("multi_modal_projector.linear_1", "mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "mm_projector.2")
    return name


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("layout", "ACDE")
def test_every_layout_gives_identical_parameters(golden, copy, layout):
    _, tensors, expected = golden
    renamed = {respell(name, layout): value for name, value in tensors.items()}
    assert len(set(renamed) - set(tensors)) > 20
    found = hf.load_llava(copy(renamed))
    assert found.config == expected.config
    same(found.params, expected.params)
    same(found.carried, expected.carried)


def test_axes_and_stacking(golden):
    _, tensors, found = golden
    kernel = found.params["llm"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 48, 96)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(kernel[1], tensors[name].T)
    patch = found.params["vision"]["patch"]["kernel"]
    stored = tensors["vision_tower.embeddings.patch_embedding.weight"]
    assert patch[3, 5, 2, 7] == stored[7, 2, 3, 5]
    assert len(found.carried) == 18  # the third layer and the last norm


def test_shards_give_the_same_as_one_file(golden, copy):
    _, tensors, expected = golden
    folder = copy()
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for shard, held in parts.items():
        safe_numpy.save_file({name: tensors[name] for name in held}, folder / shard)
    index = {name: shard for shard, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    same(hf.load_llava(folder).params, expected.params)
    (folder / "b.safetensors").unlink()
    with pytest.raises(errors.SgqlmError, match=r"b\.safetensors are missing"):
        hf.load_llava(folder)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "sub/a.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(copy, shard):
    folder = copy()
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {HEAD: shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(errors.SgqlmError, match="index of the weights cannot be used"):
        hf.load_llava(folder)


def test_missing_and_unexpected_tensors_are_listed(golden, copy):
    _, tensors, _ = golden
    changed = {name: value for name, value in tensors.items() if name != HEAD}
    changed["language_model.model.layers.2.mlp.up_proj.weight"] = np.zeros((96, 48), np.float32)
    with pytest.raises(errors.SgqlmError, match="2 tensors do not fit") as caught:
        hf.load_llava(copy(changed))
    assert caught.value.code == errors.CHECKPOINT
    assert f"missing     {HEAD}" in caught.value.why
    assert "unexpected  language_model.model.layers.2.mlp.up_proj.weight" in caught.value.why


def test_two_spellings_of_one_tensor_are_refused(golden, copy):
    _, tensors, _ = golden
    with pytest.raises(errors.SgqlmError, match="two tensors are both"):
        hf.load_llava(copy({**tensors, "lm_head.weight": tensors[HEAD]}))


def test_a_truncated_file_is_refused(copy):
    folder = copy()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        hf.load_llava(folder)


def test_version_4_spelling_equals_version_5(golden, copy):
    tree = json.loads((golden[0] / "config.json").read_text())
    text = {k: v for k, v in tree["text_config"].items() if k != "rope_parameters"}
    old = {**text, "rope_theta": 5e5, "rope_scaling": None}
    new = {**text, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    found = [hf.read_config(copy(text_config=part, dtype="bfloat16")) for part in (old, new)]
    tree = json.loads((golden[0] / "config.json").read_text())
    folder = copy(text_config=old, torch_dtype="bfloat16", dtype=None)
    found.append(hf.read_config(folder))
    assert found[0] == found[1] == found[2]
    assert found[0].llm.rope_theta == 5e5
    assert found[0].compute_dtype == "bfloat16"
    assert golden[2].config.compute_dtype == "float32"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama"}, "not a LLaVA model"),
        ({"projector_hidden_act": "relu"}, "'relu' is not supported"),
        ({"vision_feature_layer": [-2, -5]}, "not one layer"),
        ({"vision_feature_select_strategy": "full"}, "'full' is not supported"),
        ({"text_config": {"model_type": "mistral"}}, "'mistral' is not supported"),
        ({"text_config": {"attention_bias": True}}, "True is not supported"),
        ({"text_config": {"rope_scaling": {"type": "linear"}}}, "'linear' is not supported"),
    ],
)
def test_settings_of_other_models_are_refused(copy, settings, message):
    with pytest.raises(errors.SgqlmError, match=message):
        hf.load_llava(copy(**settings))


def test_folders_that_are_none(golden, tmp_path):
    assert hf.is_llava_folder(golden[0])
    assert not hf.is_llava_folder(tmp_path)
    with pytest.raises(errors.SgqlmError, match=r"no config\.json"):
        hf.load_llava(tmp_path)
    shutil.copy(golden[0] / "config.json", tmp_path)
    with pytest.raises(errors.SgqlmError, match=r"weights model\.safetensors are missing"):
        hf.load_llava(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.SgqlmError, match="not JSON"):
        hf.load_llava(tmp_path)
