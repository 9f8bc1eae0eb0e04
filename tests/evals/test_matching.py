import json

import pytest

from sgqlm import errors
from sgqlm.evals import matching
from tests.evals import test_judged

ROWS = [
    {"index": "7", "question": "What?", "A": "a dog", "B": "a cat", "C": "", "prediction": "paws"},
    {"index": "1000007", "question": "What?", "A": "a cat", "B": "a dog", "prediction": "ears"},
]


def test_the_judge_sees_question_options_and_answer():
    text = matching.prompt(ROWS[0])
    assert text.startswith(matching.HEAD)
    assert text.endswith("\nQuestion: What?\nOptions:\nA. a dog\nB. a cat\nAnswer: paws\nLetter:")


def test_letters_are_read_kept_and_not_asked_for_again(tmp_path):
    path = tmp_path / "m.jsonl"
    by = test_judged.Listed("B", "hm", "no idea", "well")
    found = list(matching.letters(ROWS, by, path))
    assert [line["letter"] for line in found] == ["B", ""]
    assert [temperature for *_, temperature in by.asked] == [0, 0, 0.5, 1.0]
    assert list(matching.letters(ROWS, test_judged.Listed(), path)) == found
    assert json.loads(path.read_text().splitlines()[1])["content"] == "well"
    with pytest.raises(errors.SgqlmError, match="differs in judge"):
        list(matching.letters(ROWS, test_judged.Listed(name="other"), path))
    changed, by = [{**ROWS[0], "prediction": "fur"}, ROWS[1]], test_judged.Listed("A")
    again = list(matching.letters(changed, by, path))
    assert {line["index"]: line["letter"] for line in again} == {"7": "A", "1000007": ""}
    path.write_text('{"index": "7"}\n')
    with pytest.raises(errors.SgqlmError, match="letter"):
        list(matching.letters(ROWS, test_judged.Listed(), path))
