import csv
import json

import pytest

from sgqlm import errors
from sgqlm.evals.metrics import mmvet
from tests import paths


def golden():
    return json.loads(paths.fixture("llava/mmvet.json").read_text())


def test_the_official_tables():
    data = golden()
    found = mmvet.summarise(data["grades"], data["metadata"], num_runs=2)
    singles, joints = {}, {}
    for name, (row,) in data["scores"].items():
        (joints if "cap-int" in name else singles).update(row)
    rounded = found.rounded()
    for name in (*mmvet.CAPABILITIES, "total", "std"):
        assert str(rounded[name]) == singles[name], name
    names = [n for n in joints if n not in ("", "total", "std", "runs")]
    by_set = {frozenset(n.split("_")): v for n, v in found.integrations.items()}
    assert {n: str(round(by_set[frozenset(n.split("_"))], 1)) for n in names} == {
        n: joints[n] for n in names
    }
    assert len(names) == len(by_set)
    assert [round(run, 1) for run in found.runs] == [58.6, 53.6]
    assert found.counts["total"] == 28 and found.counts["math"] == 8


def test_published_grades_give_their_published_score():
    folder = paths.shared("samples/mmvet")
    grades = json.loads((folder / "results/llava-v1.5-13b_gpt-4-grade-1runs.json").read_text())
    with open(folder / "results/llava-v1.5-13b_gpt-4-cap-score-1runs.csv", encoding="utf-8") as f:
        (row,) = csv.DictReader(f)
    found = mmvet.summarise(grades)
    assert found.counts["total"] == mmvet.NUM_QUESTIONS
    assert str(found.rounded()["total"]) == row["total"] == "36.1" and found.std == 0
    # an excerpt of the metadata: the others are told, and are in no number
    metadata = json.loads((folder / "mm-vet.json").read_text())
    part = mmvet.summarise(grades, metadata)
    assert part.counts["total"] == 7 and len(part.unknown) == 211
    assert set(part.capabilities) == {"rec", "ocr", "know", "spat", "math"}


def test_questions_without_a_grade_are_told():
    metadata = {f"v1_{n}": {"capability": ["ocr"]} for n in range(3)}
    grades = {"v1_0": {"score": [0.5, 1.0]}, "v1_1": {"score": [0.1]}, "v1_9": {"score": [1.0]}}
    found = mmvet.summarise(grades, metadata)
    assert found.needs_judge == ["v1_2"] and found.unknown == ["v1_9"]
    assert found.runs == pytest.approx([30.0])
    found = mmvet.summarise(grades, metadata, num_runs=2)
    assert found.needs_judge == ["v1_1", "v1_2"] and found.runs == pytest.approx([50, 100])
    assert found.std == pytest.approx(25)
    nothing = mmvet.summarise({}, metadata)
    assert nothing.total is None and nothing.capabilities == {} and len(nothing.needs_judge) == 3
    assert nothing.rounded() == {"total": None, "std": None}


@pytest.mark.parametrize("entry", [{"score": [1.5]}, {"score": ["a"]}, {}, {"score": [None]}])
def test_grades_of_another_form(entry):
    with pytest.raises(errors.SgqlmError, match="cannot be used"):
        mmvet.summarise({"v1_0": entry})
    with pytest.raises(errors.SgqlmError, match="no capability"):
        mmvet.summarise({}, {"v1_0": {"question": "x?"}})


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.5", 0.5), ("1", 1.0), ("0.3 because", 0.3), ("1.0\n", 1.0), (" 0.5", None),
        ("", None), ("1.1", None), ("-0.1", None), ("nan", None), ("0.5.", None), ("good", None),
    ],
)  # fmt: skip
def test_the_grade_of_a_reply(reply, score):
    assert mmvet.parse(reply) == score


def run(*replies):
    asked, left = [], list(replies)

    def ask(text, temperature):
        asked.append((text, temperature))
        return left.pop(0)

    return mmvet.grade("q", "a<OR>b", "p", ask=ask, head="H"), asked


def test_a_reply_that_cannot_be_read_is_asked_for_again_and_warmer():
    found, asked = run("0.5 x")
    assert found == ("0.5", 0.5, True) and asked == [("H\nq | a <OR> b | p | ", 0.0)]
    found, asked = run("?", "?", "?", "1.0")
    assert found == ("1.0", 1.0, True)
    assert [temperature for _, temperature in asked] == [0.0, 0.0, 0.5, 1.0]
    assert all(text == "H\nq | a <OR> b | p | " + mmvet.AGAIN for text, _ in asked[1:])
    # as published, the reply to the fifth retry is not read any more
    found, asked = run("?", "?", "?", "?", "?", "1.0")
    assert found == ("1.0", 0.0, False) and asked[-1][1] == 2.0


def test_the_prompt_is_read_from_the_official_program(tmp_path):
    program = tmp_path / "mm-vet_evaluator.py"
    program.write_text('import nothing_there\nprompt = """Table\n"""\nother = 1\n')
    assert mmvet.official_head(program) == "Table\n"
    book = tmp_path / "mm-vet_evaluator.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["prompt = 'no'"]},
        {"cell_type": "code", "source": ["!pip install x\n", "a = 1"]},
        {"cell_type": "code", "source": ["prompt = 'From the book'\n"]},
    ]
    book.write_text(json.dumps({"cells": cells}))
    assert mmvet.official_head(book) == "From the book"
    (tmp_path / "own.txt").write_text("Own table\n")
    assert mmvet.official_head(tmp_path / "own.txt") == "Own table\n"
    program.write_text("x = 1\n")
    book.write_text("{}")
    for path in (program, book, tmp_path / "none.txt"):
        with pytest.raises(errors.SgqlmError, match="prompt"):
            mmvet.official_head(path)


def test_our_prompt_has_seven_examples():
    rows = [line for line in mmvet.HEAD.split("\n") if line.count(" | ") == 3]
    assert len(rows) == 9 and all(
        mmvet.parse(row.rpartition(" | ")[2]) is not None for row in rows[2:]
    )
