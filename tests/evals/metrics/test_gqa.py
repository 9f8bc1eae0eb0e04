import json

import pytest

from sgqlm.evals.metrics import gqa
from tests import paths


@pytest.fixture(scope="module")
def official():
    return json.loads(paths.fixture("llava/gqa_sample.json").read_text())


def test_answers_are_converted_as_llava_does(official):
    said = [
        {"questionId": item["question_id"], "prediction": gqa.convert(item["text"])}
        for item in official["answers_jsonl"]
    ]
    assert said == official["converted"]


def test_parts_of_the_accuracy(official):
    done = gqa.score(official["answers_jsonl"], official["questions"])
    assert done == gqa.score(official["converted"], official["questions"])
    assert done["accuracy"] == pytest.approx(5 / 6) and done["count"] == 6
    assert done["binary"] == pytest.approx(2 / 3) and done["open"] == 1
    assert done["by_structural"]["choose"] == [0, 1] and done["by_semantic"]["rel"] == [0.5, 2]
    assert done["by_steps"] == {"1": [1, 2], "2": [1, 2], "3": [0.5, 2]}
    assert done["by_words"]["4"] == [0.5, 2] and done["distribution"] == 0


def test_the_distribution_is_a_chi_square_of_each_group():
    def question(answer, group):
        types = {"structural": "query", "semantic": "attr"}
        return {
            "answer": answer,
            "types": types,
            "groups": {"global": group},
            "question": "what is it",
            "semantic": [{"operation": "select", "argument": "a"}],
        }

    questions = {str(at): question("red", "color") for at in range(4)}
    questions |= {"4": question("dog", "animal"), "5": question("up", None)}
    said = dict.fromkeys(questions, "red") | {"0": "blue", "1": "blue"}
    # color: (2 - 4)^2 / 4 = 1 of 4 questions; animal: (0 - 1)^2 / 1 = 1 of one; the mean is 1
    assert gqa.score(said, questions)["distribution"] == pytest.approx(1 / 100)


def test_only_balanced_questions_count_and_all_of_them_need_an_answer(official):
    questions = dict(official["questions"])
    texts = {item["question_id"]: item["text"] for item in official["answers_jsonl"]}
    wrong = texts.pop("20200005")
    with pytest.raises(ValueError, match="1 questions have no answer, such as 20200005"):
        gqa.score(texts, questions)
    questions["20200005"] = questions["20200005"] | {"isBalanced": False}
    assert gqa.score(texts, questions)["accuracy"] == 1
    with pytest.raises(ValueError, match="20200005 stands twice"):
        gqa.score([{"question_id": "20200005", "text": wrong}] * 2, questions)
