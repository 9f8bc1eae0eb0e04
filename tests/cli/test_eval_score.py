"""`sgqlm eval score` and `sgqlm eval submit` for benchmarks, as a user types them."""

import json

import pytest

from sgqlm import errors
from sgqlm.cli import eval_score, eval_submit, main


def run(*words):
    return main.main(["eval", *map(str, words)])


@pytest.fixture
def place(tmp_path):
    labels = [{"question_id": n, "text": f"Is it {n}?", "label": "yes"} for n in (1, 2)]
    said = [{"question_id": n, "prompt": f"Is it {n}?\nAnswer", "text": "Yes"} for n in (2, 1)]
    for name, records in (("coco_pope_random.json", labels), ("a.jsonl", said)):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_answers_are_scored_and_reported(place, capsys):
    words = ["score", place / "a.jsonl", "--task=pope", "--annotations"]
    words += [place / "coco_pope_random.json", f"--out={place / 'new' / 'report.json'}"]
    assert run(*words) == errors.OK
    seen = capsys.readouterr().out
    assert "mean F1" in seen and "100.00 %" in seen and "2910" in seen
    told = json.loads((place / "new" / "report.json").read_text())
    assert told["task"] == "pope" and told["score"] == 1 and told["count"] == 2
    assert told["answers"] == [str(place / "a.jsonl")] and len(told["annotations"]) == 1


def test_a_mismatch_leaves_with_3(place, capsys):
    one = place / "one.jsonl"
    one.write_text((place / "a.jsonl").read_text().splitlines()[0] + "\n")
    words = ["score", one, "--tasks", "pope", "--annotations", place / "coco_pope_random.json"]
    assert run(*words) == errors.DATA
    seen = capsys.readouterr()
    assert "1 annotated questions have no answer" in seen.out and "not to the same" in seen.err
    assert run(*words, "--allow-mismatch") == errors.OK
    one.write_text((place / "a.jsonl").read_text() + '{"question_id": 1, "text": "No"}\n')
    assert run(*words, "--allow-mismatch") == errors.DATA
    assert "two different answers" in capsys.readouterr().err


def test_mistakes_are_told(place, capsys):
    assert run("score", place / "none", "--task=pope") == errors.USAGE
    assert "no such file" in capsys.readouterr().err
    assert run("score", place / "a.jsonl", "--task=gqa") == errors.USAGE
    assert "--annotations" in capsys.readouterr().err
    assert run("score", place / "a.jsonl", "--task=pope") == errors.USAGE
    assert "nothing to compare" in capsys.readouterr().err
    assert run("score", place / "a.jsonl", "--task=pope", "--annotation=x", "--x") == errors.USAGE
    capsys.readouterr()
    for words in (["--task=nothing"], []):
        assert run("score", place / "a.jsonl", *words) == errors.USAGE
        told = capsys.readouterr().err
        assert told.startswith("error: ") and "`sgqlm eval score --help`" in told


def test_a_submission_is_written(place, capsys):
    out = place / "sent.json"
    assert run("submit", place / "a.jsonl", "--task=gqa", f"--out={out}") == errors.OK
    assert json.loads(out.read_text())[0] == {"questionId": "2", "prediction": "yes"}
    assert str(out) in capsys.readouterr().out
    words = [str(place / "a.jsonl"), "--task=vqav2", f"--out={out}", "--questions"]
    (place / "q.jsonl").write_text('{"question_id": 1}\n{"question_id": 9}\n')
    assert eval_submit.run([*words, str(place / "q.jsonl")]) == errors.OK
    seen = capsys.readouterr().out
    assert "1 questions have no answer; an empty one is sent" in seen and "not sent" in seen
    assert run("submit", place / "a.jsonl", "--task=seed", f"--out={out}") == errors.USAGE
    assert "--questions" in capsys.readouterr().err


def test_the_report_outlives_its_reader_and_names_the_model(place, monkeypatch):
    def leave(*words):
        raise BrokenPipeError

    answers, told = place / "a.jsonl", place / "told.json"
    words = [str(answers), "--task=pope", f"--annotations={place / 'coco_pope_random.json'}"]
    monkeypatch.setattr(eval_score.scored.Scored, "lines", leave)
    for name in ("m", ""):
        lines = [json.loads(line) for line in answers.read_text().splitlines()]
        whole = [line | {"model_id": name or at} for at, line in enumerate(lines)]
        answers.write_text("".join(json.dumps(line) + "\n" for line in whole))
        with pytest.raises(BrokenPipeError):
            eval_score.run([*words, f"--out={told}"])
        assert json.loads(told.read_text()).get("settings") == ({"model_id": "m"} if name else None)


def test_what_no_server_scores_is_not_sent(place, capsys):
    for task in ("textvqa", "scienceqa", "pope", "llava_wild"):
        words = ("submit", place / "a.jsonl", f"--task={task}", f"--out={place / 'x.json'}")
        assert run(*words) == errors.USAGE
        assert f"sgqlm eval score ANSWERS --task={task}" in capsys.readouterr().err
    assert run(*words[:2], "--task=vqav", words[3]) == errors.USAGE
    assert "did you mean vqav2?" in capsys.readouterr().err


def test_the_report_names_the_files_of_a_folder(place, capsys):
    (place / "pope" / "coco").mkdir(parents=True)
    label = {"question_id": 1, "text": "Is it?", "label": "yes"}
    file = place / "pope" / "coco" / "coco_pope_random.json"
    file.write_text(json.dumps(label))
    (place / "p.jsonl").write_text(json.dumps({"question_id": 1, "text": "Yes"}))
    out = place / "report.json"
    words = ("score", place / "p.jsonl", "--task=pope", "--annotations", place / "pope")
    assert run(*words, f"--out={out}") == errors.OK
    told = json.loads(out.read_text())
    assert told["annotations"] == [str(file)] and str(file) in told["sha256"]
