"""Prototype extractors against the released program and a literal loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config
from sgqlm.convert import sq_llava
from sgqlm.models import prototypes
from tests import paths

connector = jax.jit(prototypes.released_connector, static_argnums=(2, 3))
CASES = {
    "cluster_b2_n36_d32_k16_t3_grads": (16, 3),
    "cluster_b2_n36_d64_k16_t2_torchinit": (16, 2),
    "cluster_b1_n576_d16_k256_t2": (256, 2),
}


def _load(name):
    data = np.load(paths.fixture(f"sq_llava/{name}.npz"))
    tensors = {key[6:]: data[key] for key in data if key.startswith("param.")}
    return data, sq_llava.connector_from_state_dict(tensors)


@pytest.mark.parametrize("name", CASES)
def test_released_connector_equals_official(name):
    data, params = _load(name)
    output, nearest = connector(params, data["input"], *CASES[name])
    cos = data.get("mid.cos")
    flips = np.asarray(nearest) != data["mid.argmax_center"]
    if cos is not None:  # assignments are fragile where two centres nearly tie
        top = np.sort(cos, axis=1)
        assert (top[:, -1] - top[:, -2])[flips].max(initial=0.0) < 1e-5
    close = np.abs(np.asarray(output) - data["output"]).max(-1) < 1e-5
    assert (close | flips).all()
    assert flips.mean() < 0.01


def test_released_gradients_equal_official():
    name = "cluster_b2_n36_d32_k16_t3_grads"
    data, params = _load(name)

    def loss(params, x):
        y, _ = prototypes.released_connector(params, x, *CASES[name])
        return (y * jnp.linspace(-1, 1, y.size).reshape(y.shape)).sum()

    grads, grad_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, data["input"])
    np.testing.assert_allclose(grad_x, data["grad.input"], atol=1e-5, rtol=1e-4)
    wanted = {
        key[5:]: data[key] if data[key].size else np.zeros_like(data["param." + key[5:]])
        for key in data
        if key.startswith("grad.") and key != "grad.input"
    }
    wanted = sq_llava.connector_from_state_dict(wanted)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1.0, np.abs(theirs).max()))
    assert not np.any(grads["prototypes"]["ln_1"]["scale"])  # stored there, never used


def test_pooling_bins_equal_official():
    data = np.load(paths.fixture("sq_llava/adaptive_pool_bins.npz"))
    matrix = prototypes.adaptive_pool_matrix(576, 256)
    starts, counts = (matrix > 0).argmax(1), (matrix > 0).sum(1)
    assert counts.tolist() == [3] * 256 and starts[:3].tolist() == [0, 2, 4]
    assert len(data.files) > 0


def test_paper_em_equals_literal_loop():
    rng = np.random.default_rng(0)
    cfg = config.PrototypeConfig(mode="paper", num_prototypes=3, iterations=2)
    x = rng.normal(size=(1, 5, 4)).astype(np.float32)
    module = prototypes.PaperExtractor(cfg)
    params = module.init(jax.random.key(0), x)["params"]
    params["z"]["kernel"] = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    found = module.apply({"params": params}, x)

    def dense(name, v):
        return v @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])

    centers = np.asarray(params["centers"], np.float64)
    for _ in range(2):
        new = np.zeros_like(centers)
        scores = np.zeros((3, 5))
        for k in range(3):
            for p in range(5):
                scores[k, p] = dense("q", centers[k]) @ dense("k", x[0, p]) / np.sqrt(4)
            weights = np.exp(scores[k]) / np.exp(scores[k]).sum()
            for p in range(5):
                new[k] += weights[p] * dense("v", x[0, p])
        centers = new
    expected = np.zeros((5, 4))
    for p in range(5):
        mean = np.zeros(4)
        for k in range(3):
            c, z = centers[k], x[0, p]
            mean += c @ z / (np.linalg.norm(c) * np.linalg.norm(z)) * c / 3
        expected[p] = x[0, p] + dense("z", mean)
    np.testing.assert_allclose(found.centers[0], centers, atol=1e-5)
    np.testing.assert_allclose(found.patches[0], expected, atol=1e-5)
    share = np.exp(scores) / np.exp(scores).sum(0)
    np.testing.assert_allclose(found.responsibility[0], share.T, atol=1e-5)


def test_paper_form_starts_as_identity():
    x = jax.random.normal(jax.random.key(1), (2, 9, 8))
    module = prototypes.PaperExtractor(config.PrototypeConfig(mode="paper", num_prototypes=4))
    found, _ = module.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(found.patches, x)


def test_usage_tells_collapse_from_even_use():
    even = jnp.eye(4)[None]
    collapsed = jnp.zeros((1, 4, 4)).at[..., 0].set(1.0)
    assert prototypes.usage(even)["usage_entropy"] > 0.99
    assert prototypes.usage(even)["dead_share"] == 0.0
    assert prototypes.usage(collapsed)["usage_entropy"] < 0.01
    assert prototypes.usage(collapsed)["dead_share"] == 0.75


def test_mask_guidance_prefers_shared_prototypes_inside_a_mask():
    coverage = np.array([[[255, 255, 0, 0], [0, 0, 255, 255]]], np.uint8)
    apart = jnp.asarray(np.eye(2)[[0, 0, 1, 1]][None], jnp.float32)
    mixed = jnp.asarray(np.eye(2)[[0, 1, 0, 1]][None], jnp.float32)
    good = prototypes.mask_guidance(apart, coverage)
    bad = prototypes.mask_guidance(mixed, coverage)
    assert good < 0.01 < bad
    assert prototypes.mask_guidance(apart, np.zeros_like(coverage)) == 0.0
