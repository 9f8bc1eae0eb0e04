"""Scenes as samples, and batches of a mixture of them."""

import numpy as np
import pytest

from sgqlm import config, errors, types
from sgqlm.data import pipeline, sources
from sgqlm.scenes import builder, grammar
from sgqlm.text import tokenizer as tokenizers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    cfg = config.SceneConfig(num_train=12, num_val=2, num_test=2)
    folder = tmp_path_factory.mktemp("scenes") / "built"
    builder.build(cfg, folder, workers=0)
    return str(folder)


def _open(folder, *tasks, seed=0, split="train"):
    source = config.SourceConfig(path=folder, tasks=tasks, split=split)
    return pipeline.open_source(source, seed=seed)


def test_conversations_are_drawn_from_seed_row_and_epoch(folder):
    source = _open(folder)
    talks = [[source.sample(i, epoch=e).turns for i in range(12)] for e in range(3)]
    assert talks[0] != talks[1] != talks[2]
    assert talks[1] == [_open(folder).sample(i, epoch=1).turns for i in range(12)]
    assert talks[1] != [_open(folder, seed=1).sample(i, epoch=1).turns for i in range(12)]
    assert source[3].turns == talks[0][3] and len(source) == 12 == source.num_images
    assert source.turns(0) is None, "lengths are not known beforehand"
    with pytest.raises(errors.SgqlmError, match="unknown scene task"):
        _open(folder, "poem")


def test_samples_carry_truth_apart_from_what_is_seen(folder):
    source = _open(folder, "caption")
    for i in range(12):
        sample = source[i]
        assert sample.row == i and len(sample.annotated) == len(sample.entities)
        assert not sample.entities.labels
        assert all(len(words.split()) in (0, 4) for words in sample.annotated)
        for subject, _, target in sample.relations:
            assert sample.annotated[subject] and sample.annotated[target]
        bare = source.sample(i, want_image=False, want_entities=False)
        assert bare.image is None and bare.entities is None and bare.turns == sample.turns
    text = _open(folder, "text")[0]
    assert not text.has_image and text.entities is None


def test_sources_on_the_same_scenes_share_rows(folder):
    cfg = config.ModelConfig(
        vision=config.VisionConfig(image_size=112), graph=config.GraphConfig(num_nodes=10)
    )
    found = [_open(folder, "caption"), _open(folder, "text"), _open(folder, "chat", split="val")]
    words = [" ".join(grammar.words())] * 3 + [turn["value"] for turn in found[0][0].turns]
    loader = pipeline.Loader(
        found,
        model=cfg,
        text=config.TextConfig(system="."),
        tokenizer=tokenizers.load(tokenizers.train(words, 400)),
        data=config.DataConfig(buckets=(64, 512)),
        batch_size=8,
        weights=[1.0, 1.0, 1.0],
        annotated_labels=True,
    )
    assert loader.num_image_rows == 14 and loader.steps(1.0) == 4 and loader.num_records == 26
    images = {row: pixels for row, pixels, _ in loader.regions()}
    assert sorted(images) == list(range(14))
    rows = set()
    for step in range(8):
        made = loader.batch(step)
        assert made.tokens.shape == (8, 512)
        for b in np.flatnonzero(made.image_valid):
            np.testing.assert_array_equal(made.images[b], images[made.row[b]])
            rows.add(int(made.row[b]))
        shown = made.graph.valid.sum(1)
        assert ((made.tokens == types.GRAPH_TOKEN_ID).sum(1) == shown).all()
        labelled = (made.graph.label_ids >= 0).any(-1)
        assert labelled.sum() > 0.7 * shown.sum() and not labelled[~made.graph.valid].any()
    assert rows & {12, 13} and rows & set(range(12))


def test_draws_do_not_depend_on_the_kind_of_integer():
    assert sources.draw(3, "order", np.int64(5)) == sources.draw(np.int32(3), "order", 5)
    assert sources.draw(3, "order", 5) != sources.draw(3, "order", 6)
