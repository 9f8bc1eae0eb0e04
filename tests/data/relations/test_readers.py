"""Every reader on tiny files in the official format, on broken ones and on genuine excerpts."""

import json
import sys

import h5py
import numpy as np
import pytest

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.data.relations import (
    gqa,
    grit,
    open_images,
    psg,
    readers,
    vg150,
    visual_genome,
    vrd,
)
from tests import paths
from tests.data.relations import official


def test_visual_genome(tmp_path):
    official.visual_genome(tmp_path)
    found, report = official.read("visual_genome", tmp_path, images=tmp_path / "images")
    one, two = found["1"], found["2"]
    assert (one.key, two.key) == ("VG_100K/1.jpg", "VG_100K_2/2.jpg")
    assert (one.size, two.size) == ((80, 100), (40, 60))
    assert official.triples(one) == [("man", "holding", "racket"), ("racket", "next to", "ball")]
    assert [thing.name for thing in one.objects] == ["man", "racket", "ball", "bush"]
    assert one.objects[0].attributes == ("tall",)
    assert one.objects[2].box == (90.0, 20.0, 100.0, 30.0)
    assert official.triples(two) == [("kite", "in", "sky")]
    assert report.notes == {
        "box cut at the border of its image": 1,
        "object annotated twice": 1,
        "relation given twice": 1,
        "relation without a predicate": 1,
        "relation of an object with itself": 1,
        "box of no or negative size": 1,
        "relation with an object that is not there": 1,
    }
    assert not report.faults
    assert any("image 2" in line and "wire" in line for line in report.lines())


def test_visual_genome_counts_images_that_are_not_there(tmp_path):
    official.visual_genome(tmp_path)
    (tmp_path / "images/VG_100K/1.jpg").unlink()
    found, report = official.read("visual_genome", tmp_path, images=tmp_path / "images")
    assert list(found) == ["2"]
    assert report.faults == {"image missing": 1}
    assert report.examples["image missing"] == ["VG_100K/1.jpg"]


def test_visual_genome_without_images_sizes_and_other_files(tmp_path):
    official.visual_genome(tmp_path, images=False)
    (tmp_path / "attributes.json").unlink()
    (tmp_path / "image_data.json").unlink()
    found, _ = official.read("visual_genome", tmp_path)
    assert found["1"].size == (0, 0)
    assert found["1"].objects[2].box == (90.0, 20.0, 120.0, 30.0)  # nothing tells the border
    official.picture(tmp_path / "VG_100K_2/1.jpg", 100, 80)
    found, _ = official.read("visual_genome", tmp_path, images=tmp_path)
    assert (found["1"].key, found["1"].size) == ("VG_100K_2/1.jpg", (80, 100))


def test_visual_genome_follows_the_splits_beside_it(tmp_path):
    official.visual_genome(tmp_path)
    official.write_json(tmp_path / "vg_splits.json", {"train": [1], "test": [2]})
    assert list(official.read("visual_genome", tmp_path, splits=("test",))[0]) == ["2"]
    with pytest.raises(errors.SgqlmError, match="no image of split val") as caught:
        official.read("visual_genome", tmp_path, splits=("val",))
    assert caught.value.why == "there are: train (1), test (1)"


def test_merged_objects_are_one(tmp_path):
    man = official.thing(5, "man", 0, 0, 9, 9) | {"merged_object_ids": [6]}
    hat = official.thing(7, "hat", 2, 0, 3, 2)
    relation = {"predicate": "wears", "subject": man, "object": hat}
    told = [{"image_id": 1, "relationships": [relation]}]
    official.write_json(tmp_path / "relationships.json", told)
    older = official.thing(6, "guy", 0, 0, 9, 9) | {"attributes": ["old"]}
    official.write_json(tmp_path / "attributes.json", [{"image_id": 1, "attributes": [older]}])
    found, _ = official.read("visual_genome", tmp_path)
    assert [(t.name, t.attributes) for t in found["1"].objects] == [("man", ("old",)), ("hat", ())]


def test_visual_genome_version_1(tmp_path):
    man = {"id": 1, "name": "man", "x": 1, "y": 0, "w": 5, "h": 5}
    hat = man | {"id": 9, "name": "hat", "x": 9}
    relation = {"id": 3, "predicate": "wears", "subject": man, "object": hat}
    official.write_json(tmp_path / "relationships.json", [{"id": 4, "relationships": [relation]}])
    found, _ = official.read("visual_genome", tmp_path)
    assert official.triples(found["4"]) == [("man", "wears", "hat")]


def test_genuine_visual_genome():
    folder = paths.shared("samples/visual_genome")
    found, report = official.read("visual_genome", folder)
    assert set(found) == {"1", "2"}
    one = found["1"]
    assert ("man", "wears", "shoes") in official.triples(one)
    assert ("shade", "on", "sidewalk") in official.triples(one)
    assert all(r.predicate == r.predicate.strip().lower() for r in one.relations)
    assert any("green" in thing.attributes for thing in one.objects)
    assert not report.faults
    assert len(one.relations) + len(found["2"].relations) > 50
    assert visual_genome.image_paths("1", None)[0] == "VG_100K/1.jpg"


def test_vg150(tmp_path):
    official.vg150(tmp_path)
    found, report = official.read("vg150", tmp_path, images=tmp_path / "images")
    assert list(found) == ["7", "8"]  # 1592 has no row, 9 no box
    first, second = found["7"], found["8"]
    assert (first.split, second.split) == ("train", "test")
    # 200 x 100: 1024 are 200 pixels
    assert first.objects[0].box == (75.0, 37.5, 125.0, 62.5)
    assert first.objects[1].box == (50.0, 50.0, 150.0, 100.0)
    assert first.objects[1].attributes == ("brown",)
    assert official.triples(first) == [("man", "riding", "horse"), ("man", "on", "horse")]
    # 100 x 200: the longest side is the height
    assert second.objects[0].box == (37.5, 75.0, 62.5, 125.0)
    assert official.triples(second) == [("man", "wearing", "hat")]
    assert not report.notes and not report.faults


def test_vg150_takes_the_first_5000_related_train_images_for_validation(tmp_path, monkeypatch):
    official.vg150(tmp_path)
    with h5py.File(tmp_path / "VG-SGG-with-attri.h5", "a") as file:
        file["split"][...] = [0, 0, 0]
    assert {i.split for i in official.read("vg150", tmp_path)[0].values()} == {"train"}
    monkeypatch.setattr(vg150, "NUM_VAL", 1)
    found, _ = official.read("vg150", tmp_path)
    assert [item.split for item in found.values()] == ["val", "train"]


def test_vg150_refuses_files_that_do_not_belong_together(tmp_path):
    official.vg150(tmp_path)
    data = json.loads((tmp_path / "image_data.json").read_text())
    official.write_json(tmp_path / "image_data.json", data[:2])
    with pytest.raises(errors.SgqlmError, match="another version"):
        official.read("vg150", tmp_path)
    official.write_json(tmp_path / "image_data.json", data)
    with h5py.File(tmp_path / "VG-SGG-with-attri.h5", "a") as file:
        del file["boxes_1024"]
    with pytest.raises(errors.SgqlmError, match="without boxes_1024"):
        official.read("vg150", tmp_path)
    (tmp_path / "VG-SGG-with-attri.h5").write_bytes(b"no hdf5")
    with pytest.raises(errors.SgqlmError, match="expected VG-SGG"):
        official.read("vg150", tmp_path)


def test_genuine_vg150_dictionaries():
    words = vg150.dictionaries(paths.shared("samples/vg150"))
    assert len(words["label"]) == 151 and words["label"][1] == "airplane"
    assert len(words["predicate"]) == 51 and words["predicate"][1] == "above"
    assert words["attribute"][1] == "white"


@pytest.mark.parametrize("quoted", [False, True])
def test_open_images(tmp_path, quoted):
    official.open_images(tmp_path, quoted=quoted)
    found, report = official.read("open_images_vrd", tmp_path, images=tmp_path / "images")
    assert {i: item.split for i, item in found.items()} == {
        "aa01": "train", "bb02": "train", "cc03": "val",
    }  # fmt: skip
    one = found["aa01"]
    assert (one.key, found["bb02"].key) == ("train/aa01.jpg", "bb02.jpg")
    assert official.triples(one) == [("man", "holds", "guitar"), ("man", "inside of", "guitar")]
    assert one.objects[0].attributes == ("made of wood",)
    np.testing.assert_allclose(one.objects[0].box, (20, 20, 100, 90), atol=1e-4)
    np.testing.assert_allclose(one.objects[1].box, (60, 40, 160, 60), atol=1e-4)
    assert report.notes == {"broken row": 1, "label without a description": 1}


def test_open_images_without_images_gives_shares(tmp_path):
    official.open_images(tmp_path)
    found, _ = official.read("open_images_vrd", tmp_path, splits=("train",))
    assert set(found) == {"aa01", "bb02"}
    assert found["aa01"].size == (1, 1)
    np.testing.assert_allclose(found["aa01"].objects[1].box, (0.3, 0.4, 0.8, 0.6), atol=1e-6)


def test_genuine_open_images(tmp_path):
    folder = paths.shared("samples/open_images")
    assert open_images.descriptions(folder)["/m/01c8br"] == "street"
    with pytest.raises(errors.SgqlmError, match="not the expected file"):
        (tmp_path / "dict.csv").write_text("a,b\n")
        open_images.descriptions(tmp_path)
    found, report = official.read("open_images_vrd", folder)
    # both rows are attributes of labels that this excerpt of the descriptions may not name
    assert sum(report.notes.values()) + len(found) > 0


def test_psg(tmp_path):
    official.psg(tmp_path)
    found, report = official.read("psg", tmp_path, images=tmp_path / "images")
    one, two = found["139"], found["785"]
    assert (one.split, two.split) == ("train", "test")
    assert [thing.name for thing in one.objects] == ["person", "horse", "sky"]
    assert official.triples(one) == [("person", "riding", "horse"), ("sky", "over", "horse")]
    masks = [graphs.decode_rle(thing.mask) for thing in one.objects]
    expected = np.zeros((30, 40), bool)
    expected[10:25, 5:15] = True
    expected[20:30, 12:35] = False
    np.testing.assert_array_equal(masks[0], expected)
    assert one.objects[1].box == (12.0, 20.0, 35.0, 30.0)
    assert masks[2].sum() == 12 * 40 - 2 * 10
    assert two.objects[0].mask is None
    assert two.objects[3].name == "wall brick"
    assert report.notes == {
        "segment without pixels": 1,
        "broken relation": 1,
        "relation with an object that is not there": 1,
        "no panoptic PNG, boxes alone": 1,
    }


def test_psg_boxes_by_side_and_a_damaged_png(tmp_path):
    official.psg(tmp_path)
    (tmp_path / "panoptic_train2017/000000000139.png").write_bytes(b"\x89PNG no more")
    value = json.loads((tmp_path / "psg.json").read_text())
    value["data"][0]["annotations"][0] = {
        "bbox": [5, 10, 10, 15], "bbox_mode": 1, "category_id": 0,
    }  # fmt: skip
    official.write_json(tmp_path / "psg.json", value)
    found, report = official.read("psg", tmp_path, splits=("train",))
    assert found["139"].objects[0].box == (5.0, 10.0, 15.0, 25.0)
    assert report.notes["damaged panoptic PNG, boxes alone"] == 1
    assert psg.EXPECTED.startswith("{")


@pytest.mark.parametrize("as_list", [False, True])
def test_gqa(tmp_path, as_list):
    official.gqa(tmp_path, as_list=as_list)
    found, report = official.read("gqa_scene_graphs", tmp_path, images=tmp_path / "images")
    assert {i: item.split for i, item in found.items()} == {"2407890": "train", "77": "val"}
    item = found["2407890"]
    assert item.key == "2407890.jpg" and item.size == (40, 50)
    assert official.triples(item) == [
        ("chair", "to the left of", "table"),
        ("table", "to the right of", "chair"),
    ]
    assert item.objects[0].attributes == ("brown",)
    assert item.objects[0].box == (5.0, 5.0, 15.0, 25.0)
    assert report.notes == {"relation with an object that is not there": 2}


def test_genuine_gqa():
    found, report = official.read("gqa_scene_graphs", paths.shared("samples/gqa"))
    [item] = found.values()
    assert official.triples(item) == [("meat", "inside", "skillet")]
    assert item.objects[1].attributes == ("black",)
    assert report.notes == {"relation with an object that is not there": 1}
    assert gqa.EXPECTED


def test_vrd(tmp_path):
    official.vrd(tmp_path)
    found, report = official.read("vrd", tmp_path, images=tmp_path)
    assert {i: item.split for i, item in found.items()} == {
        "12_a": "train", "34_b": "train", "56_c": "test",
    }  # fmt: skip
    one = found["12_a"]
    assert official.triples(one) == [("person", "on", "bike"), ("bike", "on", "street")]
    assert [thing.name for thing in one.objects] == ["person", "bike", "street"]
    assert one.objects[0].box == (20.0, 10.0, 40.0, 60.0)
    assert found["34_b"].key == "sg_train_images/34_b.png"
    assert report.notes == {"image without annotation": 1, "broken relation": 2}
    assert vrd.EXPECTED


@pytest.mark.parametrize("without_size", [False, True])
def test_grit(tmp_path, without_size):
    official.grit(tmp_path, without_size=without_size)
    found, report = official.read("grit", tmp_path, images=tmp_path / "images")
    item = found["000000012"]
    assert item.key == "00000/000000012.jpg" and item.caption == official.CAPTION
    assert [thing.name for thing in item.objects] == [
        "man", "brown horse", "brown horse", "old barn", "dog",
    ]  # fmt: skip
    assert official.triples(item) == [
        ("man", "riding", "brown horse"),
        ("brown horse", "near", "old barn"),
    ]
    assert item.relations[0].object == 1  # the surer of the two boxes
    assert item.objects[0].box == pytest.approx((10, 6, 50, 48))
    assert report.notes == {"image missing": 1} and not report.faults


def test_grit_takes_any_step_from_text_to_relations(tmp_path):
    official.grit(tmp_path)
    asked = []

    def text(caption, spans):
        asked.append((caption, [caption[start:end] for start, end in spans]))
        return [(0, "walking past", 3)]

    found, _ = official.read("grit", tmp_path, images=tmp_path / "images", text=text)
    assert official.triples(found["000000012"]) == [("man", "walking past", "dog")]
    phrases = ["A man", "a brown horse", "the old barn", "a dog"]
    assert asked == [(official.CAPTION, phrases)]  # nothing is asked for an image that is missing
    assert grit.EXPECTED


@pytest.mark.parametrize("name", list(official.WRITERS))
def test_a_wrong_or_missing_file_is_told_with_what_was_expected(tmp_path, name):
    with pytest.raises(errors.SgqlmError, match="a file of the data set is missing"):
        official.read(name, tmp_path)
    official.WRITERS[name](tmp_path)
    main = {
        "visual_genome": "relationships.json", "vg150": "VG-SGG-dicts-with-attri.json",
        "open_images_vrd": "oidv6-train-annotations-vrd.csv", "psg": "psg.json",
        "gqa_scene_graphs": "train_sceneGraphs.json", "vrd": "annotations_train.json",
        "grit": "coyo_0_snappy.parquet",
    }[name]  # fmt: skip
    for wrong in ('[{"id": 1, "conversations": []}]', '{"a": [1', "plain text", "", "5"):
        (tmp_path / main).write_text(wrong)
        with pytest.raises(errors.SgqlmError, match="expected file") as caught:
            official.read(name, tmp_path)
        assert main in caught.value.where and caught.value.code == errors.DATA


def test_unknown_names_and_folders_are_told(tmp_path):
    with pytest.raises(errors.SgqlmError, match="no reader 'coco'"):
        readers.read("coco", tmp_path)
    with pytest.raises(errors.SgqlmError, match="no such folder"):
        readers.read("psg", tmp_path / "none")
    with pytest.raises(errors.SgqlmError, match="no image folder"):
        readers.read("psg", tmp_path, images=tmp_path / "none")


@pytest.mark.parametrize(("name", "package"), [("vg150", "h5py"), ("grit", "pyarrow")])
def test_a_missing_package_is_told_with_the_command(tmp_path, monkeypatch, name, package):
    official.WRITERS[name](tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.SgqlmError, match="pip install") as caught:
        official.read(name, tmp_path)
    assert package in caught.value.what
