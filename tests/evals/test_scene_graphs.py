"""Predicted scene graphs: of an oracle that reads the questions, and of random weights."""

import dataclasses
import re

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.data import records
from sgqlm.data.relations import annotations, conversations, types
from sgqlm.decode import score
from sgqlm.evals import answers, ranking, relations, scene_graphs
from tests import tiny_model
from tests.evals import relation_data

MENTION = r"the (\w+) at (\[[^]]*\])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return relation_data.make(tmp_path_factory.mktemp("relations"))


@pytest.fixture(scope="module")
def items(folder):
    return annotations.load(folder)


@pytest.fixture(scope="module")
def data(folder, items):
    return scene_graphs.open_data(folder, items, "")


def settings(mode="predcls", **changed):
    words = tuple(relation_data.PREDICATES)
    changed = {"options": ranking.Options(batch_size=2)} | changed  # few shapes are compiled
    return scene_graphs.Settings(mode, words, relation_data.NAMES, **changed)


class Oracle:
    """Knows the annotated relation of each pair of boxes and the name of each box."""

    def __init__(self, items):
        self.pairs, self.names = {}, {}
        for item in items:
            texts = [conversations.format_box(o.box, item.size) for o in item.objects]
            self.names |= dict(zip(texts, (o.name for o in item.objects), strict=True))
            for r in item.relations:
                self.pairs[texts[r.subject], texts[r.object]] = r.predicate

    def rank(self, picture, questions):
        values = [self._row(question) for question in questions]
        return ranking.Scores(np.array(values, np.float32), score.Cost(1, 2))

    def _row(self, question):
        if question.startswith("What is the object at"):
            name = self.names[re.findall(r"\[[^]]*\]", question)[0]]
            return [9.0 if word == name else 0.0 for word in relation_data.NAMES]
        (first, one), (second, two) = re.findall(MENTION, question)
        assert (self.names[one], self.names[two]) == (first, second)
        true = self.pairs.get((one, two))
        return [9.0 if word == true else 0.0 for word in relation_data.PREDICATES]


class Constant(Oracle):
    def _row(self, question):
        return [5.0, 0.0, 0.0, 0.0]


def answer(data, oracle, chosen, path):
    """Let an oracle answer with the code that a model's answers go through."""
    with answers.AnswerFile(path, scene_graphs.header(chosen, {})) as out:
        for item in data.items:
            graph = scene_graphs._graph(item, None, None, oracle, chosen)
            out.add({"key": item.key} | scene_graphs._relations(graph, item, None, oracle, chosen))
    return path


@pytest.mark.parametrize("mode", ["predcls", "sgcls"])
def test_a_perfect_predictor_has_recall_one(data, items, tmp_path, mode):
    path = answer(data, Oracle(items), settings(mode), tmp_path / "a.jsonl")
    words = relations.Words(tuple(relation_data.PREDICATES))
    done = relations.score(path, data, words, zero_shot=relations.train_triples(items, words))
    for name in ("R@20", "mR@20", "ng-R@20", "zR@20", "F@20"):
        assert done[name] == 1, name
    assert done["images"] == 3 and done["zero_shot_relations"] == 4  # `man riding horse` is known
    assert done["positions"] == {
        "run": 3 * (1 + (mode == "sgcls")),
        "plain": 6 + 6 * (mode == "sgcls"),
    }


def test_a_constant_predictor_has_a_low_mean_recall(data, items, tmp_path):
    path = answer(data, Constant(items), settings(), tmp_path / "a.jsonl")
    done = relations.score(path, data, relations.Words(tuple(relation_data.PREDICATES)))
    assert done["mR@100"] == 1 / 4 and done["R@100"] == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert done["ng-mR@100"] == 1  # every triplet of four objects is among the first hundred


def test_answers_keep_what_both_rankings_need():
    rng = np.random.default_rng(0)
    whole = rng.random((500, 30))
    kept = scene_graphs._kept(whole)
    order = np.argsort(-whole, axis=None)[: scene_graphs.KEPT]
    assert {divmod(int(n), 30) for n in order} <= set(kept)
    best = np.argsort(-whole.max(1))[: scene_graphs.KEPT]
    assert {(int(i), int(whole[i].argmax())) for i in best} <= set(kept)
    values = [whole[i, p] for i, p in kept]
    assert values == sorted(values, reverse=True) and len(kept) <= 2 * scene_graphs.KEPT


def test_pairs_are_chosen():
    boxes = [(0, 0, 10, 10), (5, 0, 15, 10), (14, 0, 24, 10), (80, 0, 90, 10)]
    objects = [types.Object(str(i), tuple(map(float, box))) for i, box in enumerate(boxes)]
    item = types.Annotated("a", (100, 100), objects, [types.Relation(0, "on", 3)])

    def pairs(**changed):
        return scene_graphs.choose_pairs(item, settings(**changed))

    assert len(pairs()) == 12 and pairs(pairs="annotated") == [(0, 3)]
    assert pairs(pairs="overlapping") == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert pairs(max_pairs=2) == [(0, 1), (1, 0)]
    assert pairs(max_pairs=6) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    empty = dataclasses.replace(item, objects=[], relations=[])
    assert scene_graphs.choose_pairs(empty, settings()) == []


def test_settings_and_data_that_do_not_fit_are_refused(folder, items):
    for wrong in ({"mode": "sggen"}, {"pairs": "some"}, {"mode": "sgdet", "pairs": "annotated"}):
        with pytest.raises(errors.SgqlmError):
            settings(**wrong)
    assert len(scene_graphs.open_data(folder, items, "test", limit=2).items) == 2
    with pytest.raises(errors.SgqlmError, match="test, train"):
        scene_graphs.open_data(folder, items, "val")


def predict(data, chosen, path, *, entities="", **options):
    found = scene_graphs.open_entities(data.folder, chosen.mode, entities)
    with answers.AnswerFile(path, scene_graphs.header(chosen, {})) as out:
        scene_graphs.run(tiny_model.make(), data, chosen, out, entities=found, **options)
    return answers.read(path)[1]


def test_a_model_predicts_and_a_second_run_repeats_nothing(data, tmp_path):
    path, chosen, told = tmp_path / "a.jsonl", settings(pairs="annotated"), []
    some = dataclasses.replace(data, items=data.items[:2], rows=data.rows[:2])
    first = predict(some, chosen, path, progress=lambda done, note: told.append(done))
    assert told == [1, 2] and [line["pairs"] for line in first] == [2, 3]
    for line in first:
        assert len(line["triplets"]) == 4 * line["pairs"] and "error" not in line
        assert sum(line["scores"]) == pytest.approx(line["pairs"], abs=1e-5)
        assert line["positions"][1] > 2 * line["positions"][0]
    before = path.read_bytes()
    whole = predict(data, chosen, path, progress=lambda done, note: told.append(done))
    assert told == [1, 2, 3] and path.read_bytes().startswith(before)
    again = predict(data, chosen, tmp_path / "b.jsonl")
    assert again == whole


def test_what_is_no_fault_of_an_image_ends_the_run(data, tmp_path, monkeypatch):
    def fail(*_):
        raise errors.SgqlmError("no memory is left", code=code)

    monkeypatch.setattr(ranking, "open_picture", fail)
    path, chosen, code = tmp_path / "a.jsonl", settings(pairs="annotated"), errors.RESOURCES
    with pytest.raises(errors.SgqlmError, match="no memory"):
        predict(data, chosen, path)
    assert answers.read(path)[1] == []
    code = errors.DATA
    assert ["no memory" in line["error"] for line in predict(data, chosen, path)] == [True] * 3


def test_the_prompt_is_that_of_training(data, items):
    talks = records.ConversationStore(data.folder / "conversations", "test")
    asked = {turn["value"] for row in range(len(talks)) for turn in talks[row].turns}
    ours = {
        "<image>\n" + conversations.ask_predicate(item, s, o, data.style)
        for item in data.items
        for s, o in scene_graphs.choose_pairs(item, settings(pairs="annotated"))
    }
    assert asked & ours


def test_sgcls_and_sgdet_run_end_to_end(data, tmp_path):
    one = dataclasses.replace(data, items=data.items[:1], rows=data.rows[:1])
    few = {"pairs": "all", "max_pairs": 2}
    (line,) = predict(one, settings("sgcls", **few), tmp_path / "c.jsonl")
    assert set(line["labels"]) <= set(relation_data.NAMES) and len(line["labels"]) == 4
    assert all(1 / 4 <= value <= 1 for value in line["label_scores"])
    store = str(relation_data.extracted(tmp_path / "entities"))
    path = tmp_path / "d.jsonl"
    (line,) = predict(one, settings("sgdet", **few), path, entities=store)
    assert line["labels"] == ["man", "horse", "hat"] and line["label_scores"] == [0.9, 0.8, 0.7]
    assert line["pairs"] == 2 and len(line["boxes"]) == 3 and "masks" not in line
    words = relations.Words(tuple(relation_data.PREDICATES))
    done = relations.score(path, one, words)
    assert done["mode"] == "sgdet" and done["images"] == 1


def test_sgdet_needs_labelled_entities(data, tmp_path):
    with pytest.raises(errors.SgqlmError, match="--entities"):
        predict(data, settings("sgdet"), tmp_path / "a.jsonl")
    store = str(relation_data.extracted(tmp_path / "bare", labels=False))
    one = dataclasses.replace(data, items=data.items[:1], rows=data.rows[:1])
    (line,) = predict(one, settings("sgdet"), tmp_path / "b.jsonl", entities=store)
    assert "no labels" in line["error"]
    words = relations.Words(tuple(relation_data.PREDICATES))
    done = relations.score(tmp_path / "b.jsonl", one, words)
    assert done["R@100"] == 0 and len(done["failed"]) == 1
