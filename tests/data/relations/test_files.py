"""Streaming json, lookups, image trees, and the cleaning of raw annotations."""

import itertools
import json

import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data.relations import assemble, files, types
from tests.data.relations import official


@pytest.mark.parametrize(
    "value",
    [
        [], {}, [1, 22.5, "a", None, [[]], {"a": [1]}], {"a": 1, "b ü": {"c": [True, "x,]}"]}},
        [{"n": list(range(300))}] * 40,
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [3, 64, 1 << 20])
def test_a_streamed_json_is_the_loaded_one(tmp_path, monkeypatch, value, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    path = tmp_path / "x.json"
    path.write_text("\ufeff " + json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
    found = list(files.stream_json(path, "a list"))
    assert found == (list(value.items()) if isinstance(value, dict) else [("", v) for v in value])


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", '{"a" 1}', "{1: 2}", '["a', "[1,]", "[nan"])
@pytest.mark.parametrize("chunk", [2, 1 << 20])
def test_a_broken_json_is_told_and_not_read_in_part_without_a_word(
    tmp_path, monkeypatch, text, chunk
):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(errors.SgqlmError, match="expected a list of things"):
        list(files.stream_json(tmp_path / "x.json", "a list of things"))


def test_a_stream_holds_only_a_piece_and_tells_how_far_it_is(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": "x" * 1000}] * 4000))
    told = []
    stream = files.stream_json(path, "a list", lambda *at: told.append(at))
    first = next(stream)
    assert first[1]["text"] == "x" * 1000
    assert told == [(1 << 20, path.stat().st_size)]
    assert sum(1 for _ in stream) == 3999 and told[-1][0] == path.stat().st_size


def test_a_lookup_keeps_only_what_it_passed_over():
    taken = []
    entries = ((i, f"v{i}") for i in itertools.count() if taken.append(i) is None)
    lookup = files.Lookup(entries)
    assert [lookup.get(i) for i in (0, 1, 2)] == ["v0", "v1", "v2"]
    assert taken == [0, 1, 2]
    assert (lookup.get(5), lookup.get(3), lookup.get(4)) == ("v5", "v3", "v4")
    assert files.Lookup([]).get("a", "none") == "none"


def test_images_are_found_by_path_by_name_and_never_by_guess(tmp_path):
    for name in ("a/1.jpg", "b/2.png", "a/3.jpg", "b/3.jpg"):
        official.picture(tmp_path / name, 8, 4)
    (tmp_path / "b/note.txt").write_text("2")
    tree = files.ImageTree(tmp_path)
    assert tree.find(["x/1.jpg", "a/1.jpg"]) == "a/1.jpg"
    assert tree.find(["2.jpg"]) == "b/2.png"
    assert tree.find(["3.jpg"]) is None  # two of that name
    assert tree.find(["b/3.jpg"]) == "b/3.jpg"
    assert tree.find(["../a/9.jpg", "/etc/hostname"]) is None
    assert tree.size("a/1.jpg") == (4, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert tree.size("turned.jpg") == (8, 4)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert tree.size("bad.jpg") == (0, 0)


def test_files_are_found_anywhere_below_and_two_are_refused(tmp_path):
    for folder in ("v1", "v2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "psg.json").write_text("{}")
    with pytest.raises(errors.SgqlmError, match="2 files could be psg"):
        files.need_one(tmp_path, ("psg.json",), "x")
    assert files.need_one(tmp_path / "v1", ("none", "*.json"), "x").name == "psg.json"


def make(objects, relations=(), size=(50, 100)):
    raw = assemble.Raw("image 1", size)
    for key, (name, box, *words) in objects.items():
        raw.add(key, name, box, attributes=words)
    raw.relations = list(relations)
    report = types.Report()
    return assemble.assemble(raw, "1.jpg", report, split="train", image_id="1"), report


def test_boxes_are_cleaned_and_every_repair_is_counted():
    item, report = make(
        {
            1: (" The_Man. ", (0, 0, 10, 10)),
            2: ("hat", (-5, -5, 5, 5)),
            3: ("far", (200, 0, 210, 9)),
            4: ("thin", (5, 5, 5, 9)),
            5: ("broken", ("a", 0, 1, 1)),
            6: ("", (0, 0, 1, 1)),
            7: ("odd", (float("nan"), 0, 1, 1)),
        },
        [(1, " WEARS ", 2), (1, "wears", 2), (2, "on", 3), (1, None, 2)],
    )
    assert [(t.name, t.box) for t in item.objects] == [
        ("the man", (0.0, 0.0, 10.0, 10.0)), ("hat", (0.0, 0.0, 5.0, 5.0)),
    ]  # fmt: skip
    assert item.relations == (types.Relation(0, "wears", 1),)
    assert report.notes == {
        "box cut at the border of its image": 1,
        "box outside of its image": 1,
        "box of no or negative size": 1,
        "object without a usable box": 2,
        "object without a name": 1,
        "relation given twice": 1,
        "relation with an object that is not there": 1,
        "relation without a predicate": 1,
    }


def test_only_boxes_of_one_name_are_merged():
    item, _ = make(
        {
            "a": ("man", (0, 0, 20, 20), "tall"),
            "b": ("person", (0, 0, 20, 20)),
            "c": ("man", (0, 0, 20, 20.5), "old"),
            "d": ("man", (30, 0, 50, 20)),
        },
        [("c", "near", "d"), ("b", "is", "a")],
    )
    assert [thing.name for thing in item.objects] == ["man", "person", "man"]
    assert item.objects[0].attributes == ("tall", "old")
    assert item.relations == (types.Relation(0, "near", 2), types.Relation(1, "is", 0))


def test_boxes_follow_the_image_as_it_lies_on_disk():
    item, _ = make({1: ("a", (10, 10, 20, 20)), 2: ("b", (60, 0, 100, 50))}, [(1, "on", 2)])
    half = assemble.rescaled(item, (25, 50))
    assert half.size == (25, 50)
    assert [thing.box for thing in half.objects] == [(5, 5, 10, 10), (30, 0, 50, 25)]
    assert assemble.rescaled(item, (50, 100)) is item
    assert assemble.rescaled(item, (100, 50)) is None  # another image, or turned
    unknown, _ = make(
        {1: ("a", (10, 10, 20, 20)), 2: ("b", (60, 0, 90, 9))}, [(1, "on", 2)], (0, 0)
    )
    cut = assemble.rescaled(unknown, (15, 50))
    assert [thing.box for thing in cut.objects] == [(10, 10, 20, 15)] and not cut.relations
    shares, _ = make({1: ("a", (0.5, 0, 1, 0.5))}, size=(1, 1))
    assert assemble.rescaled(shares, (20, 60)).objects[0].box == (30, 0, 60, 10)
