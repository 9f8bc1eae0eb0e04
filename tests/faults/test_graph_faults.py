"""Broken scene graphs: what cannot be is dropped and counted, or refused; nothing is lost with it.

The rules of a whole extraction are in tests/entities, those of each file format in
tests/data/relations; here is what a graph meets on its way into a model.
"""

import dataclasses

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.data import graphs
from sgqlm.data.relations import assemble, types

SIZE = (60, 80)
MODEL = config.ModelConfig(graph=config.GraphConfig(num_nodes=4))


def test_edges_that_cannot_be_are_dropped_and_counted():
    raw, report = assemble.Raw("image 7", SIZE), types.Report()
    raw.add("man", "man", (0, 0, 20, 30))
    raw.add("horse", "horse", (10, 10, 60, 50))
    raw.add("ghost", "ghost", (5, 5, 5, 9))  # no width
    raw.add("blur", "blur", (float("nan"), 0, 9, 9))
    raw.relations += [
        ("man", "riding", "horse"),
        ("man", "riding", "horse"),
        ("man", "near", "man"),
        ("man", "sees", "ghost"),
        ("man", "sees", "nobody"),
        ("man", "  ", "horse"),
        ("horse", None, "man"),
        ("horse", "some relation that no list has", "man"),
    ]
    found = assemble.assemble(raw, "7.jpg", report, split="train", image_id="7")
    assert [thing.name for thing in found.objects] == ["man", "horse"]
    said = [(r.subject, r.predicate, r.object) for r in found.relations]
    assert said == [(0, "riding", 1), (1, "some relation that no list has", 0)]
    assert dict(report.notes) == {
        "box of no or negative size": 1,
        "object without a usable box": 1,
        "relation given twice": 1,
        "relation of an object with itself": 1,
        "relation with an object that is not there": 2,
        "relation without a predicate": 2,
    }


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"boxes": [[0, 0, np.nan, 9], [0, 0, 9, 9]]}, "not finite"),
        ({"boxes": [[0, 0, np.inf, 9], [0, 0, 9, 9]]}, "not finite"),
        ({"scores": [np.nan, 1.0]}, "not finite"),
        ({"scores": [1.0]}, "1 scores"),
        ({"labels": ["one"]}, "1 labels"),
        ({"size": (80, 60)}, "mask"),
    ],
)
def test_entities_that_do_not_fit_are_refused_with_the_reason(change, problem, coded):
    good = graphs.Entities.from_boxes([[0, 0, 30, 30], [40, 10, 70, 50]], SIZE)
    if not coded:
        good = dataclasses.replace(good, masks=good.dense_masks())
    with pytest.raises(errors.SgqlmError, match="do not fit together") as caught:
        dataclasses.replace(good, **change)
    assert problem in caught.value.why and caught.value.code == errors.DATA


def test_empty_masks_and_too_many_entities_leave_the_best_nodes():
    boxes = [[10 * k, 5, 10 * k + 9, 50] for k in range(7)]
    scores = np.array([0.3, 0.9, 0.1, 0.8, 0.5, 0.7, 0.6], np.float32)
    found = graphs.Entities.from_boxes(boxes, SIZE, scores=scores)
    masks = found.dense_masks()
    masks[1] = False  # the best of all has no pixel
    nodes = graphs.make_nodes(dataclasses.replace(found, masks=masks), MODEL)
    assert nodes.source.tolist() == [3, 5, 6, 4]
    assert nodes.coverage.any(1).all() and np.isfinite(nodes.boxes).all()


def test_a_graph_of_nothing_has_no_nodes():
    for found in (
        graphs.Entities.empty(SIZE),
        dataclasses.replace(
            graphs.Entities.from_boxes([[0, 0, 9, 9]], SIZE), masks=np.zeros((1, *SIZE), bool)
        ),
    ):
        nodes = graphs.make_nodes(found, MODEL)
        batch = graphs.stack([nodes], [[[]]], MODEL, num_runs=1)
        assert len(nodes.boxes) == 0 and not batch.valid.any() and not batch.coverage.any()
