"""Thumbnails are found by the names of benchmarks."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, records
from sgqlm.evals import measured, pictures
from sgqlm.evals.metrics import seed


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"),
        ("42", "val2014/COCO_val2014_000000000042.jpg"),
        ("n16", "gqa/n16.jpg"),
        ("7/image.png", "sqa/7/image.png"),
        ("deep/other/sqa/8/image.png", "sqa/8/image.png"),
        ("image.png", None),
        ("n17", None),
    ],
)
def test_names(name, path):
    paths = ["val2014/COCO_val2014_000000000042.jpg", "gqa/n16.jpg"]
    paths += ["sqa/7/image.png", "sqa/8/image.png"]
    assert pictures.Names(paths).find(name) == path


def test_of_several_files_that_of_the_benchmark_counts():
    found = pictures.Names(["gqa/images/n1.jpg", "vizwiz/n1.jpg", "COCO_val2014_000000000005.jpg"])
    assert found.find("n1") is None and found.find("n1.jpg", ["gqa"]) == "gqa/images/n1.jpg"
    assert found.find("5") and found.find("5.jpg") is None  # a number with an ending is a name


def test_a_name_with_dots_is_no_suffix():
    assert pictures.Names(["a/v1.2.jpg"]).find("v1.2") == "a/v1.2.jpg"


def test_entities_are_drawn(tmp_path):
    image = Image.fromarray(np.full((40, 60, 3), 120, np.uint8))
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "one.png")
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    mask = np.zeros((40, 60), bool)
    mask[5:30, 5:40] = True
    found = graphs.Entities(
        np.array([mask]), np.array([[5, 5, 40, 30]], np.float32), ["cup"],
        np.ones(1, np.float32), (40, 60),
    )  # fmt: skip
    records.write_entities(tmp_path / "store", [("one.png", found)], about={})
    same = hashlib.sha256((tmp_path / "images" / "one.png").read_bytes()).hexdigest()
    for name, digest in (("any", same), ("gqa", "0" * 64)):
        records.write_entities(tmp_path / "each" / name, [("one.png", found, digest)], about={})
    each = pictures.Pictures(tmp_path / "images", tmp_path / "each")
    seen = each.find(measured.Item(image="one.png"), "any")
    assert seen.entities is not None and len(seen.store) == 64
    seen = each.find(measured.Item(image="one.png"), "gqa")
    assert seen.image and seen.entities is None and "not the one in which" in seen.words
    plain = pictures.Pictures(tmp_path / "images", None)
    drawn = pictures.Pictures(tmp_path / "images", tmp_path / "store")
    item = measured.Item(image="one.png")
    before, words = plain.draw(item)
    after, told = drawn.draw(item)
    assert words == "image one.png" and told == "image one.png; 1 entity"
    assert before.size == after.size and np.asarray(before).tolist() != np.asarray(after).tolist()
    assert plain.draw(measured.Item(image="none"))[0] is None
    assert plain.draw(measured.Item(image="bad"))[0] is None
    buffer = io.BytesIO()
    image.save(buffer, "png")
    inside = pictures.Pictures(None, None).draw(measured.Item(image="x", pixels=buffer.getvalue()))
    assert inside[0].size[0] == pictures.SIDE
    with pytest.raises(errors.SgqlmError, match="no such folder"):
        pictures.Pictures(tmp_path / "none", None)


def test_pictures_of_seed_have_no_suffix(tmp_path):
    for name in ("SEED-Bench-image/1_2", "SEED-Bench-video-image/10_v3.png"):
        path = tmp_path / "seed_bench" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(path, "png")
    known = {"data_id": "1_2", "question_id": "v3", "question_type_id": 10}
    drawer = pictures.Pictures(tmp_path, None)
    for kind in ("image", "video"):
        item = measured.Item(image=seed.image({**known, "data_type": kind}))
        assert drawer.find(item, "seed").image is not None, kind


def test_a_damaged_record_of_the_store_costs_no_page(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    whole = graphs.Entities(
        np.ones((1, 4, 4), bool), np.array([[0, 0, 4, 4]], np.float32), [],
        np.ones(1, np.float32), (4, 4),
    )  # fmt: skip
    records.write_entities(tmp_path / "store", [("a.png", whole)], about={})
    drawer = pictures.Pictures(tmp_path, tmp_path / "store")
    assert drawer.find(measured.Item(image="a.png")).entities is not None
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file() and path.name != records.MANIFEST:
            path.write_bytes(bytes(path.stat().st_size))
    found = drawer.find(measured.Item(image="a.png"))
    assert found.image is not None and found.entities is None and "a.png; " in found.words


def test_pictures_that_are_missed_are_counted_once(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    drawer = pictures.Pictures(tmp_path, None)
    for name in ("a", "b", "c", "c", "d"):
        drawer.find(measured.Item(image=name), "gqa")
    first, second, fix = drawer.missed_lines()
    assert first == "gqa: pictures that cannot be read: 1 (b)"
    assert second == "gqa: pictures not below --images: 2 (c, d)" and "--images=ROOT" in fix
    assert pictures.Pictures(None, None).missed_lines() == []
