import dataclasses
import json

import numpy as np
import pytest

from sgqlm import config
from sgqlm.train import expected
from tests.train import micro

WORDS = ("the", "red", "star", "is", "left", "of", "blue", "circle")


def settings(*sources, buckets=(16, 32, 64), tokenizer="train", **stage):
    row = micro.stage("align", 0, "projector", sources=tuple(sources), **stage)
    base = micro.settings(row)
    return dataclasses.replace(
        base,
        data=config.DataConfig(buckets=buckets),
        text=dataclasses.replace(base.text, tokenizer=tokenizer),
    )


def look(whole, **options):
    return expected.look(whole, whole.train.stages[0], **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer_model):
    """Text only: forty short conversations and forty long ones."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def turns(count):
        text = " ".join(rng.choice(WORDS, count))
        return [{"from": "human", "value": "what?"}, {"from": "gpt", "value": text}]

    entries = [{"id": str(i), "conversations": turns(3 + 20 * (i % 2))} for i in range(80)]
    (folder / "talk.json").write_text(json.dumps(entries))
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    return folder


def test_lengths_are_those_of_the_batches(data):
    source = config.SourceConfig(name="talk", path=str(data / "talk.json"))
    whole = settings(source, tokenizer=str(data / "tokenizer.model"), batch_size=8)
    found = look(whole)
    assert (found.num_samples, found.known_by) == (80, "the data")
    assert found.lengths_by == "80 records of the data"
    assert 0 < found.length < found.padded < 64
    assert found.padding == pytest.approx(1 - found.length / found.padded)
    # batches of like lengths need less padding than one length for all
    only = look(settings(source, tokenizer=str(data / "tokenizer.model"), buckets=(64,)))
    assert found.padding < 0.7 * only.padding
    assert only.padded == 64


def test_without_a_tokenizer_the_length_is_assumed(data):
    source = config.SourceConfig(name="talk", path=str(data / "talk.json"))
    found = look(settings(source))
    assert found.num_samples == 80
    assert (found.length, found.padding) == (32.0, 0.0)
    assert "the middle bucket" in found.lengths_by


def test_without_data():
    missing = config.SourceConfig(name="coco", path="nowhere")
    found = look(settings(missing, template="plain"))
    assert found.num_samples is None
    assert "give --samples" in found.known_by
    assert found.length == 16.0
    assert "the shortest bucket" in found.lengths_by
    assert look(settings(missing), samples=7)[:2] == (7, "--samples")


def test_scenes_are_counted_before_they_are_drawn():
    found = look(settings(config.SourceConfig()))
    assert (found.num_samples, found.known_by) == (micro.SCENES.num_train, "config.scenes")
    half = config.SourceConfig(weight=0.5)
    assert look(settings(half, config.SourceConfig())).num_samples == 1.5 * micro.SCENES.num_train


def test_weights_count_in_an_epoch(data):
    source = config.SourceConfig(name="talk", path=str(data / "talk.json"), weight=0.25)
    assert look(settings(source)).num_samples == 20
