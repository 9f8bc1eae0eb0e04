"""Batches as a pure function of (seed, step): resuming, workers, hosts, dropout, faults."""

import ast
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sgqlm import config, errors, types
from sgqlm.data import batch, graphs, lengths, mixture, pipeline, records, sources
from sgqlm.text import tokenizer as tokenizers

WORDS = (
    "what",
    "is",
    "on",
    "the",
    "red",
    "left",
    "table",
    "cat",
    "dog",
    "a",
    "yes",
    "no",
    "picture",
    "this",
    "and",
    "of",
    "small",
    "lamp",
)
TEXT = config.TextConfig(system="what is this")


def _model(**graph):
    return config.ModelConfig(
        vision=config.VisionConfig(image_size=28, patch_size=14, width=8, num_heads=1),
        graph=config.GraphConfig(
            **{"num_nodes": 3, "prompt_tokens": 6, "label_tokens": 3, **graph}
        ),
    )


@pytest.fixture(scope="module")
def tokenizer():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(200)]
    return tokenizers.load(tokenizers.train(texts, 400))


def _turns(rng, count, *, has_image):
    turns = []
    for i in range(count):
        text = " ".join(rng.choice(WORDS, rng.integers(2, 9))) + "?"
        opening = "<image>\n" if has_image and not i else ""
        turns.append({"from": "human", "value": opening + text})
        turns.append({"from": "gpt", "value": " ".join(rng.choice(WORDS, rng.integers(1, 6)))})
    return turns


def _write_data(folder, name="data", size=11, seed=0):
    """A LLaVA json with entities: image i has i % 4 entities; every fifth sample is text only."""
    rng = np.random.default_rng(seed)
    root = folder / name / "images"
    root.mkdir(parents=True)
    entries, found = [], []
    for i in range(size):
        entry = {"id": f"r{i}", "conversations": _turns(rng, 1 + i % 3, has_image=i % 5 != 4)}
        if i % 5 != 4:
            entry["image"] = f"{i}.png"
            pixels = rng.integers(0, 255, (20 + i, 30, 3), np.uint8)
            Image.fromarray(pixels).save(root / entry["image"])
            boxes = np.tile(np.array([2, 2, 20, 15], np.float32), (i % 4, 1))
            labels = ["red lamp"] * (i % 4)
            size_ = pixels.shape[:2]
            found.append((f"{i}.png", graphs.Entities.from_boxes(boxes, size_, labels=labels)))
        entries.append(entry)
    (folder / name / "data.json").write_text(json.dumps(entries))
    records.write_entities(folder / name / "entities", found)
    return folder / name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    return [_write_data(root, "one", 11, 1), _write_data(root, "two", 7, 2)]


def _data(**changes):
    values = {"buckets": (48, 64, 96), "graph_dropout": 0.2, "node_dropout": 0.2}
    return config.DataConfig(**(values | {"image_dropout": 0.1} | changes))


def _loader(folders, tokenizer, *, model=None, data=None, text=None, **options):
    opened = [sources.JsonSource(f) for f in folders]
    return pipeline.Loader(
        opened,
        model=model or _model(),
        text=text or TEXT,
        tokenizer=tokenizer,
        data=data or _data(),
        **({"batch_size": 4, "seed": 3} | options),
    )


def _md5(made):
    digest = hashlib.md5()

    def add(value):
        if isinstance(value, tuple):
            for part in value:
                add(part)
        elif value is not None:
            digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).data)

    add(made)
    return digest.hexdigest()


def _take(loader, count):
    found = []
    iterator = iter(loader)
    for _ in range(count):
        found.append(next(iterator))
    iterator.close()
    return found


def test_resumed_batches_are_the_same(folders, tokenizer):
    want = [_md5(b) for b in _take(_loader(folders, tokenizer), 40)]
    assert len(set(want)) == 40
    assert [_md5(b) for b in _take(_loader(folders, tokenizer, start=17), 23)] == want[17:]
    loader = _loader(folders, tokenizer, data=_data(cache_images=True, num_threads=1))
    assert [_md5(loader.batch(step)) for step in (39, 3, 3, 20)] == [
        want[i] for i in (39, 3, 3, 20)
    ]
    assert want != [_md5(b) for b in _take(_loader(folders, tokenizer, seed=4), 40)]


def test_two_workers_give_the_same_batches(folders, tokenizer):
    want = [_md5(b) for b in _take(_loader(folders, tokenizer), 12)]
    found = _take(_loader(folders, tokenizer, num_workers=2, start=5), 7)
    assert [_md5(b) for b in found] == want[5:]
    assert type(found[0].images) is np.ndarray and found[0].images.flags.owndata


def test_two_hosts_share_the_global_batch(folders, tokenizer):
    whole = _take(_loader(folders, tokenizer), 10)
    parts = [
        _take(_loader(folders, tokenizer, process_index=i, process_count=2), 10) for i in range(2)
    ]

    def join(a, b):
        if isinstance(a, tuple):
            return type(a)(*map(join, a, b))
        return None if a is None else np.concatenate([a, b])

    assert [_md5(join(a, b)) for a, b in zip(*parts, strict=True)] == [_md5(b) for b in whole]
    with pytest.raises(errors.SgqlmError, match="cannot share"):
        _loader(folders, tokenizer, process_count=3)


def test_a_host_may_ask_for_any_rows(folders, tokenizer):
    whole = _loader(folders, tokenizer).batch(3)
    rows = [3, 0, 2]  # devices need not be in order
    part = _loader(folders, tokenizer, rows=rows).batch(3)
    np.testing.assert_array_equal(part.tokens, whole.tokens[rows])
    np.testing.assert_array_equal(part.images, whole.images[rows])
    assert part.tokens.shape[1] == whole.tokens.shape[1]


def test_every_record_comes_once_a_pass_and_in_another_order(folders, tokenizer):
    loader = _loader(folders[:1], tokenizer, data=_data(buckets=(192,)), batch_size=11)
    plans = [loader._maker.order.step(step).items for step in range(3)]
    orders = [[item.index for item in plan] for plan in plans]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert orders[0] != orders[1] and {item.epoch for item in plans[2]} == {2}


def test_weights_are_passes_in_an_epoch(folders, tokenizer):
    one = _data(buckets=(192,))  # several are filled across the ends of epochs
    loader = _loader(folders, tokenizer, data=one, batch_size=1)  # 11 and 7 records, once each
    items = [loader._maker.order.step(step).items[0] for step in range(loader.steps(1.0))]
    assert sorted(item[:2] for item in items) == [
        *((0, i) for i in range(11)),
        *((1, i) for i in range(7)),
    ]
    loader = _loader(folders, tokenizer, data=one, weights=[0.5, 3.0], batch_size=1)
    assert loader.num_records == loader.steps(1.0) == 27  # 5.5 + 21
    items = [loader._maker.order.step(step).items[0] for step in range(loader.steps(2.0))]
    counts = [sum(item.source == source for item in items) for source in (0, 1)]
    assert len(items) == 54 and abs(counts[0] - 11) <= 1 and abs(counts[1] - 42) <= 1
    assert {item.index for item in items if item.source == 1} == set(range(7))


def test_small_sources_are_spread_over_the_epoch():
    bound = mixture.Bounds(None, None)
    order = mixture.Mixture(
        [1000, 10],
        [1.0, 1.0],
        batch_size=101,
        seed=0,
        shuffle=True,
        repeat=True,
        buckets=(8,),
        bounds=[bound, bound],
    )
    per_step = [sum(item.source for item in order.step(step).items) for step in range(10)]
    assert per_step == [1] * 10
    seen = [item.index for step in range(10) for item in order.step(step).items if item.source]
    assert sorted(seen) == list(range(10)) and seen != sorted(seen)


@pytest.mark.parametrize("placement", ["after_image", "after_question"])
def test_batches_hold_what_they_promise(folders, tokenizer, placement):
    model = _model(placement=placement)
    data = _data(graph_dropout=0.0, image_dropout=0.0)
    loader = _loader(folders, tokenizer, model=model, data=data, question_weight=0.25)
    used = set()
    for step in range(40):
        made = loader.batch(step)
        t = made.tokens.shape[1]
        used.add(t)
        assert t in (48, 64, 96) and made.images.dtype == np.uint8
        assert (made.lengths <= t).all() and made.graph.prompt_ids.shape[1] in (1, 2, 4, 8)
        inside = np.arange(t) < made.lengths[:, None]
        assert not made.tokens[~inside].any() and not made.weights[~inside].any()
        trained = made.labels != types.IGNORE
        assert (made.labels[trained] == made.tokens[trained]).all()
        assert ((made.weights > 0) == trained).all() and trained.any(1).all()
        asked = made.target_kind == types.QUESTION
        assert set(np.unique(made.weights[asked])) <= {0.25} and made.images.shape[1:] == (
            28,
            28,
            3,
        )
        image = (made.tokens == types.IMAGE_TOKEN_ID).sum(1)
        assert (image == np.where(made.image_valid, model.num_image_tokens, 0)).all()
        graph = (made.tokens == types.GRAPH_TOKEN_ID).sum(1)
        nodes = made.graph.valid.sum(1)
        if placement == "after_image":
            assert (graph == nodes).all()
        else:
            assert (graph % np.maximum(nodes, 1) == 0).all() and (graph >= nodes).all()
            assert made.graph.prompt_ids.shape[1] * nodes.max(initial=0) >= graph.max(initial=0)
        assert (made.graph.label_ids[made.graph.valid][:, 0] >= 0).all()
    assert len(used) > 1, "several lengths occur, or the buckets are of no use"


def test_length_bounds_hold_for_every_draw(folders, tokenizer):
    for placement in ("after_image", "after_question"):
        text = dataclasses.replace(TEXT, self_questioning=0.7)
        loader = _loader(folders, tokenizer, model=_model(placement=placement), text=text)
        maker = loader._maker
        bounds = lengths.bounds(maker.sources, maker.encoder, needed=True)
        slack = []
        for k, source in enumerate(maker.sources):
            for index in range(len(source)):
                for epoch in range(6):
                    item = maker.try_example(mixture.Item(k, index, epoch))
                    slack.append(bounds[k].lengths[index] - len(item.tokens))
                    assert len(item.prompts) <= bounds[k].runs[index]
        assert min(slack) >= 0 and np.median(slack) < 40


def test_what_is_longer_than_the_largest_bucket_is_cut(folders, tokenizer):
    made = _loader(folders, tokenizer, data=_data(buckets=(40,))).batch(0)
    assert made.tokens.shape == (4, 40) and made.lengths.max() == 40


def test_dropout_shares_and_blank_images(folders, tokenizer):
    data = _data(graph_dropout=0.5, image_dropout=0.25, node_dropout=0.0, buckets=(192,))
    loader = _loader(folders[:1], tokenizer, data=data, batch_size=11)
    made = [loader.batch(step) for step in range(30)]
    image = np.concatenate([(b.tokens == types.IMAGE_TOKEN_ID).any(1) for b in made])
    valid = np.concatenate([b.image_valid for b in made])
    pixels = np.concatenate([b.images.any((1, 2, 3)) for b in made])
    assert (pixels == valid).all() and not valid[~image].any()
    assert 0.65 < valid[image].mean() < 0.85
    full = _loader(folders[:1], tokenizer, data=_data(graph_dropout=0.0, node_dropout=0.0))
    have = sum(full.batch(step).graph.valid.any(1).sum() for step in range(30)) / 120
    got = np.concatenate([b.graph.valid.any(1) for b in made]).mean()
    assert 0.3 < got / have < 0.7


def test_rows_index_the_distinct_images_of_the_mixture(folders, tokenizer):
    data = _data(image_dropout=0.0)
    loader = _loader([folders[0], folders[1], folders[0]], tokenizer, data=data)
    images = dict(loader.images())
    assert loader.num_image_rows == len(images) == 9 + 6 and sorted(images) == list(range(15))
    for step in range(12):
        made = loader.batch(step)
        for b in np.flatnonzero(made.image_valid):
            np.testing.assert_array_equal(made.images[b], images[made.row[b]])
        assert (made.row[~made.image_valid] == 0).all()
    bare = _loader([folders[0], folders[1]], tokenizer, data=data, with_images=False).batch(0)
    assert bare.images.shape == (4, 0, 0, 3)


def test_predicted_labels_replace_those_of_the_entities(folders, tokenizer):
    plain = _loader(folders, tokenizer)
    regions = list(plain.regions())
    assert [r[0] for r in regions] == sorted({r[0] for r in regions})
    assert all(len(r[2]) and r[1].shape == (28, 28, 3) for r in regions)
    labels = {row: ["cat"] * len(entities) for row, _, entities in regions}
    labels |= {row: [] for row in range(plain.num_image_rows) if row not in labels}
    made = _loader(folders, tokenizer, labels=labels).batch(0)
    (cat,) = {tuple(ids) for ids in made.graph.label_ids[made.graph.valid]}
    assert [i for i in cat if i >= 0] == tokenizer.encode("cat", bos=False)


def test_one_pass_in_order_is_padded(folders, tokenizer):
    loader = _loader(folders, tokenizer, repeat=False, data=_data(buckets=(192,)))
    made = list(loader)
    assert loader.num_steps == len(made) == 5 and loader.seen == 18 and loader.faults == 0
    rows = np.concatenate([b.row for b in made])
    assert (rows[18:] == batch.PADDING).all() and (rows[:18] >= 0).all()
    assert not made[-1].weights[2:].any() and (made[-1].lengths >= 1).all()
    texts = [tokenizer.decode([t for t in row if t >= 0]) for row in made[0].tokens]
    first = json.loads((folders[0] / "data.json").read_text())[0]["conversations"][1]["value"]
    assert first in texts[0]


def test_broken_records_are_dummies_within_the_budget(tmp_path, tokenizer):
    folder = _write_data(tmp_path, size=10)
    path = folder / "images" / "3.png"
    loader = _loader([folder], tokenizer, data=_data(buckets=(192,), fault_budget=0.2))
    path.write_bytes(path.read_bytes()[:200])
    made = _take(loader, 10)
    rows = np.concatenate([b.row for b in made])
    assert (rows == batch.FAULT).sum() == 4 == loader.faults and loader.seen == 40
    weights = np.concatenate([b.weights for b in made])
    assert not weights[rows == batch.FAULT].any() and weights[rows != batch.FAULT].any(1).all()
    strict = _loader([folder], tokenizer, data=_data(buckets=(192,), fault_budget=0.0))
    with pytest.raises(errors.SgqlmError, match=r"1 of \d+ records were broken") as caught:
        _take(strict, 10)
    assert caught.value.code == errors.DATA
    assert "record 3" in caught.value.why and "3.png" in caught.value.why


def test_only_pixels_of_a_used_image_are_needed(tmp_path, tokenizer):
    folder = _write_data(tmp_path, size=6)
    (folder / "images" / "2.png").write_bytes(b"")
    rows = [row for row, _ in _loader([folder], tokenizer).images()]
    assert rows == [0, 1, 3, 4]


def test_make_batch_is_the_loaders_batch(folders, tokenizer):
    source = sources.JsonSource(folders[0])
    settings = {"model": _model(), "text": TEXT, "tokenizer": tokenizer}
    data = config.DataConfig(buckets=(192,))
    loader = pipeline.Loader([source], data=data, batch_size=11, repeat=False, **settings)
    made = pipeline.make_batch(
        [source[i] for i in range(11)], length=192, self_questioning=0.5, **settings
    )
    assert _md5(made._replace(row=loader.batch(0).row)) == _md5(loader.batch(0))
    weighted = pipeline.make_batch([source[0], source[1]], weights=[0.0, 2.0], **settings)
    assert weighted.weights[0].max() == 0 and weighted.weights[1].max() == 2
    broken = sources.Sample(-1, None, [{"from": "gpt", "value": "x"}], None, "bad")
    with pytest.raises(errors.SgqlmError):
        pipeline.make_batch([broken], **settings)


def test_annotations_and_predicates_reach_no_input_by_default(folders, tokenizer):
    source = sources.JsonSource(folders[0])
    index = next(i for i in range(11) if source[i].entities and len(source[i].entities) > 1)
    sample = source[index]
    told = sources.Sample(
        sample.row,
        sample.image,
        sample.turns,
        sample.entities,
        sample.record_key,
        annotated=["cat"] * len(sample.entities),
        relations=[(0, "left of", 1)],
    )
    settings = {"text": TEXT, "tokenizer": tokenizer}
    a, b = (pipeline.make_batch([s], model=_model(), **settings) for s in (sample, told))
    assert _md5(a) == _md5(b) and a.graph.predicate_ids is None
    oracle = pipeline.make_batch([told], model=_model(edge_oracle=True), **settings)
    ids = oracle.graph.predicate_ids[0]
    assert (ids[1, 0] >= 0).any() and (ids >= 0).any(-1).sum() == 1
    wide = _model(edge_oracle=True, label_tokens=8)
    both = [(0, "left of", 1), (0, "on", 1)]
    pairs = [
        pipeline.make_batch([dataclasses.replace(told, relations=r)], model=wide, **settings).graph
        for r in (both, both[:1], both[1:])
    ]
    found, *single = (
        sorted(p.predicate_ids[0, 1, 0][p.predicate_ids[0, 1, 0] >= 0]) for p in pairs
    )
    assert found == sorted([*single[0], *single[1]])  # a pair may stand in several relations


def test_built_and_direct_data_give_the_same_batches(folders, tokenizer, tmp_path):
    direct = sources.JsonSource(folders[0], name="x")
    rows, images, talks = {}, [], []
    for i in range(len(direct)):
        sample = direct[i]
        if sample.row >= 0 and sample.row not in rows:
            rows[sample.row] = sample.image.name
            size = sample.entities.size
            images.append(records.Image(sample.image.name, sample.image.read_bytes(), size))
        talks.append(records.Conversation(f"r{i}", sample.turns, sample.row, sample.row))
    records.write_images(tmp_path / "images", images)
    records.write_conversations(tmp_path / "conversations", {"train": talks})
    store = str(folders[0] / "entities")
    built = sources.StoreSource(tmp_path, "train", entities=store, name="x")
    settings = {"model": _model(), "text": dataclasses.replace(TEXT, self_questioning=0.0)}
    made = [
        pipeline.Loader([s], tokenizer=tokenizer, data=_data(node_dropout=0.0, graph_dropout=0.0,
                        image_dropout=0.0), batch_size=4, **settings)
        for s in (direct, built)
    ]  # fmt: skip
    for step in range(8):
        assert _md5(made[0].batch(step)) == _md5(made[1].batch(step))
    kept = list((tmp_path / "conversations").glob("lengths-train-*.npy"))
    assert len(kept) == 1 and records.verify(tmp_path / "conversations") == []
    assert sources.StoreSource(tmp_path, "train", name="x")[0].entities is None
    shifted = [(f"{i}.png", graphs.Entities.empty((9, 9))) for i in (8, 0, 1, 2, 3, 5, 6, 7, 10)]
    records.write_entities(tmp_path / "entities", shifted)
    assert sources.StoreSource(tmp_path, "train")[0].entities.size == (9, 9)
    records.write_entities(tmp_path / "entities", shifted[:3])
    with pytest.raises(errors.SgqlmError, match="lacks 6 of 9 images"):
        sources.StoreSource(tmp_path, "train")


def test_open_source_finds_the_kind(folders, tmp_path):
    found = pipeline.open_source(config.SourceConfig(name="x", path=str(folders[0])))
    assert isinstance(found, sources.JsonSource) and len(found) == 11
    none = config.SourceConfig(name="x", path=str(folders[0]), entities="none")
    assert pipeline.open_source(none)[0].entities is None
    with pytest.raises(errors.SgqlmError, match="has no path"):
        pipeline.open_source(config.SourceConfig(name="x"))
    with pytest.raises(errors.SgqlmError, match="no data set with a split"):
        pipeline.open_source(config.SourceConfig(name="x", path=str(folders[0]), split="val"))


def test_a_json_with_faults_stops_or_drops_within_the_budget(tmp_path):
    folder = _write_data(tmp_path, size=6)
    (folder / "images" / "1.png").unlink()
    with pytest.raises(errors.SgqlmError, match="1 fault "):
        sources.JsonSource(folder)
    kept = sources.JsonSource(folder, budget=0.2)
    assert (len(kept), kept.dropped) == (5, 1)


def test_no_jax_and_no_tensorflow():
    package = pathlib.Path(pipeline.__file__).parent
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"jax", "flax", "tensorflow", "torch"}
            assert "sgqlm.models" not in names
    modules = ", ".join(
        f"sgqlm.data.{m}" for m in ("graphs", "images", "records", "llava_json", "sources", "batch")
    )
    code = f"import sys, {modules}; print([m for m in ('jax', 'tensorflow') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_runs_without_a_prompt_slot_are_cut_off(folders, tokenizer):
    source, model = sources.JsonSource(folders[0]), _model(placement="after_question")
    index = next(i for i in range(11) if i % 3 == 2 and source[i].entities)
    encoder = batch.Encoder(model, TEXT, tokenizer, "v1_sq")
    nodes = encoder.make_nodes(source[index].entities)
    item = encoder.example(source[index], epoch=0, nodes=nodes, pixels=None)
    assert len(item.prompts) == 4 and len(nodes.boxes)
    made = batch.collate([item], model, length=96, num_runs=2)
    kept = (made.tokens[0] == types.GRAPH_TOKEN_ID).sum()
    assert kept == 2 * len(nodes.boxes) and made.lengths[0] < len(item.tokens)
