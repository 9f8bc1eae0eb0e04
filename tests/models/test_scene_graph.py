"""Scene-graph expression: both implementations, padding, controls."""

import dataclasses

import jax
import numpy as np
import pytest

from sgqlm.models import scene_graph, vlm
from tests.models import helpers
from tests.train import micro

graph_tokens = jax.jit(vlm.graph_tokens, static_argnums=1)
VALID = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def setup():
    cfg = helpers.small_config()
    params = jax.device_put(micro.draw_params(cfg))
    graph = helpers.graph_batch(cfg, VALID)
    features = np.random.default_rng(1).normal(size=(4, 16, 16)).astype(np.float32)
    return cfg, params, graph, features


def _with(cfg, **changes):
    return dataclasses.replace(cfg, graph=dataclasses.replace(cfg.graph, **changes))


def test_jraph_equals_dense(setup):
    cfg, params, graph, features = setup
    a = graph_tokens(params, _with(cfg, impl="jraph"), features, graph)
    b = graph_tokens(params, _with(cfg, impl="dense"), features, graph)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_both_are_finite_and_equal(setup):
    cfg, params, graph, features = setup

    def loss(params, impl):
        found = graph_tokens(params, _with(cfg, impl=impl), features, graph)
        return (found.tokens**2).sum()

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    grads = [grad(params, impl)["graph"] for impl in ("jraph", "dense")]
    for x, y in zip(*map(jax.tree.leaves, grads), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4)


def test_padding_nodes_change_nothing(setup):
    cfg, params, graph, features = setup
    other = helpers.graph_batch(cfg, VALID, seed=9)
    keep = VALID[..., None]
    mixed = graph._replace(
        coverage=np.where(keep, graph.coverage, other.coverage),
        boxes=np.where(keep, graph.boxes, other.boxes),
        label_ids=np.where(keep, graph.label_ids, other.label_ids),
    )
    a = graph_tokens(params, cfg, features, graph)
    b = graph_tokens(params, cfg, features, mixed)
    rows = np.broadcast_to(keep[:, None], a.tokens.shape)
    np.testing.assert_array_equal(np.asarray(a.tokens)[rows], np.asarray(b.tokens)[rows])
    assert np.asarray(a.edge_attention)[1, :, :2, 2:].max() == 0.0


def test_nodes_are_permuted_with_their_entities(setup):
    cfg, params, graph, features = setup
    order = np.array([3, 1, 4, 0, 2])
    swapped = graph._replace(
        coverage=graph.coverage[:, order],
        boxes=graph.boxes[:, order],
        label_ids=graph.label_ids[:, order],
        valid=graph.valid[:, order],
    )
    a = graph_tokens(params, cfg, features, graph)
    b = graph_tokens(params, cfg, features, swapped)
    np.testing.assert_allclose(np.asarray(a.tokens)[0][:, order], b.tokens[0], atol=1e-5)


def test_permuted_edges_keep_nodes_and_change_messages(setup):
    cfg, params, graph, features = setup
    order = np.broadcast_to(np.array([1, 2, 3, 4, 0], np.int32), VALID.shape)
    identity = np.broadcast_to(np.arange(5, dtype=np.int32), VALID.shape)
    plain = graph_tokens(params, cfg, features, graph)
    same = graph_tokens(params, cfg, features, graph, edge_permutation=identity)
    moved = graph_tokens(params, cfg, features, graph, edge_permutation=order)
    np.testing.assert_array_equal(plain.tokens, same.tokens)
    assert np.abs(np.asarray(moved.tokens - plain.tokens))[0].max() > 1e-3
    np.testing.assert_array_equal(moved.tokens[2, :, 0], plain.tokens[2, :, 0])  # a lone node
    quiet = _with(cfg, message_passing=False)
    a = graph_tokens(params, quiet, features, graph)
    b = graph_tokens(params, quiet, features, graph, edge_permutation=order)
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_prompt_attention_reads_the_prompt_and_has_a_null_token(setup):
    cfg, params, graph, features = setup
    empty = graph._replace(prompt_valid=np.zeros_like(graph.prompt_valid))
    with_prompt = graph_tokens(params, cfg, features, graph)
    without = graph_tokens(params, cfg, features, empty)
    np.testing.assert_allclose(with_prompt.prompt_attention.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(without.prompt_attention[..., -1], 1.0, atol=1e-6)
    assert np.abs(np.asarray(with_prompt.tokens - without.tokens)).max() > 1e-4
    other = graph._replace(prompt_ids=graph.prompt_ids + (~graph.prompt_valid))
    masked = graph_tokens(params, cfg, features, other)
    np.testing.assert_array_equal(masked.tokens, with_prompt.tokens)


def test_labels_and_predicates_enter_only_where_configured(setup):
    cfg, params, graph, features = setup
    relabelled = graph._replace(label_ids=(graph.label_ids + 1) % helpers.VOCAB)
    predicates = np.ones((4, 5, 5, 2), np.int32)
    for labels, same in (("none", True), ("predicted", False)):
        quiet = _with(cfg, labels=labels)
        a = graph_tokens(params, quiet, features, graph)
        b = graph_tokens(params, quiet, features, relabelled)
        assert np.array_equal(a.tokens, b.tokens) is same
    a = graph_tokens(params, cfg, features, graph)
    b = graph_tokens(params, cfg, features, graph._replace(predicate_ids=predicates))
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_pooling_is_the_mean_under_the_mask():
    features = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    coverage = np.array([[[255, 0, 255, 0], [0, 0, 0, 0], [0, 255, 0, 51]]], np.uint8)
    nodes = scene_graph.pool_nodes(features, coverage)
    np.testing.assert_allclose(nodes[0, 0], [2, 3])
    np.testing.assert_allclose(nodes[0, 1], [0, 0])
    np.testing.assert_allclose(nodes[0, 2], (features[0, 1] * 255 + features[0, 3] * 51) / 306)


def test_union_weights_count_the_covered_share_of_each_patch():
    boxes = np.array([[[0.0, 0.0, 0.25, 0.5], [0.5, 0.25, 0.75, 1.0]]], np.float32)
    weights = np.asarray(scene_graph.union_weights(boxes, 2)).reshape(2, 2, 2, 2)
    np.testing.assert_allclose(weights[0, 0], [[0.5, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(weights[0, 1], [[1.0, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(weights[1, 1], [[0.0, 0.25], [0.0, 0.5]])


def test_pair_geometry_is_relative_to_the_receiver():
    boxes = np.array([[[0.0, 0.0, 0.2, 0.2], [0.4, 0.1, 0.8, 0.3]]], np.float32)
    found = np.asarray(scene_graph.pair_geometry(boxes))[0, 0, 1]
    expected = [0.5 / 0.2, 0.1 / 0.2, np.log(2), 0.0, 0.0, np.hypot(0.5, 0.1)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
