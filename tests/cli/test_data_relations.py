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
    assert code == 2 and "--text-to-relations" in err
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


CARD = "--card=visual_genome"


def test_boxes_of_a_smaller_copy_are_a_fault_where_no_size_is_told(genome, tmp_path, capsys):
    """Image 1 at half its size: its boxes are those of the whole one."""
    told = json.loads((genome / "attributes.json").read_text())
    for number in range(3):
        thing = official.thing(90 + number, f"tree {number}", 60 + number, 50, 30, 25)
        told[0]["attributes"].append(thing | {"attributes": ["green"]})
    (genome / "attributes.json").write_text(json.dumps(told))
    path = genome / "images/VG_100K/1.jpg"
    official.picture(path, 50, 40)
    assert sgqlm(capsys, "check", genome, CARD)[0] == 0  # image_data.json tells that it is half
    (genome / "image_data.json").unlink()
    code, out, _ = sgqlm(capsys, "check", genome, CARD)
    assert code == 3 and "1 x boxes lie outside of the image: is it a smaller copy?" in out
    assert "image_data.json tells the sizes" in out and "VG_100K/1.jpg" in out
    assert sgqlm(capsys, "build", genome, CARD, "--out", tmp_path / "set")[0] == 3
    official.picture(path, 100, 80)  # one box of many leaves it a little, as in official files
    assert sgqlm(capsys, "check", genome, CARD)[0] == 0


def test_lists_of_coco_need_the_numbers_of_both_sets(genome, tmp_path, capsys):
    lists = tmp_path / "coco_pope.json"
    lists.write_text(json.dumps([{"image": "COCO_val2014_000000000555.jpg", "question": "?"}]))
    words = ("check", genome, CARD, "--exclude", lists)
    code, out, _ = sgqlm(capsys, *words)  # here image_data.json knows no other set
    assert code == 0 and f"warning: {lists} cannot be compared" in out and "coco" in out
    assert f"left out: no record for {lists}" in out and ": 2 images" in out
    path = genome / "image_data.json"
    rows = json.loads(path.read_text())
    numbers = {1: 555, 2: None}
    rows = [row | {"coco_id": numbers[row["image_id"]], "flickr_id": None} for row in rows]
    path.write_text(json.dumps(rows))
    code, out, _ = sgqlm(capsys, *words)
    assert code == 0 and "warning" not in out and "no record" not in out
    assert f"left out: 1 images in {lists}" in out and ": 1 images" in out


def test_a_split_that_is_not_there_names_those_that_are(genome, capsys):
    (genome / "vg_splits.json").write_text(json.dumps({"val": [1, 2]}))
    code, _, err = sgqlm(capsys, "check", genome, CARD)
    assert code == 3 and "no image of split train" in err and "there are: val (2)" in err
    assert sgqlm(capsys, "check", genome, CARD, "--split", "val")[0] == 0


def test_a_report_has_every_example(genome, tmp_path, capsys):
    told = json.loads((genome / "relationships.json").read_text())
    told[0]["relationships"] += [told[0]["relationships"][3] | {"relationship_id": 9}] * 40
    (genome / "relationships.json").write_text(json.dumps(told))
    next(genome.rglob("2.jpg")).unlink()
    code, out, _ = sgqlm(capsys, "check", genome, CARD, "--report", tmp_path / "found.json")
    assert code == 3 and f"looked for in {genome / 'images'}" in out
    found = {f["reason"]: f for f in json.loads((tmp_path / "found.json").read_text())["found"]}
    assert found["image missing"]["kind"] == "fault"
    empty = found["relation without a predicate"]
    assert (empty["kind"], empty["count"], len(empty["examples"])) == ("note", 41, 41)
    sgqlm(capsys, "check", genome, CARD, "--report", tmp_path / "found.csv")
    lines = (tmp_path / "found.csv").read_text().splitlines()
    assert lines[0] == "kind,reason,count,example"
    assert sum("relation without a predicate,41," in line for line in lines) == 41
    code, _, err = sgqlm(capsys, "check", genome, CARD, "--report", tmp_path / "found.txt")
    assert code == 2 and "json or csv" in err


@pytest.mark.parametrize(
    "flags",
    [
        "--per-image=3",
        "--seed=0",
        "--rounds=2",
        "--synonyms=no",
        "--segmenter=box",
        "--split=val",
        "--text-to-relations=http://localhost:1/v1",
    ],
)
def test_flags_of_relations_are_refused_for_other_data(flags, genome, tmp_path, capsys):
    (tmp_path / "talks.json").write_text("[]")
    flag = flags.split("=")[0]
    for path in (tmp_path / "talks.json", "scenes"):
        code, _, err = sgqlm(capsys, "build", path, *flags.split("="), "--out", tmp_path / "out")
        assert code == 2 and f"where: {flag}\n" in err and not (tmp_path / "out").exists()


def test_flags_that_the_reader_does_not_use_are_refused(genome, tmp_path, capsys):
    for words in (["--json", "a.json"], ["--follow-links"], ["--text-model", "m"]):
        code, _, err = sgqlm(capsys, "check", genome, CARD, *words)
        assert code == 2 and f"where: {words[0]}\n" in err
    code, _, err = sgqlm(capsys, "check", genome, CARD, "--synonyms", tmp_path / "nofile")
    assert code != 0 and "synonyms cannot be read" in err


def test_a_folder_of_relations_without_a_card_names_it(genome, capsys):
    for path in (genome, genome / "relationships.json"):
        code, _, err = sgqlm(capsys, "check", path)
        assert code == 3 and "--card=visual_genome" in err
    code, _, err = sgqlm(capsys, "check", genome, "--card=scenes")
    assert code == 2 and "pictures that sgqlm draws" in err


def test_cards_are_told_in_words(tmp_path, capsys):
    code, out, _ = sgqlm(capsys, "cards", "visual_genome")
    assert code == 0 and "weight 1.0" in out and "labels no" in out
    assert not {"['", "False", "True"} & set(out.replace(",", " ").split()) and "['" not in out
    code, _, err = sgqlm(capsys, "cards", "visual_genom")
    assert code == 2 and "where: visual_genom\n" in err
    code, _, err = sgqlm(capsys, "cards", "--root", tmp_path / "nowhere")
    assert code == 2 and "no such folder" in err
