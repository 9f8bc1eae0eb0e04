import dataclasses
import json

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.cli import eval_model, eval_scenes
from sgqlm.evals import measured as report_files
from sgqlm.evals import prior, report, runner, scenes
from sgqlm.scenes import grammar, questions, world
from tests import tiny_model

SETTINGS = config.EvalConfig(batch_size=64, max_new_tokens=3, num_asked=4)


class Oracle:
    """Reads the answers off the scene whose graph, else whose image, it is given."""

    def __init__(self, cases):
        self.by_graph = {id(case.entities): case for case in cases}
        self.by_image = {id(case.image): case for case in cases}
        self.truth = {
            (id(case.image), question.text): question.answer
            for case in cases
            for question in case.questions
        }

    def respond(self, rows, *, seed=0, **_):
        return [self.answer(row) for row in rows]

    def answer(self, row):
        seen = self.by_graph.get(id(row.entities))
        if row.open_role == "vuser":
            return seen.questions[0].text
        own = seen is self.by_image[id(row.image)] and row.permute_edges is None
        return self.truth[id(row.image), row.turns[0]["value"]] if own else "unknown"


@pytest.fixture(scope="module")
def cases():
    return scenes.make_cases(tiny_model.SCENES, count=6)


@pytest.fixture(scope="module")
def known():
    return prior.fit(scenes.train_questions(tiny_model.SCENES, limit=8))


@pytest.fixture(scope="module")
def measured(cases, known):
    return runner.evaluate_scenes(tiny_model.make(), cases, answer_prior=known, settings=SETTINGS)


def test_each_arm_takes_away_what_it_says(cases, known):
    """An oracle of the own graph is right in the full arm only."""
    told = []
    found = runner.evaluate_scenes(
        Oracle(cases), cases, answer_prior=known, settings=SETTINGS, progress=told.append
    )
    assert found["test"]["accuracy"] == 1.0
    for arm in ("no_graph", "shuffled_graph", "edges_permuted"):
        assert found[arm]["accuracy"] == 0.0
    assert 0 < found["prior"]["accuracy"] < 1
    assert found["asked"]["questions"] == 4
    assert found["asked"]["well_formed_share"] == 1.0
    assert found["asked"]["well_formed_share_shuffled"] < 1.0
    assert told == ["test", "no_graph", "shuffled_graph", "edges_permuted", "asked"]


def test_a_real_model_is_measured_in_every_arm(measured):
    for arm in report.ARMS:
        assert set(measured[arm]["by_family"]) == set(prior.FAMILIES)
        assert 0 <= measured[arm]["accuracy"] <= 1
    assert measured["asked"]["distinct_share"] > 0
    assert measured["asked"]["well_formed_share"] == 0


def test_the_report_keeps_its_contract(measured, tmp_path):
    stages = {"graph": {"steps": 3, "first_loss": 2.0, "last_loss": 1.0, "curve": [1, 2]}}
    made = report.build(measured, seconds=12.345, stages=stages)
    path = report.write(tmp_path / "a" / "report.json", made)
    read = json.loads(path.read_text())
    assert list(read) == ["seconds", "stages", *report.ARMS, "asked"]
    assert read["stages"] == {"graph": {"steps": 3, "first_loss": 2.0, "last_loss": 1.0}}
    assert set(read["asked"]) == {
        "questions",
        "distinct_share",
        "well_formed_share",
        "well_formed_share_shuffled",
    }
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_of_results_is_a_report_beside_others(measured, tmp_path, monkeypatch):
    """The same figures as without a folder, with intervals; a second run asks nothing."""
    model, few = tiny_model.make(), dataclasses.replace(SETTINGS, num_scenes=6, num_described=0)
    world = dataclasses.replace(tiny_model.SCENES, num_test=6)
    model_settings = dataclasses.replace(model.config.model, region_words=0)  # as in `measured`
    settings = dataclasses.replace(model.config, model=model_settings, scenes=world, eval=few)
    source = eval_model.Source(str(tmp_path / "run"), None, settings, (), ())
    eval_scenes.measure(model, settings, source, tmp_path / "scenes")
    path = tmp_path / "scenes" / "report.json"
    told = json.loads(path.read_text())
    assert {name: told[name] for name in measured} == measured
    score, before = told["score"], path.read_text()
    assert score["score"] == pytest.approx(measured["test"]["accuracy"], abs=1e-4)
    assert len(score["items"]) == score["count"] == len(score["details"])
    assert score["figures"]["no_graph"]["value"] == measured["no_graph"]["accuracy"]
    assert score["groups"]["one_hop"] == "families" and score["groups"]["prior"] == "controls"
    with monkeypatch.context() as changed:
        changed.setattr(model, "respond", _silent)
        eval_scenes.measure(model, settings, source, tmp_path / "scenes")
    assert path.read_text() == before
    (found,), *_ = report_files.find([tmp_path])
    assert (found.task, found.metric) == ("scenes", "accuracy")
    with pytest.raises(errors.SgqlmError, match="another evaluation"):
        eval_scenes.measure(model, settings, source, tmp_path / "scenes", limit=2)


def _silent(*_, **__):
    raise AssertionError("an answer that is there was asked for again")


def test_lines_name_every_arm(measured):
    text = "\n".join(report.lines(measured))
    assert all(arm in text for arm in report.ARMS)
    assert "4 questions" in text


def test_examples_show_what_the_model_saw(cases):
    model = tiny_model.make()
    shown = runner.collect_examples(model, cases[:2], settings=SETTINGS, questions_each=1)
    for case, example, family in zip(cases[:2], shown, prior.FAMILIES[:2], strict=True):
        asked = {q.text: q for q in case.questions}[example.question]
        assert (asked.family, asked.answer) == (family, example.truth)
        count = len(case.entities)
        assert example.node_attention.shape == (count,)
        assert example.edges.shape == (count, count)
        assert example.nearest.shape == (4, 4)
        assert len(example.asked) == 1
        assert all(len(pair) == 2 for pair in example.asked)
        assert all(label for label in example.entities.labels)


def test_a_tagger_labels_every_case(cases):
    labelled = scenes.make_cases(tiny_model.SCENES, count=2, tagger=tiny_model.make().tag)
    for case, bare in zip(labelled, cases, strict=False):
        assert case.questions == bare.questions
        np.testing.assert_array_equal(case.entities.boxes, bare.entities.boxes)
        assert len(case.entities.labels) == len(case.entities)
        assert not any(bare.entities.labels)


def test_training_questions_are_not_those_of_the_test(cases):
    asked = list(scenes.train_questions(tiny_model.SCENES, limit=2))
    scene = world.make_scene(tiny_model.SCENES, "train", 0)
    assert asked[0].text in [q.text for q in questions.ask_all(scene, seed=0)]
    assert grammar.parse(asked[0].text) is not None
    assert [q.text for q in asked[:3]] != [q.text for q in cases[0].questions[:3]]
