"""Attention against torch's own, and the cache against the whole sequence."""

import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm.models import attention


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_equals_torch(is_causal, groups):
    torch = pytest.importorskip("torch")
    q, k, v = draw((2, 7, 6, 4), (2, 7, groups, 4), (2, 7, groups, 4))
    heads = [torch.tensor(x).transpose(1, 2) for x in (q, k, v)]
    call = torch.nn.functional.scaled_dot_product_attention
    expected = call(*heads, is_causal=is_causal, enable_gqa=True).transpose(1, 2)
    found = attention.attend(*map(jnp.asarray, (q, k, v)), is_causal=is_causal)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_on_the_right_is_not_seen():
    q, k, v = draw((1, 6, 4, 4), (1, 6, 2, 4), (1, 6, 2, 4))
    short = attention.attend(*(jnp.asarray(x[:, :4]) for x in (q, k, v)), is_causal=True)
    k[:, 4:], v[:, 4:] = 50.0, -50.0
    whole = attention.attend(*map(jnp.asarray, (q, k, v)), is_causal=True)
    np.testing.assert_allclose(whole[:, :4], short, atol=1e-6)


def test_the_cache_equals_the_whole_sequence():
    q, k, v = draw((2, 5, 4, 8), (2, 5, 2, 8), (2, 5, 2, 8))
    whole = attention.attend(*map(jnp.asarray, (q, k, v)), is_causal=True)
    keys, values = (np.full((2, 2, 9, 8), 7.0, np.float32) for _ in range(2))  # rubbish behind
    keys[:, :, :5], values[:, :, :5] = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    last = np.array([4, 2])
    query = jnp.asarray(q[np.arange(2), last])
    found = attention.attend_cache(query, jnp.asarray(keys), jnp.asarray(values), last)
    np.testing.assert_allclose(found, np.asarray(whole)[np.arange(2), last], atol=1e-6)


def test_the_dtype_stays_and_large_logits_are_finite():
    q, k, v = (jnp.asarray(x * 100, jnp.bfloat16) for x in draw(*[(1, 4, 2, 4)] * 3))
    found = attention.attend(q, k, v, is_causal=True)
    assert found.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(found).all())
