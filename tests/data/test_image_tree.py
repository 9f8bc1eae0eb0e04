"""Images by their listed folders: the same answers as asking for each, and counts by folder."""

import os

import pytest

from sgqlm.data import image_tree


@pytest.fixture
def root(tmp_path):
    images = tmp_path / "images"
    for name in ("a.jpg", "deep/er/b.png", "00001/1.jpg", "00002/2.jpg", "ocr/7.gif", "ocr/8.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()
    (images / "ocr" / "8.webp").touch()
    (images / "ocr" / "9.txt").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jpg").touch()
    os.symlink(tmp_path / "other", images / "away")
    os.symlink(images / "deep", images / "near")
    os.symlink(tmp_path / "other" / "x.jpg", images / "link.jpg")
    os.symlink(images / "a.jpg", images / "same.jpg")
    return images


def test_keys_and_problems(root):
    tree = image_tree.Tree(root)
    for path, key in {
        "a.jpg": "a.jpg",
        "./deep//er/b.png": "deep/er/b.png",
        "deep/../a.jpg": "a.jpg",
        "near/er/b.png": "deep/er/b.png",  # links inside lead to one image
        "same.jpg": "a.jpg",
    }.items():
        assert tree.locate(path) == image_tree.Place(key), path
    for path in (
        "../other/x.jpg",
        "/etc/passwd",
        "link.jpg",
        "away/x.jpg",
        "http://a/b.jpg",
        "a\0",
    ):
        place = tree.locate(path)
        assert not place.key and place.rule == "image inside root", path
    for path in ("b.jpg", "deep", "none/a.jpg", "a.jpg/b", "x" * 300 + ".jpg", "\ud800.png"):
        place = tree.locate(path)
        assert not place.key and place.rule == "image exists", path
    assert "File name too long" in tree.locate("x" * 300 + ".jpg").message


def test_links_out_of_the_root_only_on_request(root):
    tree = image_tree.Tree(root, follow_links=True)
    assert tree.locate("away/x.jpg") == image_tree.Place("away/x.jpg")
    assert tree.locate("link.jpg") == image_tree.Place("link.jpg")
    for path in ("../other/x.jpg", "away/../../other/x.jpg", "deep/../../other/x.jpg"):
        assert tree.locate(path).rule == "image inside root", path


def test_another_suffix_is_taken_if_there_is_one_such_image(root):
    tree = image_tree.Tree(root)
    place = tree.locate("ocr/7.jpg")
    assert (place.key, place.rule) == ("ocr/7.gif", image_tree.RENAMED)
    assert "ocr/7.jpg is 7.gif" in place.message
    for path in ("ocr/8.jpg", "ocr/9.jpg", "ocr/7.txt", "deep/7.jpg"):
        assert tree.locate(path).rule == "image exists", path


def test_every_distinct_image_is_counted_once_in_its_folder(root):
    tree = image_tree.Tree(root)
    for path in (
        "a.jpg",
        "00001/1.jpg",
        "00002/2.jpg",
        "00001/9.jpg",
        "ocr/7.jpg",
        "a.jpg",
        "z.jpg",
    ):
        tree.locate(path)
    found = {f.name: (f.needed, f.found, f.missing, f.renamed) for f in tree.folders()}
    assert found == {"": (2, 1, 1, 0), "*": (3, 2, 1, 0), "ocr": (1, 1, 0, 1)}
    assert {f.name: f.examples for f in tree.folders()}["*"] == ["00001/9.jpg"]
    assert len(tree) == 6
