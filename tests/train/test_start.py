"""Where a run begins: fresh parameters, a base under them, and settings that must not change."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from sgqlm import errors
from sgqlm.convert import leaves
from sgqlm.models import vlm
from sgqlm.text import tokenizer
from sgqlm.train import start
from tests.train import micro, toys

TEXTS = ["a red ball is left of a blue box", "what colour is the small cone"] * 20


def tree(seed, *parts, width=3):
    """Return a small parameter tree, with the names of a real one."""
    rng = np.random.default_rng(seed)
    shapes = {
        "vision": {"vision/cls": (width,), "vision/pos/embedding": (2, width)},
        "vision_lora": {"vision/blocks/attn/q/lora_a": (1, width)},
        "llm": {"llm/norm/scale": (width,)},
        "graph": {"graph/node/kernel": (width, 2)},
    }
    flat = {
        path: jax.numpy.asarray(rng.normal(size=shape), "float32")
        for part in parts
        for path, shape in shapes[part].items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def as_leaves(params):
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path: leaves.of_array(np.asarray(leaf)) for path, leaf in flat.items()}


@pytest.fixture(scope="module")
def grafted():
    """A base of half precision without the graph, and what a model with one makes of it."""
    settings = micro.settings(micro.stage("a", 1, "llm"), init="there")
    shapes = traverse_util.flatten_dict(vlm.param_shapes(settings.model), sep="/")
    rng = np.random.default_rng(0)
    base = {
        path: leaves.of_array(rng.normal(size=leaf.shape).astype(np.float16))
        for path, leaf in shapes.items()
        if not path.startswith("graph/")
    }
    return base, settings, shapes, start.graft(base, settings, toys.mesh())


def test_a_base_gives_its_parts_and_new_parts_are_fresh(grafted):
    base, settings, shapes, merged = grafted
    flat = traverse_util.flatten_dict(merged, sep="/")
    assert list(flat) == list(shapes)
    for path, leaf in flat.items():
        if path in base:
            assert leaf.dtype == np.float16  # the base's own
            np.testing.assert_array_equal(leaf, base[path].load())
    whole = start.init_params(settings.model, 0, toys.mesh())
    jax.tree.map(  # two programs round apart
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        merged["graph"],
        whole["graph"],
    )


def test_what_the_base_has_is_not_made_afresh(grafted):
    base, settings, shapes, _ = grafted
    key = jax.random.key(0)
    sizes = []
    for without in ((), frozenset(base)):
        program, places = start.init_program(settings.model, toys.mesh(), without=without)
        assert set(places) == set(shapes) - set(without)
        analysis = program.lower(key).compile().memory_analysis()
        sizes.append((analysis.output_size_in_bytes, analysis.temp_size_in_bytes))
    fresh = sum(leaf.size * 4 for path, leaf in shapes.items() if path not in base)
    assert fresh <= sizes[1][0] < fresh + 16 * len(shapes)  # and the table of the outputs
    assert sizes[1][1] <= sizes[0][1]
    assert start.init_params(settings.model, 0, toys.mesh(), without=frozenset(shapes)) == {}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (tree(0, "vision", "llm", width=4), "llm/norm/scale has (4,), the model (3,)"),
        (tree(0, "graph"), "graph/node/kernel is unknown to the model"),
        ({"vision": {"cls": tree(0, "vision")["vision"]["cls"]}}, "embedding is missing"),
    ],
)
def test_a_base_that_does_not_fit(base, message):
    shapes = traverse_util.flatten_dict(tree(1, "vision", "llm"), sep="/")
    with pytest.raises(errors.SgqlmError, match="the base does not fit") as caught:
        start.check_base(as_leaves(base), shapes, where="there")
    assert message in caught.value.why
    assert (caught.value.where, caught.value.code) == ("there", errors.CHECKPOINT)


def test_differences_name_the_setting():
    saved = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    assert start.differences(saved, {"a": {"b": 1, "c": [1, 2]}, "d": "x"}) == []
    found = start.differences(saved, {"a": {"b": 2, "c": [1]}, "d": "x", "e": 0})
    assert found == ["config.a.b: 1 -> 2", "config.a.c: [1, 2] -> [1]", "config.e: None -> 0"]


@pytest.mark.slow
def test_a_fresh_run_trains_its_tokenizer_and_sizes_the_model(tmp_path):
    settings = micro.settings(micro.stage("a", 1, "llm"))
    begun = start.begin(settings, tmp_path, toys.mesh(), lambda _: iter(TEXTS))
    assert begun.tokenizer.decode(begun.tokenizer.encode("a red cone")) == "a red cone"
    assert begun.config.model.llm.vocab_size == begun.tokenizer.vocab_size
    rows = begun.params["llm"]["embed"]["embedding"].shape[0]
    assert rows == begun.tokenizer.vocab_size
    assert (begun.base, begun.from_base, begun.resumed) == (None, frozenset(), None)
    model = begun.config.model
    expected = jax.jit(lambda key: vlm.init_params(model, key))(jax.random.key(0))
    jax.tree.map(  # two programs round apart
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), begun.params, expected
    )


def test_a_tokenizer_must_fit_the_table_of_the_model(tmp_path):
    file = tmp_path / "words.model"
    file.write_bytes(tokenizer.train(TEXTS, 330))
    settings = micro.settings(micro.stage("a", 1, "llm"))
    text = dataclasses.replace(settings.text, tokenizer=str(file))
    llm = dataclasses.replace(settings.model.llm, vocab_size=100)
    model = dataclasses.replace(settings.model, llm=llm)
    small = dataclasses.replace(settings, text=text, model=model)
    with pytest.raises(errors.SgqlmError, match="the model's table 100") as caught:
        start.begin(small, tmp_path, toys.mesh(), lambda _: iter(()))
    assert caught.value.where == "config.model.llm.vocab_size"
