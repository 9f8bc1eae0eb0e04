import json

import pytest

from sgqlm.evals.metrics import textvqa
from tests import paths


@pytest.fixture(scope="module")
def official():
    return json.loads(paths.fixture("llava/vqa.json").read_text())


def test_normal_forms_are_those_of_m4c(official):
    for case in official["normalisation"]:
        assert textvqa.normalise(case["text"]) == case["m4c"]
    for case in official["items"]:
        assert textvqa.normalise(case["prediction"]) == case["m4c_norm_pred"]
        assert [textvqa.normalise(text) for text in case["answers"]] == case["m4c_norm_answers"]


def test_accuracies_are_those_of_m4c(official):
    for case in official["items"]:
        found = textvqa.accuracy(case["prediction"], case["answers"])
        assert found == pytest.approx(case["m4c_score"], abs=1e-9)


def test_answers_are_always_normalised_and_ten():
    assert textvqa.accuracy("Yes", ["yes"] * 10) == 1
    assert textvqa.accuracy("Yes", ({"answer": "yes"} for _ in range(10))) == 1
    with pytest.raises(ValueError, match="9 human answers, 10 are needed"):
        textvqa.accuracy("yes", ["yes"] * 9)


def test_submissions_of_llava_are_reproduced():
    folder = paths.shared("samples/vizwiz")
    lines = (folder / "answers/llava-v1.5-13b.jsonl").read_text().splitlines()
    sent = json.loads((folder / "answers_upload/llava-v1.5-13b.json").read_text())
    texts = [json.loads(line)["text"] for line in lines]
    assert [textvqa.normalise(text) for text in texts] == [item["answer"] for item in sent]
