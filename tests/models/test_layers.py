import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config
from sgqlm.models import layers, lora


def randomised(module, x):
    rng = np.random.default_rng(1)
    params = module.init(jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)


def test_dense_adds_the_scaled_adapter():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    dense = layers.Dense(4, lora=config.LoraConfig(rank=2, alpha=6.0))
    p = randomised(dense, x)
    found = dense.apply({"params": p}, x)
    expected = x @ p["kernel"] + p["bias"] + 3.0 * (x @ p["lora_a"]) @ p["lora_b"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_only_b_is_zero():
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    dense = layers.Dense(4, lora=config.LoraConfig(rank=8, alpha=16.0))
    params = dense.init(jax.random.key(0), x)["params"]
    plain = {k: v for k, v in params.items() if "lora" not in k}
    np.testing.assert_array_equal(
        dense.apply({"params": params}, x), layers.Dense(4).apply({"params": plain}, x)
    )
    bound = np.abs(np.asarray(params["lora_a"])).max()
    assert 0.1 < bound <= 64**-0.5  # uniform, as peft


def test_dropout_acts_on_the_adapter_and_keeps_its_mean():
    x = np.ones((1, 2000), np.float32)
    dense = layers.Dense(1, use_bias=False, lora=config.LoraConfig(rank=1, alpha=1.0, dropout=0.5))
    params = dense.init(jax.random.key(0), x)["params"]
    params = {k: jnp.full_like(v, k != "kernel") for k, v in params.items()}
    assert dense.apply({"params": params}, x).item() == 2000.0
    key = {"dropout": jax.random.key(1)}
    dropped = dense.apply({"params": params}, x, rngs=key).item()
    assert dropped != 2000.0
    assert dropped == pytest.approx(2000.0, rel=0.1)  # 4.5 standard deviations


@pytest.mark.parametrize("kind", [layers.LayerNorm, layers.RmsNorm])
def test_norms_run_in_float32_and_keep_the_dtype(kind):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 32))
    norm = kind(1e-3)
    p = jax.tree.map(np.float64, randomised(norm, x.astype(np.float32)))
    y = x - x.mean(-1, keepdims=True) if kind is layers.LayerNorm else x
    expected = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3) * p["scale"] + p.get("bias", 0.0)
    params = {"params": jax.tree.map(np.float32, p)}
    np.testing.assert_allclose(norm.apply(params, x.astype(np.float32)), expected, atol=1e-5)
    half = norm.apply(params, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), expected, atol=0.1)


def test_tree_paths_name_the_parts():
    seen = {}
    tree = {"llm": {"q": {"kernel": 1, "lora_a": 2}}, "vision": {"cls": 3}}
    lora.map_with_path(lambda path, leaf: seen.setdefault(leaf, lora.part_of(path)), tree)
    assert seen == {1: "llm", 2: "llm_lora", 3: "vision"}
