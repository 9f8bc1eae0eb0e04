import dataclasses
import json
import os
import shutil
import signal

import jax
import pytest
from flax import traverse_util

from sgqlm import config, errors
from sgqlm.models import lora
from sgqlm.scenes import builder
from sgqlm.train import bundle, checkpoint, loop, metrics
from tests.train import micro, toys


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    builder.build(micro.SCENES, folder, 1)
    return dataclasses.replace(micro.SCENES, path=str(folder))


@pytest.fixture(scope="module")
def plan(scenes):
    rows = (
        micro.stage("align", 3, "projector", cache_features=True),
        micro.stage("instruct", 6, "llm_lora", "vision_lora", "graph", accumulation=2),
    )
    return dataclasses.replace(micro.settings(*rows, save_every=2, keep=9), scenes=scenes)


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.run(plan, workdir)


def stop_after(stage, step):
    def on_step(info):
        if (info.stage, info.step) == (stage, step):
            os.kill(os.getpid(), signal.SIGTERM)

    return loop.Hooks(on_step=on_step)


@pytest.mark.parametrize(
    ("stage", "step"), [pytest.param("align", 1, marks=pytest.mark.slow), ("instruct", 3)]
)
def test_a_run_that_was_stopped_ends_bit_identical(plan, whole, tmp_path, stage, step):
    with pytest.raises(errors.SgqlmError, match="SIGTERM") as caught:
        loop.run(plan, tmp_path, hooks=stop_after(stage, step))
    assert caught.value.code == errors.PREEMPTED
    assert checkpoint.latest(tmp_path)[1].stage == stage
    result = loop.run(plan, tmp_path)
    assert toys.same(result.params, whole[1].params)
    losses = [metrics.read(folder)["instruct"][6]["loss"] for folder in (whole[0], tmp_path)]
    assert losses[0] == losses[1]


def test_frozen_parameters_never_change_and_trained_ones_do(plan, whole):
    _, result = whole
    with jax.set_mesh(toys.mesh()):
        first = loop.start.init_params(result.config.model, 0, toys.mesh())
    before = traverse_util.flatten_dict(first, sep="/")
    after = traverse_util.flatten_dict(result.params, sep="/")
    trained = {part for stage in plan.train.stages for part in stage.learning_rates}
    changed = {lora.part_of(p) for p in after if (before[p] != after[p]).any()}
    assert changed == trained
    adapters = [p for p in after if p.endswith("lora_b")]
    assert {lora.part_of(p) for p in adapters} == {"llm_lora", "vision_lora"}
    assert all((after[p] != 0).any() for p in adapters)


def test_the_model_loads_without_the_optimizer(whole):
    workdir, result = whole
    cfg, params, tokenizer = checkpoint.load_model(workdir)
    assert cfg == result.config
    assert toys.same(params, result.params)
    assert tokenizer.vocab_size == cfg.model.llm.vocab_size
    assert not (checkpoint.find(workdir)[-1] / "opt").exists()
    assert set(result.stages) == {"align", "instruct"}
    assert result.stages["instruct"]["steps"] == 6
    assert config.from_config_dict(config.to_dict(cfg)) == cfg


def test_a_finished_run_is_not_done_again(plan, whole, capsys):
    workdir, result = whole
    again = loop.run(plan, workdir)
    assert toys.same(again.params, result.params)
    assert "instruct: done before" in capsys.readouterr().err


def test_data_may_move(plan, whole, tmp_path, capsys):
    moved = shutil.copytree(plan.scenes.path, tmp_path / "scenes")
    scenes = dataclasses.replace(plan.scenes, path=str(moved))
    again = loop.run(dataclasses.replace(plan, scenes=scenes), whole[0])
    assert toys.same(again.params, whole[1].params)
    assert "instruct: done before" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_run_is_not_taken_for_one_of_other_data(plan, tmp_path):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([{"id": "0", "conversations": turns}] * 4))
    source = config.SourceConfig(name="talks", path=str(file))
    row = micro.stage("align", 1, "llm", sources=(source,))
    short = dataclasses.replace(plan, train=dataclasses.replace(plan.train, stages=(row,)))
    loop.run(short, tmp_path / "run")
    loop.run(short, tmp_path / "run")
    turns[1]["value"] = "oh"
    file.write_text(json.dumps([{"id": "0", "conversations": turns}] * 4))
    with pytest.raises(errors.SgqlmError, match="not the one of the checkpoint") as caught:
        loop.run(short, tmp_path / "run")
    assert caught.value.code == errors.CHECKPOINT


@pytest.mark.slow
def test_only_what_differs_from_the_base_is_saved(plan, whole, tmp_path):
    base = str(checkpoint.find(whole[0])[-1])
    rows = (micro.stage("more", 1, "llm_lora"),)
    train = dataclasses.replace(plan.train, stages=rows, init=base)
    result = loop.run(dataclasses.replace(plan, train=train), tmp_path)
    meta = checkpoint.read_meta(result.checkpoint)
    assert {lora.part_of(path) for path in meta.saved} == {"llm_lora"}
    assert meta.base["path"] == base
    assert toys.same(checkpoint.load_model(tmp_path)[1], result.params)
    assert toys.same(bundle.open_model(tmp_path)[1].params(), result.params)
    flat = traverse_util.flatten_dict(result.params, sep="/")
    old = traverse_util.flatten_dict(whole[1].params, sep="/")
    same = {lora.part_of(p) for p in flat if (flat[p] == old[p]).all()}
    assert "llm" in same
    assert "llm_lora" not in same


@pytest.mark.parametrize(
    ("changes", "message", "code"),
    [
        ({"resume": "never"}, "holds checkpoints", errors.USAGE),
        ({"seed": 3}, "settings differ", errors.CHECKPOINT),
        ({"only": ("instrct",)}, "unknown stage", errors.USAGE),
        ({"mesh": {"data": 3}}, "does not fit 1 devices", errors.USAGE),
        ({"stages": ()}, "no stage", errors.USAGE),
    ],
)
def test_runs_that_cannot_go_on(plan, whole, changes, message, code):
    train = dataclasses.replace(plan.train, **changes)
    with pytest.raises(errors.SgqlmError, match=message) as caught:
        loop.run(dataclasses.replace(plan, train=train), whole[0])
    assert caught.value.code == code


def test_resume_must_find_something(plan, tmp_path):
    train = dataclasses.replace(plan.train, resume="must")
    with pytest.raises(errors.SgqlmError, match="no checkpoint to resume"):
        loop.run(dataclasses.replace(plan, train=train), tmp_path)


def test_a_changed_model_is_refused(plan, whole):
    wider = dataclasses.replace(plan.model, llm_lora=config.LoraConfig(rank=3))
    with pytest.raises(errors.SgqlmError, match="settings differ") as caught:
        loop.run(dataclasses.replace(plan, model=wider), whole[0])
    assert "config.model.llm_lora.rank: 2 -> 3" in caught.value.why
