"""Questions of TextVQA that are asked twice of one image."""

import json

import pytest

from sgqlm import errors
from sgqlm.evals import answers, benchmark, finishing, human_answers, tasks
from tests.evals import benchmark_files as files

TEN = {"x": ["x"] * 10, "y": ["y"] * 10}


def score(folder, known, texts):
    said = [{"question_id": i, "prompt": f"{q}\nAnswer", "text": text} for i, q, text in texts]
    truth = [dict(zip(("question_id", "image_id", "question", "answers"), q, strict=True))
             for q in known]  # fmt: skip
    (folder / "t.json").write_text(json.dumps({"data": truth}))
    (folder / "a.json").write_text(json.dumps(said))
    return human_answers.score_textvqa(folder / "a.json", [folder / "t.json"])


def test_every_answer_counts_against_the_last_annotation(tmp_path):
    twice = [(1, "a", "what is it?", TEN["x"]), (2, "a", "What is it?", TEN["y"])]
    known = [*twice, (3, "b", "why?", TEN["y"])]
    rest = ("b", "why?", "y")
    for texts, wanted in ((("y", "y"), [1, 1, 1]), (("y", "x"), [1, 0, 1])):
        done = score(tmp_path, known, [("a", "What is it?", text) for text in texts] + [rest])
        assert list(done.items.values()) == wanted and not done.faults.lines()
    done = score(tmp_path, known, [("a", "What is it?", "y"), rest])
    assert done.faults.missing == ["a: what is it? #2"]


def test_lines_that_stand_twice_are_told_where_the_question_does_not(tmp_path):
    known = [(1, "a", "what?", TEN["x"])]
    done = score(tmp_path, known, [("a", "what?", "x")] * 2)
    assert done.faults.repeated == ["a: what?"] and list(done.items) == ["a: what?"]
    with pytest.raises(errors.SgqlmError, match="two different answers"):
        score(tmp_path, known, [("a", "what?", "x"), ("a", "what?", "y")])


def test_a_part_of_a_benchmark_with_such_a_question(tmp_path):
    folder = tmp_path / "textvqa"
    asked = [("a", "what?"), ("b", "why?"), ("a", "what?")]
    questions = [{"question_id": i, "image": f"{i}.jpg", "text": q} for i, q in asked]
    files.lines(folder / "llava_textvqa_val_v051_ocr.jsonl", questions)
    truth = [
        {"question_id": at, "image_id": i, "question": q, "answers": TEN["x" if at == 0 else "y"]}
        for at, (i, q) in enumerate(asked)
    ]
    files.value(folder / "TextVQA_0.5.1_val.json", {"data": truth})
    files.draw(folder / "train_images", ["a.jpg", "b.jpg"])
    place = tasks.locate(tasks.get("textvqa"), tmp_path)
    for limit in (2, 0):
        job = benchmark.prepare(place, limit=limit)
        lines = [
            {**questions[at], "prompt": questions[at]["text"], "text": "y"} for at in job.chosen
        ]
        lines = [{**line, "metadata": {}} for line in lines]
        out = tmp_path / str(limit)
        out.mkdir()
        answers.write(out / benchmark.ANSWERS, lines)
        found = finishing.finish(job, lines, out)
        assert found.score and found.code == 0 and not found.score.faults.is_mismatch
        assert (found.score.score, len(found.score.items)) == (1, limit or 3)
