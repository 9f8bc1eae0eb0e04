"""The composed model: parity, graphs of zero entities, padding, adapters, decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config, types
from sgqlm.convert import hf
from sgqlm.models import functional, llama, lora, presets, vlm
from tests import paths
from tests.models import helpers

forward = jax.jit(vlm.forward, static_argnums=1, static_argnames="remat")
prefill = jax.jit(llama.prefill, static_argnums=(1, 4))
embed = jax.jit(vlm.embed, static_argnums=1)
graph_tokens = jax.jit(vlm.graph_tokens, static_argnums=1)
encode_images = jax.jit(vlm.encode_images, static_argnums=1)
visual_tokens = jax.jit(vlm.visual_tokens, static_argnums=1)


@pytest.fixture(scope="module")
def small():
    cfg = helpers.small_config()
    params = jax.jit(lambda key: vlm.init_params(cfg, key))(jax.random.key(0))
    return cfg, params


def _randomised(params, seed=3):
    """Give every zero-initialised leaf a value, so that each path carries signal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), params)


def test_logits_equal_torch_on_the_golden_llava():
    """Official numbers of transformers 5.23, float32, one padded image in the prompt."""
    folder = paths.fixture("llava/tiny_llava_hf/config.json").parent
    data = np.load(folder / "oracle_forward.npz")
    model = hf.load_llava(folder)
    pixels = data["pixel_values"].transpose(0, 2, 3, 1)
    tower = vlm.Vlm(model.config)
    features = tower.apply({"params": model.params}, pixels, method=lambda m, x: m.vision(x))
    visual = visual_tokens(model.params, model.config, features)
    np.testing.assert_allclose(visual.tokens[0], data["image_features"], atol=1e-5)
    tokens = np.where(data["input_ids"] == 300, types.IMAGE_TOKEN_ID, data["input_ids"])
    batch = helpers.batch(model.config, num_nodes=(0,))
    batch = batch._replace(tokens=tokens.astype(np.int32), graph=None)
    hidden, _ = forward(model.params, model.config, batch, features=features)
    logits = vlm.head(model.params, model.config, hidden)
    np.testing.assert_allclose(logits, data["logits"], atol=1e-4)
    assert np.array_equal(np.asarray(logits).argmax(-1), data["logits"].argmax(-1))


def test_zero_entities_equal_the_model_without_sge(small):
    cfg, params = small
    batch = helpers.batch(cfg, num_nodes=(0, 0))
    hidden, _ = forward(params, cfg, batch)
    plain = dataclasses.replace(cfg, graph=dataclasses.replace(cfg.graph, enabled=False))
    without = {key: value for key, value in params.items() if key != "graph"}
    expected, _ = forward(without, plain, batch._replace(graph=None))
    np.testing.assert_array_equal(hidden, expected)


def test_padding_of_text_and_batch_changes_nothing(small):
    cfg, params = small
    batch = helpers.batch(cfg, length=24)
    longer = helpers.batch(cfg, length=32)
    hidden, _ = forward(params, cfg, batch)
    other, _ = forward(params, cfg, longer)
    for row, length in enumerate(batch.lengths):  # float32 sums of another length round apart
        np.testing.assert_allclose(hidden[row, :length], other[row, :length], atol=1e-5)
    junk = np.where(np.arange(32)[None] >= longer.lengths[:, None], 7, longer.tokens)
    other, _ = forward(params, cfg, longer._replace(tokens=junk.astype(np.int32)))
    first = jax.tree.map(lambda x: x[:1], longer)
    alone, _ = forward(params, cfg, first)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(hidden[row, :length], other[row, :length], atol=1e-5)
    own = batch.lengths[0]
    np.testing.assert_allclose(alone[0, :own], other[0, :own], atol=1e-5)


def test_graph_tokens_stand_in_their_places(small):
    cfg, params = small
    batch = helpers.batch(cfg, num_nodes=(3, 2))
    valid = np.array([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]], bool)
    batch = batch._replace(graph=batch.graph._replace(valid=valid))
    rows, _ = embed(params, cfg, batch)
    features = encode_images(params, cfg, batch.images)
    visual = visual_tokens(params, cfg, features)
    graph = graph_tokens(params, cfg, visual.node_features, batch.graph)
    for row in range(2):
        here = np.where(batch.tokens[row] == types.GRAPH_TOKEN_ID)[0]
        np.testing.assert_allclose(rows[row, here], graph.tokens[row, 0, valid[row]], atol=1e-6)
        here = np.where(batch.tokens[row] == types.IMAGE_TOKEN_ID)[0]
        np.testing.assert_allclose(rows[row, here], visual.tokens[row], atol=1e-6)


def test_runs_of_graph_tokens_are_filled_one_after_another():
    member = np.array([[0, 1, 1, 0, 1, 1, 0, 1]], bool)
    run, position = functional.run_positions(jnp.asarray(member))
    assert run[0, member[0]].tolist() == [0, 0, 1, 1, 2]
    assert position[0, member[0]].tolist() == [0, 1, 0, 1, 0]
    runs = jnp.arange(6.0).reshape(1, 3, 2, 1)
    rows = vlm.place(jnp.full((1, 8, 1), -1.0), jnp.asarray(member), runs)
    assert rows[0, :, 0].tolist() == [-1, 0, 1, -1, 2, 3, -1, 4]


def test_merged_lora_equals_unmerged(small):
    cfg, params = small
    params = _randomised(params)
    merged, plain = lora.merge(params, cfg)
    assert not any("lora" in path for path in _paths(merged))
    batch = helpers.batch(cfg)
    a, _ = forward(params, cfg, batch)
    b, _ = forward(merged, plain, batch)
    np.testing.assert_allclose(a, b, atol=2e-4)
    fresh = jax.jit(lambda key: vlm.init_params(cfg, key))(jax.random.key(4))
    graft = lora.graft(merged, fresh)
    c, _ = forward(graft, cfg, batch)  # fresh adapters have B = 0
    np.testing.assert_allclose(c, b, atol=1e-5)


def test_every_part_receives_gradients(small):
    cfg, params = small
    params = _randomised(params)
    batch = helpers.batch(cfg)

    def loss(params):
        hidden, _ = forward(params, cfg, batch)
        logits = vlm.head(params, cfg, hidden)[:, :-1]
        target = batch.labels[:, 1:]
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(target, 0)[..., None], -1
        )
        return -(picked[..., 0] * (target >= 0)).sum()

    grads = jax.jit(jax.grad(loss))(params)
    zero = [path for path, grad in _items(grads) if not np.abs(grad).max() > 0]
    # biases in front of a softmax over their own axis cannot matter
    assert all(
        path.endswith(("attn/k/bias", "prompt/k/bias", "prototypes/k/bias")) for path in zero
    )
    lora_grads = [path for path, grad in _items(grads) if "lora_a" in path]
    assert any(path.startswith("vision/") for path in lora_grads)
    assert any(path.startswith("llm/") for path in lora_grads)


@pytest.mark.parametrize("remat", ["full", "dots", "qkv", "offload"])
def test_remat_and_scan_equal_the_unrolled_layers(small, remat):
    cfg, params = small
    batch = helpers.batch(cfg)
    rows, _ = embed(params, cfg, batch)
    hidden, _ = forward(params, cfg, batch, remat=remat)
    unstacked = llama.unstack(params["llm"])
    for length in (7, rows.shape[1]):
        last, _ = prefill(unstacked, cfg, rows[:, :length], np.full(2, length), length)
        np.testing.assert_allclose(last, hidden[:, length - 1], atol=1e-5)


@pytest.mark.parametrize(
    ("num_layers", "policies"),
    [(2, ("full", "qkv")), (6, ("dots", "offload"))],  # unrolled, and a loop
)
def test_remat_changes_no_gradient(small, num_layers, policies):
    cfg = dataclasses.replace(small[0].llm, num_layers=num_layers)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, cfg.width)), jnp.float32)

    def make(remat):
        return llama.Llama(cfg, small[0].llm_lora, remat)

    params = jax.jit(lambda key: make("none").init(key, inputs))(jax.random.key(0))

    def gradient(remat):
        def total(params):
            return jnp.square(make(remat).apply(params, inputs)).sum()

        return jax.jit(jax.grad(total))(params)

    expected = gradient("none")
    for remat in policies:
        for a, b in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # another order of sums


@pytest.mark.slow
def test_deep_stacks_scan_like_shallow_ones_unroll():
    deep = helpers.small_config()
    deep = dataclasses.replace(deep, llm=dataclasses.replace(deep.llm, num_layers=6))
    params = jax.jit(lambda key: vlm.init_params(deep, key))(jax.random.key(2))
    batch = helpers.batch(deep)
    rows, _ = embed(params, deep, batch)
    hidden, _ = forward(params, deep, batch)
    last, _ = prefill(llama.unstack(params["llm"]), deep, rows, batch.lengths, 24)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(last[row], hidden[row, length - 1], atol=1e-5)


def test_decode_steps_equal_the_full_sequence(small):
    cfg, params = small
    merged, plain = lora.merge(_randomised(params), cfg)
    batch = helpers.batch(plain)
    rows, _ = embed(merged, plain, batch)
    hidden, _ = forward(merged, plain, batch)
    logits = vlm.head(merged, plain, hidden)
    unstacked = llama.unstack(merged["llm"])
    prompt = batch.lengths - 4
    _, cache = prefill(unstacked, plain, rows, prompt, 40)
    step = jax.jit(lambda tokens, cache: llama.decode_step(unstacked, plain, tokens, cache))
    for i in range(4):
        found, cache = step(batch.tokens[np.arange(2), prompt + i], cache)
        np.testing.assert_allclose(found, logits[np.arange(2), prompt + i], atol=1e-4)
    assert cache.lengths.tolist() == batch.lengths.tolist()


def test_dropout_needs_a_key_and_changes_the_adapters_only(small):
    cfg, params = small
    rate = config.LoraConfig(rank=2, alpha=4.0, dropout=0.5)
    graph = dataclasses.replace(cfg.graph, prompt_dropout=0.0)
    cfg = dataclasses.replace(cfg, llm_lora=rate, graph=graph)
    batch = helpers.batch(cfg)
    plain, _ = forward(params, cfg, batch)
    dropped, _ = forward(params, cfg, batch, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(plain, dropped)  # B is still zero
    params = _randomised(params)
    plain, _ = forward(params, cfg, batch)
    dropped, _ = forward(params, cfg, batch, dropout_key=jax.random.key(0))
    assert np.abs(np.asarray(plain - dropped)).max() > 1e-4


def test_presets_have_the_published_sizes():
    shapes = vlm.param_shapes(presets.get("vicuna_7b"))
    count = dict.fromkeys(lora.PARTS, 0)
    for path, leaf in _items(shapes):
        count[lora.part_of(path)] += int(np.prod(leaf.shape))
    assert count["llm"] == 6_738_415_616  # LLaMA-7B
    assert count["llm_lora"] == 319_815_680
    assert count["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert presets.get("vicuna_7b").num_image_tokens == 576


def test_the_tree_of_shapes_is_the_callers_own():
    cfg = presets.get("tiny")
    changed = vlm.param_shapes(cfg)
    del changed["llm"]
    assert "llm" in vlm.param_shapes(cfg)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(Exception, match="vicuna_7b"):
        presets.get("vicuna")


def _items(tree):
    found = []
    lora.map_with_path(lambda path, leaf: found.append((path, leaf)), tree)
    return found


def _paths(tree):
    return [path for path, _ in _items(tree)]
