"""Tiny networks with random weights, from photographs to the batches of training."""

import dataclasses
import functools

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.cli import main
from sgqlm.data import graphs, llava_json, pipeline, records, sources
from sgqlm.entities import dataset, extract, inputs, settings
from sgqlm.text import tokenizer as tokenizers
from tests.entities import drawn

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ring."}]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return drawn.draw(tmp_path_factory.mktemp("neural") / "photos", 4)


@pytest.fixture(scope="module")
def words(tiny):
    weights = {"tagger": "ram_plus", "detector": "grounding_dino", "segmenter": "sam"}
    flags = [f"--{part}-weights={tiny / name}" for part, name in weights.items()]
    return ["--extractor=paper", "--box-threshold=0.05", "--device=cpu", "--views=2x2:pad", *flags]


@pytest.fixture(scope="module")
def store(photos, words):
    out = photos.parent / "entities"
    code = main.main(["entities", "extract", f"--images={photos}", f"--out={out}", *words])
    assert code == errors.OK
    return out


def test_a_record_has_all_the_parts(store):
    found = records.EntityStore(store)
    assert [found.status(row) for row in range(4)] == ["ok"] * 4
    first = found[0]
    assert first.tags and set(first.labels) <= {tag for tag, _ in first.tags}
    assert len(first.mask_scores) == len(first.labels) == len(first.scores) == len(first) > 0
    np.testing.assert_array_equal(first.coverage["2x2:pad"], graphs.coverage(first, 2, "pad"))
    assert len(found.image_digest(0)) == 64
    about = records.read_manifest(store)["about"]
    parts = about["settings"]
    assert all(len(parts[part]["weights"]["sha256"]) == 64 for part in ("tagger", "detector"))
    assert about["shards"][0]["versions"].keys() >= {"torch", "transformers", "device"}


def test_training_reads_what_was_extracted(photos, store, tmp_path):
    """Three stores, joined by row, give batches whose nodes are the stored entities."""
    found = [
        llava_json.Record(path.stem, path, path.name, TALK) for path in sorted(photos.glob("*"))
    ]
    dataset.build(found, tmp_path / "set", entities=store)
    graph = config.GraphConfig(num_nodes=3, prompt_tokens=4, label_tokens=3)
    vision = config.VisionConfig(image_size=28, patch_size=14, width=8, num_heads=1)
    model = config.ModelConfig(vision=vision, graph=graph, image_fit="pad")
    tokenizer = tokenizers.load(tokenizers.train(["what is it? a red ring of the star"] * 9, 320))
    data = config.DataConfig(buckets=(256,), node_dropout=0.0, graph_dropout=0.0)
    loader = pipeline.Loader(
        [sources.StoreSource(tmp_path / "set", "train")],
        model=model,
        text=config.TextConfig(system="", self_questioning=0.0),
        tokenizer=tokenizer,
        data=dataclasses.replace(data, image_dropout=0.0),
        batch_size=4,
    )
    made = loader.batch(0)
    entities = records.EntityStore(store)
    for row, nodes in zip(made.row, made.graph.coverage, strict=True):
        wanted = graphs.make_nodes(entities[int(row)], model)
        np.testing.assert_array_equal(nodes[: len(wanted.coverage)], wanted.coverage)
        assert len(wanted.coverage) > 0
    assert made.graph.valid.any(1).all()


def test_other_views_are_made_of_the_masks_without_the_models(photos, tmp_path):
    out, all_ = tmp_path / "out", inputs.from_folder(photos)

    class Viewed(drawn.Counting):
        views: tuple[str, ...] = ("2x2:pad",)

        def settings(self):
            return {**super().settings(), "views": list(self.views)}

        def extract(self, image):
            made = super().extract(image)
            for view in self.views:
                grid, fit, image_size = graphs.parse_view(view)
                made = made.with_coverage(grid, fit, image_size=image_size)
            return made

    extract.run(Viewed(), all_, out, shard_size=2)
    other, fresh = Viewed(), Viewed()
    other.views = fresh.views = ("4x4:crop", "2x2:pad")
    assert extract.run(other, all_, out, shard_size=2).reused == 4 and other.seen == 0
    extract.run(fresh, all_, tmp_path / "fresh", shard_size=2)
    assert drawn.files(out) == drawn.files(tmp_path / "fresh") and fresh.seen == 4
    assert set(records.EntityStore(out)[0].coverage) == {"4x4:crop", "2x2:pad"}


def test_the_weights_name_the_store(photos, store, tmp_path, tiny):
    first = records.read_manifest(store)["about"]["config"]
    preset = settings.preset("paper")
    given = {
        "tagger_weights": str(tiny / "ram_plus"),
        "detector_weights": str(tiny / "grounding_dino"),
        "segmenter_weights": str(tiny / "sam_hq"),
    }
    given |= {"segmenter": "sam_hq", "box_threshold": 0.05, "device": "cpu", "views": ("2x2:pad",)}
    make = functools.partial(settings.make, dataclasses.replace(preset, **given))
    extract.run(make, inputs.from_folder(photos)[:1], tmp_path / "out")
    assert records.read_manifest(tmp_path / "out")["about"]["config"] != first
