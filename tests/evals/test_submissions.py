import csv
import importlib.util
import json

import pytest

from sgqlm import errors
from sgqlm.evals import submissions
from tests import paths


def say(folder, texts):
    path = folder / "answers.jsonl"
    records = [{"question_id": key, "text": text} for key, text in texts.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_vqav2_has_all_ids_and_processed_answers(tmp_path):
    asked = lines(tmp_path / "q.jsonl", [{"question_id": n, "image": "x"} for n in (3, 1, 2)])
    out = tmp_path / "new" / "out.json"
    faults = submissions.write("vqav2", say(tmp_path, {1: "The Cup.", 3: "Two"}), out, asked)
    assert json.loads(out.read_text()) == [
        {"question_id": 3, "answer": "2"},
        {"question_id": 1, "answer": "cup"},
        {"question_id": 2, "answer": ""},
    ]
    assert faults.missing == ["2"]


def test_vizwiz_as_llava_sent_it(tmp_path):
    folder, out = paths.shared("samples/vizwiz"), tmp_path / "out.json"
    answers, asked = folder / "answers/llava-v1.5-13b.jsonl", folder / "llava_test.jsonl"
    submissions.write("vizwiz", answers, out, asked)
    sent = json.loads((folder / "answers_upload/llava-v1.5-13b.json").read_text())
    assert json.loads(out.read_text()) == sent


def test_every_question_of_vizwiz_needs_an_answer(tmp_path):
    asked = lines(tmp_path / "q.jsonl", [{"question_id": n, "image": f"{n}.jpg"} for n in (1, 2)])
    with pytest.raises(errors.SgqlmError, match="1 questions have no answer") as told:
        submissions.write("vizwiz", say(tmp_path, {1: "a"}), tmp_path / "out.json", asked)
    assert told.value.code == errors.DATA and not (tmp_path / "out.json").exists()
    with pytest.raises(errors.SgqlmError, match="needs its questions"):
        submissions.write("vizwiz", say(tmp_path, {1: "a"}), tmp_path / "out.json")


def test_gqa_and_seed_as_the_official_scripts_write_them(tmp_path):
    official = json.loads(paths.fixture("llava/gqa_sample.json").read_text())
    texts = {item["question_id"]: item["text"] for item in official["answers_jsonl"]}
    out, file = tmp_path / "out", tmp_path / "q.json"
    submissions.write("gqa", say(tmp_path, texts), out)
    assert json.loads(out.read_text()) == official["converted"]
    file.write_text(json.dumps(official["questions"]))
    submissions.write("gqa", say(tmp_path, texts), out, file)
    assert json.loads(out.read_text()) == official["converted"]
    official = json.loads(paths.fixture("llava/seed.json").read_text())
    file.write_text(json.dumps(official["annotation"]))
    texts = {item["question_id"]: item["text"] for item in official["answers"]}
    submissions.write("seed", say(tmp_path, texts), out, file)
    assert [json.loads(line) for line in out.read_text().splitlines()] == official["upload"]


def test_mmvet_names_its_ids(tmp_path):
    submissions.write("mmvet", say(tmp_path, {0: "x = 1", 1: "é"}), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"v1_0": "x = 1", "v1_1": "é"}
    official = tmp_path / "mm-vet.json"
    official.write_text(json.dumps({"v1_0": {"answer": ""}, "v1_1": {"answer": ""}}))
    for key, asked in (("v1_{}", None), ("v1_{}", official), ("{}", official)):
        answers = say(tmp_path, {key.format(0): "x", key.format(1): "y"})
        submissions.write("mmvet", answers, tmp_path / "out.json", asked)
        assert json.loads((tmp_path / "out.json").read_text()) == {"v1_0": "x", "v1_1": "y"}


def test_half_a_surrogate_pair_is_sent_so_that_the_file_is_valid(tmp_path, sheet):
    half = "a \ud83d b"
    submissions.write("mmvet", say(tmp_path, {0: half}), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == {"v1_0": half}
    submissions.write("mmbench", say(tmp_path, {5: half}), tmp_path / "out.tsv", sheet)
    assert "a \ufffd b" in (tmp_path / "out.tsv").read_text("utf-8")
    if importlib.util.find_spec("openpyxl"):
        submissions.write("mmbench", say(tmp_path, {5: half}), tmp_path / "out.xlsx", sheet)


def test_questions_that_stand_twice_and_those_that_are_not_named(tmp_path):
    asked = lines(tmp_path / "q.jsonl", [{"question_id": 1, "image": name} for name in "ab"])
    with pytest.raises(errors.SgqlmError, match="annotated twice"):
        submissions.write("vizwiz", say(tmp_path, {1: "a"}), tmp_path / "out.json", asked)
    with pytest.raises(errors.SgqlmError, match="needs its questions") as told:
        submissions.write("mmbench", say(tmp_path, {5: "A"}), tmp_path / "out.tsv")
    assert "mmbench_dev_20230712.tsv" in told.value.fix


@pytest.fixture
def sheet(tmp_path):
    names = "index question hint A B C D answer category image source l2-category comment split"
    rows = [dict.fromkeys(names.split(), "x") | {"index": str(n)} for n in (5, 1000005)]
    path = tmp_path / "mmbench.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names.split(), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_mmbench_has_the_prediction_in_its_seventh_column(tmp_path, sheet):
    out = tmp_path / "out.tsv"
    faults = submissions.write("mmbench", say(tmp_path, {5: "A"}), out, sheet)
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0] == ["index", "question", *"ABCD", "prediction", "answer", "split"]
    assert [(row[0], row[6]) for row in rows[1:]] == [("5", "A"), ("1000005", "")]
    assert faults.missing == ["1000005"]
    with pytest.raises(errors.SgqlmError, match="the sheet is"):
        submissions.write("mmbench", say(tmp_path, {5: "A"}), tmp_path / "out.json", sheet)


def test_mmbench_as_a_sheet(tmp_path, sheet):
    out = tmp_path / "out.xlsx"
    if importlib.util.find_spec("openpyxl") is None:
        with pytest.raises(errors.SgqlmError, match="openpyxl") as told:
            submissions.write("mmbench", say(tmp_path, {5: "A"}), out, sheet)
        assert ".tsv" in told.value.fix and not out.exists()
        return
    import openpyxl

    submissions.write("mmbench", say(tmp_path, {5: "A"}), out, sheet)
    rows = list(openpyxl.load_workbook(out).active.iter_rows(values_only=True))
    assert rows[0][6] == "prediction" and rows[1][:1] == (5,) and rows[1][6] == "A"
    submissions.write("mmbench", say(tmp_path, {5: "A\x07\x1b.\tB"}), out, sheet)
    rows = list(openpyxl.load_workbook(out).active.iter_rows(values_only=True))
    assert rows[1][6] == "A.\tB"
