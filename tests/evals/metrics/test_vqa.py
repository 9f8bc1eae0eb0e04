import json

import pytest

from sgqlm.evals.metrics import vqa
from tests import paths


@pytest.fixture(scope="module")
def official():
    return json.loads(paths.fixture("llava/vqa.json").read_text())


def test_normal_forms_are_the_official_ones(official):
    for case in official["normalisation"]:
        assert vqa.normalise(case["text"]) == case["official_vqaeval"]
    for case in official["items"]:
        assert vqa.normalise(case["prediction"]) == case["official_vqaeval_norm_pred"]


def test_accuracies_are_the_official_ones(official):
    for case in official["items"]:
        found = 100 * vqa.accuracy(case["prediction"], case["answers"])
        assert found == pytest.approx(case["official_vqaeval_acc"], abs=1e-9)


@pytest.mark.parametrize(("equal", "wanted"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_each_human_answer_is_left_out_in_turn(equal, wanted):
    answers = ["cat"] * equal + ["dog"] * (10 - equal)
    assert vqa.accuracy("cat", answers) == pytest.approx(wanted)


def test_unanimous_answers_are_compared_as_they_are():
    assert vqa.accuracy("Yes", ["yes"] * 10) == 0
    assert vqa.accuracy("yes\n", ["yes"] * 10) == 1
    assert vqa.accuracy("Yes", ["yes"] * 9 + ["no"]) == 1
    assert vqa.accuracy("yes", ["yes", " yes"] * 5) == 1  # blanks around do not make them differ


def test_oddities_of_the_official_program():
    assert vqa.normalise("a." * 40) == "a" * 32 + "a." * 7 + "a."  # 32 periods and no more
    assert vqa.normalise("1.5 m.") == "1.5 m"
    assert vqa.normalise("somebody'd") == "somebodyd" and vqa.normalise("Im") == "im"
    assert vqa.normalise("can't won't we've".replace("'", "")) == "can't won't we've"
    assert vqa.normalise("shes y'allll") == "shes y'all'll"
    assert vqa.normalise("red-bus") == "red bus" and vqa.normalise("red- bus") == "red bus"
    assert vqa.normalise("a-b 1,2") == "ab 12"  # a comma between digits: every sign is left out
    with pytest.raises(ValueError, match="no human answers"):
        vqa.accuracy("cat", [])


def test_answers_may_be_official_records_or_a_generator():
    official = [{"answer": "yes", "answer_id": n} for n in range(9)] + [{"answer": "no"}]
    assert (
        vqa.accuracy("Yes", official) == vqa.accuracy("Yes", (a["answer"] for a in official)) == 1
    )
