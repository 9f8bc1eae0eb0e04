import gzip
import json

import pytest

from sgqlm import errors
from sgqlm.evals import tables


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", lines({"question_id": 1, "text": "No"}, {"question_id": 2, "text": ""})),
        ("a.json", lines({"question_id": 1, "text": "No"}, {"question_id": 2, "text": ""})),
        ("a.jsonl", '[{"questionId": 1, "prediction": "No"}, {"id": "2", "answer": ""}]'),
        ("a.json", '{"1": "No", "2": ""}'),
        ("a.jsonl", '{"correct": [{"id": 1, "pred": "No"}], "incorrect": [{"id": 2, "pred": ""}]}'),
        ("a.json", '{"acc": 1, "results": {"1": 0}, "outputs": {"1": "No", "2": ""}}'),
        ("a.tsv", "question_id\tanswer\n1\tNo\n2\t\n"),
        ("a.tsv.gz", "question_id\tanswer\r\n1\tNo\r\n2\t\r\n"),
        ("a.csv", "index,prediction\n1,No\n2,\n"),
        ("a.jsonl", lines({"task": "pope"}, {"key": 1, "text": "No"}, {"key": 2, "text": None})),
    ],
)
def test_answers_in_every_published_format(tmp_path, name, text):
    found = tables.answers(write(tmp_path / name, text))
    assert [(answer.key, answer.text) for answer in found] == [("1", "No"), ("2", "")]


def test_one_line_is_one_answer_and_the_truth_is_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"question_id": 1, "text": "A", "prompt": "q"}))
    (found,) = tables.answers(path)
    assert (found.key, found.prompt, found.truth) == ("1", "q", None)
    path = write(tmp_path / "a.tsv", "id\tlabel\tanswer\n1\tyes\tNo\n")
    assert tables.answers(path)[0].truth == "yes"


def test_a_single_line_with_an_image_is_one_record(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"image": "V_1.jpg", "answer": "dog"}))
    assert [(a.key, a.text) for a in tables.answers(path)] == [("V_1.jpg", "dog")]
    path = write(tmp_path / "b.jsonl", lines({"image": "V_1.jpg", "answers": ["dog"]}))
    assert tables.items(path, ("answers",)) == [{"image": "V_1.jpg", "answers": ["dog"]}]
    path = write(tmp_path / "c.jsonl", lines({"task": "vizwiz", "model_id": "m"}))
    with pytest.raises(errors.SgqlmError) as told:
        tables.answers(path)
    assert "no answers under its first line" in told.value.why


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jsonl", "", "empty"),
        ("a.jsonl", lines({"id": 1, "text": "A"}) + '{"id": 2, "te', "line 2"),
        ("a.jsonl", lines({"id": 1, "text": "A"}, {"id": 2}), "record 2 has no answer"),
        ("a.jsonl", lines({"text": "A"}, {"text": "B"}), "record 1 has no id"),
        ("a.json", "[1, 2]", "record 1 is no object"),
        ("a.json", "7", "neither records"),
        ("a.json", '{"1": {"a": 1}}', "no list of records"),
        ("a.tsv", "id\ttext\n1\tA\n2\n", "row 3"),
        ("a.tsv", "id\ttext\n", "no rows"),
        ("a.tsv", "id\ttext\n1\ta\rb\n", "line 2: new-line character"),
        ("a.jsonl", '{"text": "yes"}\n', "record 1 has no id (a field question_id"),
        ("a.jsonl", '{"text": null, "prompt": "q"}\n', "record 1 has no id"),
        ("a.txt", "nonsense", "Expecting value"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path, name, text, why):
    with pytest.raises(errors.SgqlmError, match="cannot be read") as told:
        tables.answers(write(tmp_path / name, text))
    assert why in told.value.why and told.value.code == errors.DATA


def test_packed_and_binary_files_that_are_broken(tmp_path):
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n1\tA\n" * 99)[:-9])
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("a.tsv.gz", "b.jsonl"):
        with pytest.raises(errors.SgqlmError, match="cannot be read"):
            tables.answers(tmp_path / name)
    with pytest.raises(errors.SgqlmError, match="no such file"):
        tables.answers(tmp_path / "none")


def test_long_cells_and_annotations_of_another_kind(tmp_path):
    rows = tables.items(write(tmp_path / "a.tsv", "index\timage\n1\t" + "x" * 200_000 + "\n"))
    assert len(rows[0]["image"]) == 200_000
    path = write(tmp_path / "a.json", '{"info": {}, "annotations": [{"question_id": 1}]}')
    assert tables.items(path) == [{"question_id": 1}]
    with pytest.raises(errors.SgqlmError) as told:
        tables.items(path, ("answers",))
    assert "record 1 has no field `answers`" in told.value.why
