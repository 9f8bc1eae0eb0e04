"""Reading LLaVA json, and the report of all faults of a file at once."""

import json
import os
import pickle

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
        {"id": "shape", "image": ["a.png", "a.png"], "conversations": good},
        {"id": "turns", "conversations": [{"from": "narrator", "value": "hi"}]},
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


def test_what_published_files_have_is_read(folder):
    """Each quirk is of an official file, or of one that others made in its form."""
    (folder / "images" / "7.gif").write_bytes((folder / "images" / "a.png").read_bytes())
    good = _ask("<image>\nIs it?")
    swapped = {"human": "user", "gpt": "assistant"}
    entries = [
        {"id": 0, "image": "a.png", "image_h": 2, "box": [[[1, 2]], []], "conversations": good},
        {"id": "null", "image": None, "conversations": _ask("Hi?")},
        {"id": "no path", "image": "", "model": "", "conversations": _ask("Hi?")},
        {"id": "one", "image": ["a.png"], "conversations": good},
        {"id": "end", "image": "a.png", "conversations": _ask("Render a summary.\n<image>")},
        {"id": "roles", "image": "a.png", "conversations": [
            {"from": swapped[turn["from"]], "value": turn["value"], "weight": 1} for turn in good
        ]},
        {"id": "gpt first", "conversations": _ask("Hi?")[1:] + _ask("Hi?") * 2},
        {"id": "suffix", "image": "7.jpg", "conversations": good},
        {"image": "sub/b.jpg", "conversations": good},
    ]  # fmt: skip
    scan = llava_json.examine(_write(folder, entries), folder / "images")
    assert [(f.record, f.rule, f.drops) for f in scan.faults] == [
        ("gpt first", "opening answer", False),
        ("suffix", "image suffix", False),
    ]
    found = list(scan.records)
    assert [r.id for r in found] == [
        "0", "null", "no path", "one", "end", "roles", "gpt first", "suffix", "#8",
    ]  # fmt: skip
    assert [r.key for r in found] == [
        "a.png", "", "", "a.png", "a.png", "a.png", "", "7.gif", "sub/b.jpg",
    ]  # fmt: skip
    assert found[5].turns == good and len(found[6].turns) == 4
    assert found[7].image == (folder / "images" / "7.gif").resolve()
    assert scan.records[3] == found[3] and scan.records[-2:] == found[-2:]
    assert [r.id for r in pickle.loads(pickle.dumps(scan.records))] == [r.id for r in found]
    (group,) = [g for g in scan.folders if not g.name]
    assert (group.needed, group.renamed) == (2, 1)


def test_a_file_of_questions_is_no_training_data(folder):
    file = folder / "qa.jsonl"
    rows = [
        {"id": "1", "image": "a.png", "instruction": "Is it?", "output": "Yes.", "type": "conv"},
        {"question_id": 1, "image": "a.png", "text": "Is it?", "category": "conv"},
    ]
    for row in rows:
        file.write_text("\n".join([json.dumps(row)] * 3))
        scan = llava_json.examine(file, folder / "images")
        (fault,) = scan.faults
        assert scan.total == 3 and not scan.records and fault.drops and not fault.record
        assert ", ".join(row) in fault.message and "not of training" in fault.message


def test_genuine_excerpts(tmp_path):
    """All texts pass; only the images are not here."""
    counts = {"llava_test_CQM-A.json": (40, 22), "ferretui_train_data_example.json": (3, 0)}
    for name, (total, text_only) in counts.items():
        scan = llava_json.examine(paths.shared("samples/llava_json") / name, tmp_path)
        assert scan.total == total and len(scan.records) == text_only
        assert {fault.rule for fault in scan.faults} == {"image exists"}
    scan = llava_json.examine(
        paths.shared("samples/llava_json/coco2014_val_gpt4_qa_30x3.jsonl"), tmp_path
    )
    assert scan.total == 45 and "instruction, output" in scan.faults[0].message


def test_excluded_records_are_counted_and_their_faults_are_not(folder):
    good = _ask("<image>\nIs it?")
    entries = [
        {"id": "kept", "image": "a.png", "conversations": good},
        {"id": "leak", "image": "sub/b.jpg", "conversations": good},
        {"id": "leak, gone", "image": "sub/c.jpg", "conversations": _ask("", "")},
        {"id": "text", "conversations": _ask("Hi?")},
    ]
    scan = llava_json.examine(
        _write(folder, entries),
        folder / "images",
        exclude=lambda image: ("list",) if image.startswith("sub/") else (),
    )
    assert not scan.faults and scan.total == 4
    assert [r.id for r in scan.records] == ["kept", "text"]
    assert scan.excluded == [
        ("leak", "sub/b.jpg", ("list",)),
        ("leak, gone", "sub/c.jpg", ("list",)),
    ]


def test_a_json_cut_in_the_middle_has_no_usable_records(folder):
    file = _write(folder, [{"id": i, "conversations": _ask("Hi?")} for i in range(5)])
    file.write_text(file.read_text()[:-30])
    scan = llava_json.examine(file, folder / "images")
    assert len(scan.records) == 0 and [f.rule for f in scan.faults] == ["json"]


def test_a_json_that_changes_while_it_is_used_is_refused(folder):
    file = _write(folder, [{"id": i, "conversations": _ask("Hi?")} for i in range(5)])
    found = llava_json.read(file, folder / "images")
    assert found[4].id == "4"
    file.write_text(file.read_text().replace("Hi?", "Ho, what?"))
    with pytest.raises(errors.SgqlmError, match="changed while it was in use"):
        list(found)


def test_probe_takes_the_folder_in_which_the_images_lie(folder):
    file = _write(folder, [{"id": 1, "image": "sub/b.jpg", "conversations": []}, 7])
    roots = [folder, folder / "images" / "sub", folder / "images"]
    assert llava_json.probe(file, roots) == folder / "images"
    assert llava_json.probe(file, roots[:2]) == folder


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


def test_an_answer_of_blanks_is_empty(folder):
    entries = [{"id": "blank", "image": "a.png", "conversations": _ask("<image>\nIs it?")}]
    entries[0]["conversations"][1]["value"] = " \n\t"
    faults = llava_json.check(_write(folder, entries), folder / "images")
    assert [(f.rule, f.message) for f in faults] == [
        ("no empty text", "turn 1: the text is blanks alone")
    ]
    with pytest.raises(errors.SgqlmError, match=r"^1 fault in the data"):
        llava_json.refuse(faults, "data.json")


@pytest.mark.parametrize(
    "found",
    [
        {"201": {"question": "Is it red?", "imageId": "n1"}},  # GQA
        {"info": {}, "questions": [{"question_id": 1, "question": "?", "image_id": 2}]},  # VQAv2
        {"info": {}, "annotations": [{"question_id": 1, "image_id": 2, "answers": []}]},
    ],
)
def test_questions_in_an_object_are_told(folder, found):
    faults = llava_json.check(_write(folder, found), folder / "images")
    assert len(faults) == 1 and "a file of questions or answers" in faults[0].message


def test_faults_use_no_words_of_python(folder):
    entries = [None, "a", 3, {"id": "x", "conversations": {}}, {"id": "y", "conversations": True}]
    faults = llava_json.check(_write(folder, entries), folder / "images")
    assert [f.message for f in faults] == [
        "it is null, not an object",
        "it is a text, not an object",
        "it is a number, not an object",
        "`conversations` is an object, not a list",
        "`conversations` is true or false, not a list",
    ]
