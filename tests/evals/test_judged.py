import dataclasses
import json
import os
import signal
import time

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
    assert list(judged.review(CASES, Listed(), path)) == found


def test_reviews_of_something_else_are_not_continued(tmp_path):
    path = tmp_path / "reviews.jsonl"
    list(judged.review(CASES, Listed("8 6", "9 9"), path))
    with pytest.raises(errors.SgqlmError, match="judge"):
        list(judged.review(CASES, Listed(name="other"), path))
    changed = [llava_bench.Case(0, "llava_bench_conv", "other?", "r0", "a0")]
    with pytest.raises(errors.SgqlmError, match="prompt_hash"):
        list(judged.review(changed, Listed(), path))


def other(number, text):
    return dataclasses.replace(CASES[number], content=text, answer2_id=text)


def test_a_review_of_an_answer_that_has_changed_is_asked_again_and_kept(tmp_path):
    path = tmp_path / "reviews.jsonl"
    list(judged.review(CASES, Listed("8 6", "9 9"), path, rule_hash="r"))
    before = path.read_text()
    with pytest.raises(errors.SgqlmError, match="0 differs in rule_hash"):
        list(judged.review([other(0, "new"), CASES[1]], Listed(), path, rule_hash="other"))
    assert path.read_text() == before
    with pytest.raises(Stopped):  # the judge fails: the old grade is not taken for the new one
        list(judged.review([other(0, "new"), CASES[1]], Listed(), path, rule_hash="r"))
    found = list(judged.review([other(0, "new"), CASES[1]], Listed("1 2"), path, rule_hash="r"))
    assert {line["question_id"]: line["tuple"] for line in found} == {0: [1, 2], 1: [9, 9]}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["question_id"], line["answer2_id"]) for line in lines] == [(0, "new"), (1, "a1")]
    assert judged.replaced(path).read_text() == before.splitlines(keepends=True)[0]
    # an id alone makes no other answer
    same = [other(0, "new"), dataclasses.replace(CASES[1], answer2_id="again")]
    assert len(list(judged.review(same, Listed(), path, rule_hash="r"))) == 2
    # reviews of LLaVA's programs tell neither judge nor rule: then the answer must be the same
    path.write_text(json.dumps({"question_id": 0, "answer2_id": "a9", "tuple": [1, 1]}) + "\n")
    with pytest.raises(errors.SgqlmError, match="answer2_id"):
        list(judged.review(CASES, Listed(), path, rule_hash="r"))


class Signal(KeyboardInterrupt):
    """What a signal handler raises."""


class Stopping(Listed):
    """A judge of which the program is told to end while it answers the second question."""

    def complete(self, messages, *, max_tokens, temperature):
        """Give a reply, for which somebody pays."""
        self.asked.append(messages)
        number = len(self.asked)
        time.sleep(0.03)  # until the program waits
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.03)
        return "1.0 1.0"


@pytest.mark.parametrize("kind", ["review", "grade"])
def test_replies_that_come_after_a_signal_are_kept(tmp_path, kind):
    def stop(number, frame):
        raise Signal

    path, by = tmp_path / "kept", Stopping()
    cases = [dataclasses.replace(CASES[0], question_id=n) for n in range(9)]
    texts = {f"v1_{n}": "x" for n in range(9)}
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Signal):
            if kind == "review":
                list(judged.review(cases, by, path, parallel=2))
            else:
                metadata = dict.fromkeys(texts, METADATA["v1_0"])
                list(judged.grade(metadata, texts, by, path, parallel=2))
    finally:
        signal.signal(signal.SIGUSR1, before)
    kept = path.read_text().splitlines() if kind == "review" else judged.read_grades(path)
    assert 2 <= len(by.asked) < 5 and len(kept) == len(by.asked)


def test_grades_have_the_official_form_and_are_kept(tmp_path):
    path = tmp_path / "grades" / "m.json"
    by = Listed("1.0", "0.4", "0.6")
    with pytest.raises(Stopped):
        list(judged.grade(METADATA, PREDICTIONS, by, path, num_runs=2))
    texts = [messages[0]["content"] for messages, _, _ in by.asked]
    assert texts[0] == f"{mmvet.HEAD}\nx? | 1 <AND> 2 | one | " and by.asked[0][1:] == (3, 0.0)
    assert json.loads(path.read_text())["v1_0"]["score"] == [1.0, 0.6]
    rest = list(judged.grade(METADATA, PREDICTIONS, Listed("0.8"), path, num_runs=2))
    assert rest == [("v1_0", 0), ("v1_1", 0), ("v1_0", 1), ("v1_1", 1)]
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
    with pytest.raises(errors.SgqlmError, match="v1_0 differs in rule_hash"):
        list(judged.grade(METADATA, PREDICTIONS, Listed(), path, head="Grade"))
    path.write_text("[1]")
    with pytest.raises(errors.SgqlmError, match="one json object"):
        list(judged.grade(METADATA, PREDICTIONS, Listed(), path))


def test_grades_of_an_answer_that_has_changed_are_asked_for_again_and_kept(tmp_path):
    path = tmp_path / "m.json"
    list(judged.grade(METADATA, PREDICTIONS, Listed("1.0", "0.2"), path))
    by, changed = Listed("0.9"), {**PREDICTIONS, "v1_1": "be"}
    list(judged.grade(METADATA, changed, by, path))
    assert len(by.asked) == 1 and "| be |" in by.asked[0][0][0]["content"]
    grades = judged.read_grades(path)
    assert [grades[key]["score"] for key in METADATA] == [[1.0], [0.9]]
    old = json.loads(judged.replaced(path).read_text())
    assert (old["question_id"], old["score"]) == ("v1_1", [0.2])


@pytest.mark.parametrize(
    "entry", [5, {}, {"score": None}, {"score": [1], "model": None}, {"score": ["x"]}]
)
def test_grade_files_that_are_damaged(tmp_path, entry):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"v1_0": entry}))
    by = Listed("1.0", "1.0")
    with pytest.raises(errors.SgqlmError, match="v1_0") as told:
        list(judged.grade(METADATA, PREDICTIONS, by, path))
    assert told.value.code == errors.DATA and not by.asked


def test_grades_without_a_judge_are_continued(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"v1_0": {"score": [0.5]}}))
    list(judged.grade(METADATA, PREDICTIONS, Listed("1.0", "1.0", "1.0"), path, num_runs=2))
    assert judged.read_grades(path)["v1_0"]["score"] == [0.5, 1.0]


def test_a_recorded_judge_gives_the_same_file_again(tmp_path):
    record, first, second = (tmp_path / name for name in ("replies", "first", "second"))
    with chat_service.running() as server:
        server.answers += ["no grade", "0.5", "1.0", "0.9", "0.3"]
        url = f"http://127.0.0.1:{server.server_port}/v1"
        by = judge.make(url, model="tiny", record=record)
        grades = list(judged.grade(METADATA, PREDICTIONS, by, first, num_runs=2))
    scores = [judged.read_grades(first)[key]["score"] for key in METADATA]
    assert scores == [[0.5, 0.9], [1.0, 0.3]]
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
    with pytest.raises(errors.SgqlmError, match="graded twice"):
        list(judged.review(CASES, Listed(), path))
