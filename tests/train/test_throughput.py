"""Rates of a stage from its figures."""

import dataclasses

import pytest

from sgqlm import config
from sgqlm.models import presets
from sgqlm.train import flops, stages, throughput


def rates(kind, **options):
    return throughput.meter(ROW, model(), device_kind=kind, num_devices=4, **options)


def model():
    """7B, frozen, without anything beside it: about 2 N operations a token and pass."""
    return dataclasses.replace(
        presets.get("vicuna_7b"),
        graph=config.GraphConfig(enabled=False),
        prototypes=config.PrototypeConfig(),
        llm_lora=config.LoraConfig(),
        vision_lora=config.LoraConfig(),
    )


STAGE = stages.preset("sq_llava", "align")
ROW = dataclasses.replace(STAGE, learning_rates={"projector": 1e-3})
WINDOW = [{"samples": 8.0, "tokens": 8 * 608.0, "labelled": 8 * 30.0}] * 2


def test_rates_are_those_of_the_table():
    found = rates("TPU v5 lite")(WINDOW, 0.5)
    assert found["tokens_per_second"] == 2 * 8 * 608 / 0.5
    # LLaVA-1.5 7B, 608 positions, frozen language model: 16.7 TFLOP a sample with the whole head
    expected = 2 * 8 * 16.7 / 0.5
    assert found["tflops_per_second"] == pytest.approx(expected, rel=0.03)
    assert found["mfu"] == pytest.approx(found["tflops_per_second"] / (4 * 197), rel=1e-6)


def test_padding_and_dummies_count_nothing():
    found = rates("TPU v4")
    empty = [{"samples": 0.0, "tokens": 0.0, "labelled": 0.0}]
    assert found(WINDOW + empty, 1.0) == found(WINDOW, 1.0)


def test_a_chip_without_a_known_peak_has_no_mfu():
    found = rates("cpu")(WINDOW, 1.0)
    assert set(found) == {"tokens_per_second", "tflops_per_second"}
    assert throughput.note(found).endswith("tokens/s")
    assert rates("cpu")([{"loss": 1.0}], 1.0) == {}


def test_cached_features_leave_the_tower_out():
    one, other = (rates("cpu", is_cached=cached)(WINDOW, 1.0) for cached in (False, True))
    tower = flops.total(flops.sample(model(), {"projector"}, flops.Shape(608, 30)))
    without = flops.total(
        flops.sample(model(), {"projector"}, flops.Shape(608, 30, is_cached=True))
    )
    difference = (one["tflops_per_second"] - other["tflops_per_second"]) * 1e12
    assert difference == pytest.approx(16 * (tower.model - without.model))
    assert difference == pytest.approx(16 * 0.366e12, rel=0.03)
