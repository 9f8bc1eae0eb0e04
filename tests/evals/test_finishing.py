"""What becomes of answers: scored over the questions that were asked, sent only as a whole."""

import dataclasses
import json

import pytest

from sgqlm import errors
from sgqlm.evals import answers, benchmark, finishing, judging, tasks
from tests.evals import benchmark_files as files


@pytest.fixture
def place(tmp_path):
    root = files.make(tmp_path / "root", files.OURS)
    return tasks.locate(tasks.get("seed"), root)


def done(place, folder, *, limit=0):
    job = benchmark.prepare(place, limit=limit)
    lines = [
        {"question_id": job.questions[at].id, "prompt": "", "text": "A", "metadata": {}}
        for at in job.chosen
    ]
    folder.mkdir()
    answers.write(folder / benchmark.ANSWERS, lines)
    return finishing.finish(job, lines, folder)


def test_a_part_is_scored_against_its_own_annotations_and_not_sent(place, tmp_path):
    part = done(place, tmp_path / "part", limit=2)
    assert part.score
    assert part.score.report()["count"] == 2 and not part.score.faults.is_mismatch
    assert part.submission is None and "--limit" in part.notes[0]
    whole = done(place, tmp_path / "whole")
    assert whole.score and whole.submission
    assert whole.score.report()["count"] == 3
    assert len(whole.submission.read_text().splitlines()) == 3


def test_answers_with_an_error_are_told_beside_the_score_with_what_asks_them_again(place, tmp_path):
    found = done(place, tmp_path / "out")
    before = found.lines()
    assert not any("--retry" in line for line in before)
    found.answers[1] |= {"text": "", "metadata": {"error": "broken"}}
    (caution,) = [line for line in found.lines() if line.startswith("caution")]
    assert "1 of 3 questions have an error" in caution and "--retry" in caution


def test_the_report_names_the_file_it_measured(place, tmp_path):
    found = done(place, tmp_path / "out")
    path = tmp_path / "out" / benchmark.REPORT
    finishing.write_report(found, {"checkpoint": "here"}, path)
    told = json.loads(path.read_text())
    assert told["settings"] == {"checkpoint": "here"} and told["failed"] == []
    assert set(told["score"]["sha256"]) == {benchmark.ANSWERS}


def test_damaged_annotations_are_a_failure_and_absent_ones_are_none(tmp_path):
    root = files.make(tmp_path / "root", ["gqa"])
    (path,) = root.rglob("testdev_balanced_questions.json")
    place = tasks.locate(tasks.get("gqa"), root)
    assert done(place, tmp_path / "good").code == errors.OK
    path.write_text("{")
    found = done(place, tmp_path / "damaged")
    assert found.score is None and found.code == errors.DATA and "not scored" in found.notes[-1]
    path.unlink()
    absent = done(tasks.locate(tasks.get("gqa"), root), tmp_path / "absent")
    assert absent.score is None and absent.code == errors.OK


class Fixed:
    """A judge that gives every answer the same scores, or fails."""

    name = "fixed"

    def __init__(self, reply: str | None = "8 4"):
        """Keep the reply; None for a judge that fails."""
        self.reply, self.asked = reply, 0

    def complete(self, messages, *, max_tokens, temperature):
        """Give the reply."""
        self.asked += 1
        if self.reply is None:
            raise errors.SgqlmError("gone", code=errors.RESOURCES)
        return self.reply


def judged(place, folder, by=None, *, limit=0):
    job = benchmark.prepare(place, limit=limit)
    lines = [
        {"question_id": q.id, "prompt": q.prompt, "text": "A", "metadata": {}}
        for q in (job.questions[at] for at in job.chosen)
    ]
    folder.mkdir(exist_ok=True)
    answers.write(folder / benchmark.ANSWERS, lines)
    settings = judging.Settings(by=by) if by else None
    return finishing.finish(job, lines, folder, settings)


def test_a_judge_grades_what_was_answered(tmp_path):
    root = files.make(tmp_path / "root", ["llava_wild"])
    folder = root / "llava-bench-in-the-wild"

    def place():
        return tasks.locate(tasks.get("llava_wild"), root)

    assert "context.jsonl" in judged(place(), tmp_path / "out", Fixed()).notes[0]
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    files.lines(folder / "context.jsonl", [{"image": q["image"], "caption": "c"} for q in asked])
    files.lines(
        folder / "answers_gpt4.jsonl",
        [{"question_id": q["question_id"], "text": "r"} for q in asked],
    )
    found = judged(place(), tmp_path / "out")
    assert found.score is None and f"{folder / 'context.jsonl'}" in found.notes[0]
    assert "sgqlm eval score" in found.notes[0] and "--judge=openai" in found.notes[0]
    part = judged(place(), tmp_path / "out", limit=2).notes[0]
    assert "next: the same command with --judge=openai" in part and "eval score" not in part
    failed = judged(place(), tmp_path / "out", Fixed(None))
    assert failed.score is None and failed.code == errors.RESOURCES and "gone" in failed.notes[0]
    part = judged(place(), tmp_path / "out", Fixed(), limit=2)
    assert part.score and part.score.report()["count"] == 2 and part.code == errors.OK
    rest = Fixed()
    whole = judged(place(), tmp_path / "out", rest)
    assert whole.score and whole.score.score == 0.5 and rest.asked == 1
    unread = judged(place(), tmp_path / "unread", Fixed("sorry"))
    assert unread.code == errors.DATA and "--judge-retry" in "".join(unread.lines())
    path = finishing.write_report(whole, {}, tmp_path / "out" / benchmark.REPORT)
    assert json.loads(path.read_text())["score"]["judge"].startswith("fixed, prompt ")


def test_a_submission_that_cannot_be_written_ends_nothing(place, tmp_path, monkeypatch):
    def fail(*given):
        raise errors.SgqlmError("no such ids", where="a.json", fix="give it", code=errors.DATA)

    monkeypatch.setattr(finishing.submissions, "write", fail)
    found = done(place, tmp_path / "out")
    assert found.submission is None and found.score and found.code == errors.DATA
    assert found.notes == ["no submission is written: no such ids (a.json): give it"]


def test_a_judge_that_could_not_grade_is_told_before_and_after(tmp_path):
    root = files.make(tmp_path / "root", ["llava_wild"])
    folder = root / "llava-bench-in-the-wild"
    place = tasks.locate(tasks.get("llava_wild"), root)
    jobs, by = [benchmark.prepare(place)], Fixed()
    with pytest.raises(errors.SgqlmError, match="no contexts and no references") as told:
        finishing.check_judge(jobs, judging.Settings(by=by))
    assert str(folder) in str(told.value)
    finishing.check_judge(jobs, judging.Settings())  # nobody asked for a judge
    assert judged(place, tmp_path / "out", by).code == errors.USAGE and not by.asked
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    files.lines(folder / "context.jsonl", [{"image": q["image"], "caption": "c"} for q in asked])
    files.lines(folder / "answers_gpt4.jsonl", [{"question_id": "none", "text": "r"}])
    place = tasks.locate(tasks.get("llava_wild"), root)
    with pytest.raises(errors.SgqlmError, match="reference answers do not fit"):
        finishing.check_judge([benchmark.prepare(place)], judging.Settings(by=by))
    failed = judged(place, tmp_path / "out", by)
    assert failed.code == errors.DATA and failed.score is None and not by.asked


def test_mmvet_and_mmbench_take_the_judge_too(tmp_path):
    root = files.make(tmp_path / "root", ["mmbench"])
    item = {"imagename": "a.png", "question": "x?", "answer": "y", "capability": ["ocr"]}
    files.value(root / "mm-vet" / "mm-vet.json", {f"v1_{n}": item for n in range(2)})
    files.draw(root / "mm-vet" / "images", ["a.png"])
    vet = tasks.locate(tasks.get("mmvet"), root)
    part = judged(vet, tmp_path / "vet", Fixed("0.5"), limit=1).score
    whole = judged(vet, tmp_path / "vet", Fixed("0.5")).score
    assert part and whole and len(part.items) == 1 and whole.score == 0.5
    with pytest.raises(errors.SgqlmError, match="not to the same questions") as caught:
        other = dataclasses.replace(vet, annotations=(tmp_path / "mm-vet.json",))
        files.value(tmp_path / "mm-vet.json", {"v1_0": item})
        finishing.check_judge([benchmark.prepare(other)], judging.Settings(by=Fixed()))
    assert "1 questions have no annotation: v1_1" in str(caught.value)
    assert "--allow-mismatch" not in str(caught.value)  # no flag of `eval --tasks`
    bench = tasks.locate(tasks.get("mmbench"), root)
    by = Fixed()
    found = judged(bench, tmp_path / "bench", by).score
    assert found and found.more["judging"]["shown"] == by.asked == 0


def test_annotations_of_other_questions_are_a_failure_unless_another_split_is_asked(tmp_path):
    root = files.make(tmp_path / "root", ["gqa"])
    (path,) = root.rglob("testdev_balanced_questions.json")
    truth = json.loads(path.read_text())
    first = next(iter(truth))
    place = tasks.locate(tasks.get("gqa"), root)

    def finished(value, where, limit=0):
        path.write_text(json.dumps(value))
        return done(place, tmp_path / where, limit=limit)

    some = finished({key: item for key, item in truth.items() if key != first}, "some")
    assert some.score and some.code == errors.DATA and "no published protocol" in some.notes[-1]
    for name, value in (("empty", {}), ("other", {"77": truth[first]})):
        for limit in (0, 2):
            none = finished(value, f"{name}{limit}", limit)
            assert none.score is None and none.code == errors.DATA and none.answers
            assert "do not fit together" in none.notes[-1]
    usual = place.files[0]
    place = tasks.locate(tasks.get("gqa"), root, [usual.rename(usual.with_name("test.jsonl"))])
    split = finished({"77": truth[first]}, "split")
    assert split.score is None and split.code == errors.OK and "a server has" in split.notes[-1]
