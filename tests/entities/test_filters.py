import itertools

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.entities import filters, interfaces

SIZE = (100, 200)  # height, width


def boxes(*rows):
    """Return boxes of rows (x0, y0, x1, y1, score, label)."""
    return interfaces.Boxes(
        np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[4] for row in rows], np.float32),
        [row[5] for row in rows],
    )


def select(*rows, asked=None, **limits):
    return filters.select_boxes(boxes(*rows), SIZE, filters.Limits(**limits), asked=asked)


def finish(rows, masks, mask_scores=None, **limits):
    """Give the boxes masks: bool arrays, the rows in order of falling score and apart."""
    limits = filters.Limits(**limits)
    kept, _ = filters.select_boxes(boxes(*rows), SIZE, limits)
    codes = [graphs.encode_rle(mask) for mask in masks]
    return filters.select_masks(kept, codes, mask_scores, SIZE, limits, tags=[("dog", 0.5)])


def block(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_boxes_are_clipped_to_the_image():
    kept, dropped = select((-20, -5, 30, 40, 0.5, "dog"), (150, 60, 400, 1e9, 0.4, "cat"))
    assert kept.boxes.tolist() == [[0, 0, 30, 40], [150, 60, 200, 100]]
    assert kept.labels == ["dog", "cat"] and kept.index.tolist() == [0, 1] and not dropped


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(5))
def test_a_broken_number_costs_one_box(place, value):
    row = [10, 10, 30, 30, 0.9, "dog"]
    row[place] = value
    kept, dropped = select(row, (50, 50, 80, 80, 0.3, "cat"))
    assert kept.labels == ["cat"] and dropped == {"box is broken": 1}


def test_other_broken_boxes_are_dropped_and_counted():
    kept, dropped = select(
        (30, 10, 10, 30, 0.9, "dog"),  # negative width
        (10, 30, 30, 10, 0.9, "dog"),
        (300, 10, 350, 30, 0.9, "dog"),  # outside
        (10, -50, 30, -10, 0.9, "dog"),
        (10, 10, 11.9, 60, 0.9, "dog"),  # thin
        (10, 10, 10, 10, 0.9, "dog"),  # a point
        (10, 10, 30, 30, 0.9, "horse"),  # nobody asked
        (10, 10, 30, 30, 0.2, "dog"),
        asked={"dog"},
    )
    assert len(kept) == 1 and kept.scores.tolist() == [np.float32(0.2)]
    assert dropped == {
        "box is broken": 2,
        "box is small or outside": 4,
        "label was not asked for": 1,
    }
    points, _ = select((10, 10, 10, 10, 0.9, "dog"), min_side=0.0)
    assert len(points) == 0


def test_excluded_labels_are_dropped_whatever_their_case():
    rows = (10, 10, 30, 30, 0.9, "Sky "), (50, 10, 90, 30, 0.8, "skyline")
    kept, dropped = select(*rows, exclude=frozenset({"sky"}))
    assert kept.labels == ["skyline"] and dropped == {"label is excluded": 1}


def test_doubles_become_alternatives_of_the_best_box():
    kept, dropped = select(
        (10, 10, 50, 50, 0.5, "dog"),
        (11, 10, 50, 50, 0.9, "wolf"),
        (10, 11, 50, 50, 0.6, "fox"),
        (10, 10, 50, 51, 0.7, "dog"),
        (10, 10, 51, 50, 0.4, "wolf"),
        (100, 10, 150, 60, 0.8, "tree"),
    )
    assert kept.labels == ["wolf", "tree"] and kept.index.tolist() == [1, 5]
    found = [[(label, round(score, 4)) for label, score in item] for item in kept.alternatives]
    assert found == [[("dog", 0.7), ("fox", 0.6)], []]
    assert dropped == {"box is a double": 4}


def test_suppression_is_greedy_and_its_limit_is_not_a_double():
    # a and b share a third, b and c too; a and c nothing: only b may go, and only for a
    rows = [(0, 0, 20, 20, 0.9, "a"), (10, 0, 30, 20, 0.8, "b"), (20, 0, 40, 20, 0.7, "c")]
    assert select(*rows, nms_iou=0.3)[0].labels == ["a", "c"]
    assert select(*rows, nms_iou=0.34)[0].labels == ["a", "b", "c"]
    half = [(0, 0, 20, 20, 0.9, "a"), (0, 0, 20, 10, 0.8, "b")]
    assert select(*half, nms_iou=0.5)[0].labels == ["a", "b"]  # IoU is 0.5, not above


def test_box_iou_is_a_count_of_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (12, 2))
    rows = np.concatenate([low, low + rng.integers(0, 20, (12, 2))], 1).astype(np.float32)
    planes = [block(*row.astype(int)) for row in rows]
    for one, plane in zip(rows, planes, strict=True):
        expected = [(plane & other).sum() / max((plane | other).sum(), 1) for other in planes]
        np.testing.assert_allclose(filters.box_iou(one, rows), expected)


def test_the_order_of_the_detector_does_not_matter():
    rows = [
        (0, 0, 20, 20, 0.5, "b"),
        (1, 0, 20, 20, 0.5, "a"),
        (0, 0, 20, 21, 0.5, "a"),
        (50, 50, 80, 80, 0.5, "a"),
    ]
    expected = select(*rows)[0]
    assert expected.labels == ["a", "a"] and expected.boxes[0].tolist() == [0, 0, 20, 21]
    for shuffled in itertools.permutations(rows):
        found = select(*shuffled)[0]
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        assert found.alternatives == expected.alternatives == [[("b", 0.5)], []]


def test_equal_masks_are_one_entity():
    rows = [(10 * k, 0, 10 * k + 9, 9, 0.9 - 0.1 * k, f"label {k}") for k in range(4)]
    masks = [block(0, 0, 100, 50), block(50, 50, 90, 90), block(0, 0, 99, 50), block(0, 0, 80, 50)]
    entities, dropped = finish(rows, masks, np.float32([0.1, 0.2, 0.3, np.nan]))
    assert list(entities.labels) == ["label 0", "label 1", "label 3"]
    assert [[label for label, _ in item] for item in entities.alternatives] == [["label 2"], [], []]
    np.testing.assert_allclose(entities.mask_scores, [0.1, 0.2, 0])
    assert dropped == {"mask is a double": 1} and entities.tags == [("dog", 0.5)]
    # of the detector, not of the masks
    assert entities.boxes.tolist() == [[0, 0, 9, 9], [10, 0, 19, 9], [30, 0, 39, 9]]


def test_names_of_doubles_of_doubles_are_kept():
    rows = [
        (0, 0, 20, 20, 0.9, "a"),
        (100, 0, 120, 20, 0.8, "b"),
        (100, 0, 120, 21, 0.7, "c"),
    ]
    entities, _ = finish(rows, [block(0, 0, 100, 50), block(0, 0, 100, 51)])
    (found,) = entities.alternatives
    assert [label for label, _ in found] == ["b", "c"]


def test_masks_that_say_nothing_are_dropped():
    rows = [(20 * k, 0, 20 * k + 9, 9, 0.9 - 0.1 * k, f"{k}") for k in range(5)]
    whole, nearly = np.ones(SIZE, bool), np.ones(SIZE, bool)
    nearly[:, :10] = False  # 95 % exactly
    masks = [whole, block(0, 0, 0, 0), block(0, 0, 6, 4), block(20, 0, 25, 5), nearly]
    entities, dropped = finish(rows, masks, mask_iou=1.0)
    assert list(entities.labels) == ["3", "4"]
    assert dropped == {
        "mask is nearly the whole image": 1,
        "mask is empty": 1,
        "mask is small": 1,
    }
    assert [int(mask.sum()) for mask in entities.dense_masks()] == [25, 19000]
    assert len(finish(rows[1:2], masks[1:2], min_area=0)[0]) == 0


def test_the_best_scores_stay():
    rows = [(20 * k, 0, 20 * k + 9, 9, 0.5 if k < 4 else 0.6, f"{k}") for k in range(8)]
    order = sorted(range(8), key=lambda k: (-rows[k][4], k))
    masks = [block(20 * k, 0, 20 * k + 9, 9) for k in order]
    entities, dropped = finish(rows, masks, max_entities=6)
    assert list(entities.labels) == ["4", "5", "6", "7", "0", "1"]
    assert (np.diff(entities.scores) <= 0).all() and dropped == {"more entities than allowed": 2}


def test_masks_can_be_tidied():
    ring = block(10, 10, 40, 40) & ~block(20, 20, 30, 30)
    ring |= block(60, 60, 68, 68)
    ring |= block(9, 9, 10, 10)  # touches a corner: connected
    row = [(10, 10, 40, 40, 0.5, "ring")]
    largest = finish(row, [ring], largest_component=True)[0].dense_masks()[0]
    np.testing.assert_array_equal(largest, ring & ~block(60, 60, 68, 68))
    whole = block(10, 10, 40, 40) | block(9, 9, 10, 10)
    both = finish(row, [ring], largest_component=True, fill_holes=True)[0].dense_masks()[0]
    np.testing.assert_array_equal(both, whole)
    np.testing.assert_array_equal(finish(row, [ring])[0].dense_masks()[0], ring)


def test_nothing_gives_nothing():
    kept, dropped = filters.select_boxes(interfaces.Boxes.empty(), (1, 1), filters.Limits())
    assert len(kept) == 0 and kept.boxes.shape == (0, 4) and not dropped
    entities, _ = filters.select_masks(kept, [], None, (1, 1), filters.Limits(), tags=[])
    assert len(entities) == 0 and entities.size == (1, 1)


def test_parts_of_different_lengths_are_an_error():
    found = interfaces.Boxes(np.zeros((2, 4), np.float32), np.zeros(1, np.float32), ["a", "b"])
    with pytest.raises(errors.SgqlmError, match="lengths") as caught:
        filters.select_boxes(found, SIZE, filters.Limits())
    assert caught.value.code == errors.DATA and "1 scores" in caught.value.why
    with pytest.raises(errors.SgqlmError, match="lengths"):
        finish([(0, 0, 9, 9, 0.5, "a")], [])
