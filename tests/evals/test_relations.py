"""Figures from answer files, with lists, synonyms and masks."""

import dataclasses
import json

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.data.relations import types
from sgqlm.decode import score
from sgqlm.evals import answers, relations, scene_graphs
from sgqlm.evals.metrics import scene_graph
from tests.evals import relation_data

WORDS = relations.Words(tuple(relation_data.PREDICATES))


@pytest.fixture
def data(tmp_path):
    items = [item for item in relation_data.items() if item.split == "test"]
    style = scene_graphs.conversations.Settings()
    return scene_graphs.Data(tmp_path, range(len(items)), items, style)


def texts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_words_come_from_the_data_or_a_list(tmp_path):
    items = relation_data.items()
    odd = types.Relation(0, "is riding", 1)
    items[0] = dataclasses.replace(items[0], relations=[*items[0].relations, odd])
    found = relations.make_words(items)
    assert found.predicates == ("riding", "wearing", "behind", "near")
    assert found.number("is riding") == found.number("rides") == 0 and found.number("eats") == -1
    plain = relations.make_words(items, merge="none")
    assert "is riding" in plain.predicates and plain.number("rides") == -1
    (tmp_path / "list.txt").write_text("riding\nwears\n")
    listed = relations.make_words(items, file=tmp_path / "list.txt")
    assert listed.predicates == ("riding", "wears") and listed.number("wearing") == -1
    merged = relations.make_words(items, file=tmp_path / "list.txt", merge="default")
    assert merged.predicates == ("riding", "wearing") and merged.number("worn by man") == 1
    (tmp_path / "same.txt").write_text("man, guy,Boy\n")
    assert relations.make_words(items, aliases=tmp_path / "same.txt").name("boy") == "man"
    with pytest.raises(errors.SgqlmError, match="aliases"):
        relations.make_words(items, aliases=tmp_path / "none.txt")
    assert relations.object_names(items) == sorted(relation_data.NAMES)


def test_predicates_out_of_the_list_are_left_out_and_counted(data, tmp_path):
    lines = [{"key": item.key, "text": "man -> riding -> horse"} for item in data.items]
    path = texts(tmp_path / "a.jsonl", lines)
    few = relations.Words(("riding",))
    done = relations.score_texts(path, data, few)
    assert (done["relations"], done["left_out"], done["images"]) == (2, 4, 2)
    assert done["R@20"] == done["mR@20"] == 1


def test_texts_of_other_models_are_measured_by_names(data, tmp_path):
    path = texts(
        tmp_path / "a.jsonl",
        [
            {"image": "0.png", "text": "guy -> rides -> horse; man -> is wearing -> hat"},
            {"question_id": 101, "answer": "horse -> near -> tree; nonsense"},
            {"id": "nowhere.png", "output": "a -> b -> c"},
        ],
    )
    (tmp_path / "same.txt").write_text("man,guy\n")
    words = relations.make_words(data.items, aliases=tmp_path / "same.txt")
    done = relations.score_texts(path, data, words)
    assert done["R@20"] == pytest.approx((1 + 1 / 3) / 2)
    assert (done["pieces"], done["unread"], done["parse_failure_rate"]) == (4, 1, 0.25)
    assert (done["answered"], done["unanswered"], done["unknown_images"]) == (2, 1, 1)
    assert any("25.0% of 4" in line for line in relations.lines(done))
    zero = relations.score_texts(path, data, words, zero_shot={("man", "riding", "horse")})
    assert zero["zero_shot_relations"] == 3


def test_texts_without_image_or_of_others_are_refused(data, tmp_path):
    for rows, message in (
        ([{"text": "a -> b -> c"}], "lacks key"),
        ([{"key": "pictures/0.png"}], "lacks text"),
        ([{"key": "else.png", "text": ""}], "other images"),
    ):
        with pytest.raises(errors.SgqlmError, match=message):
            relations.score_texts(texts(tmp_path / "a.jsonl", rows), data, WORDS)


def write(path, data, lines, **changed):
    head = scene_graphs.Settings("predcls", WORDS.predicates, pairs="annotated")
    with answers.AnswerFile(path, scene_graphs.header(head, {}) | changed) as out:
        for item, line in zip(data.items, lines, strict=False):
            out.add({"key": item.key} | line)
    return path


def test_an_image_without_answer_is_left_out_and_a_failed_one_counts(data, tmp_path):
    right = {"triplets": [[0, 1, 0], [0, 2, 1]], "scores": [0.9, 0.8]}
    path = write(tmp_path / "a.jsonl", data, [right, {"error": "the image cannot be decoded"}])
    done = relations.score(path, data, WORDS)
    assert done["R@20"] == 0.5 and (done["answered"], done["unanswered"]) == (2, 1)
    text = "\n".join(relations.lines(done))
    assert "1 images have no answer" in text and "cannot be decoded" in text
    assert "not comparable" in text


def test_answers_to_something_else_are_refused(data, tmp_path):
    path = write(tmp_path / "a.jsonl", data, [{"triplets": [], "scores": []}])
    with pytest.raises(errors.SgqlmError, match="other predicates"):
        relations.score(path, data, relations.Words(("on",)))
    other = dataclasses.replace(data, items=data.items[1:])
    with pytest.raises(errors.SgqlmError, match="other images"):
        relations.score(path, other, WORDS)


class Sure:
    """Says the same of every pair."""

    def rank(self, picture, questions):
        return scene_graphs.ranking.Scores(np.zeros((len(questions), 4)), score.Cost(1, 1))


def test_masks_decide_where_the_data_have_them(data, tmp_path):
    masked = []
    for item in data.items:
        boxes = np.array([thing.box for thing in item.objects])
        codes = graphs.Entities.from_boxes(boxes, item.size).masks
        things = zip(item.objects, codes, strict=True)
        objects = [dataclasses.replace(thing, mask=code) for thing, code in things]
        masked.append(dataclasses.replace(item, objects=objects))
    data = dataclasses.replace(data, items=masked)
    true = relations.truth(masked[0], WORDS)
    assert (
        true.masks is not None and relations.truth(masked[0], WORDS, use_masks=False).masks is None
    )
    # what an extractor found has the right boxes, and in every other image empty masks
    chosen = scene_graphs.Settings("sgdet", WORDS.predicates)
    path = tmp_path / "a.jsonl"
    with answers.AnswerFile(path, scene_graphs.header(chosen, {})) as out:
        for index, item in enumerate(masked):
            boxes = np.array([thing.box for thing in item.objects])
            names = [thing.name for thing in item.objects]
            found = graphs.Entities.from_boxes(boxes, item.size, labels=names)
            if index % 2:
                empty = [graphs.encode_rle(np.zeros(item.size, bool))] * len(names)
                found = dataclasses.replace(found, masks=empty)
            graph = scene_graphs._graph(item, found, None, None, chosen)
            line = scene_graphs._relations(graph, item, None, Sure(), chosen)
            out.add({"key": item.key} | line)
    done = relations.score(path, data, WORDS)
    assert done["ng-R@100"] == pytest.approx(2 / 3)
    assert relations.score(path, data, WORDS, use_masks=False)["ng-R@100"] == 1
    assert scene_graph.MODES[2] == done["mode"]
