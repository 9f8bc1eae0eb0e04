"""Region-text pretraining on drawn squares, and the labels that the classifier gives."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from sgqlm import config, errors
from sgqlm.models import lora, vlm
from sgqlm.train import region_text
from tests.models import helpers
from tests.train import micro

RED, BLUE, BRIGHT, DARK, BESIDE = 5, 7, 9, 11, 13


@pytest.fixture(scope="module")
def small():
    whole = helpers.small_config(region_words=2)
    cfg = dataclasses.replace(
        whole,
        llm=dataclasses.replace(whole.llm, num_layers=1),
        graph=dataclasses.replace(whole.graph, num_rounds=1, impl="dense"),
        prototypes=config.PrototypeConfig(mode="none"),
    )
    return cfg, jax.device_put(micro.draw_params(cfg))


def make_batch(cfg, seed, rows=8):
    """Return images of two halves, named by colour and brightness; slots 2 to 4 are padding."""
    rng = np.random.default_rng(seed)
    is_red, is_bright = rng.integers(0, 2, (2, rows, 2)).astype(bool)
    side, grid = cfg.vision.image_size, cfg.vision.grid
    images = np.zeros((rows, side, side, 3), np.uint8)
    coverage = np.zeros((rows, 5, grid, grid), np.uint8)
    for half, columns in enumerate(np.split(np.arange(side), 2)):
        level = np.where(is_bright[:, half], 250, 90)[:, None, None]
        for channel, here in ((0, is_red[:, half]), (2, ~is_red[:, half])):
            images[:, :, columns, channel] = level * here[:, None, None]
        coverage[:, half, :, half * grid // 2 : (half + 1) * grid // 2] = 255
    labels = np.full((rows, 5, 3), -1, np.int32)
    labels[:, :2, 0] = np.where(is_red, RED, BLUE)
    labels[:, :2, 1] = np.where(is_bright, BRIGHT, DARK)
    predicates = np.full((rows, 5, 5, 1), -1, np.int32)
    predicates[:, 0, 1] = BESIDE
    boxes = np.zeros((rows, 5, 4), np.float32)
    boxes[:, 0], boxes[:, 1] = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    base = helpers.batch(cfg, num_nodes=(2,) * rows, length=32)
    graph = base.graph._replace(
        coverage=coverage.reshape(rows, 5, -1),
        boxes=boxes,
        label_ids=labels,
        predicate_ids=predicates,
    )
    return base._replace(images=images, graph=graph)


@pytest.fixture(scope="module")
def trained(small):
    """Train for 30 steps and return the losses and the parameters."""
    cfg, params = small
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, batch):
        def mean(params):
            total, weight, _ = region_text.region_loss(params, cfg, batch)
            return total / weight

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for seed in range(30):
        params, state, loss = step(params, state, make_batch(cfg, seed))
        losses.append(float(loss))
    return losses, params


@pytest.fixture(scope="module")
def measure(small):
    return jax.jit(lambda params, batch: region_text.region_loss(params, small[0], batch))


def test_two_words_and_a_relation_are_learned_in_thirty_steps(small, trained, measure):
    losses, params = trained
    assert losses[0] > 6  # a random guess among 64 tokens is 4.2, for words and relation each
    assert losses[-1] < 0.2 * losses[0]
    _, weight, metrics = measure(params, make_batch(small[0], seed=99))  # drawn anew
    assert weight == 8 * 2 * 2
    hits, words = metrics["answer_accuracy"]
    assert hits / words > 0.9
    assert metrics["predicate_accuracy"][1] == 8


def test_padding_and_dummies_change_nothing(small, trained, measure):
    cfg, params = small[0], trained[1]
    batch = make_batch(cfg, seed=1)
    total, weight, metrics = measure(params, batch)
    graph = jax.tree.map(np.copy, batch.graph)
    for array in (graph.coverage, graph.boxes, graph.label_ids):
        array[:, 2:] = 3  # the labels of empty slots
    graph.predicate_ids[:, 2:] = graph.predicate_ids[:, :, 2:] = BESIDE
    graph.predicate_ids[:, [0, 1], [0, 1]] = BESIDE  # nothing is related to itself
    found = measure(params, batch._replace(graph=graph))
    np.testing.assert_allclose(found[0], total, rtol=1e-6)
    assert found[1] == weight
    np.testing.assert_allclose(found[2]["predicate_loss"], metrics["predicate_loss"], rtol=1e-6)
    graph.predicate_ids[:, 1, 0] = BESIDE
    found = measure(params, batch._replace(graph=graph))
    assert abs(found[2]["predicate_loss"][0] - metrics["predicate_loss"][0]) > 0.01

    halved = batch._replace(row=np.where(np.arange(8) < 4, batch.row, -1).astype(np.int32))
    total, weight, metrics = measure(params, halved)
    assert (weight, metrics["samples"], metrics["dummies"]) == (16, 4, 4)
    noisy = np.where((halved.row < 0)[:, None, None, None], 77, batch.images).astype(np.uint8)
    np.testing.assert_allclose(measure(params, halved._replace(images=noisy))[0], total, rtol=1e-6)


def test_without_predicates_there_is_no_relation_loss(small, trained, measure):
    batch = make_batch(small[0], seed=1)
    bare = batch._replace(graph=batch.graph._replace(predicate_ids=None))
    total, _, metrics = measure(trained[1], bare)
    assert "predicate_loss" not in metrics
    np.testing.assert_allclose(total, metrics["answer_loss"][0])


def test_a_batch_without_entities_is_refused(small):
    batch = make_batch(small[0], seed=1)._replace(graph=None)
    with pytest.raises(errors.SgqlmError, match="no entities"):
        region_text.region_loss(small[1], small[0], batch)


def test_labels_are_predicted_without_the_adapters(small, trained):
    cfg, params = small[0], trained[1]
    batch = make_batch(cfg, seed=1)
    given = [(batch.images, batch.graph.coverage, batch.graph.valid)]
    assert not np.array_equal(*(vlm_features(params, c, batch) for c in (cfg, plain(cfg))))
    rng = np.random.default_rng(0)
    other = lora.map_with_path(
        lambda path, x: x + rng.normal(size=x.shape) if path.endswith("lora_b") else x, params
    )
    (found,) = region_text.predict_labels(params, cfg, iter(given))
    (same,) = region_text.predict_labels(other, cfg, iter(given))
    np.testing.assert_array_equal(found, same)
    assert found.shape == (8, 5, 2)
    assert (found[:, 2:] == -1).all()
    assert np.isin(found[:, :2, 0], (RED, BLUE)).mean() > 0.9


def vlm_features(params, cfg, batch):
    return np.asarray(jax.jit(lambda p: vlm.encode_images(p, cfg, batch.images))(params))


def plain(cfg):
    off = region_text.without_lora(cfg)
    assert not off.vision_lora.rank
    assert dataclasses.replace(off, vision_lora=cfg.vision_lora, llm_lora=cfg.llm_lora) == cfg
    return off
