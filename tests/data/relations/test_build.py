"""Relation data sets: stores, nodes without names, faults, and what a batch is made of."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.data import graphs, pipeline, records, sources
from sgqlm.data.relations import annotations, build, conversations, readers, types
from sgqlm.models import vlm
from tests import paths, tiny_model
from tests.data.relations import official

GRAPH = ("coverage", "boxes", "label_ids", "valid", "prompt_ids", "prompt_valid")


def make(name, folder, out, *, splits=("train",), report=None, **options):
    report = report or types.Report()
    root = folder / "images" if (folder / "images").is_dir() else folder
    found = readers.read(name, folder, images=root, report=report, splits=splits)
    return build.build(found, root, out, report=report, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a folder for each data set: official files in `raw`, stores in `built`."""
    root = tmp_path_factory.mktemp("relations")
    for name, write in official.WRITERS.items():
        write(root / "raw" / name)
        make(name, root / "raw" / name, root / "built" / name, splits=())
    return root / "built"


@pytest.mark.parametrize("name", list(official.WRITERS))
def test_every_data_set_becomes_three_stores_that_train(built, name):
    folder = built / name
    told = annotations.load(folder)
    images, entities = (
        records.ImageStore(folder / "images"),
        records.EntityStore(folder / "entities"),
    )
    assert images.keys() == entities.keys() == [item.key for item in told]
    for row, item in enumerate(told):
        found = entities[row]
        assert images[row].size == found.size == item.size
        assert list(found.labels) == [] and entities.status(row) == "ok"
        assert len(found) <= len(item.objects)
        made = graphs.coverage(found, 24, "pad")
        np.testing.assert_array_equal(found.coverage["24x24:pad"], made)
        related = {end for r in item.relations for end in (r.subject, r.object)}
        assert set(found.scores) <= {1.0, 0.5}
        assert (found.scores == 1.0).sum() <= len(related)
        assert list(found.scores) == sorted(found.scores, reverse=True)
    splits = records.read_manifest(folder / "conversations")["rows"]
    assert set(splits) == {item.split for item in told}
    for split, count in splits.items():
        store = records.ConversationStore(folder / "conversations", split)
        assert len(store) == count > 0
        for row in range(count):
            talk = store[row]
            assert told[talk.image_row].split == split
            assert talk.entity_row == talk.image_row
            assert talk.id.startswith(told[talk.image_row].key)
            assert talk.turns[0]["value"].startswith("<image>\n") and len(talk.turns) == 2
    source = sources.StoreSource(folder, next(iter(splits)))
    assert source.sample(0).entities is not None


def test_masks_of_a_data_set_are_kept(built):
    item = next(i for i in annotations.load(built / "psg") if i.image_id == "139")
    found = records.EntityStore(built / "psg" / "entities")[0]
    masks = {graphs.decode_rle(thing.mask).tobytes() for thing in item.objects}
    assert {mask.tobytes() for mask in found.dense_masks()} == masks and len(masks) == 3


def test_a_second_build_is_byte_identical(tmp_path):
    official.visual_genome(tmp_path / "raw")
    found = []
    for name in ("a", "b"):
        make("visual_genome", tmp_path / "raw", tmp_path / name)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        found.append([(p.relative_to(tmp_path / name), p.read_bytes()) for p in files])
    assert found[0] == found[1]


def test_counts_and_checks_agree_with_the_build(tmp_path):
    official.visual_genome(tmp_path)
    summary = make("visual_genome", tmp_path, tmp_path / "out")
    assert (summary.images, summary.objects, summary.relations) == (2, 6, 3)
    assert summary.predicates == {"holding": 1, "in": 1, "next to": 1}
    assert sum(summary.kinds.values()) == sum(summary.conversations.values())
    report = types.Report()
    found = readers.read("visual_genome", tmp_path, images=tmp_path / "images", report=report)
    checked = build.check(found, tmp_path / "images", report=report)
    assert checked == dataclasses.replace(summary, conversations={}, kinds={})
    about = records.read_manifest(tmp_path / "out" / "conversations")["about"]
    assert about["left_out"]["relation without a predicate"] == 1
    assert about["settings"]["max_per_predicate"] == 5000


@pytest.mark.parametrize("decode", [False, True])
def test_a_check_reads_the_annotations_of_missing_images_too(tmp_path, decode):
    official.visual_genome(tmp_path)
    (tmp_path / "images/VG_100K/1.jpg").unlink()
    report = types.Report()
    root = tmp_path / "images"
    found = readers.read("visual_genome", tmp_path, images=root, report=report, keep_missing=True)
    summary = build.check(found, root, report=report, decode=decode)
    assert (summary.images, summary.relations, summary.faults) == (1, 3, 1)
    assert report.faults == {"image missing": 1}
    with pytest.raises(errors.SgqlmError, match="1 of 2 images cannot be used"):
        make("visual_genome", tmp_path, tmp_path / "out")
    assert make("visual_genome", tmp_path, tmp_path / "out", budget=1.0).relations == 1


def test_images_that_cannot_be_used_stop_a_build_unless_allowed(tmp_path):
    official.visual_genome(tmp_path)
    (tmp_path / "images/VG_100K/1.jpg").write_bytes(b"\xff\xd8 cut off")
    with pytest.raises(errors.SgqlmError, match="1 of 2 images cannot be used") as caught:
        make("visual_genome", tmp_path, tmp_path / "out")
    assert "VG_100K/1.jpg" in caught.value.why and caught.value.code == errors.DATA
    assert not (tmp_path / "out").exists()
    summary = make("visual_genome", tmp_path, tmp_path / "out", budget=0.5)
    assert summary.images == 1 and summary.faults == 1
    official.picture(tmp_path / "images/VG_100K/1.jpg", 80, 100)  # another image
    with pytest.raises(errors.SgqlmError, match="another shape"):
        make("visual_genome", tmp_path, tmp_path / "out2")
    with pytest.raises(errors.SgqlmError, match="no image with relations is left"):
        make("visual_genome", tmp_path, tmp_path / "out3", exclude=lambda key, image_id: "all",
             budget=1.0)  # fmt: skip
    official.picture(tmp_path / "images/VG_100K/1.jpg", 50, 40)  # a smaller copy of it
    make("visual_genome", tmp_path, tmp_path / "out4")
    [box, *_] = [t.box for t in annotations.load(tmp_path / "out4")[0].objects]
    assert box == (5, 5, 20, 35)


def test_a_build_gives_up_early_and_leaves_nothing_behind(tmp_path):
    official.visual_genome(tmp_path)
    told = json.loads((tmp_path / "relationships.json").read_text())
    gone = [told[0] | {"image_id": number} for number in range(100, 140)]
    official.write_json(tmp_path / "relationships.json", [*told, *gone, *told])
    with pytest.raises(errors.SgqlmError, match="20 of 22 images cannot be used") as caught:
        make("visual_genome", tmp_path, tmp_path / "out")
    assert caught.value.code == errors.DATA and "VG_100K/100.jpg" in caught.value.why
    whole = (tmp_path / "relationships.json").read_text()
    (tmp_path / "relationships.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(errors.SgqlmError, match="not the expected file"):
        make("visual_genome", tmp_path, tmp_path / "out", budget=1.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "attributes.json", "image_data.json", "images", "relationships.json",
    ]  # fmt: skip


def test_excluded_images_are_counted_by_list(tmp_path):
    official.visual_genome(tmp_path)
    summary = make(
        "visual_genome", tmp_path, tmp_path / "out",
        exclude=lambda key, image_id: "in pope.json" if image_id == "1" else None,
    )  # fmt: skip
    assert summary.excluded == {"in pope.json": 1} and summary.images == 1
    assert records.ImageStore(tmp_path / "out/images").keys() == ["VG_100K_2/2.jpg"]


def test_something_else_is_never_replaced(tmp_path):
    official.vrd(tmp_path / "raw")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(errors.SgqlmError, match="would replace something else"):
        make("vrd", tmp_path / "raw", tmp_path / "mine")
    make("vrd", tmp_path / "raw", tmp_path / "out")
    make("vrd", tmp_path / "raw", tmp_path / "out")  # a data set is
    store = tmp_path / "out/entities"
    keys = records.EntityStore(store).keys()
    records.write_entities(store, [(key, "none") for key in keys], about={"extractor": "regions"})
    with pytest.raises(errors.SgqlmError, match="has other entities") as caught:
        make("vrd", tmp_path / "raw", tmp_path / "out")
    assert "regions" in caught.value.why and "--overwrite" in caught.value.fix
    make("vrd", tmp_path / "raw", tmp_path / "out", overwrite=True)
    assert records.EntityStore(store).status(0) == "ok"
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_annotations_that_are_missing_or_damaged_are_told(tmp_path):
    with pytest.raises(errors.SgqlmError, match="holds no annotated relations"):
        annotations.load(tmp_path)
    (tmp_path / annotations.FILE).write_text('{"key": "a"}\n')
    with pytest.raises(errors.SgqlmError, match="damaged") as caught:
        annotations.load(tmp_path)
    assert caught.value.where.endswith(":1")


def test_a_segmenter_makes_the_masks(tmp_path):
    official.visual_genome(tmp_path)
    asked = []

    def masks(picture, boxes):
        asked.append((picture.size, boxes.shape))
        found = np.zeros((len(boxes), picture.height, picture.width), bool)
        found[1:, 3:6, 4:9] = True  # nothing for the first box
        return found

    make("visual_genome", tmp_path, tmp_path / "out", masks=masks)
    assert asked == [((100, 80), (4, 4)), ((60, 40), (2, 4))]
    dense = records.EntityStore(tmp_path / "out/entities")[0].dense_masks()
    assert [int(mask.sum()) for mask in dense] == [30 * 60, 15, 15, 15]


def test_boxes_that_coincide_are_one_node_whatever_their_names():
    def entities(*names):
        boxes = [(0.0, 0.0, 20.0, 20.0), (0.0, 0.0, 20.0, 20.5), (5.0, 5.0, 9.0, 9.0)]
        objects = [types.Object(n, b) for n, b in zip(names, boxes, strict=True)]
        item = types.Annotated("a", (30, 30), objects, [types.Relation(2, "on", 0)])
        return build.nodes(item)

    first, second = entities("man", "shirt", "dog"), entities("dog", "dog", "man")
    np.testing.assert_array_equal(first.boxes, [[0, 0, 20, 20], [5, 5, 9, 9]])
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.scores, [1, 1])


def _batches(folder):
    """Return one batch of each conversation of a built data set, by id."""
    model = tiny_model.make()
    source = sources.StoreSource(folder, "train")
    store = records.ConversationStore(folder / "conversations", "train")
    found = {}
    for row in range(len(source)):
        found[store[row].id] = pipeline.make_batch(
            [source[row]], model=model.config.model, text=config.TextConfig(system=""),
            tokenizer=model.tokenizer, length=512,
        )  # fmt: skip
    return found


@functools.cache
def _encoder():
    """Return the compiled way from a batch to its graph tokens, for the tests of this file."""
    model = tiny_model.make()
    settings = model.config.model

    def run(params, images, graph):
        features = vlm.encode_images(params, settings, images)
        nodes = vlm.visual_tokens(params, settings, features).node_features
        return vlm.graph_tokens(params, settings, nodes, graph).tokens

    compiled = jax.jit(run)
    return lambda batch: compiled(model.params, batch.images, batch.graph)


def _graph_tokens(batch):
    return np.asarray(_encoder()(batch))[0][:, np.asarray(batch.graph.valid[0])]


def _rewritten(raw, out, change):
    """Build the VRD sample after a change of its annotations."""
    told = json.loads((raw / "annotations_train.json").read_text())
    change(told, raw)
    (raw / "annotations_train.json").write_text(json.dumps(told))
    settings = conversations.Settings(templates=("predicate",))
    make("vrd", raw, out, settings=settings)
    return _batches(out)


def test_a_swapped_predicate_changes_nothing_but_the_answer(tmp_path):
    def swap(told, raw):
        for entries in told.values():
            for entry in entries:
                entry["predicate"] = 1 - entry["predicate"] if entry["predicate"] < 2 else 7

    batches = []
    for name, change in (("a", lambda told, raw: None), ("b", swap)):
        official.vrd(tmp_path / name)
        batches.append(_rewritten(tmp_path / name, tmp_path / f"{name}-built", change))
    before, after = batches
    assert set(before) == set(after) and len(before) == 3
    for key in before:
        one, two = before[key], after[key]
        for part in GRAPH:
            np.testing.assert_array_equal(getattr(one.graph, part), getattr(two.graph, part))
        assert one.graph.predicate_ids is None
        np.testing.assert_array_equal(one.images, two.images)
        assert (one.graph.label_ids == -1).all() and one.graph.valid.any()
        targets = (one.labels != -100) | (two.labels != -100)
        changed = one.tokens != two.tokens
        assert changed.any() and not (changed & ~targets).any()
        np.testing.assert_array_equal(_graph_tokens(one), _graph_tokens(two))


def test_a_swapped_label_changes_no_node(tmp_path):
    def rename(told, raw):
        official.write_json(raw / "objects.json", ["street", "person", "bike"])

    batches = []
    for name, change in (("a", lambda told, raw: None), ("b", rename)):
        official.vrd(tmp_path / name)
        batches.append(_rewritten(tmp_path / name, tmp_path / f"{name}-built", change))
    entities = [records.EntityStore(tmp_path / f"{n}-built/entities") for n in "ab"]
    for row in range(2):
        first, second = (store[row] for store in entities)
        np.testing.assert_array_equal(first.boxes, second.boxes)
        np.testing.assert_array_equal(first.scores, second.scores)
        np.testing.assert_array_equal(first.dense_masks(), second.dense_masks())
        assert list(first.labels) == list(second.labels) == []
    for key, one in batches[0].items():
        two = batches[1][key]
        assert (one.graph.prompt_ids != two.graph.prompt_ids).any()
        # the names stand in the question, which is the prompt; with it, nothing is left to differ
        asked = one.graph._replace(
            prompt_ids=two.graph.prompt_ids, prompt_valid=two.graph.prompt_valid
        )
        np.testing.assert_array_equal(_graph_tokens(one._replace(graph=asked)), _graph_tokens(two))


def test_genuine_visual_genome_becomes_a_data_set(tmp_path):
    folder = paths.shared("samples/visual_genome")
    for number, size in ((1, (800, 600)), (2, (800, 600))):
        official.picture(tmp_path / f"images/VG_100K/{number}.jpg", *size)
    report = types.Report()
    root = tmp_path / "images"
    found = readers.read("visual_genome", folder, images=root, report=report)
    summary = build.build(found, root, tmp_path / "out", report=report)
    assert summary.images == 2 and summary.conversations["train"] >= 20
    assert summary.kinds["list"] == 2 and summary.kinds["predicate"] > 5
    talks = records.ConversationStore(tmp_path / "out/conversations", "train")
    answers = {talks[row].turns[1]["value"] for row in range(len(talks))}
    assert not answers & {"ON", "WEARING", "wears", ""}
