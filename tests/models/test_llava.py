"""Freshly made LLaVA models of transformers, read from the folder that it writes."""

import copy
import dataclasses
import warnings

import jax
import numpy as np
import pytest

from sgqlm import types
from sgqlm.convert import hf
from sgqlm.decode import generate
from sgqlm.models import clip_vit, vlm
from tests.models import helpers

IMAGE, VOCAB, PATCHES = 60, 64, 16
forward = jax.jit(vlm.forward, static_argnums=1)


def make(folder, torch, *, is_tied: bool, activation: str, layer: int):
    """Save a random model whose every parameter carries signal, and return it."""
    transformers = pytest.importorskip("transformers")
    text = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,  # not hidden_size / heads
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=is_tied,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        hidden_act=activation,
    )
    cfg = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_layer=layer,
        tie_word_embeddings=is_tied,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.fixture(
    scope="module",
    params=[(False, "quick_gelu", -2), (True, "gelu", -1)],
    ids=["own head", "tied head"],
)
def pair(request, tmp_path_factory):
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("llava")
    is_tied, activation, layer = request.param
    with warnings.catch_warnings():  # warnings of transformers are not ours
        warnings.simplefilter("ignore")
        theirs = make(folder, torch, is_tied=is_tied, activation=activation, layer=layer)
    ours = hf.load_llava(folder)
    assert ours.config.llm.num_kv_heads == 2
    assert ours.config.llm.tie_embeddings == is_tied
    assert ("head" in ours.params["llm"]) != is_tied
    return torch, theirs, ours


def inputs(torch, cfg, lengths):
    """Return a batch of ours with the same images and ids for torch."""
    rng = np.random.default_rng(1)
    batch = helpers.batch(cfg, num_nodes=(0,) * len(lengths), length=32)
    ids = rng.integers(3, IMAGE, (len(lengths), max(lengths)))
    ids[:, 0], ids[:, 2 : 2 + PATCHES] = 1, IMAGE
    images = rng.integers(0, 256, batch.images.shape).astype(np.uint8)
    pixels = np.asarray(clip_vit.normalise(images, np.float32)).transpose(0, 3, 1, 2)
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    theirs = {
        "input_ids": torch.tensor(ids),
        "pixel_values": torch.tensor(pixels),
        "attention_mask": torch.tensor(mask.astype(np.int64)),
    }
    tokens = np.where(ids == IMAGE, types.IMAGE_TOKEN_ID, ids).astype(np.int32)
    lengths = np.array(lengths, np.int32)
    return batch._replace(images=images, tokens=tokens, lengths=lengths, graph=None), theirs


def test_logits_equal(pair):
    torch, theirs, ours = pair
    batch, given = inputs(torch, ours.config, (28, 23))
    with torch.no_grad():
        expected = theirs(**given).logits.numpy()
    hidden, _ = forward(ours.params, ours.config, batch)
    logits = np.asarray(vlm.head(ours.params, ours.config, hidden))
    assert expected.std() > 0.1
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], atol=1e-4)


def test_greedy_answers_equal(pair):
    torch, theirs, ours = pair
    batch, given = inputs(torch, ours.config, (24,))
    with torch.no_grad():
        whole = theirs.generate(**given, max_new_tokens=8, do_sample=False, eos_token_id=None)
    generator = generate.Generator(ours.config, ours.params, eos_id=VOCAB)  # never drawn
    assert generator.generate(batch, max_new_tokens=8) == whole[:, 24:].tolist()


def test_bfloat16_is_as_near_as_bfloat16_lets_it_be(pair):
    torch, theirs, ours = pair
    cfg = dataclasses.replace(ours.config, compute_dtype="bfloat16")
    params = jax.tree.map(lambda x: jax.numpy.asarray(x, "bfloat16"), ours.params)
    batch, given = inputs(torch, cfg, (28, 23))
    half = copy.deepcopy(theirs).to(torch.bfloat16)
    given["pixel_values"] = given["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        expected = half(**given).logits.float().numpy()
    hidden, _ = forward(params, cfg, batch)
    logits = np.asarray(vlm.head(params, cfg, hidden))
    kl, same = [], []
    for row, length in enumerate(batch.lengths):
        a, b = (np.asarray(jax.nn.log_softmax(x[row, :length])) for x in (logits, expected))
        kl += (np.exp(b) * (b - a)).sum(-1).tolist()
        same += (a.argmax(-1) == b.argmax(-1)).tolist()
    print(f"KL: largest {max(kl):.1e}, mean {np.mean(kl):.1e}; same best token {np.mean(same):.1%}")
    assert max(kl) < 5e-3
    assert np.mean(kl) < 1e-3
    assert np.mean(same) > 0.96  # one or two near ties among 51 positions of random weights
