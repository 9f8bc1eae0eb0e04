"""An adapter of ours is whole in PEFT: names of both majors, ranks of both towers, the merge."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors import numpy as safe_numpy

from sgqlm import config, errors
from sgqlm.convert import names, peft_config
from sgqlm.models import presets
from tests import paths
from tests.convert import other_python

PROGRAM = paths.ROOT / "tests" / "convert" / "merge_adapter.py"
LLM = config.LoraConfig(rank=4, alpha=8.0, dropout=0.05)
VISION = config.LoraConfig(rank=2, alpha=6.0, dropout=0.2)
TINY = dataclasses.replace(
    presets.get("tiny"),
    vision=dataclasses.replace(presets.get("tiny").vision, num_layers=3),
    llm=dataclasses.replace(presets.get("tiny").llm, num_layers=2, tie_embeddings=False),
    projector=config.ProjectorConfig(),
    llm_lora=LLM,
    vision_lora=VISION,
)
NO = config.LoraConfig()
TEXT = "base_model.model.model.language_model."
TOWER = "base_model.model.model.vision_tower.vision_model."
# module names of transformers 4.57 and 5.23
LANGUAGE = "model.language_model.layers.1."
VISION_4 = "model.vision_tower.vision_model.encoder.layers."
VISION_5 = "model.vision_tower.encoder.layers."
LANGUAGE_MODULES = [f"self_attn.{n}_proj" for n in "qkvo"]
LANGUAGE_MODULES += [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
VISION_MODULES = [f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]


def targets(model):
    return re.compile(peft_config.adapter_config(model, base="b")["target_modules"]).fullmatch


def test_the_pattern_finds_both_towers_in_both_majors():
    found = targets(TINY)
    assert all(found(LANGUAGE + name) for name in LANGUAGE_MODULES)
    for prefix in (VISION_4, VISION_5):
        assert all(found(f"{prefix}1.{name}") for name in VISION_MODULES)
        assert not any(found(f"{prefix}2.{name}") for name in VISION_MODULES)  # not computed
    assert not found("model.multi_modal_projector.linear_1")
    assert not found("lm_head")


def test_a_tower_without_adapters_is_left_alone():
    found = targets(dataclasses.replace(TINY, vision_lora=NO))
    assert all(found(LANGUAGE + name) for name in LANGUAGE_MODULES)
    assert not any(found(f"{VISION_5}0.{name}") for name in VISION_MODULES)
    tree = peft_config.adapter_config(dataclasses.replace(TINY, llm_lora=NO), base="b")
    assert (tree["r"], tree["lora_alpha"], tree["rank_pattern"]) == (2, 6.0, {})
    assert not re.fullmatch(tree["target_modules"], f"{LANGUAGE}self_attn.q_proj")
    with pytest.raises(errors.SgqlmError, match="no low-rank adapters") as caught:
        peft_config.adapter_config(dataclasses.replace(TINY, llm_lora=NO, vision_lora=NO), base="b")
    assert caught.value.code == errors.CHECKPOINT


def test_layers_of_large_towers():
    found = targets(presets.get("vicuna_7b"))
    assert [n for n in range(24) if found(f"{VISION_5}{n}.mlp.fc1")] == list(range(23))
    last = dataclasses.replace(
        presets.get("vicuna_7b"), vision=dataclasses.replace(TINY.vision, feature_layer=-1)
    )
    assert targets(last)(f"{VISION_5}2.mlp.fc1")


def test_each_tower_has_its_rank():
    tree = peft_config.adapter_config(TINY, base="hub/base", save_projector=True)
    assert (tree["r"], tree["lora_alpha"], tree["lora_dropout"]) == (4, 8.0, 0.05)
    (pattern,) = tree["rank_pattern"]
    assert tree["rank_pattern"][pattern] == 2
    assert tree["alpha_pattern"] == {pattern: 6.0}
    assert re.match(pattern, f"{VISION_4}0.mlp.fc1")
    assert not re.match(pattern, f"{LANGUAGE}mlp.up_proj")
    assert tree["base_model_name_or_path"] == "hub/base"
    assert tree["modules_to_save"] == ["multi_modal_projector"]
    assert json.loads(json.dumps(tree)) == tree


def adapter(folder):
    """Write an adapter with numpy; return tensors and, by module, what it adds to the weight."""
    rng = np.random.default_rng(0)
    sizes = {"q": (24, 24), "k": (24, 12), "v": (24, 12), "o": (24, 24)}
    sizes |= {"gate": (24, 40), "up": (24, 40), "down": (40, 24)}
    tensors, added = {}, {}

    def put(module, shape, lora, prefix):
        a = rng.normal(size=(lora.rank, shape[0])).astype(np.float32)
        b = rng.normal(size=(shape[1], lora.rank)).astype(np.float32) * np.float32(0.02)
        tensors[f"{prefix}{module}.lora_A.weight"] = a
        tensors[f"{prefix}{module}.lora_B.weight"] = b
        added[f"{prefix.split('.')[-2]}.{module}"] = lora.scale * (b @ a)

    for layer in range(2):
        for name, shape in sizes.items():
            part = "self_attn" if name in "qkvo" else "mlp"
            put(f"layers.{layer}.{part}.{name}_proj", shape, LLM, TEXT)
        for name in VISION_MODULES:
            shape = {"mlp.fc1": (16, 32), "mlp.fc2": (32, 16)}.get(name, (16, 16))
            put(f"encoder.layers.{layer}.{name}", shape, VISION, TOWER)
    for number, shape in (("1", (24, 16)), ("2", (24, 24))):
        name = f"multi_modal_projector.linear_{number}."
        weight = rng.normal(size=shape).astype(np.float32)
        tensors[peft_config.saved_name(name + "weight")] = weight
        bias = rng.normal(size=shape[:1]).astype(np.float32)
        tensors[peft_config.saved_name(name + "bias")] = bias
    folder.mkdir()
    safe_numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    tree = peft_config.adapter_config(TINY, base="base", save_projector=True)
    (folder / "adapter_config.json").write_text(json.dumps(tree))
    return tensors, added


def test_the_name_table_has_the_same_names(tmp_path):
    tensors, _ = adapter(tmp_path / "adapter")
    entries = names.adapter_entries(TINY, text=TEXT, vision=TOWER)
    listed = {e.name.format(i=i) for e in entries for i in range(names.num_layers(e, TINY) or 1)}
    assert listed == {name for name in tensors if ".lora_" in name}


@pytest.mark.parametrize("major", [pytest.param(m, marks=other_python.MARKS) for m in "45"])
def test_peft_loads_and_merges_it(major, python_with, tmp_path):
    python = python_with(major)
    tensors, added = adapter(tmp_path / "adapter")
    answer = tmp_path / "answer.npz"
    other_python.run(python, PROGRAM, tmp_path / "adapter", answer)
    found = np.load(answer)
    report = json.loads(str(found["report"]))
    assert report["version"].startswith(f"{major}.")
    assert report["said"] == []
    assert report["adapted"] == len(added)
    assert sum(map(bool, map(targets(TINY), report["modules"]))) == len(added)
    changed = 0
    for name in (key.removeprefix("before/") for key in found.files if key.startswith("before/")):
        wanted = found[f"before/{name}"]
        short = name.removesuffix(".weight").replace("vision_tower.encoder", "vision_model.encoder")
        module = next((module for module in added if short.endswith(module)), None)
        if module:
            wanted, changed = wanted + added[module], changed + 1
        elif "multi_modal_projector" in name:
            wanted, changed = tensors[f"base_model.model.{name}"], changed + 1
        np.testing.assert_allclose(found[f"after/{name}"], wanted, rtol=0, atol=1e-6)
    assert changed == len(added) + 4
