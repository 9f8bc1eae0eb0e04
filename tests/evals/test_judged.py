import json

import pytest

from sgqlm import errors
from sgqlm.evals import judge, judged
from sgqlm.evals.metrics import llava_bench, mmvet
from tests import chat_service

CASES = [
    llava_bench.Case(0, "llava_bench_conv", "first?", "r0", "a0"),
    llava_bench.Case(1, "llava_bench_detail", "second?", "r1", "a1"),
]
METADATA = {
    "v1_0": {"question": "x?", "answer": "1<AND>2", "capability": ["ocr", "math"]},
    "v1_1": {"question": "y?", "answer": "b", "capability": ["rec"]},
}
PREDICTIONS = {"v1_0": "one", "v1_1": "bee"}


class Stopped(Exception):
    """The end of a list of replies."""


class Listed:
    """A judge that takes its replies from a list and stops where it ends."""

    def __init__(self, *replies, name="listed"):
        """Keep the replies."""
        self.replies, self.asked, self.name = list(replies), [], name

    def complete(self, messages, *, max_tokens, temperature):
        """Give the next reply."""
        if not self.replies:
            raise Stopped
        self.asked.append((messages, max_tokens, temperature))
        return self.replies.pop(0)


def test_reviews_have_the_form_of_llava_and_are_kept(tmp_path):
    path = tmp_path / "reviews" / "model.jsonl"
    by = Listed("8 6\nGood.")
    with pytest.raises(Stopped):
        list(judged.review(CASES, by, path))
    messages, max_tokens, temperature = by.asked[0]
    assert messages[0] == {"role": "system", "content": llava_bench.SYSTEM}
    assert messages[1]["content"] == "first?" and (max_tokens, temperature) == (1024, 0.2)
    path.write_text(path.read_text() + '{"question_id": 1, "con')  # killed while it wrote
    second = Listed("no numbers")
    found = list(judged.review(CASES, second, path))
    assert len(second.asked) == 1
    assert [line["tuple"] for line in found] == [[8.0, 6.0], [-1, -1]]
    assert {"id", "answer1_id", "answer2_id", "category", "content", "judge"} <= set(found[1])
    assert not [p for p in judged.review(CASES, Listed(), path) if "needs_judge" in p]


def test_reviews_of_something_else_are_not_continued(tmp_path):
    path = tmp_path / "reviews.jsonl"
    list(judged.review(CASES, Listed("8 6", "9 9"), path))
    with pytest.raises(errors.SgqlmError, match="judge"):
        list(judged.review(CASES, Listed(name="other"), path))
    changed = [llava_bench.Case(0, "llava_bench_conv", "other?", "r0", "a0")]
    with pytest.raises(errors.SgqlmError, match="prompt_hash"):
        list(judged.review(changed, Listed(), path))


def test_without_a_judge_reviews_stay_open(tmp_path):
    path = tmp_path / "reviews.jsonl"
    found = list(judged.review(CASES, judge.NoJudge(), path))
    assert not path.exists()
    summary = llava_bench.summarise(found)
    assert summary.needs_judge == [0, 1] and not summary.groups


def test_grades_have_the_official_form_and_are_kept(tmp_path):
    path = tmp_path / "grades" / "m.json"
    by = Listed("1.0", "0.4", "0.6")
    with pytest.raises(Stopped):
        list(judged.grade(METADATA, PREDICTIONS, by, path, num_runs=2))
    texts = [messages[0]["content"] for messages, _, _ in by.asked]
    assert texts[0] == f"{mmvet.HEAD}\nx? | 1 <AND> 2 | one | " and by.asked[0][1:] == (3, 0.0)
    assert json.loads(path.read_text())["v1_0"]["score"] == [1.0, 0.6]
    rest = list(judged.grade(METADATA, PREDICTIONS, Listed("0.8"), path, num_runs=2))
    assert [(g.key, g.run, g.score, g.is_read) for g in rest] == [("v1_1", 1, 0.8, True)]
    entry = json.loads(path.read_text())["v1_1"]
    official = {"model": ["listed"] * 2, "content": ["0.4", "0.8"], "score": [0.4, 0.8]}
    assert {name: entry[name] for name in official} == official
    summary = mmvet.summarise(judged.read_json(path), METADATA)
    assert summary.runs == pytest.approx([70, 70]) and summary.needs_judge == []


def test_grades_of_another_judge_or_other_questions_are_refused(tmp_path):
    path = tmp_path / "m.json"
    list(judged.grade(METADATA, PREDICTIONS, Listed("1.0", "1.0"), path))
    with pytest.raises(errors.SgqlmError, match="listed, the judge now other"):
        list(judged.grade(METADATA, PREDICTIONS, Listed(name="other"), path, num_runs=2))
    with pytest.raises(errors.SgqlmError, match="1 questions without an answer, 1 unknown"):
        list(judged.grade(METADATA, {"v1_0": "a", "v1_9": "b"}, Listed(), path))
    with pytest.raises(errors.SgqlmError, match="another answer"):
        list(judged.grade(METADATA, {**PREDICTIONS, "v1_1": "be"}, Listed(), path))
    with pytest.raises(errors.SgqlmError, match="another prompt"):
        list(judged.grade(METADATA, PREDICTIONS, Listed(), path, head="Grade"))
    path.write_text("[1]")
    with pytest.raises(errors.SgqlmError, match="one json object"):
        list(judged.grade(METADATA, PREDICTIONS, Listed(), path))


def test_without_a_judge_answers_stay_without_grades(tmp_path):
    path = tmp_path / "m.json"
    assert not list(judged.grade(METADATA, PREDICTIONS, judge.NoJudge(), path))
    assert not path.exists()
    assert mmvet.summarise({}, METADATA).needs_judge == ["v1_0", "v1_1"]


def test_a_recorded_judge_gives_the_same_file_again(tmp_path):
    record, first, second = (tmp_path / name for name in ("replies", "first", "second"))
    with chat_service.running() as server:
        server.answers += ["no grade", "0.5", "1.0", "0.9", "0.3"]
        url = f"http://127.0.0.1:{server.server_port}/v1"
        by = judge.make(url, model="tiny", record=record)
        grades = list(judged.grade(METADATA, PREDICTIONS, by, first, num_runs=2))
    assert [grade.score for grade in grades] == [0.5, 1.0, 0.9, 0.3]
    again = judge.make(f"replay:{record}")
    assert list(judged.grade(METADATA, PREDICTIONS, again, second, num_runs=2)) == grades
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("metadata", "predictions"),
    [({"v1_0": {"question": "x?"}}, {"v1_0": "a"}), ({"v1_0": METADATA["v1_0"]}, {"v1_0": None})],
)
def test_files_of_another_form_are_refused_before_anything_is_asked(
    tmp_path, metadata, predictions
):
    by = Listed("1.0")
    with pytest.raises(errors.SgqlmError, match="v1_0"):
        list(judged.grade(metadata, predictions, by, tmp_path / "m.json"))
    assert not by.asked


def test_the_hash_of_a_prompt():
    assert judged.prompt_hash("a") == judged.prompt_hash("a") != judged.prompt_hash("b")
    assert len(judged.prompt_hash("")) == 16


def test_a_review_file_gets_the_order_of_the_questions(tmp_path):
    path = tmp_path / "reviews.jsonl"
    list(judged.review(CASES[1:], Listed("9 9"), path))
    list(judged.review(CASES, Listed("8 6"), path, rule_hash="abc"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["question_id"], line.get("rule_hash")) for line in lines] == [
        (0, "abc"),
        (1, None),
    ]
    path.write_text(path.read_text() * 2)
    with pytest.raises(errors.SgqlmError, match="reviewed twice"):
        list(judged.review(CASES, Listed(), path))
