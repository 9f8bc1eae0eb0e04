import dataclasses

import pytest

from sgqlm import config, errors
from sgqlm.models import vlm
from sgqlm.train import stages, state
from tests.train import micro

FULL, LORA = 2e-5, 2e-4


@pytest.mark.parametrize(
    ("model", "stage", "rates"),
    [
        ("llava_sg", "align", {"projector": 1e-3}),
        ("llava_sg", "graph", {"graph": 1e-3}),
        ("llava_sg", "instruct", {"projector": FULL, "graph": FULL, "llm": FULL}),
        ("sq_llava", "align", {"projector": 1e-3, "prototypes": 1e-3}),
        (
            "sq_llava",
            "instruct",
            {"projector": FULL, "prototypes": FULL, "llm_lora": LORA, "vision_lora": FULL},
        ),
        ("sgqlm", "align", {"projector": 1e-3, "prototypes": 1e-3}),
        ("sgqlm", "graph", {"graph": 1e-3}),
        (
            "sgqlm",
            "instruct",
            {
                "projector": FULL,
                "prototypes": FULL,
                "graph": FULL,
                "llm_lora": LORA,
                "vision_lora": FULL,
            },
        ),
    ],
)
def test_rows_of_the_table(model, stage, rates):
    row = stages.preset(model, stage)
    assert row.learning_rates == rates
    assert row.batch_size == (128 if stage == "instruct" else 256)
    asks = stage == "instruct" and model != "llava_sg"
    assert row.self_questioning == (0.5 if asks else 0.0)


def test_other_rows_and_options():
    whole = stages.preset("sgqlm", "end_to_end").learning_rates
    assert set(whole) == {"projector", "prototypes", "graph", "llm_lora", "vision_lora"}
    everything = stages.preset("sgqlm", "pretrain").learning_rates
    assert set(everything) == {"vision", "projector", "prototypes", "graph", "llm"}
    row = stages.preset("sgqlm", "instruct", llm_tuning="full", vision_tuning="frozen")
    assert row.learning_rates["llm"] == FULL
    assert not {"llm_lora", "vision", "vision_lora"} & set(row.learning_rates)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stages.preset("sq_llava", "graph"),
        lambda: stages.preset("llava", "align"),
        lambda: stages.preset("sgqlm", "tune"),
        lambda: stages.preset("sgqlm", "instruct", llm_tuning="half"),
    ],
)
def test_rows_that_are_not_there(call):
    with pytest.raises(errors.SgqlmError):
        call()


def test_a_stage_must_fit_the_model():
    shapes = vlm.param_shapes(micro.model())
    stages.check(stages.preset("sgqlm", "instruct"), shapes)
    bare = micro.model(prototypes=config.PrototypeConfig(mode="none"))
    with pytest.raises(errors.SgqlmError, match="trains prototypes"):
        stages.check(stages.preset("sgqlm", "align"), vlm.param_shapes(bare))
    tower = micro.stage("x", 1, "vision_lora", cache_features=True)
    with pytest.raises(errors.SgqlmError, match="caches features of a tower that trains"):
        stages.check(tower, shapes)


def test_the_table_of_parts():
    shapes = vlm.param_shapes(micro.model())
    rows = {row.part: row for row in state.part_table(shapes, {"graph": 1e-3})}
    assert rows["graph"].learning_rate == 1e-3
    assert rows["llm"].learning_rate == 0.0
    assert rows["llm"].bytes == 4 * rows["llm"].count
    text = state.format_table(list(rows.values()))
    assert f"of which {rows['graph'].count:,d} train" in text


def test_selection():
    rows = tuple(config.StageConfig(name=name) for name in ("a", "b", "c"))
    train = config.TrainConfig(stages=rows, only=("c", "a"))
    assert [row.name for row in stages.select(train)] == ["a", "c"]
    with pytest.raises(errors.SgqlmError, match="two stages have one name"):
        stages.select(dataclasses.replace(train, stages=rows + rows[:1]))


@pytest.mark.parametrize(("steps", "epochs", "expected"), [(7, 1.0, 7), (0, 1.0, 3), (0, 0.1, 1)])
def test_number_of_steps(steps, epochs, expected):
    row = config.StageConfig(steps=steps, epochs=epochs, batch_size=4)
    assert stages.num_steps(row, 10) == expected


@pytest.mark.parametrize(("records", "expected"), [(3, 5), (10, 5), (24, 6)])
def test_few_records_get_the_least_number_of_steps(records, expected):
    row = config.StageConfig(epochs=1.0, batch_size=4, min_steps=5)
    assert stages.num_steps(row, records) == expected
