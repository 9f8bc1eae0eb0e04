"""From a stage's sources to its loader, its validation split and the tokenizer's corpus."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from sgqlm import config
from sgqlm.data import graphs, records
from sgqlm.scenes import builder
from sgqlm.text import tokenizer
from sgqlm.train import feed
from tests.train import micro


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "built"
    builder.build(micro.SCENES, folder, 1)
    scenes = dataclasses.replace(micro.SCENES, path=str(folder))
    settings = dataclasses.replace(
        micro.settings(micro.stage("a", 2, "llm"), micro.stage("b", 2, "llm")), scenes=scenes
    )
    return feed.with_scenes(settings, folder.parent)


@pytest.fixture(scope="module")
def words(plan):
    return tokenizer.load(tokenizer.train(feed.corpus(plan), plan.text.vocab_size))


def test_scenes_are_built_once_where_they_are_asked_for(tmp_path, plan):
    settings = micro.settings(micro.stage("a", 1, "llm"))
    placed = feed.with_scenes(settings, tmp_path)
    [source] = placed.train.stages[0].sources
    assert source.path == str(tmp_path / "scenes")
    manifest = tmp_path / "scenes" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert feed.with_scenes(settings, tmp_path) == placed
    assert manifest.stat().st_mtime_ns == before
    other = tmp_path / "other"
    assert feed.with_scenes(plan, other) == plan
    assert not other.exists()


def test_the_corpus_is_text_without_the_image(plan):
    texts = list(feed.corpus(plan))
    assert len(texts) > micro.SCENES.num_train
    assert all(texts)
    assert not any("<image>" in text for text in texts)
    assert {"red", "left"} <= set(" ".join(texts).split())
    once = dataclasses.replace(plan.train, stages=plan.train.stages[:1])
    assert list(feed.corpus(dataclasses.replace(plan, train=once))) == texts  # sources only once


def test_annotations_are_given_to_region_text_only(plan, words):
    [stage, _] = plan.train.stages
    regions = dataclasses.replace(stage, objective="region_text")
    model = dataclasses.replace(plan.model, region_words=2)
    plan = dataclasses.replace(plan, model=model)
    seen = feed.open_loader(plan, stage, words).batch(0).graph
    assert (seen.label_ids == -1).all()
    assert seen.predicate_ids is None
    annotated = feed.open_loader(plan, regions, words).batch(0).graph
    assert (annotated.label_ids[annotated.valid] >= 0).any()
    assert annotated.predicate_ids is None  # relations are named only where they weigh something
    related = dataclasses.replace(regions, pair_weight=1.0)
    annotated = feed.open_loader(plan, related, words).batch(0).graph
    assert (annotated.predicate_ids >= 0).any()


def test_given_labels_and_left_out_images(plan, words):
    [stage, _] = plan.train.stages
    loader = feed.open_loader(plan, stage, words)
    rows = {row: entities for row, _, entities in loader.regions()}
    labels = [["red"] * len(rows.get(row, ())) for row in range(loader.num_image_rows)]
    made = feed.open_loader(plan, stage, words, labels=labels, with_images=False).batch(0)
    ids = words.encode("red", bos=False)
    assert (made.graph.label_ids[made.graph.valid][:, : len(ids)] == ids).all()
    assert not made.images.any()
    assert loader.batch(0).images.any()
    np.testing.assert_array_equal(made.tokens, loader.batch(0).tokens)


def test_validation_has_its_own_split_and_no_dropout(plan, words):
    [stage, _] = plan.train.stages
    data = dataclasses.replace(plan.data, graph_dropout=1.0, image_dropout=1.0, node_dropout=1.0)
    dropped = dataclasses.replace(plan, data=data)
    assert not feed.open_loader(dropped, stage, words).batch(0).graph.valid.any()
    loader = feed.open_validation(dropped, stage, words)
    assert loader.num_records == micro.SCENES.num_val
    made = loader.batch(0)
    assert made.graph.valid.any(1).all()
    assert made.images.reshape(len(made.images), -1).any(1).all()
    gone = dataclasses.replace(stage.sources[0], path=stage.sources[0].path + "-gone")
    bare = dataclasses.replace(stage, sources=(gone,))
    assert feed.open_validation(plan, bare, words) is None


def test_digests_follow_the_data_and_not_its_place(plan, words):
    [stage, _] = plan.train.stages
    loader = feed.open_loader(plan, stage, words)
    moved = dataclasses.replace(stage.sources[0], path="elsewhere")
    moved = dataclasses.replace(stage, sources=(moved,))
    assert feed.digest(moved, loader, words) == feed.digest(stage, loader, words)
    heavier = dataclasses.replace(stage.sources[0], weight=2.0)
    heavier = dataclasses.replace(stage, sources=(heavier,))
    assert feed.digest(heavier, loader, words) != feed.digest(stage, loader, words)
    other = tokenizer.load(tokenizer.train(["a red ball"] * 9, 300))
    assert feed.digest(stage, loader, other) != feed.digest(stage, loader, words)
    talk = dataclasses.replace(stage.sources[0], tasks=("chat",))
    talk = dataclasses.replace(stage, sources=(talk,))
    assert feed.image_digest(talk, loader) == feed.image_digest(stage, loader)
    assert feed.image_digest(stage, loader, split="val") != feed.image_digest(stage, loader)


def test_a_data_set_without_entities_is_told_unless_it_is_meant(plan, words, tmp_path):
    [stage, _] = plan.train.stages
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "PNG")
    records.write_images(tmp_path / "images", [records.Image("a", picture.getvalue(), (32, 32))])
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    talks = [records.Conversation("a", turns, 0, -1)] * 4
    records.write_conversations(tmp_path / "conversations", {"train": talks})

    def told(entities="", enabled=True):
        source = config.SourceConfig("mine", str(tmp_path), entities=entities)
        row = dataclasses.replace(stage, sources=(source, *stage.sources))
        graph = dataclasses.replace(plan.model.graph, enabled=enabled)
        model = dataclasses.replace(plan.model, graph=graph)
        return feed.warning(row, model, feed.open_loader(plan, row, words))

    assert "no entities in mine: every graph is empty" in told()
    assert told("none") == told(enabled=False) == ""
    records.write_entities(tmp_path / "entities", [("a", graphs.Entities.empty((32, 32)))])
    assert told() == ""
