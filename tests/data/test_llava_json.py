"""Reading LLaVA json, and the report of all faults of a file at once."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import llava_json
from tests import paths


def _ask(text, reply="Yes."):
    return [{"from": "human", "value": text}, {"from": "gpt", "value": reply}]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.jpg", "cut.jpg"):
        Image.fromarray(rng.integers(0, 255, (64, 48, 3), np.uint8)).save(root / name)
    data = (root / "cut.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", root / "link.png")
    return tmp_path


def _write(folder, entries):
    file = folder / "data.json"
    file.write_text(json.dumps(entries))
    return file


def test_all_faults_in_one_report(folder):
    good = _ask("<image>\nIs it?")
    entries = [
        {"id": "fine", "image": "a.png", "conversations": good},
        {"id": "text", "conversations": _ask("Is it?")},
        {"id": "gone", "image": "c.png", "conversations": good},
        {"id": "cut", "image": "cut.jpg", "conversations": good},
        {"id": "up", "image": "../secret.png", "conversations": good},
        {"id": "link", "image": "link.png", "conversations": good},
        {"id": "root", "image": str(folder / "images" / "a.png"), "conversations": good},
        {"id": "tag", "conversations": good},
        {"id": "no tag", "image": "a.png", "conversations": _ask("Is it?")},
        {"id": "two", "image": "a.png", "conversations": _ask("<image> and <image>")},
        {"id": "order", "image": "a.png", "conversations": good + good[:1] + good[:1]},
        {"id": "empty", "image": "sub/b.jpg", "conversations": _ask("<image>\nIs it?", "")},
        {"id": "fine", "image": "sub/b.jpg", "conversations": good},
        {"id": "both", "image": "c.png", "conversations": _ask("Is it?", "")},
        {"id": "shape", "image": ["a.png"], "conversations": good},
        {"id": "turns", "conversations": [{"from": "user", "value": "hi"}]},
        "nonsense",
        {"image": "a.png"},
    ]
    scan = llava_json.examine(_write(folder, entries), folder / "images")
    rules = {}
    for fault in scan.faults:
        rules.setdefault(fault.record, []).append(fault.rule)
    assert scan.total == 18
    assert [(r.id, r.key) for r in scan.records] == [
        ("fine", "a.png"),
        ("text", ""),
        ("fine", "sub/b.jpg"),
    ]
    assert rules["gone"] == ["image exists"]
    assert rules["cut"] == ["image decodes"]
    assert rules["up"] == rules["link"] == rules["root"] == ["image inside root"]
    assert rules["tag"] == ["<image> has image"]
    assert rules["no tag"] == ["image has <image>"]
    assert rules["two"] == ["one <image>"]
    assert "alternating" in rules["order"] and "one <image>" in rules["order"]
    assert rules["empty"] == ["no empty text"]
    assert rules["fine"] == ["unique id"]
    assert set(rules["both"]) == {"image exists", "image has <image>", "no empty text"}
    assert rules["shape"] == ["record shape"]
    assert rules["turns"] == ["turn shape"]
    assert rules["#16"] == ["record shape"]
    assert rules["#17"] == ["record shape"]
    assert "text" not in rules
    with pytest.raises(errors.SgqlmError, match="faults in the data") as caught:
        llava_json.read(folder / "data.json", folder / "images")
    assert caught.value.code == errors.DATA and "gone: image exists" in caught.value.why
    assert "unique id" not in str(caught.value)


def test_malformed_json_names_line_and_column(tmp_path):
    file = tmp_path / "data.json"
    file.write_text('[\n {"id": 1,\n  "conversations" []}\n]')
    (fault,) = llava_json.check(file, tmp_path)
    assert fault.rule == "json" and fault.message.startswith("line 3, column 19")
    file.write_text('{"id": 1}')
    assert "not a list" in llava_json.check(file, tmp_path)[0].message
    file.write_bytes(b'["\xff"]')
    assert "not UTF-8" in llava_json.check(file, tmp_path)[0].message
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps({"id": "a", "conversations": _ask("Hi?")}) + "\n{oops\n\n[\n")
    scan = llava_json.examine(lines, tmp_path)
    assert [f.message.split(":")[0] for f in scan.faults] == [
        "line 2, column 2",
        "line 4, column 2",
    ]
    assert len(scan.records) == 1


def test_refuse_shows_the_first_faults_and_counts_all():
    faults = [llava_json.Fault(str(i), "image exists", "x") for i in range(50)]
    with pytest.raises(errors.SgqlmError, match=r"50 faults.*image exists \(50\)") as caught:
        llava_json.refuse(faults, "data.json")
    assert caught.value.why.count("\n") == 20 and "and 30 more" in caught.value.why


def test_find(tmp_path):
    with pytest.raises(errors.SgqlmError, match="exactly one"):
        llava_json.find(tmp_path)
    with pytest.raises(errors.SgqlmError, match="there is no LLaVA json"):
        llava_json.find(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    assert llava_json.find(tmp_path) == (tmp_path / "x.json", tmp_path)
    (tmp_path / "images").mkdir()
    assert llava_json.find(tmp_path / "x.json") == (tmp_path / "x.json", tmp_path / "images")


def test_real_photographs_have_no_faults():
    for name in ("same_question.json", "conversations.json"):
        file, root = llava_json.find(paths.shared("real") / name)
        assert llava_json.check(file, root) == []
