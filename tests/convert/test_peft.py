"""Adapters of peft: what fits is attached, what does not is named."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from safetensors import numpy as safe_numpy

from sgqlm import config, errors
from sgqlm.convert import leaves, names, peft, source, tensors

MODEL = config.ModelConfig(
    vision=config.VisionConfig(image_size=28, width=8, num_layers=3, num_heads=2, mlp_dim=12),
    llm=config.LlmConfig(
        vocab_size=32, width=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12
    ),
    graph=config.GraphConfig(enabled=False),
)
BOTH = dataclasses.replace(
    MODEL,
    llm_lora=config.LoraConfig(rank=2, alpha=4.0),
    vision_lora=config.LoraConfig(rank=3, alpha=3.0),
)
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none"}


def adapter(folder, changed=None, settings=None, cfg=BOTH):
    """Write an adapter of random numbers and return what it should become."""
    rng = np.random.default_rng(0)
    stored, expected = {}, {}
    prefix = "base_model.model.model."
    rows = names.adapter_entries(
        cfg, text=prefix + "language_model.", vision=prefix + "vision_tower.vision_model."
    )
    for entry in rows:
        shape = names.param_shapes(cfg)[entry.path]
        expected[entry.path] = rng.normal(size=shape).astype(np.float32)
        for name, part in leaves.layers(entry, expected[entry.path], shape[0]):
            stored[name] = part
    stored = changed(stored) if changed else stored
    folder.mkdir(exist_ok=True)
    safe_numpy.save_file(stored, folder / "adapter_model.safetensors")
    tree = {**SETTINGS, "rank_pattern": {r".*vision_tower\..*": 3}}
    tree |= {"alpha_pattern": {r".*vision_tower\..*": 3.0}, **(settings or {})}
    (folder / "adapter_config.json").write_text(json.dumps(tree))
    return expected


@contextlib.contextmanager
def attached(folder, model=MODEL):
    shapes = names.param_shapes(model)
    zeros = {path: leaves.of_array(np.zeros(s, np.float32)) for path, s in shapes.items()}
    found = source.Source(model, config.TextConfig(), zeros)
    with found, tensors.open_folder(folder, "adapter_model") as given:
        peft.attach(found, given, peft.read_settings(folder), where=folder)
        leaves.check_shapes(found.leaves, found.config, where=str(folder))
        yield found


def test_both_sides_get_their_rank_and_alpha(tmp_path):
    expected = adapter(tmp_path / "a")
    with attached(tmp_path / "a") as found:
        assert found.config == BOTH
        for path, array in expected.items():
            np.testing.assert_array_equal(found.leaves[path].load(), array)


def test_scaling_by_the_root_of_the_rank(tmp_path):
    only = dataclasses.replace(MODEL, llm_lora=BOTH.llm_lora)
    adapter(tmp_path / "a", settings={"use_rslora": True}, cfg=only)
    with attached(tmp_path / "a") as found:
        assert found.config.llm_lora.scale == pytest.approx(4 / np.sqrt(2))


def test_modules_that_an_adapter_leaves_out_change_nothing(tmp_path):
    def few(stored):
        return {name: x for name, x in stored.items() if "q_proj" in name or "v_proj" in name}

    adapter(tmp_path / "a", few)
    with attached(tmp_path / "a") as found:
        assert not found.leaves["llm/blocks/mlp/up/lora_b"].load().any()
        assert found.leaves["llm/blocks/mlp/up/lora_a"].load().any()  # so that it can be trained
        assert found.leaves["llm/blocks/attn/q/lora_b"].load().any()
        assert "down_proj" in found.notes[0]


def _without_half(stored):
    return {n: x for n, x in stored.items() if not n.endswith("layers.1.mlp.up_proj.lora_B.weight")}


def _another_rank(stored):
    name = next(name for name in stored if "q_proj.lora_A" in name)
    return {**stored, name: np.zeros((5, 8), np.float32)}


def _another_width(stored):
    name = next(name for name in stored if "q_proj.lora_A" in name)
    return {**stored, name: np.zeros((2, 9), np.float32)}


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        (_without_half, {}, "whose other half is there"),
        (lambda s: {**s, "base_model.model.model.x.weight": np.zeros(1)}, {}, "unexpected"),
        (_another_rank, {}, "differ in rank or alpha"),
        (_another_width, {}, "shape"),
        (None, {"use_dora": True}, "use_dora"),
        (None, {"bias": "all"}, "bias"),
        (None, {"peft_type": "IA3"}, "IA3"),
        (None, {"lora_alpha": None}, "differ in rank or alpha|no lora_alpha"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changed, settings, message):
    adapter(tmp_path / "a", changed, settings)
    with pytest.raises(errors.SgqlmError, match=message) as caught, attached(tmp_path / "a"):
        pass
    assert caught.value.code == errors.CHECKPOINT


def test_a_model_with_adapters_takes_no_others(tmp_path):
    adapter(tmp_path / "a")
    with (
        pytest.raises(errors.SgqlmError, match="has adapters already"),
        attached(tmp_path / "a", BOTH),
    ):
        pass


def test_an_empty_adapter_is_refused(tmp_path):
    adapter(tmp_path / "a", lambda stored: {"nothing": np.zeros(1, np.float32)})
    with pytest.raises(errors.SgqlmError, match="unexpected"), attached(tmp_path / "a"):
        pass
