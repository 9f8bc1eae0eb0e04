import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.decode import generate, inputs, prefixes, score
from sgqlm.models import vlm
from sgqlm.text import conversation

# of up to four tokens: with common beginnings, one inside another, one of a single token, a twin
IDS = [[7, 8, 2], [7, 9, 2], [7, 8, 9, 2], [5], [11, 2], [7, 8, 2], [12, 13, 14, 15]]
# float32 on this CPU: another order of sums moves a log-likelihood of about 30 by this much
CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def scorer(model):
    return make(model)


def make(model):
    words = model.tokenizer
    return score.Scorer(generate.Generator(model.config.model, model.params, eos_id=words.eos_id))


@pytest.fixture(scope="module")
def asked(cases):
    """Return five questions: three about one image, one about another, one about none."""
    first, second = cases[0], cases[1]
    texts = ["what is it?", "what colour is the star?", "how many red circles are there?"]
    rows = [inputs.Row([inputs.human(text)], first.image, first.entities) for text in texts]
    rows.append(inputs.Row([inputs.human(texts[0])], second.image, second.entities))
    return [*rows, inputs.Row([inputs.human(texts[1])])]


def prepare(model, rows):
    return [inputs.prepare(row, model.config, model.tokenizer) for row in rows]


def collate(model, rows, length=None):
    prepared = prepare(model, rows)
    length = length or generate.bucket(max(row.length for row in prepared))
    return inputs.collate(prepared, length, model.config.model)


@functools.partial(jax.jit, static_argnums=1)
def log_probabilities(params, cfg, batch):
    hidden, _ = vlm.forward(params, cfg, batch)
    return jax.nn.log_softmax(vlm.head(params, cfg, hidden))


def expected(model, rows) -> np.ndarray:
    """Score every continuation in a sequence of its own."""
    cfg, out = model.config.model, []
    for item in prepare(model, rows):
        longer = [
            item._replace(
                expanded=dataclasses.replace(item.expanded, tokens=[*item.expanded.tokens, *ids])
            )
            for ids in IDS
        ]
        batch = inputs.collate(longer, generate.bucket(item.length + 4), cfg)
        out.append([])
        found = np.asarray(log_probabilities(model.params, cfg, batch))
        for values, ids in zip(found, IDS, strict=True):
            taken = values[item.length - 1 : item.length - 1 + len(ids)]
            out[-1].append(float(taken[np.arange(len(ids)), np.array(ids)].sum()))
    return np.array(out)


@pytest.mark.parametrize("placement", ["after_image", "after_question"])
def test_a_continuation_scores_as_in_a_sequence_of_its_own(model, asked, placement):
    graph = dataclasses.replace(model.config.model.graph, placement=placement)
    settings = dataclasses.replace(model.config.model, graph=graph)
    settings = dataclasses.replace(model.config, model=settings)
    model = model_lib.VisionLanguageModel(settings, model.params, model.tokenizer)
    scorer = make(model)
    found = scorer.score(collate(model, asked), score.choices(IDS))
    wanted = expected(model, asked)
    assert found.dtype == np.float32 and wanted.std(0).min() > 0.01
    np.testing.assert_allclose(found, wanted, **CLOSE)
    assert (found[:, 0] == found[:, 5]).all()
    about_one = collate(model, asked[:3])
    tokens = model.config.model.num_image_tokens
    assert prefixes.shared_length(about_one) > tokens  # the image is run once for all its questions
    found = scorer.score(about_one, score.choices(IDS))
    np.testing.assert_allclose(found, wanted[:3], **CLOSE)


def test_the_numbers_are_those_of_logits(model, scorer, asked):
    row, text = asked[1], "what colour is the star?"
    (labelled,) = model.tag([row.image], [row.entities])  # as `logits` does by itself
    row = dataclasses.replace(row, entities=labelled)
    ids = conversation.prompt(
        row.turns, model.config.text.template, tokenizer=model.tokenizer, system=""
    ).input_ids
    (found,) = scorer.score(collate(model, [row]), score.choices(IDS))
    for value, more in zip(found, IDS[:2], strict=False):
        logits = model.logits([row.image], [[*ids, *more]], [row.entities], [text])[0]
        start = len(logits) - len(more) - 1
        taken = np.asarray(jax.nn.log_softmax(logits[start:-1]))
        np.testing.assert_allclose(value, taken[np.arange(len(more)), more].sum(), **CLOSE)


def test_a_row_is_the_same_alone_and_in_any_batch(model, scorer, asked):
    found = score.choices(IDS)
    whole = scorer.score(collate(model, asked), found)
    for rows in ([0], [4, 2]):
        part = scorer.score(collate(model, [asked[i] for i in rows]), found)
        np.testing.assert_allclose(part, whole[rows], **CLOSE)


def test_padding_changes_nothing(model, scorer, asked):
    found = score.choices(IDS)
    near, far = (scorer.score(collate(model, asked[:2], n), found) for n in (None, 160))
    np.testing.assert_allclose(near, far, **CLOSE)


def test_many_continuations_run_in_several_passes(model, scorer, asked):
    whole = score.choices(IDS)
    split = score.choices(IDS, num_nodes=3)
    assert len(whole.trees) == 1 and len(split.trees) == 4
    batch = collate(model, asked[:2])
    np.testing.assert_allclose(scorer.score(batch, split), scorer.score(batch, whole), **CLOSE)


def test_a_tree_holds_every_beginning_once():
    found = score.choices(IDS)
    (tree,) = found.trees
    assert found.num_nodes == 8  # 7, 78, 79, 789 | 11 | 12, 12 13, 12 13 14
    assert found.lengths.tolist() == [3, 3, 4, 1, 2, 3, 4]
    assert tree.visible.sum() == 1 + 2 + 2 + 3 + 1 + 1 + 2 + 3 + (len(tree.tokens) - 8)
    assert (tree.where[3] == 0).all() and tree.targets[3, 0] == 5


def test_positions_saved_are_counted(model, asked):
    batch = collate(model, asked[:3])
    shared, found = prefixes.shared_length(batch), score.choices(IDS)
    total = int(batch.lengths.sum())
    done = score.cost(batch.lengths, shared, found)
    assert done.plain == sum(n + len(ids) - 1 for n in batch.lengths for ids in IDS)
    assert done.run == shared + (total - 3 * shared) + 3 * found.num_nodes
    assert done.plain > 6 * done.run
    assert done + done == score.Cost(2 * done.run, 2 * done.plain)


def test_what_cannot_be_scored_is_refused(model, scorer):
    for wrong in ([], [[3], []]):
        with pytest.raises(errors.SgqlmError, match="cannot be scored"):
            score.choices(wrong)
    row = inputs.Row([inputs.human("word " * 300)], Image.new("RGB", (8, 8)))
    with pytest.raises(errors.SgqlmError, match="512"):
        scorer.score(collate(model, [row]), score.choices([[3] * 200]))
