"""Attention against torch's own, and the cache against the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import errors
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


LARGE = {"dtype": "bfloat16", "length": 1024, "head_dim": 128}


@pytest.mark.parametrize(
    ("wanted", "changes", "expected"),
    [
        ("auto", {"platform": "cpu"}, "xla"),
        ("auto", {"platform": "gpu"}, "cudnn"),
        ("auto", {"platform": "gpu", "length": 577, "head_dim": 64}, "cudnn"),
        ("auto", {"platform": "gpu", "dtype": "float32"}, "xla"),
        ("auto", {"platform": "gpu", "length": 100}, "xla"),
        ("auto", {"platform": "gpu", "head_dim": 132}, "xla"),
        ("auto", {"platform": "tpu"}, "splash"),
        ("auto", {"platform": "tpu", "dtype": "float32"}, "splash"),
        ("auto", {"platform": "tpu", "length": 577, "head_dim": 64}, "xla"),
        ("auto", {"platform": "tpu", "length": 384}, "xla"),
        ("auto", {"platform": "tpu", "batch_fits": False}, "xla"),
        ("xla", {"platform": "tpu"}, "xla"),
        ("cudnn", {"platform": "gpu"}, "cudnn"),
    ],
)
def test_the_program_is_chosen_by_platform_dtype_and_length(wanted, changes, expected):
    assert attention.choose(wanted, **LARGE | changes).name == expected


@pytest.mark.parametrize(
    ("wanted", "platform", "why"), [("cudnn", "cpu", "NVIDIA"), ("splash", "gpu", "TPU")]
)
def test_a_program_that_cannot_run_is_refused(wanted, platform, why):
    with pytest.raises(errors.SgqlmError, match="cannot run here") as caught:
        attention.choose(wanted, **LARGE, platform=platform)
    assert why in caught.value.why


@pytest.mark.parametrize(("groups", "length"), [(1, 256), (2, 384)])
def test_splash_equals_xla_with_its_gradients(groups, length):
    q, k, v = map(jnp.asarray, draw((1, length, 2, 128), *[(1, length, groups, 128)] * 2))
    weight = draw((1, length, 2, 128), seed=1)[0]

    def total(program, q, k, v):
        y = program(q, k, v)
        return (y * weight).sum(), y

    grads = jax.jit(jax.grad(total, argnums=(1, 2, 3), has_aux=True), static_argnums=0)

    def splash(q, k, v):
        return attention.splash(q, k, v, True, None, interpret=True)

    def plain(q, k, v):
        return attention.attend(q, k, v, is_causal=True, wanted="xla")

    (expected, plain_y), (found, splash_y) = grads(plain, q, k, v), grads(splash, q, k, v)
    np.testing.assert_allclose(splash_y, plain_y, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # sums over blocks in another order


@pytest.mark.gpu
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("length", [577, 640, 1000])
def test_cudnn_equals_xla_with_its_gradients(is_causal, length):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(*[(2, length, 4, 64)] * 3))
    lengths = jnp.asarray([length, length - 100], jnp.int32) if is_causal else None
    valid = jnp.arange(length) < (length if lengths is None else lengths[:, None])
    weight = jnp.asarray(draw((2, length, 4, 64), seed=1)[0]) * valid[..., None, None]

    def total(wanted, q, k, v):
        y = attention.attend(q, k, v, is_causal=is_causal, lengths=lengths, wanted=wanted)
        return (y.astype(jnp.float32) * weight).sum()

    grads = jax.value_and_grad(total, argnums=(1, 2, 3))
    (_, expected), (_, found) = grads("xla", q, k, v), grads("cudnn", q, k, v)
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= 0.03 * np.abs(b).max()  # bfloat16 has 8 bits
