"""`sgqlm data check` and `build` of relation data: the card decides who reads the files."""

import json

import numpy as np
import pytest

from sgqlm.cli import main
from sgqlm.data import cards, records, sources
from sgqlm.data.relations import readers
from tests import paths
from tests.data.relations import official


def sgqlm(capsys, *words):
    code = main.main(["data", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.fixture
def genome(tmp_path):
    official.visual_genome(tmp_path / "vg")
    return tmp_path / "vg"


def test_every_card_names_a_reader_that_exists():
    named = {card.reader for card in cards.every()}
    assert named - {cards.READER} <= set(readers.READERS) and len(named) > 1


def test_check_and_build(genome, tmp_path, capsys):
    code, out, err = sgqlm(capsys, "check", genome, "--card=visual_genome")
    assert code == 0, err + out
    assert "visual_genome: 2 images" in out and "predicates (" in out
    target = tmp_path / "set"
    words = ("build", genome, "--card=visual_genome", "--out", target)
    code, out, err = sgqlm(capsys, *words, "--per-image", "3", "--rounds", "2")
    assert code == 0, err
    assert f"{target}: conversations: train" in out
    about = records.read_manifest(target / "conversations")["about"]
    assert about["card"] == "visual_genome" and about["settings"]["per_image"] == 3
    source = sources.StoreSource(target, "train")
    assert len(source) and not source.sample(0).entities.labels
    assert sgqlm(capsys, "show", target, "--text", "--n", "1")[0] == 0
    code, _, err = sgqlm(capsys, *words, "--per-image", "0")
    assert code == 2 and "--per-image" in err
    code, _, err = sgqlm(capsys, *words, "--text-to-relations", "http://localhost:1/v1")
    assert code == 2 and "--text-model" in err
    code, _, err = sgqlm(capsys, *words, "--segmenter", "sam")
    assert code == 2 and "segmenter-weights" in err


def test_masks_come_from_the_segmenter(genome, tmp_path, capsys, monkeypatch):
    """The segmenter gets the picture and its boxes; the stored masks are its own."""
    asked = []

    class Half:
        def segment(self, images, boxes):
            asked.append((images[0].size, boxes[0].shape))
            mask = np.zeros((len(boxes[0]), *images[0].size[::-1]), bool)
            for one, box in zip(mask, boxes[0].astype(int), strict=True):
                one[box[1] : box[3], box[0] : (box[0] + box[2]) // 2] = True
            return [type("Masks", (), {"masks": mask})]

    from sgqlm.entities import settings

    monkeypatch.setattr(settings, "make_segmenter", lambda config: Half())
    words = ("--segmenter", "sam", "--segmenter-weights", "x", "--out", tmp_path / "set")
    code, _, err = sgqlm(capsys, "build", genome, "--card=visual_genome", *words)
    assert code == 0, err
    found = records.EntityStore(tmp_path / "set" / "entities")[0]
    areas = [mask.sum() for mask in found.dense_masks()]
    whole = [(box[2] - box[0]) * (box[3] - box[1]) for box in found.boxes]
    assert asked and all(area <= 0.6 * box for area, box in zip(areas, whole, strict=True))


def test_evaluation_images_and_missing_ones(genome, tmp_path, capsys):
    lists = tmp_path / "vg_splits.json"
    lists.write_text(json.dumps({"train": [1], "test": [2]}))
    words = (genome, "--card=visual_genome", "--exclude", lists)
    code, out, _ = sgqlm(capsys, "check", *words)
    assert code == 0 and f"left out: 1 images in {lists}" in out and ": 1 images," in out
    code, _, err = sgqlm(capsys, "build", *words, "--out", tmp_path / "set")
    assert code == 0, err
    assert records.ImageStore(tmp_path / "set" / "images").keys() == ["VG_100K/1.jpg"]
    next(genome.rglob("2.jpg")).unlink()
    code, out, _ = sgqlm(capsys, "check", genome, "--card=visual_genome")
    assert code == 3 and "image missing" in out and "1 images cannot be used" in out
    words = ("build", genome, "--card=visual_genome", "--out", tmp_path / "other")
    code, _, err = sgqlm(capsys, *words)
    assert code == 3 and not (tmp_path / "other").exists()
    assert sgqlm(capsys, *words, "--drop-bad", "--budget", "0.5")[0] == 0
    code, _, err = sgqlm(capsys, "check", tmp_path / "nowhere", "--card=visual_genome")
    assert code == 3 and "no such folder" in err


def test_a_genuine_excerpt_without_its_images(capsys):
    folder = paths.shared("samples/visual_genome")
    code, out, _ = sgqlm(capsys, "check", folder, "--card=visual_genome", "--no-decode")
    assert code == 3 and "image missing" in out and "relations" in out
