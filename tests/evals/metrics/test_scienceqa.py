import json

import pytest

from sgqlm.evals.metrics import scienceqa
from tests import paths


@pytest.fixture(scope="module")
def official():
    return json.loads(paths.fixture("llava/scienceqa.json").read_text())


def test_scores_are_the_official_ones(official):
    done = scienceqa.score(
        official["answers"], official["problems"], official["pid_splits"]["test"]
    )
    assert done["parsed"] == official["parsed_answer"] and done["chosen"] == official["pred_idx"]
    assert done["correct_ids"] == official["correct_ids"]
    assert (done["correct"], done["count"]) == (official["correct"], official["count"])
    assert 100 * done["accuracy"] == pytest.approx(official["acc"])
    told = f"Accuracy: {100 * done['accuracy']:.2f}%, IMG-Accuracy: "
    assert f"{told}{100 * done['image_accuracy']:.2f}%" in official["official_stdout"]
    assert done["missing"] == ["121"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E. x", "E"),
        ("F. x", "FAILED"),
        ("F. The answer is B.", "B"),
        ("A.", "FAILED"),
        ("(A)", "FAILED"),
        ("The answer is B", "FAILED"),
        ("The answer is Bx", "B"),
        ("", "FAILED"),
    ],
)
def test_nothing_is_stripped(text, letter):
    assert scienceqa.parse(text) == letter


def test_a_letter_beyond_the_choices_and_a_missing_answer_are_wrong():
    problems = {"1": {"choices": ["x", "y"], "answer": 0}, "2": {"choices": ["x"], "answer": 0}}
    done = scienceqa.score({"1": "C"}, problems)
    assert done["accuracy"] == 0 and done["chosen"] == {"1": -1, "2": -1}
    assert done["image_accuracy"] is None
    done = scienceqa.score({"1": {"text": "A", "prompt": "<image>\nq"}}, problems)
    assert (done["accuracy"], done["image_accuracy"]) == (0.5, 1)  # 2 is not an image item


def test_the_published_answers_have_their_score():
    file = paths.shared("samples/scienceqa/full_llava-v1.5-13b.tsv")
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    problems = {r[0]: {"choices": "ABCDE", "answer": "ABCDE".index(r[1])} for r in rows}
    answers = {r[0]: {"text": r[2], "is_multimodal": r[3]} for r in rows}
    done = scienceqa.score(answers, problems)
    assert round(100 * done["image_accuracy"], 1) == 71.6 and done["image_count"] == 2017
    assert 100 * done["accuracy"] == pytest.approx(74.39283187927376)


def test_a_file_of_splits_may_stand_for_the_only_one_it_has(official):
    given = (official["answers"], official["problems"])
    wanted = scienceqa.score(*given, official["pid_splits"]["test"])
    assert scienceqa.score(*given, {"test": official["pid_splits"]["test"]}) == wanted
    with pytest.raises(ValueError, match="ids of one split"):
        scienceqa.score(*given, {"train": [], "test": []})
