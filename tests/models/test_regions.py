"""The region classifier: whose features decide which logits."""

import jax
import numpy as np
import pytest

from sgqlm.models import regions


@pytest.fixture(scope="module")
def classifier():
    module = regions.RegionClassifier(num_words=2, vocab_size=7, width=6)
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(1, 4, 6)).astype(np.float32)
    between = rng.normal(size=(1, 4, 4, 6)).astype(np.float32)

    every = np.arange(16, dtype=np.int32)[None]

    def both(module, pooled, between):
        pairs = module.pairs(pooled, between, every)
        return module.words(pooled), pairs.reshape(1, 4, 4, -1)

    params = module.init(jax.random.key(0), pooled, between, method=both)
    call = jax.jit(lambda pooled, between: module.apply(params, pooled, between, method=both))
    some = jax.jit(lambda chosen: module.apply(params, pooled, between, chosen, method="pairs"))
    return call, some, pooled, between


def changed(before, after, axes):
    return np.argwhere(np.abs(np.asarray(before - after)).max(axes) > 1e-6).tolist()


def test_an_entity_decides_its_own_words(classifier):
    call, _, pooled, between = classifier
    other = pooled.copy()
    other[0, 2] += 1.0 + np.arange(6)
    words, pairs = call(pooled, between)
    new_words, new_pairs = call(other, between)
    assert words.shape == (1, 4, 2, 7)
    assert changed(words, new_words, (0, 2, 3)) == [[2]]
    touched = [[i, j] for i in range(4) for j in range(4) if 2 in (i, j)]
    assert changed(pairs, new_pairs, (0, 3)) == touched


def test_a_relation_has_a_direction_and_its_own_evidence(classifier):
    call, _, pooled, between = classifier
    other = between.copy()
    other[0, 1, 3] += 1.0 + np.arange(6)
    _, pairs = call(pooled, between)
    assert changed(pairs, call(pooled, other)[1], (0, 3)) == [[1, 3]]
    _, same = call(pooled, np.zeros_like(between))
    assert np.abs(np.asarray(same[0, 1, 3] - same[0, 3, 1])).max() > 1e-3


def test_only_the_chosen_pairs_are_scored(classifier):
    call, some, pooled, between = classifier
    chosen = np.array([[7, 1]], np.int32)  # receiver 1 of sender 3, receiver 0 of sender 1
    found = some(chosen)
    _, pairs = call(pooled, between)
    np.testing.assert_allclose(found[0], [pairs[0, 1, 3], pairs[0, 0, 1]], atol=1e-6)
