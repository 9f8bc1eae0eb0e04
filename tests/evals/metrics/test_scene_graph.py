import dataclasses
import json
import os
import pathlib
import sys

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.evals.metrics import scene_graph
from tests import paths
from tests.convert import other_python

BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]], float)
TRUTH = scene_graph.Truth(["man", "horse", "hat"], np.array([[0, 1, 0], [0, 2, 1]]), BOXES)


def predict(triplets, scores=None, *, boxes=BOXES, labels=("man", "horse", "hat"), own=None):
    triplets = np.array(triplets, int).reshape(-1, 3)
    scores = -np.arange(len(triplets)) if scores is None else scores
    return scene_graph.Predicted(
        list(labels), triplets, np.array(scores, float), boxes, label_scores=own
    )


def measure(found, truth=TRUTH, *, mode="sgdet", ks=(1, 2, 3), **options):
    found, truth = (x if isinstance(x, list) else [x] for x in (found, truth))
    return scene_graph.evaluate(found, truth, mode=mode, ks=ks, **options)


@pytest.mark.parametrize("mode", scene_graph.MODES)
@pytest.mark.parametrize("matching", scene_graph.MATCHING)
def test_a_perfect_prediction_has_recall_one(mode, matching):
    rng = np.random.default_rng(0)
    truths = [truth_of(rng, labels=8) for _ in range(5)]
    found = [
        scene_graph.Predicted(t.labels, t.triplets, np.ones(len(t.triplets)), t.boxes)
        for t in truths
    ]
    done = measure(found, truths, mode=mode, ks=(100,), matching=matching)
    assert done["ng-R@100"] == done["ng-mR@100"] == 1
    # with the graph constraint a pair with two true predicates can have one of them only
    single = [len(np.unique(t.triplets[:, :2], axis=0)) == len(t.triplets) for t in truths]
    for part, truth, is_single in zip(found, truths, single, strict=True):
        assert (measure(part, truth, mode=mode, ks=(100,))["R@100"] == 1) == is_single
    assert any(single)


def test_ranks_count_and_images_are_averaged():
    found = predict([(0, 1, 5), (0, 1, 0), (0, 2, 1)], [0.9, 0.5, 0.1])
    done = measure(found)
    assert [done[f"ng-R@{k}"] for k in (1, 2, 3)] == [0.0, 0.5, 1.0]
    assert [done[f"R@{k}"] for k in (1, 2, 3)] == [0.0, 0.5, 0.5]  # the pair's best one is wrong
    empty = scene_graph.Truth(["man"], np.zeros((0, 3), int), BOXES[:1])
    both = measure([found, predict([]), predict([])], [TRUTH, TRUTH, empty])
    assert both["images"] == 2 and both["relations"] == 4
    assert both["ng-R@3"] == 0.5


def test_label_scores_take_part_in_the_ranking():
    found = predict([(0, 1, 0), (0, 2, 1)], [0.6, 0.5], own=[1.0, 0.1, 1.0])
    done = measure(found)
    assert done["by_predicate"]["0"]["R@1"] == 0 and done["by_predicate"]["1"]["R@1"] == 1


def test_mean_recall_is_over_images_then_predicates_and_the_other_reading_beside_it():
    # predicate 0: one of two in the first image, one of one in the second; predicate 1: never
    first = scene_graph.Truth(
        ["man", "horse", "hat"], np.array([[0, 1, 0], [1, 0, 0], [0, 2, 1]]), BOXES
    )
    second = scene_graph.Truth(["man", "horse", "hat"], np.array([[0, 1, 0]]), BOXES)
    done = measure([predict([(0, 1, 0)])] * 2, [first, second], predicates=["rides", "wears"])
    assert done["mR@3"] == pytest.approx((np.mean([1 / 2, 1.0]) + 0) / 2)
    assert done["pooled-mR@3"] == pytest.approx((2 / 3 + 0) / 2)
    assert done["R@3"] == pytest.approx((1 / 3 + 1) / 2)
    r, m = done["R@3"], done["mR@3"]
    assert done["F@3"] == pytest.approx(2 * r * m / (r + m))
    assert list(done["by_predicate"]) == ["rides", "wears"]
    row = done["by_predicate"]["rides"]
    assert (row["images"], row["relations"], row["R@1"]) == (2, 3, 0.75)


def test_a_constant_predictor_has_a_low_mean_recall():
    rng = np.random.default_rng(1)
    truths = [truth_of(rng, predicates=[0] * 20 + list(range(1, 11))) for _ in range(30)]
    pairs = [(s, o, 0) for s in range(6) for o in range(6) if s != o]
    found = [predict(pairs, np.ones(30), boxes=t.boxes, labels=t.labels) for t in truths]
    done = measure(found, truths, mode="predcls", ks=(100,))
    assert done["R@100"] > 0.5 and done["mR@100"] == pytest.approx(1 / 11)


def test_zero_shot_leaves_out_what_was_trained():
    found = predict([(0, 1, 0)])
    known = {("man", "wears", "hat")}
    done = measure(found, zero_shot=known, predicates=["rides", "wears"])
    assert done["zR@1"] == 1 and done["zero_shot_relations"] == 1
    assert measure(found, zero_shot={("man", 0, "horse")})["zR@1"] == 0
    everything = {("man", 0, "horse"), ("man", 1, "hat")}
    done = measure(found, zero_shot=everything)
    assert done["zR@1"] is None and done["zero_shot_images"] == 0
    assert measure(found)["zR@1"] is None


def test_regions_must_overlap_by_half_and_labels_agree():
    shifted = BOXES + np.array([3.3, 0, 3.3, 0])  # overlap 6.7 / 13.3, just above a half
    assert measure(predict([(0, 1, 0)], boxes=shifted))["R@1"] == 0.5
    shifted = BOXES + np.array([3.4, 0, 3.4, 0])
    assert measure(predict([(0, 1, 0)], boxes=shifted))["R@1"] == 0
    assert measure(predict([(0, 1, 0)], boxes=shifted), iou=0.4)["R@1"] == 0.5
    assert measure(predict([(0, 1, 0)], labels=["man", "cow", "hat"]))["R@1"] == 0
    assert measure(predict([(1, 0, 0)]))["R@1"] == 0  # the roles are not symmetric


def test_the_two_ways_of_matching_differ_where_the_programs_do():
    # two men that overlap by more than a half, both true subjects
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [20, 0, 30, 10]], float)
    truth = scene_graph.Truth(["man", "man", "horse"], np.array([[0, 2, 0], [1, 2, 0]]), boxes)
    found = predict([(0, 2, 0)], boxes=boxes, labels=truth.labels)
    assert measure(found, truth)["R@1"] == 0.5
    assert measure(found, truth, matching="triplets")["R@1"] == 1
    twice = scene_graph.Truth(truth.labels, np.array([[0, 2, 0], [0, 2, 0], [1, 2, 1]]), boxes)
    assert measure(found, twice)["R@1"] == 1 / 2
    assert measure(found, twice, matching="triplets")["R@1"] == 2 / 3


def test_two_objects_of_one_region_stay_two_where_regions_are_given():
    boxes = BOXES[[0, 0, 1]]
    truth = scene_graph.Truth(["man", "man", "horse"], np.array([[1, 2, 0]]), boxes)
    found = predict([(1, 2, 0)], boxes=boxes, labels=truth.labels)
    assert measure(found, truth, mode="predcls")["R@1"] == 1
    assert measure(found, truth, mode="sgcls")["R@1"] == 1


def test_masks_are_compared_where_the_truth_has_them():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10, :10] = masks[1, 10:, 10:] = True
    truth = scene_graph.Truth(["sky", "sea"], np.array([[0, 1, 0]]), masks=masks)
    half = masks.copy()
    half[0, :4, :10] = False  # 60 of 100 pixels are left
    for given in (half, [graphs.encode_rle(mask) for mask in half]):
        found = scene_graph.Predicted(["sky", "sea"], np.array([[0, 1, 0]]), np.ones(1))
        found = dataclasses.replace(found, masks=given)
        assert measure(found, truth)["R@1"] == 1
        assert measure(found, truth, iou=0.61)["R@1"] == 0
    np.testing.assert_allclose(scene_graph.mask_overlap(half, masks), [[0.6, 0], [0, 1]])
    with pytest.raises(errors.SgqlmError, match="needs masks"):
        measure(predict([(0, 1, 0)], boxes=BOXES[:2], labels=["sky", "sea"]), truth)
    other = dataclasses.replace(found, masks=half[:, :15])
    with pytest.raises(errors.SgqlmError, match="cannot be compared"):
        measure(other, truth)


def test_equal_scores_keep_their_order_and_repetitions_take_no_rank():
    triplets = [(0, 1, 3), (0, 1, 3), (0, 1, 0), (0, 2, 1)]
    done = measure(predict(triplets, np.zeros(4)))
    assert [done[f"ng-R@{k}"] for k in (1, 2, 3)] == [0, 0.5, 1]
    assert done == measure(predict(triplets, np.zeros(4)))


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        (predict([(0, 3, 0)]), {}, "not there"),
        (predict([(0, 1, 0)], [np.nan]), {}, "finite"),
        (predict([(0, 1, 0)], [1.0, 2.0]), {}, "2 scores"),
        (predict([(0, 1, 0)], own=[1.0]), {}, "label score"),
        (predict([(0, 1, 0)], boxes=BOXES[:2]), {}, "3 labels, 2 boxes"),
        (predict([(0, 1, 0)], labels=["man"] * 3), {"mode": "predcls"}, "differ"),
        (predict([(0, 1, 0)], boxes=BOXES[:2], labels=["man"] * 2), {"mode": "sgcls"}, "2 pred"),
        (predict([(0, 1, 0)]), {"mode": "predicate"}, "predcls, sgcls, sgdet"),
        (predict([(0, 1, 0)]), {"matching": "any"}, "instances, triplets"),
        (predict([(0, 1, 0)]), {"ks": (0,)}, "positive"),
        ([predict([(0, 1, 0)])] * 2, {}, "2 predictions, 1 images"),
        (dataclasses.replace(predict([]), triplets=np.array([0.5, 1, 2])), {}, r"int\[m, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(found, options, message):
    with pytest.raises(errors.SgqlmError, match=message):
        measure(found, **options)


def test_nothing_at_all_gives_none():
    done = scene_graph.evaluate([], [], mode="sgdet")
    assert done["images"] == 0 and done["R@20"] is done["mR@20"] is done["F@20"] is None
    assert scene_graph.lines(done)
    empty = measure(scene_graph.Predicted.nothing(), mode="predcls")
    assert empty["R@1"] == empty["F@1"] == 0


def test_the_table_is_readable():
    done = measure(predict([(0, 1, 0)]), predicates=["rides", "wears"])
    text = "\n".join(scene_graph.lines(done, num_predicates=1))
    assert "R              50.00" in text and "rides" in text and "1 more predicates" in text
    assert "zR" not in text


def truth_of(rng, *, predicates=(0, 1, 2), labels=2, masks=False) -> scene_graph.Truth:
    """Return six random regions without ties of overlap, and true triplets between them."""
    corner = rng.uniform(0, 40, (6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 25, (6, 2))], 1)
    boxes = boxes if not masks else np.round(boxes)
    pairs = np.array([(s, o) for s in range(6) for o in range(6) if s != o])
    chosen = pairs[rng.choice(len(pairs), 5)]
    triplets = np.column_stack([chosen, rng.choice(predicates, 5)])
    names = rng.integers(0, labels, 6)
    return scene_graph.Truth(names, np.unique(triplets, axis=0), boxes)


def prediction_of(rng, truth, *, mode: str) -> scene_graph.Predicted:
    boxes, labels = truth.boxes, truth.labels
    if mode == "sgdet":
        boxes = np.round(boxes + rng.normal(0, 2, boxes.shape), 2)
    if mode != "predcls":
        labels = np.where(rng.random(6) < 0.2, 1 - labels, labels)
    pairs = [(s, o, p) for s in range(6) for o in range(6) if s != o for p in range(3)]
    scores = rng.random(len(pairs))
    return scene_graph.Predicted(labels, np.array(pairs), scores, boxes)


def masks_of(boxes) -> np.ndarray:
    y, x = np.mgrid[:70, :70] + 0.5
    inside = [(x > x0) & (x < x1) & (y > y0) & (y < y1) for x0, y0, x1, y1 in boxes]
    return np.array(inside)


def environment(folder: pathlib.Path) -> str:
    """Return a Python with sgbench, made once; skip the test where there can be none."""
    place = folder / f"py{sys.version_info.minor}-sgbench-1.0.0"
    python = place / "bin" / "python"
    if not (place / "installed.txt").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        problem = other_python._run(sys.executable, "-m", "venv", "--clear", place)
        # without its dependencies: it wants a numpy below 2, and works with this one
        pins = (paths.ROOT / "constraints" / "cpu.txt").read_text().splitlines()
        numpy = next(line for line in pins if line.startswith("numpy=="))
        install = (python, "-m", "pip", "install", "-q", "--no-deps", "sgbench==1.0.0", numpy)
        if problem := problem or other_python._run(*install, PIP_TIMEOUT="10", PIP_RETRIES="1"):
            pytest.skip(f"no environment with sgbench can be made: {problem}")
        (place / "installed.txt").write_text("sgbench==1.0.0\n")
    return str(python)


def case_of(seed: int) -> tuple[list, list, str]:
    rng, mode = np.random.default_rng(seed), scene_graph.MODES[seed % 3]
    truths = [truth_of(rng, masks=seed % 2 == 1) for _ in range(1 + seed % 4)]
    return [prediction_of(rng, truth, mode=mode) for truth in truths], truths, mode


def as_json(found, truth, *, constrained: bool, masks: bool) -> dict:
    """Return one image as sgbench takes it: triplets in order of score, as said beforehand."""
    order = np.argsort(-found.scores, kind="stable")
    triplets = found.triplets[order].tolist()
    if constrained:
        best = {}
        for triplet in triplets:
            best.setdefault(tuple(triplet[:2]), triplet)
        triplets = list(best.values())
    parts = {"predicted": found, "truth": truth}
    image = {
        name: {"labels": part.labels.tolist(), "boxes": part.boxes.tolist()}
        for name, part in parts.items()
    }
    if masks:
        for name, part in parts.items():
            image[name]["masks"] = masks_of(part.boxes).tolist()
    image["predicted"]["triplets"], image["truth"]["triplets"] = triplets, truth.triplets.tolist()
    return image


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sgbench_agrees(request, tmp_path):
    given = os.environ.get("SGQLM_SGBENCH_PYTHON")
    python = given or environment(request.config.cache.mkdir("environments"))
    ks, count, cases, expected = [1, 5, 20, 50], 120, [], []
    for seed in range(count):
        found, truths, mode = case_of(seed)
        masks = seed % 10 == 7
        for constrained in (True, False):
            images = [
                as_json(f, t, constrained=constrained, masks=masks)
                for f, t in zip(found, truths, strict=True)
            ]
            cases.append({"images": images, "ks": ks, "num_predicates": 3})
        if masks:
            found = [dataclasses.replace(f, boxes=None, masks=masks_of(f.boxes)) for f in found]
            truths = [dataclasses.replace(t, boxes=None, masks=masks_of(t.boxes)) for t in truths]
        expected.append(scene_graph.evaluate(found, truths, mode=mode, ks=ks))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    script = pathlib.Path(__file__).with_name("run_sgbench.py")
    told = json.loads(other_python.run(python, script, tmp_path / "cases.json"))
    assert len(told) == 2 * count and len({one["mR@50"] for one in told}) > count / 3
    for ours, constrained, free in zip(expected, told[::2], told[1::2], strict=True):
        for k in ks:
            for name in ("R", "mR"):
                assert ours[f"{name}@{k}"] == pytest.approx(constrained[f"{name}@{k}"], abs=1e-12)
                assert ours[f"ng-{name}@{k}"] == pytest.approx(free[f"{name}@{k}"], abs=1e-12)
