import json
import pathlib

import pytest

from sgqlm import errors
from sgqlm.evals import answers
from sgqlm.evals.metrics import llava_bench
from tests import paths


def golden():
    return json.loads(paths.fixture("llava/llava_bench.json").read_text())


def test_scores_of_a_reply():
    for case in golden()["parse_score"]:
        assert llava_bench.parse_score(case["review"]) == case["scores"], case
    assert llava_bench.parse_score("nan 5") == llava_bench.parse_score("8 7 9") == [-1, -1]


def test_the_official_summary():
    expected = {
        name: tuple(map(float, numbers))
        for name, *numbers in (
            line.split() for line in golden()["summary_stdout"].split("\n") if line.count(" ") == 3
        )
    }
    found = llava_bench.summarise(golden()["reviews"])
    assert {n: (g.score, g.reference, g.model) for n, g in found.items()} == expected
    assert found["all"].count == 24 and found["all"].unparsable == 1
    assert found["llava_bench_complex"].unparsable == 1


def test_published_reviews_give_their_published_score():
    folder = paths.shared("samples/llava_bench_wild")
    found = []
    for number in (1, 2, 3):
        path = folder / f"reviews/llava-v1.5-13b-eval{number}.jsonl"
        reviews = list(answers.iterate(path))
        found.append(llava_bench.summarise(reviews))
        # what the judge wrote gives the scores that were stored
        texts = [{k: v for k, v in line.items() if k != "tuple"} for line in reviews]
        assert llava_bench.summarise(texts) == llava_bench.summarise(reviews)
    assert [summary["all"].score for summary in found] == [72.8, 72.7, 72.1]
    assert all(s["all"].count == 60 for s in found)
    assert round(llava_bench.over_runs(found)["mean"], 1) == 72.5


def test_reviews_of_the_older_form():
    path: pathlib.Path = paths.shared("samples/llava_bench_text/review_bard_vicuna-13b.jsonl")
    summary = llava_bench.summarise(answers.iterate(path))
    assert set(summary) == {"all"} and summary["all"].count == 40
    assert 80 < summary["all"].score < 120


def test_reviews_that_are_doubled_or_broken():
    line = {"question_id": 1, "tuple": [8, 4]}
    summary = llava_bench.summarise([line])
    assert summary["all"].score == 50.0 and summary["all"].count == 1
    for lines, told in (
        ([line, line], "doubled"),
        ([{"question_id": 1, "tuple": [8]}], "no two scores"),
        ([{"question_id": 1, "tuple": ["a", "b"]}], "no two scores"),
        ([{"question_id": 1, "tuple": [8, float("nan")]}], "no two scores"),
        ([{"question_id": 1, "tuple": None}], "no two scores"),
        ([{"question_id": 1}], "no review"),
        ([{"tuple": [1, 2]}], "no question_id"),
    ):
        with pytest.raises(errors.SgqlmError, match=told):
            llava_bench.summarise(lines)


def test_replies_that_all_fail_are_no_score_of_100():
    group = llava_bench.summarise([{"question_id": 1, "content": "sorry"}])["all"]
    assert group.score is None and group.unparsable == 1
    assert llava_bench.over_runs([]) == {}


QUESTIONS = [
    {"question_id": 0, "image": "001.jpg", "category": "conv", "text": "What is it?"},
    {"question_id": 1, "image": "001.jpg", "category": "detail", "text": "Describe it."},
]
CONTEXT = [{"id": 1, "image": "001.jpg", "caption": "A hill."}]
REFERENCES = [{"question_id": 0, "text": "A hill by the sea."}, {"question_id": 1, "text": "Hill."}]
GIVEN = [
    {"question_id": 1, "text": "Green.", "answer_id": "x"},
    {"question_id": 0, "text": "A lake."},
]


def test_the_question_for_the_judge():
    rules = {
        "llava_bench_conv": {"role": "Assistant", "prompt": "Rate."},
        "llava_bench_detail": {"role": "Model", "prompt": "Rate all."},
    }
    first, second = llava_bench.pair(QUESTIONS, CONTEXT, REFERENCES, GIVEN, rules=rules)
    assert first.content == (
        "[Context]\nA hill.\n\n[Question]\nWhat is it?\n\n"
        "[Assistant 1]\nA hill by the sea.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nA lake.\n\n[End of Assistant 2]\n\n[System]\nRate.\n\n"
    )
    assert "[Model 2]\nGreen.\n\n[End of Model 2]" in second.content
    assert (second.category, second.answer1_id, second.answer2_id) == ("llava_bench_detail", 1, "x")
    several = [{"image": "001.jpg", "caption": ["A hill.", "The sea."]}]
    own = llava_bench.pair(QUESTIONS, several, REFERENCES, GIVEN)[0]
    assert "A hill.\nThe sea.\n\n" in own.content and llava_bench.RULE in own.content


def test_files_that_do_not_fit():
    for change, told in (
        ({"answers": GIVEN[:1]}, "1 questions without, 0 that nobody asked"),
        ({"answers": [*GIVEN, {"question_id": 7, "text": ""}]}, "0 questions without, 1 that"),
        ({"answers": [*GIVEN, GIVEN[0]]}, "answers have 1 doubled"),
        ({"answers": [{"question_id": 0}]}, "no text"),
        ({"answers": [{"question_id": 0, "text": None}]}, "is no text"),
        ({"references": REFERENCES[:1]}, "reference answers do not fit"),
        ({"contexts": []}, "no context for 001.jpg"),
        ({"rules": {}}, "no rule for llava_bench_conv"),
    ):
        given = {
            "questions": QUESTIONS,
            "contexts": CONTEXT,
            "references": REFERENCES,
            "answers": GIVEN,
        }
        with pytest.raises(errors.SgqlmError, match=told):
            llava_bench.pair(**{**given, **change})
