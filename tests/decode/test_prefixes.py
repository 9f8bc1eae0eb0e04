import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config as config_lib
from sgqlm import model as model_lib
from sgqlm.decode import generate, inputs, prefixes, sample
from sgqlm.evals import scenes
from sgqlm.models import llama, presets, vlm
from tests import tiny_model

NEW = 5


@pytest.fixture(scope="module")
def model():
    return tiny_model.make(252)  # 81 image tokens: most of a prompt, as in LLaVA


@pytest.fixture(scope="module")
def generator(model):
    return generate.Generator(model.config.model, model.params, eos_id=model.tokenizer.eos_id)


@pytest.fixture(scope="module")
def asked(cases):
    """Return eight rows, in no order: about three images and about none."""
    texts = ["what is it?", "what colour is the star?", "how many red circles are there?"]
    about = [(0, 0), (1, 0), (0, 1), (0, 2), (2, 1), (1, 2), (0, 1)]
    rows = [
        inputs.Row([inputs.human(texts[word])], cases[at].image, cases[at].entities)
        for at, word in about
    ]
    return [*rows, inputs.Row([inputs.human("hello")])]


def collate(model, rows):
    prepared = [inputs.prepare(row, model.config, model.tokenizer) for row in rows]
    length = generate.bucket(max(row.length for row in prepared))
    return inputs.collate(prepared, length, model.config.model)


def test_rows_are_grouped_by_their_image(model, asked):
    batch = collate(model, asked)
    found = prefixes.find(batch)
    assert found.group.tolist() == [0, 1, 0, 0, 2, 1, 0, 3]
    assert found.first.tolist() == [0, 1, 4, 7]
    start = int(np.argmax(batch.tokens[0] < 0))
    image = model.config.model.num_image_tokens
    # the graph hears the question
    assert found.lengths.tolist() == [*[start + image] * 3, batch.lengths[7] - 1]
    filled = prefixes.find(collate(model, [asked[at] for at in (0, 1, 4, 2, 4)]))
    assert filled.group.tolist() == [0, 1, 2, 0, 2] and filled.first.tolist() == [0, 1, 2, 2]
    assert filled.lengths.tolist() == [start + image] * 4  # the twins share more, to no use
    twins = prefixes.find(collate(model, [asked[0]] * 3))
    assert twins.lengths.tolist() == [batch.lengths[0] - 1]
    assert prefixes.find(collate(model, asked[:2])).lengths.tolist() == [0, 0]


def test_what_rows_share_ends_where_they_differ(model, asked):
    image = model.config.model.num_image_tokens
    alone = collate(model, asked[:1])
    assert prefixes.shared_length(alone) == alone.lengths[0] - 1
    start = int(np.argmax(alone.tokens[0] < 0))
    assert prefixes.shared_length(collate(model, asked[:2])) == start  # two images
    two = [asked[0], asked[2]]
    assert prefixes.shared_length(collate(model, two)) == start + image
    plain = [dataclasses.replace(row, entities=None) for row in two]
    assert prefixes.shared_length(collate(model, plain)) > start + image
    twins = [asked[0], dataclasses.replace(asked[0])]
    assert prefixes.shared_length(collate(model, twins)) == alone.lengths[0] - 1


@pytest.mark.parametrize("sampling", [sample.Sampling(), sample.Sampling(1.0)])
def test_shared_beginnings_change_no_token(model, generator, asked, monkeypatch, sampling):
    batch = collate(model, asked)
    assert generator._groups(batch) is None  # so small a model saves less than compiling costs
    options = {"max_new_tokens": NEW, "sampling": sampling, "seed": 3}
    plain = generator.generate(batch, **options)
    monkeypatch.setattr(generate, "SHARED_FLOPS", 0)
    groups, sizes = generator._groups(batch)
    assert len(groups.first) == 4 and max(sizes) < batch.tokens.shape[1]
    assert generator.generate(batch, **options) == plain
    assert len({tuple(ids) for ids in plain}) > 4


def test_the_cache_is_that_of_whole_prompts(model, generator, asked, monkeypatch):
    batch = collate(model, asked)
    monkeypatch.setattr(generate, "SHARED_FLOPS", 0)
    groups, sizes = generator._groups(batch)
    config, llm = generator.config, generator.params["llm"]
    rows = generate._embed(generator.params, batch, None, None, config=config)
    plan = generate.Plan(config, 2, NEW, "greedy", sizes)
    last, cache = jax.jit(generate._prefill_groups, static_argnums=4)(
        llm, rows, batch.lengths, groups, plan
    )
    wanted, whole = jax.jit(llama.prefill, static_argnums=(1, 4))(
        llm, config, rows, batch.lengths, batch.tokens.shape[1]
    )
    close = {"rtol": 1e-4, "atol": 1e-5}  # float32: sums in another order
    np.testing.assert_allclose(last, wanted, **close)
    assert cache.k[0].shape[2] >= sum(sizes) + NEW
    for found, expected in zip((*cache.k, *cache.v), (*whole.k, *whole.v), strict=True):
        for row, length in enumerate(batch.lengths):
            np.testing.assert_allclose(found[row, :, :length], expected[row, :, :length], **close)


def test_an_image_of_many_rows_is_encoded_once(model, generator, asked, monkeypatch):
    batch = collate(model, asked)
    monkeypatch.setattr(generate, "SHARED_FLOPS", 0)
    groups, _ = generator._groups(batch)
    embed = generate._embed
    cost = [
        embed.lower(generator.params, batch, None, found, config=generator.config)
        .compile()
        .cost_analysis()["flops"]
        for found in (None, groups)
    ]
    assert cost[1] < 0.75 * cost[0]


def test_rows_that_share_little_run_as_they_are(model, generator, asked, cases, monkeypatch):
    monkeypatch.setattr(generate, "SHARED_FLOPS", 0)
    assert generator._groups(collate(model, asked[:1])) is None
    each = [inputs.Row([inputs.human("what is it?")], case.image, case.entities) for case in cases]
    assert generator._groups(collate(model, each)) is None


def arguments(config, count, images, length):
    """Return shapes of what `generate._run` takes: `count` rows about `images` images."""
    shapes = jax.eval_shape(lambda params: llama.unstack(params["llm"]), vlm.param_shapes(config))
    rows = jax.ShapeDtypeStruct((count, length, config.llm.width), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((count,), jnp.int32)
    first = jax.ShapeDtypeStruct((images,), jnp.int32)
    keys = jax.eval_shape(lambda: sample.row_keys(0, jnp.arange(count)))
    groups = prefixes.Groups(first, lengths, first)
    return shapes, rows, lengths, keys, groups


@pytest.mark.slow
@pytest.mark.parametrize(("images", "less"), [(1, 7), (4, 3.3)])
def test_operations_saved_at_7b(images, less):
    """Sixteen questions with graphs, as of GQA (32 questions an image) and POPE (6)."""
    config = dataclasses.replace(
        presets.get("vicuna_7b"),
        llm_lora=config_lib.LoraConfig(),
        vision_lora=config_lib.LoraConfig(),
    )
    *begin, groups = arguments(config, 16, images, generate.bucket(680))
    greedy, flops = sample.Sampling(), []
    for found, sizes in ((None, None), (groups, (generate.bucket(615), generate.bucket(64)))):
        plan = generate.Plan(config, 2, 1, greedy.mode, sizes)
        lowered = generate._run.lower(*begin, found, greedy, plan)
        flops.append(lowered.cost_analysis()["flops"])
    print(f"\n{images} images: {flops[0] / 1e12:.1f} and {flops[1] / 1e12:.1f} TFLOP a batch")
    assert flops[0] > less * flops[1]


@pytest.mark.slow
def test_time_saved_with_as_many_tokens_as_llava(monkeypatch):
    """Print the ratio of times of interleaved runs of a small model with 576 image tokens."""
    tiny = tiny_model.make()
    settings = tiny.config.model
    settings = dataclasses.replace(
        settings,
        vision=dataclasses.replace(settings.vision, image_size=24 * settings.vision.patch_size),
        projector=dataclasses.replace(settings.projector, merge=1),
        llm=dataclasses.replace(settings.llm, width=256, num_layers=4, mlp_dim=704, head_dim=64,
                                max_positions=1024),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), vlm.param_shapes(settings)
    )
    whole = dataclasses.replace(tiny.config, model=settings)
    model = model_lib.VisionLanguageModel.from_parts(whole, params, tiny.tokenizer)
    assert settings.num_image_tokens == 576
    cases = scenes.make_cases(tiny_model.SCENES, count=4)
    for count in (1, 4):
        rows = [
            inputs.Row([inputs.human(f"what is it? {number}")], case.image, case.entities)
            for number in range(16 // count)
            for case in cases[:count]
        ]
        batch = collate(model, rows)
        seconds: dict[float, list[float]] = {1e99: [], 0: []}
        for _ in range(3):
            for least, found in seconds.items():
                monkeypatch.setattr(generate, "SHARED_FLOPS", least)
                start = time.perf_counter()
                model._generator.generate(batch, max_new_tokens=2)
                found.append(time.perf_counter() - start)
        plain, shared = (min(found[1:]) for found in seconds.values())
        print(
            f"\n{count} images of 16 rows: {plain:.2f} s and {shared:.2f} s, {plain / shared:.1f}x"
        )
        assert shared < plain
