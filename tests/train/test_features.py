"""What a frozen tower says about images, kept by image row."""

import jax
import numpy as np
import pytest

from sgqlm.data import graphs
from sgqlm.models import vlm
from sgqlm.train import features
from tests.train import micro, toys


@pytest.fixture(scope="module")
def small():
    cfg = micro.model(region_words=2)
    return cfg, jax.device_put(micro.draw_params(cfg))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3)).astype(np.uint8)


def test_rows_are_those_of_the_tower_and_blanks_those_of_zeros(small, images, tmp_path):
    cfg, params = small
    file = tmp_path / "kept" / "features.npy"
    given = [(row, images[row]) for row in (4, 0, 1, 3)]  # row 2 cannot be read
    args = (params, cfg, given, 5)
    cache = features.compute(*args, mesh=toys.mesh(), batch_size=3, file=file)
    known = np.where(np.arange(5)[:, None, None, None] == 2, 0, images).astype(np.uint8)
    whole = jax.jit(lambda x: vlm.encode_images(params, cfg, x))
    expected = np.asarray(whole(np.concatenate([known, np.zeros_like(known[:1])])))
    assert cache.array.dtype == np.float16
    np.testing.assert_allclose(cache.array, expected, rtol=2e-3, atol=2e-3)  # of float16
    again = features.compute(params, cfg, (), 5, mesh=toys.mesh(), file=file)
    np.testing.assert_array_equal(again.array, cache.array)

    batch = toys.batch(0, rows=4)
    has_image = np.array([True, False, True, True])
    batch = batch._replace(row=np.array([3, 0, -1, 1], np.int32), image_valid=has_image)
    np.testing.assert_array_equal(cache.rows(batch), cache.array[[3, 5, 5, 1]])


def make_entities(count):
    rng = np.random.default_rng(count)
    low = rng.uniform(0, 14, (count, 2))
    boxes = np.concatenate([low, low + 10], 1).astype(np.float32)
    masks = np.zeros((count, 28, 28), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    scores = rng.permutation(count).astype(np.float32)
    return graphs.Entities(masks, boxes, [], scores, (28, 28))


def test_labels_return_to_their_entities(small, images, tmp_path):
    cfg, params = small
    found = {0: make_entities(3), 1: make_entities(12), 3: make_entities(1)}
    regions = [(row, images[row], entities) for row, entities in found.items()]
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    file = tmp_path / "labels.json"
    args = (params, cfg, regions, decode, 5)
    labels = features.compute_labels(*args, batch_size=2, file=file)
    assert [len(row) for row in labels] == [3, 12, 0, 1, 0]
    unseen = labels[1].count("")
    assert unseen == 12 - cfg.graph.num_nodes
    assert [labels[1][i] for i in np.argsort(found[1].scores)[:unseen]] == [""] * unseen
    alone = features.compute_labels(params, cfg, regions[1:2], decode, 5, batch_size=1)
    assert alone[1] == labels[1]
    assert len(set(labels[1])) > 2  # what is checked above does differ
    assert features.compute_labels(params, cfg, (), decode, 5, file=file) == labels


def test_the_digest_follows_what_the_tower_says(small):
    cfg, params = small
    same = features.digest(params, cfg, "images")
    assert features.digest({**params, "llm": {}}, cfg, "images") == same
    assert features.digest(params, micro.model(region_words=2, image_fit="crop"), "images") != same
    assert features.digest(params, cfg, "other images") != same
    tower = jax.tree.map(lambda leaf: leaf + 1, params["vision"])
    assert features.digest({**params, "vision": tower}, cfg, "images") != same
