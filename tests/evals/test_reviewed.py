"""Files that a judge has graded: public ones give their published scores."""

import csv
import gzip
import json

import pytest

from sgqlm import errors
from sgqlm.evals import reviewed
from tests import paths


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def review(key, first, second, **more):
    return {"question_id": key, "category": "c", "tuple": [first, second], **more}


def test_grades_make_up_the_score_and_are_shown(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [review(0, 8, 4), review(1, 4, 2), review(2, -1, -1)]),
        write(tmp_path / "b.jsonl", [review(0, 5, 5), review(1, 5, 5), review(2, 5, 5)]),
    ]
    asked = {str(n): {"question_id": n, "text": f"q{n}", "image": "1.jpg"} for n in range(3)}
    done = reviewed.score("llava_wild", files, asked, given={"1": "said"})
    rows = {name: value for name, value, _ in done.rows}
    assert rows == {"all": pytest.approx((5 / 11 + 1) / 2), "c": rows["all"], "a": 5 / 11, "b": 1}
    assert done.items == {"0": 4.5, "1": 3.5, "2": 2.0}  # the grade of the model
    assert done.groups == {"c": "categories", "a": "runs", "b": "runs"}
    assert done.details["1"] == {
        "question": "q1",
        "image": "1.jpg",
        "given": "said",
        "kinds": ["c"],
        "grades": [[4, 2], [5, 5]],
    }
    told = done.report()
    assert told["judge"] == reviewed.UNNAMED and told["judging"]["unparsable"] == 1
    assert told["judging"]["runs"] == 2 and any("over 3 questions" in n for n in done.notes)


def test_ids_that_do_not_fit_are_told_and_not_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", [review(0, 8, 4), review(9, 1, 9)])
    asked = {str(n): {"question_id": n, "text": f"q{n}"} for n in range(2)}
    done = reviewed.score("llava_wild", [path], asked)
    assert done.score == 0.5 and list(done.items) == ["0"]
    assert done.faults.missing == ["1"] and done.faults.unknown == ["9"]
    with pytest.raises(errors.SgqlmError, match="doubled"):
        reviewed.score("llava_wild", [write(path, [review(0, 8, 4), review(0, 8, 4)])])
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        reviewed.score("llava_wild", [write(path, [review(7, 8, 4)])], asked)


def test_several_judges_are_not_mixed(tmp_path):
    lines = [review(0, 8, 4, judge="one"), review(1, 8, 4, judge="two")]
    with pytest.raises(errors.SgqlmError, match="several judges"):
        reviewed.score("llava_wild", [write(tmp_path / "a.jsonl", lines)])
    files = [write(tmp_path / f"{n}.jsonl", lines[n : n + 1]) for n in range(2)]
    with pytest.raises(errors.SgqlmError, match="several judges"):
        reviewed.score("llava_wild", files)


def test_nothing_that_could_be_read_is_no_score(tmp_path):
    done = reviewed.score("llava_wild", [write(tmp_path / "a.jsonl", [review(0, -1, -1)])])
    assert done.score is None and not done.items and done.report()["judging"]["unparsable"] == 1


def test_the_official_tables_of_mmvet(tmp_path):
    data = json.loads(paths.fixture("llava/mmvet.json").read_text())
    path = tmp_path / "sgq_gpt-4-0613-grade-2runs.json"
    path.write_text(json.dumps(data["grades"]))
    done = reviewed.score("mmvet", [path], data["metadata"])
    assert sum(done.items.values()) / len(done.items) == pytest.approx(done.score)
    assert done.report()["judge"] == "gpt-4-0613"
    for end, text in reviewed.sheets(done, "sgq").items():
        (row,) = csv.DictReader(text.splitlines())
        (wanted,) = data["scores"][f"sgq_gpt-4-0613-{end}"]
        sets = {frozenset(name.split("_")): value for name, value in row.items()}
        for name, value in wanted.items():
            if name != "runs":  # numpy's numbers are written there
                assert sets[frozenset(name.split("_"))] == value, name
        assert row["runs"] == "[58.6, 53.6]" and row[""] == "sgq"
    assert len(reviewed.sheets(done, "sgq")) == 2
    sizes = {name: count for name, _, count in done.rows}
    singles = [v["capability"] == ["rec"] for v in data["metadata"].values()]
    assert sizes["integration rec"] == sum(singles) < (sizes["rec"] or 0)


def test_grades_that_were_not_read_are_counted(tmp_path):
    path = tmp_path / "g.json"
    entry = {"model": ["m"], "content": ["none"], "score": [0.0]}
    path.write_text(json.dumps({"v1_0": entry, "v1_1": {**entry, "content": ["0.0"]}}))
    done = reviewed.score("mmvet", [path])
    assert done.report()["judging"]["unparsable"] == 1 and done.score == 0
    assert not reviewed.sheets(done, "m")
    with pytest.raises(errors.SgqlmError, match="one grade file"):
        reviewed.score("mmvet", [path, path])


def test_mmvet_without_a_grade_that_could_be_read_is_no_score(tmp_path):
    path = tmp_path / "g.json"
    entry = {"model": ["m"], "content": ["none"], "score": [0.0]}
    path.write_text(json.dumps({f"v1_{n}": entry for n in range(2)}))
    done = reviewed.score("mmvet", [path])
    assert done.score is None and not done.items and all(row[1] is None for row in done.rows)
    assert any("not scored: 2 of 2 grades could not be read" in note for note in done.notes)
    assert done.report()["judging"]["unparsable"] == 2 and not reviewed.sheets(done, "m")


def test_graded_files_may_be_packed_or_begin_with_a_mark(tmp_path):
    lines = "".join(json.dumps(review(n, 8, 4)) + "\n" for n in range(2)).encode()
    grades = json.dumps({"v1_0": {"model": ["m"], "content": ["0.5"], "score": [0.5]}}).encode()
    for task, data in (("llava_wild", lines), ("mmvet", grades)):
        for name, end in (
            ("packed.gz", gzip.compress(data)),
            ("mark.json", b"\xef\xbb\xbf" + data),
        ):
            (tmp_path / name).write_bytes(end)
            assert reviewed.score(task, [tmp_path / name]).score == 0.5
