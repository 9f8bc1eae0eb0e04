import json

import pytest

from sgqlm import errors
from sgqlm.parallel import chips


def test_slices():
    found = chips.topology("v5e:4x4")
    assert (found.num_chips, found.accelerator_type) == (16, "v5litepod-16")
    assert found.chip.memory == 16 * chips.GIB
    assert chips.topology("v4:2x2x1").accelerator_type == "v4-8"  # two cores a chip
    environment = chips.compile_environment(found, "libtpu.so")
    assert environment["TPU_ACCELERATOR_TYPE"] == "v5litepod-16"
    assert environment["TPU_LIBRARY_PATH"] == "libtpu.so"


@pytest.mark.parametrize(
    ("call", "argument", "hint"),
    [
        (chips.get, "h20", "did you mean --chip h200?"),
        (chips.get, "zzz", "known: v4, v5e"),
        (chips.topology, "v5:4x4", "did you mean --topology v5"),
        (chips.topology, "v5e:4x4x4", "for example v5e:4x4"),
        (chips.topology, "v4:4x4", "for example v4:2x2x2"),
        (chips.topology, "v5e:0x4", "give 2 sides"),
        (chips.topology, "v5e", "give 2 sides"),
    ],
)
def test_mistakes_name_what_is_near(call, argument, hint):
    with pytest.raises(errors.SgqlmError) as caught:
        call(argument)
    assert hint in caught.value.fix
    assert caught.value.code == errors.USAGE


def test_every_chip_has_a_price_that_can_be_changed(tmp_path):
    prices = chips.read_prices()
    assert set(prices.chips) == set(chips.CHIPS)
    assert all(0 < price.spot < price.on_demand for price in prices.chips.values())
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"date": "today", "chips": {"v5e": {"on_demand": 9, "spot": 1}}}))
    assert chips.read_prices(file).chips == {"v5e": chips.Price(9.0, 1.0, "")}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"date": "x"}',
        '{"date": "x", "chips": {"v5e": {"on_demand": 1}}}',
        '{"date": "x", "chips": {"v5e": {"on_demand": -1, "spot": 1}}}',
        '{"date": "x", "chips": {"v5e": {"on_demand": NaN, "spot": 1}}}',
        '{"date": "x", "chips": {"v9": {"on_demand": 1, "spot": 1}}}',
    ],
)
def test_price_tables_that_cannot_be_used(text, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(errors.SgqlmError):
        chips.read_prices(file)
    with pytest.raises(errors.SgqlmError, match="cannot be used"):
        chips.read_prices(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
    ],
)
def test_devices_are_known_by_their_kind(kind, name):
    assert chips.of_device(kind).name == name


def test_other_devices_are_not_known():
    assert chips.of_device("cpu") is None
