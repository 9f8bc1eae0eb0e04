"""Entities, run-length codes and the geometry of masks in the model's square."""

import dataclasses

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.data import graphs


def _random_entities(rng, size, n=4, *, coded=False):
    masks = np.zeros((n, *size), bool)
    boxes = np.zeros((n, 4), np.float32)
    for k in range(n):
        y, x = np.sort(rng.integers(0, size[0] + 1, 2)), np.sort(rng.integers(0, size[1] + 1, 2))
        masks[k, y[0] : y[1] + 1, x[0] : x[1] + 1] = True
        masks[k] &= rng.random(size) < 0.8
        boxes[k] = x[0], y[0], x[1], y[1]
    masks = [graphs.encode_rle(m) for m in masks] if coded else masks
    return graphs.Entities(masks, boxes, [], rng.random(n), size)


def _brute_force(entities, grid, fit, fine=60):
    """Sample a fine lattice whose cells never cross a pixel or patch border too coarsely."""
    x0, y0, x1, y1 = graphs.window(entities.size, fit)
    at = (np.arange(grid * fine) + 0.5) / (grid * fine)
    xs, ys = x0 + at * (x1 - x0), y0 + at * (y1 - y0)
    h, w = entities.size
    inside = ((ys >= 0) & (ys < h))[:, None] & ((xs >= 0) & (xs < w))[None]
    yi, xi = ys.astype(int).clip(0, h - 1), xs.astype(int).clip(0, w - 1)
    out = [
        (m[yi][:, xi] & inside).reshape(grid, fine, grid, fine).mean((1, 3))
        for m in entities.dense_masks()
    ]
    return np.stack(out).reshape(len(entities), -1)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(30, 20), (17, 33), (24, 24), (1, 9)])
def test_coverage_equals_brute_force(fit, size):
    rng = np.random.default_rng(0)
    for coded in (False, True):
        entities = _random_entities(rng, size, coded=coded)
        got = graphs.coverage(entities, 4, fit) / 255
        want = _brute_force(entities, 4, fit, fine=max(size) * 6)
        # 1/255 of rounding and the lattice's own error along mask borders
        assert np.abs(got - want).max() < 0.004 + 0.02


def test_coverage_is_exact_where_patches_are_whole_pixels():
    rng = np.random.default_rng(1)
    entities = _random_entities(rng, (16, 28), coded=True)
    padded = np.zeros((len(entities), 28, 28))
    padded[:, 6:22] = entities.dense_masks()
    want = padded.reshape(-1, 4, 7, 4, 7).mean((2, 4)).reshape(-1, 16)
    got = graphs.coverage(entities, 4, "pad")
    assert np.abs(got - want * 255).max() <= 0.5 + 1e-4
    cropped = entities.dense_masks()[:, :, 6:22].astype(float)
    want = cropped.reshape(-1, 4, 4, 4, 4).mean((2, 4)).reshape(-1, 16)
    assert np.abs(graphs.coverage(entities, 4, "crop") - want * 255).max() <= 0.5 + 1e-4


def test_dense_and_coded_masks_cover_alike():
    rng = np.random.default_rng(2)
    for size in [(64, 48), (101, 20), (7, 90)]:
        dense = _random_entities(rng, size, n=6)
        coded = graphs.Entities(dense.coded_masks(), dense.boxes, [], dense.scores, size)
        for fit in ("pad", "crop"):
            a, b = (graphs.coverage(e, 6, fit, image_size=84) for e in (dense, coded))
            np.testing.assert_array_equal(a, b)


def test_rle_round_trip_and_counts():
    rng = np.random.default_rng(3)
    for density in (0.0, 0.01, 0.5, 1.0):
        mask = rng.random((37, 53)) < density
        rle = graphs.encode_rle(mask)
        np.testing.assert_array_equal(graphs.decode_rle(rle), mask)
        text = {"size": rle["size"], "counts": rle["counts"].decode()}
        np.testing.assert_array_equal(graphs.decode_rle(text), mask)
        counts = graphs._counts(rle["counts"])
        np.testing.assert_array_equal(
            graphs.decode_rle({"size": [37, 53], "counts": counts.tolist()}), mask
        )
    # a long first run and a later short one need several characters and negative differences
    mask = np.zeros((400, 400), bool)
    mask[5:9, 300:304] = True
    counts = graphs._counts(graphs.encode_rle(mask)["counts"])
    assert counts.sum() == mask.size and counts[1::2].sum() == mask.sum()


def test_tiny_object_keeps_a_patch_and_an_unseen_one_none():
    masks = np.zeros((2, 100, 300), bool)
    masks[0, 50, 150] = True
    masks[1, 50, 5] = True
    entities = graphs.Entities(masks, np.zeros((2, 4)), [], np.ones(2), (100, 300))
    got = graphs.coverage(entities, 2, "crop")
    assert got[0].sum() == 1 and got[1].sum() == 0
    assert graphs.coverage(entities, 2, "pad").sum(1).min() == 1


def test_square_boxes_follow_the_window():
    boxes = np.array([[0, 0, 40, 20], [10, 5, 30, 15]])
    entities = graphs.Entities(np.zeros((2, 20, 40), bool), boxes, [], np.ones(2), (20, 40))
    np.testing.assert_allclose(
        graphs.square_boxes(entities, "pad"), [[0, 0.25, 1, 0.75], [0.25, 0.375, 0.75, 0.625]]
    )
    np.testing.assert_allclose(
        graphs.square_boxes(entities, "crop"), [[0, 0, 1, 1], [0, 0.25, 1, 0.75]]
    )


def test_crop_window_follows_the_rounding_of_the_resize():
    # 333 x 500 to 28: the long edge becomes int(28 * 500 / 333) = 42, the crop starts at 7
    x0, y0, x1, y1 = graphs.window((500, 333), "crop", image_size=28)
    assert (x0, x1) == (0, 333)
    np.testing.assert_allclose([y0, y1], [7 * 500 / 42, 35 * 500 / 42])


def _model(**graph):
    vision = config.VisionConfig(image_size=56, patch_size=14)
    return config.ModelConfig(vision=vision, graph=config.GraphConfig(num_nodes=2, **graph))


def test_nodes_are_the_best_by_score_with_predicted_labels():
    rng = np.random.default_rng(4)
    base = _random_entities(rng, (56, 56), n=4)
    entities = graphs.Entities(
        np.ones((4, 56, 56), bool),
        base.boxes,
        ["a", "bb", "ccc", "d"],
        np.array([0.1, 0.9, 0.5, 0.9]),
        (56, 56),
    )
    nodes = graphs.make_nodes(entities, _model(label_tokens=2), encode=lambda t: [len(t)] * len(t))
    assert nodes.source.tolist() == [1, 3]
    assert nodes.label_ids.tolist() == [[2, 2], [1, -1]]
    silent = graphs.make_nodes(entities, _model(labels="none"), encode=lambda t: [1])
    assert (silent.label_ids == -1).all()
    batch = graphs.stack([nodes, None], [[[5, 6]], []], _model(label_tokens=2), num_runs=1)
    assert batch.valid.tolist() == [[True, True], [False, False]]
    assert batch.prompt_valid.sum() == 2 and batch.coverage[1].sum() == 0


def test_entities_check_and_take():
    with pytest.raises(errors.SgqlmError, match="do not fit together"):
        graphs.Entities(np.zeros((1, 4, 4), bool), np.zeros((2, 4)), [], np.ones(2), (4, 4))
    with pytest.raises(errors.SgqlmError):
        graphs.Entities(np.zeros((1, 4, 4), bool), np.zeros((1, 4)), [], np.ones(1), (4, 5))
    assert len(graphs.Entities.empty((4, 5))) == 0
    assert graphs.coverage(graphs.Entities.empty((4, 5)), 2, "pad").shape == (0, 4)
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 4]])
    entities = graphs.Entities.from_boxes(boxes, (4, 5), labels=["x", "y"])
    assert entities.dense_masks().sum((1, 2)).tolist() == [4, 6]
    assert entities.take([1]).labels == ["y"] and len(entities.take([])) == 0


def test_a_stored_coverage_is_taken_for_its_own_view_only(monkeypatch):
    entities = graphs.Entities.from_boxes([[0, 0, 4, 4], [2, 2, 8, 6]], (6, 8), labels=["a", "b"])
    model = config.ModelConfig()
    grid, side = model.vision.grid, model.vision.image_size
    want = graphs.make_nodes(entities, model)
    stored = entities.with_coverage(grid, model.image_fit, image_size=side)
    other = entities.with_coverage(grid + 1, model.image_fit, image_size=side)
    np.testing.assert_array_equal(graphs.make_nodes(other, model).coverage, want.coverage)
    monkeypatch.setattr(graphs, "coverage", None)  # may not be called
    np.testing.assert_array_equal(graphs.make_nodes(stored, model).coverage, want.coverage)
    assert graphs.view(24, "pad", image_size=336) == "24x24:pad"
    assert graphs.view(24, "crop", image_size=336) == "24x24:crop@336"


def test_taking_some_entities_takes_all_that_belongs_to_them():
    entities = graphs.Entities.from_boxes([[0, 0, 4, 4], [2, 2, 8, 6], [1, 1, 2, 2]], (6, 8))
    full = dataclasses.replace(
        entities.with_coverage(2, "pad"),
        alternatives=[[], [("cat", 0.5)], []],
        mask_scores=[0.1, 0.2, 0.3],
        tags=[("pet", 0.9)],
    )
    some = full.take([2, 1])
    np.testing.assert_allclose(some.mask_scores, [0.3, 0.2])
    assert some.alternatives == [[], [("cat", 0.5)]] and some.tags == full.tags
    np.testing.assert_array_equal(some.coverage["2x2:pad"], full.coverage["2x2:pad"][[2, 1]])
    with pytest.raises(errors.SgqlmError, match="do not fit together"):
        dataclasses.replace(full, mask_scores=[0.1])
