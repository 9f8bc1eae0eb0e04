"""Node jitter: boxes and coverage move together, inside of the image, reproducibly."""

import dataclasses

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.data import batch, graphs, pipeline, sources
from sgqlm.text import tokenizer as tokenizers
from sgqlm.train import feed

GRID = 8
MODEL = config.ModelConfig(
    vision=config.VisionConfig(image_size=GRID * 14, patch_size=14, width=8, num_heads=1),
    graph=config.GraphConfig(num_nodes=4, prompt_tokens=4, label_tokens=2),
)


def made(boxes, size=(60, 100)):
    entities = graphs.Entities.from_boxes(np.array(boxes, np.float32), size)
    return entities, graphs.make_nodes(entities, MODEL)


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def filled(nodes):
    """Return the coverage that boxes would have, f64[n, grid, grid]."""
    edges = np.arange(GRID + 1) / GRID
    low = np.maximum(edges[:-1], nodes.boxes[:, :2, None])
    high = np.minimum(edges[1:], nodes.boxes[:, 2:, None])
    share = (high - low).clip(0) * GRID
    return share[:, 1, :, None] * share[:, 0, None, :] * 255


def test_no_jitter_changes_no_bit():
    _, nodes = made([[10, 10, 50, 40]])
    assert graphs.jitter(nodes, 0.0, rng=rng()) is nodes


def test_moving_by_nothing_keeps_the_coverage():
    _, nodes = made([[10, 10, 50, 40], [3, 7, 20, 60]])
    still = graphs.jitter(nodes, 1e-9, rng=rng())
    np.testing.assert_array_equal(still.coverage, nodes.coverage)
    np.testing.assert_allclose(still.boxes, nodes.boxes, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_boxes_and_coverage_move_together_and_stay_in_the_image(seed):
    boxes = [[0, 0, 30, 30], [25, 0, 75, 60], [90, 50, 100, 60], [40, 20, 90, 50]]
    entities, nodes = made(boxes)
    bounds = graphs.image_bounds(entities.size, "pad")
    assert bounds == (0.0, 0.2, 1.0, 0.8)
    moved = graphs.jitter(nodes, 0.25, rng=rng(seed), bounds=bounds)
    low, high = np.array(bounds[:2]), np.array(bounds[2:])
    assert (moved.boxes[:, :2] >= low - 1e-6).all() and (moved.boxes[:, 2:] <= high + 1e-6).all()
    assert (moved.coverage.max(1) > 0).all()
    np.testing.assert_array_equal(moved.label_ids, nodes.label_ids)
    np.testing.assert_array_equal(moved.source, nodes.source)
    side = (nodes.boxes[:, 2:] - nodes.boxes[:, :2]).astype(float)
    centre, new = (
        (nodes.boxes[:, :2] + nodes.boxes[:, 2:]) / 2,
        (moved.boxes[:, :2] + moved.boxes[:, 2:]) / 2,
    )
    assert (np.abs(new - centre) <= 0.25 * side + 0.125 * side + 1e-6).all()
    scale = (moved.boxes[:, 2:] - moved.boxes[:, :2]) / side
    assert (scale <= 1.2501).all() and (scale >= 0.7499).all() and not np.allclose(scale, 1)
    # a box that fills whole patches stays an even shape: its coverage is known exactly
    cells = np.zeros((1, GRID, GRID), np.uint8)
    cells[0, 3:5, 2:6] = 255
    even = nodes._replace(
        coverage=cells.reshape(1, -1), boxes=np.array([[2, 3, 6, 5]], np.float32) / GRID,
        label_ids=nodes.label_ids[:1], source=nodes.source[:1],
    )  # fmt: skip
    exact = graphs.jitter(even, 0.25, rng=rng(seed), bounds=bounds)
    found = exact.coverage.reshape(1, GRID, GRID).astype(float)
    np.testing.assert_allclose(found, filled(exact), atol=0.51)  # rounding to 1/255


def test_a_thin_node_keeps_a_patch():
    _, nodes = made([[50, 30, 50.4, 30.4]])
    for seed in range(30):
        moved = graphs.jitter(nodes, 0.9, rng=rng(seed))
        assert (moved.coverage > 0).any()
    weak = nodes._replace(coverage=np.minimum(nodes.coverage, 1))
    for seed in range(30):
        assert (graphs.jitter(weak, 0.9, rng=rng(seed)).coverage > 0).any()


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(40, 100), (100, 40), (30, 30)])
def test_bounds_are_what_the_square_shows_of_the_image(fit, size):
    whole = graphs.Entities.from_boxes(np.array([[0, 0, size[1], size[0]]]), size)
    expected = graphs.square_boxes(whole, fit)[0]
    np.testing.assert_allclose(graphs.image_bounds(size, fit), expected, atol=1e-6)


def test_the_mask_of_a_box_is_its_pixels():
    draws = np.random.default_rng(0)
    for size in ((7, 9), (1, 5), (6, 6)):
        corners = draws.integers(-4, 13, (300, 4)).astype(np.float32)
        boxes = np.concatenate([corners[:, :2], corners[:, :2] + np.abs(corners[:, 2:])], 1)
        found = graphs.Entities.from_boxes(boxes, size).masks
        for code, (x0, y0, x1, y1) in zip(found, boxes.astype(int), strict=True):
            mask = np.zeros(size, bool)
            mask[max(y0, 0) : max(y1, y0 + 1, 0), max(x0, 0) : max(x1, x0 + 1, 0)] = True
            assert code == graphs.encode_rle(mask)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.load(tokenizers.train(["what is the cat on a red table no yes"] * 50, 300))


class _Source(sources.Source):
    """Two records of one image."""

    name, image_set, num_images, content, image_content = "two", "x", 1, "c", "i"

    def __len__(self):
        return 2

    def sample(self, index, *, epoch=0, want_image=True, want_entities=True):
        entities, _ = made([[0, 0, 30, 30], [25, 0, 75, 60]])
        turns = [{"from": "human", "value": "<image>\nwhat is the cat on"},
                 {"from": "gpt", "value": "a table"}]  # fmt: skip
        image = np.zeros((60, 100, 3), np.uint8) if want_image else None
        return sources.Sample(0, image, turns, entities, f"two/{index}")

    def image(self, row):
        return self.sample(0)


def loader(tokenizer, **data):
    settings = config.DataConfig(buckets=(128,), shuffle=False, **data)
    return pipeline.Loader(
        [_Source()], model=MODEL, text=config.TextConfig(system=""), tokenizer=tokenizer,
        data=settings, batch_size=2, seed=5,
    )  # fmt: skip


def test_jitter_is_a_function_of_seed_record_and_epoch(tokenizer):
    plain, shaken = loader(tokenizer), loader(tokenizer, node_jitter=0.1, cache_images=True)
    first, again = shaken.batch(0), loader(tokenizer, node_jitter=0.1).batch(0)
    np.testing.assert_array_equal(first.graph.boxes, again.graph.boxes)
    np.testing.assert_array_equal(first.graph.coverage, again.graph.coverage)
    assert not np.allclose(first.graph.boxes, plain.batch(0).graph.boxes)
    assert not np.allclose(first.graph.boxes[0], first.graph.boxes[1])  # another record
    assert not np.allclose(first.graph.boxes, shaken.batch(1).graph.boxes)  # another pass
    np.testing.assert_array_equal(first.graph.valid, plain.batch(0).graph.valid)
    np.testing.assert_array_equal(first.tokens, plain.batch(0).tokens)
    # dropout draws what it drew before there was jitter
    dropped = [loader(tokenizer, node_dropout=0.5, node_jitter=j).batch(0) for j in (0.0, 0.1)]
    np.testing.assert_array_equal(dropped[0].graph.valid, dropped[1].graph.valid)
    assert dataclasses.fields(batch.Encoder)[-2].name == "node_jitter"


def test_jitter_is_for_training_and_a_share():
    settings = config.Config(data=config.DataConfig(node_jitter=0.2))
    assert feed.without_dropout(settings).data.node_jitter == 0.0
    feed.check(settings, [])
    wrong = config.Config(data=config.DataConfig(node_jitter=1.5))
    with pytest.raises(errors.SgqlmError, match=r"config\.data\.node_jitter is 1\.5"):
        feed.check(wrong, [])
