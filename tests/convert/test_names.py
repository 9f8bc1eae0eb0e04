import numpy as np
import pytest

from sgqlm import config
from sgqlm.convert import names

TEXT = "layers.3.self_attn.q_proj.weight"
VISION = "encoder.layers.1.mlp.fc1.bias"


def spell(layout: str, part: str, name: str) -> str:
    """Write a tensor's name in one of the layouts in circulation, from a table of its own."""
    prefix = {
        "A": ("language_model.model.", "language_model.", "", "vision_tower.vision_model."),
        "B": ("language_model.model.", "language_model.", "", "vision_tower."),
        "C": ("model.language_model.", "", "model.", "model.vision_tower."),
        "D": ("model.language_model.", "", "model.", "model.vision_tower.vision_model."),
        "E": ("model.", "", "model.", "model.vision_tower.vision_tower.vision_model."),
    }[layout][("text", "head", "projector", "vision").index(part)]
    if part == "projector":
        numbers = {"linear_1": "0", "linear_2": "2"}
        first, rest = name.split(".", 1)
        name = f"mm_projector.{numbers[first]}.{rest}" if layout == "E" else f"{first}.{rest}"
        return prefix + (name if layout == "E" else f"multi_modal_projector.{name}")
    return prefix + name


@pytest.mark.parametrize("layout", "ABCDE")
@pytest.mark.parametrize(
    ("part", "name", "expected"),
    [
        ("text", TEXT, "language_model.model." + TEXT),
        ("text", "embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("text", "norm.weight", "language_model.model.norm.weight"),
        ("head", "lm_head.weight", "language_model.lm_head.weight"),
        ("projector", "linear_1.weight", "multi_modal_projector.linear_1.weight"),
        ("projector", "linear_2.bias", "multi_modal_projector.linear_2.bias"),
        ("vision", VISION, "vision_tower.vision_model." + VISION),
        ("vision", "pre_layrnorm.bias", "vision_tower.vision_model.pre_layrnorm.bias"),
    ],
)
def test_every_layout_has_one_canonical_name(layout, part, name, expected):
    assert names.canonical(spell(layout, part, name)) == expected
    assert names.canonical(expected) == expected


def test_tables_name_every_tensor_once():
    cfg = config.ModelConfig()
    rows = (
        names.llm_entries(cfg.llm)
        + names.vision_entries()
        + names.projector_entries(config.ProjectorConfig())
    )
    assert len({row.path for row in rows}) == len({row.name for row in rows}) == len(rows)
    tied = config.LlmConfig(tie_embeddings=True)
    gone = {row.path for row in rows} - {row.path for row in names.llm_entries(tied)}
    assert "llm/head/kernel" in gone
    counts = {names.num_layers(row, cfg) for row in rows}
    assert counts == {None, 32, 23}  # the last layer of the tower is not used


def test_carried_tensors_lie_behind_the_feature_layer():
    cfg, tower = config.ModelConfig(), "vision_tower.vision_model."
    assert names.is_carried(tower + "encoder.layers.23.layer_norm1.bias", cfg)
    assert names.is_carried(tower + "post_layernorm.weight", cfg)
    assert not names.is_carried(tower + "encoder.layers.22.layer_norm1.bias", cfg)
    assert not names.is_carried("language_model.model.layers.31.input_layernorm.weight", cfg)


@pytest.mark.parametrize(
    ("layout", "shape", "ours"),
    [("same", (5,), (5,)), ("linear", (4, 3), (3, 4)), ("conv", (6, 3, 2, 5), (2, 5, 3, 6))],
)
def test_axes_there_and_back(layout, shape, ours):
    array = np.arange(np.prod(shape)).reshape(shape)
    turned = names.from_torch(array, layout)
    assert turned.shape == ours
    back = names.to_torch(turned, layout)
    np.testing.assert_array_equal(back, array)
    assert back.flags.c_contiguous
