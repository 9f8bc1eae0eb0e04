import jax
import numpy as np
import pytest

from sgqlm import errors
from sgqlm.decode import generate, inputs, sample
from sgqlm.models import vlm

NEW = 6


@pytest.fixture(scope="module")
def prepared(model, rows):
    return [inputs.prepare(row, model.config, model.tokenizer) for row in rows]


@pytest.fixture(scope="module")
def generator(model):
    return generate.Generator(model.config.model, model.params, eos_id=model.tokenizer.eos_id)


def test_the_cache_gives_what_the_whole_sequence_gives(model, generator, prepared):
    cfg = model.config.model
    length = generate.bucket(max(row.length for row in prepared) + NEW)
    batch = inputs.collate(prepared, length, cfg)
    found = generator.generate(batch, max_new_tokens=NEW)
    assert all(found) and max(map(len, found)) == NEW
    for out, start, ids in zip(batch.tokens, batch.lengths, found, strict=True):
        out[start : start + len(ids)] = ids
    forward = jax.jit(vlm.forward, static_argnums=1)
    logits = vlm.head(model.params, cfg, forward(model.params, cfg, batch)[0])
    for row, start, ids in zip(np.asarray(logits), batch.lengths, found, strict=True):
        expected = row[start - 1 : start - 1 + len(ids)].argmax(-1)
        assert ids == expected.tolist()


def test_rows_end_at_eos_and_batches_stop_early(model, prepared):
    cfg = model.config.model
    batch = inputs.collate(prepared[:1], 64, cfg)
    plain = generate.Generator(cfg, model.params, eos_id=-1)
    ids = plain.generate(batch, max_new_tokens=NEW)[0]
    assert len(ids) == NEW
    end = next(i for i, token in enumerate(ids) if i and token not in ids[:i])
    stopping = generate.Generator(cfg, model.params, eos_id=ids[end])
    assert stopping.generate(batch, max_new_tokens=NEW)[0] == ids[:end]


@pytest.mark.parametrize("sampling", [sample.Sampling(), sample.Sampling(1.0)])
def test_a_row_is_the_same_alone_and_in_a_batch(model, rows, sampling):
    options = {"max_new_tokens": NEW, "sampling": sampling, "seed": 3}
    together = model.respond(rows, **options)
    assert len(set(together)) == 3
    assert model.respond(rows[:1], **options) == together[:1]
    assert model.respond([*rows[:2], rows[0], rows[2]], **options)[:2] == together[:2]


def test_streaming_gives_the_same_text_in_pieces(model, rows):
    sampling = sample.Sampling(1.0, top_k=40)
    options = {"max_new_tokens": NEW, "sampling": sampling}
    for seed in range(8):  # some of these draws hold broken or blank characters
        whole = model.respond(rows[:1], seed=seed, **options)[0]
        pieces = list(model.stream(rows[0], seed=seed, **options))
        assert "".join(pieces) == whole
        assert all(pieces)
    assert len(pieces) > 1


def test_a_prompt_that_leaves_no_room_is_refused(model, generator, prepared):
    batch = inputs.collate(prepared[:1], 64, model.config.model)
    with pytest.raises(errors.SgqlmError, match="512 positions"):
        generator.generate(batch, max_new_tokens=500)


@pytest.mark.parametrize(("length", "padded"), [(1, 32), (32, 32), (70, 96), (600, 640)])
def test_buckets_are_few_and_close(length, padded):
    assert generate.bucket(length) == padded
    assert all(n <= generate.bucket(n) <= max(32, 1.25 * n + 32) for n in range(1, 3000))
    assert len({generate.bucket(n) for n in range(512, 1025)}) <= 9
