"""Benchmarks with a judge as a user types them, against a service that runs."""

import argparse
import json
import os
import signal
import time

import pytest

from sgqlm import config, errors
from sgqlm.cli import judge_flags, main
from sgqlm.data import chat
from sgqlm.train import checkpoint
from tests import chat_service, paths, tiny_model
from tests.evals import benchmark_files as files

WILD = [{"question_id": n, "image": f"{n}.jpg", "text": f"What is {n}?", "category": "conv"}
        for n in range(3)]  # fmt: skip
RULES = {"llava_bench_conv": {"role": "Assistant", "prompt": "Two numbers."}}
VET = {
    f"v1_{n}": {"imagename": f"{n}.png", "question": f"q{n}?", "answer": "a<AND>b",
                "capability": ["ocr"] if n else ["rec", "ocr"]}
    for n in range(3)
}  # fmt: skip


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv(chat.KEY, "sk-secret")
    with chat_service.running() as server:
        yield server


@pytest.fixture
def wild(tmp_path):
    folder = tmp_path / "llava-bench-in-the-wild"
    files.lines(folder / "questions.jsonl", WILD)
    files.lines(
        folder / "context.jsonl",
        [{"id": q["image"], "image": q["image"], "caption": f"It is {q['image']}"} for q in WILD],
    )
    files.lines(
        folder / "answers_gpt4.jsonl",
        [{"question_id": n, "text": f"reference {n}", "answer_id": f"g{n}"} for n in range(3)],
    )
    files.lines(
        tmp_path / "model.jsonl",
        [
            {
                "question_id": n,
                "prompt": f"What is {n}?",
                "text": f"thing {n}",
                "answer_id": f"m{n}",
            }
            for n in (2, 0, 1)
        ],
    )
    return tmp_path


@pytest.fixture
def vet(tmp_path):
    files.value(tmp_path / "mm-vet.json", VET)
    files.value(tmp_path / "model.json", {f"v1_{n}": f"said {n}" for n in range(3)})
    return tmp_path


def run(*words):
    return main.main(["eval", *map(str, words)])


def at(service, *words):
    address = f"http://127.0.0.1:{service.server_port}/v1"
    return f"--judge={address}", "--judge-model=some/judge", "--judge-tries=1", *words


def wild_words(place):
    folder = place / "llava-bench-in-the-wild"
    return "score", place / "model.jsonl", "--task=llava_wild", "--annotations", folder


def told(path):
    return json.loads(path.read_text())


def test_public_reviews_and_grades_give_their_published_scores(tmp_path, capsys):
    reviews = sorted(paths.shared("samples/llava_bench_wild/reviews").iterdir())
    out = tmp_path / "wild.json"
    assert run("score", *reviews, "--task=llava_wild", f"--out={out}") == errors.OK
    seen = capsys.readouterr().out
    found = {name: round(100 * part["value"], 1) for name, part in told(out)["figures"].items()}
    assert [found[path.stem] for path in reviews] == [72.8, 72.7, 72.1] and "72.5" in seen
    assert told(out)["score"] == pytest.approx(0.725, abs=6e-4) and told(out)["count"] == 60
    assert "gpt-4-0314" in seen
    path = paths.shared("samples/mmvet/results/llava-v1.5-13b_gpt-4-grade-1runs.json")
    assert run("score", path, "--task=mmvet", f"--out={tmp_path / 'vet.json'}") == errors.OK
    assert "total 36.1" in capsys.readouterr().out
    assert round(100 * told(tmp_path / "vet.json")["score"], 1) == 36.1
    assert told(tmp_path / "vet.json")["judge"] == "gpt-4"


def test_llava_bench_is_judged_in_one_command(wild, service, capsys):
    service.answers += [
        {
            "choices": [{"message": {"content": text}}],
            "usage": {"prompt_tokens": 9, "total_tokens": 1500},
        }
        for text in ("8 4\nGood.", "8 6", "sorry")
    ]
    out, record = wild / "report.json", wild / "replies.jsonl"
    words = [*wild_words(wild), f"--out={out}", f"--judge-record={record}"]
    assert run(*words, *at(service)) == errors.OK
    seen = capsys.readouterr()
    assert "llava_wild judge 3/3 4,500 tokens" in seen.err and "words of ours" in seen.out
    assert "1 reviews have no two scores" in seen.out and "judge: some/judge" in seen.out
    report = told(out)
    assert report["score"] == pytest.approx((4 + 6 - 1) / (8 + 8 - 1)) and report["count"] == 3
    assert report["details"]["0"]["given"] == "thing 0"
    assert report["details"]["0"]["wanted"] == "reference 0"
    judging = report["judging"]
    assert judging["backend"] == "http" and judging["host"] == "127.0.0.1"
    assert judging["model"] == "some/judge" and judging["temperature"] == 0.2
    assert judging["unparsable"] == 1 and judging["runs"] == 1 and judging["prompt_hash"]
    assert report["judge"] == f"some/judge, prompt {judging['prompt_hash']}"
    assert "sk-secret" not in out.read_text()
    asked = service.asked[0][1]["messages"][1]["content"]
    assert "It is 0.jpg" in asked and "reference 0" in asked and "thing 0" in asked
    # again: nothing is asked; the reviews are scored as they are; replies are replayed
    assert run(*words, *at(service)) == errors.OK and len(service.asked) == 3
    reviews = wild / "model_some-judge-review.jsonl"
    second = wild / "second.json"
    assert run("score", reviews, "--task=llava_wild", f"--out={second}") == errors.OK
    assert told(second)["score"] == report["score"] and told(second)["judge"] == report["judge"]
    again = [*wild_words(wild), f"--judge=replay:{record}", f"--reviews={wild / 'new.jsonl'}"]
    assert run(*again, f"--out={second}") == errors.OK
    assert (wild / "new.jsonl").read_bytes() == reviews.read_bytes()
    assert told(second)["judging"]["backend"] == "replay"
    assert told(second)["judge"] == report["judge"]


def test_a_failing_service_loses_nothing(wild, service, capsys):
    service.answers += ["8 4", 500]
    assert run(*wild_words(wild), *at(service)) == errors.RESOURCES
    seen = capsys.readouterr().err
    assert "HTTP 500" in seen and "1 of 3" in seen and "same command goes on" in seen
    assert "sk-secret" not in seen
    service.answers += [401]
    assert run(*wild_words(wild), *at(service)) == errors.RESOURCES
    seen = capsys.readouterr().err
    assert "HTTP 401" in seen and chat.KEY in seen
    service.answers += [(200, b"no json")]
    assert run(*wild_words(wild), *at(service)) == errors.RESOURCES
    service.answers += ["8 8", "8 8"]
    assert run(*wild_words(wild), *at(service)) == errors.OK
    assert len(service.asked) == 6  # one asked again for each failure, no other
    assert "83.33 %" in capsys.readouterr().out
    # another judge has a file of its own; the same file is refused
    service.answers += ["1 1"] * 3
    other = [word.replace("some/judge", "other") for word in at(service)]
    assert run(*wild_words(wild), *other) == errors.OK
    path = wild / "model_some-judge-review.jsonl"
    assert run(*wild_words(wild), *other, f"--reviews={path}") == errors.DATA
    assert "differs in" in capsys.readouterr().err


def test_a_stopped_grading_asks_nothing_twice(wild, service, capsys):
    def answer(body):
        if len(service.asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return "8 4"

    service.answers = answer
    assert run(*wild_words(wild), *at(service)) == errors.PREEMPTED
    assert "SIGTERM" in capsys.readouterr().err
    reviews = wild / "model_some-judge-review.jsonl"
    assert len(reviews.read_text().splitlines()) == 1
    assert run(*wild_words(wild), *at(service)) == errors.OK and len(service.asked) == 4


def test_a_service_that_is_busy_is_asked_again_in_parallel(wild, service):
    seen = []

    def answer(body):
        text = body["messages"][1]["content"]
        seen.append(text)
        number = next(n for n in range(3) if f"thing {n}" in text)
        return 429 if seen.count(text) == 1 and number == 1 else f"8 {number + 2}"

    service.answers, service.headers = answer, {"Retry-After": "0"}
    words = [w for w in at(service) if "tries" not in w] + ["--judge-tries=2"]
    out = wild / "report.json"
    assert run(*wild_words(wild), *words, "--judge-parallel=3", f"--out={out}") == errors.OK
    assert len(seen) == 4 and told(out)["score"] == pytest.approx((2 + 3 + 4) / 24)
    lines = (wild / "model_some-judge-review.jsonl").read_text().splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == [0, 1, 2]


def test_published_rules_and_several_reviews(wild, service, capsys):
    files.value(wild / "rule.json", RULES)
    service.answers += ["8 4"] * 3 + ["8 8"] * 3
    out = wild / "report.json"
    words = [f"--judge-prompt={wild / 'rule.json'}", "--judge-runs=2", f"--out={out}"]
    assert run(*wild_words(wild), *at(service, *words)) == errors.OK
    assert "words of ours" not in capsys.readouterr().out
    assert told(out)["score"] == 0.75 and told(out)["judging"]["runs"] == 2
    assert "Two numbers." in service.asked[0][1]["messages"][1]["content"]
    assert (wild / "model_some-judge-review-2.jsonl").is_file()


def test_llava_bench_coco_by_its_own_files(tmp_path, service):
    folder = paths.shared("samples/llava_bench_coco")
    shown = {
        q["image"] for q in files.sample("llava_bench_coco/caps_boxes_coco2014_val_80.jsonl", 99)
    }
    asked = [
        q for q in files.sample("llava_bench_coco/qa90_questions.jsonl", 99) if q["image"] in shown
    ]
    given = files.sample("llava_bench_coco/qa90_gpt4_answer.jsonl", 99)
    ids = {q["question_id"] for q in given}
    asked = [q for q in asked if q["question_id"] in ids][:4]
    assert asked
    files.lines(tmp_path / "q.jsonl", asked)
    files.lines(tmp_path / "a.jsonl", [{**q, "text": "A thing."} for q in asked])
    service.answers += ["5 5"] * len(asked)
    official = [folder / "caps_boxes_coco2014_val_80.jsonl", folder / "qa90_gpt4_answer.jsonl"]
    words = ["score", tmp_path / "a.jsonl", "--task=llava_coco", *at(service)]
    assert run(*words, "--annotations", tmp_path / "q.jsonl", *official) == errors.OK
    text = service.asked[0][1]["messages"][1]["content"]
    assert text.startswith("[Context]\n") and ": [0." in text and "\n\n[Question]\n" in text


def test_mmvet_is_graded_in_one_command(vet, service, capsys):
    service.answers += ["1.0", "?", "0.5", "0.0", 500]
    out = vet / "out.json"
    words = ["score", vet / "model.json", "--task=mmvet", "--annotations", vet / "mm-vet.json"]
    words += [f"--out={out}", "--judge-runs=2", "--judge-max-tokens=0"]
    assert run(*words, *at(service)) == errors.RESOURCES
    assert "3 of 6" in capsys.readouterr().err
    service.answers += ["1.0", "0.5", "0.3"]
    assert run(*words, *at(service)) == errors.OK
    seen = capsys.readouterr()
    assert "mmvet judge 6/6" in seen.err and len(service.asked) == 8
    assert "max_tokens" not in service.asked[0][1]
    report = told(out)
    assert report["score"] == pytest.approx((1 + 0.5 + 0.15) / 3)
    assert report["figures"]["integration rec_ocr"] == {"value": 1.0, "count": 1}
    assert report["judging"]["totals"] == pytest.approx([50, 60])
    assert report["details"]["v1_0"]["given"] == "said 0"
    table = (vet / "out-cap-score-2runs.csv").read_text().splitlines()
    assert table[0] == ",rec,ocr,total,std,runs" and table[1].startswith(
        "model,100.0,55.0,55.0,5.0"
    )
    assert (vet / "model_some-judge-grade.json").is_file()


def test_without_a_judge_answers_are_counted(wild, vet, capsys):
    assert run(*wild_words(wild), f"--out={wild / 'r.json'}") == errors.OK
    assert "3 answers need a judge" in capsys.readouterr().out
    assert told(wild / "r.json")["judging"]["needs_judge"] == 3
    assert told(wild / "r.json")["score"] is None
    assert run("score", vet / "model.json", "--task=mmvet") == errors.OK
    assert "--judge=openai" in capsys.readouterr().out


def test_nothing_is_paid_for_answers_to_other_questions(wild, service, capsys):
    said = [json.loads(line) for line in (wild / "model.jsonl").read_text().splitlines()]
    files.lines(wild / "model.jsonl", [*said[:2], {"question_id": 8, "text": "?"}])
    assert run(*wild_words(wild), *at(service)) == errors.DATA
    seen = capsys.readouterr().err
    assert "1 annotated questions have no answer" in seen and "1 answers are to" in seen
    assert run(*wild_words(wild)) == errors.DATA
    service.answers += ["8 8"] * 3
    assert run(*wild_words(wild), *at(service), "--allow-mismatch") == errors.OK
    assert len(service.asked) == 3
    files.lines(wild / "model.jsonl", [*said, {**said[0], "text": "other"}])
    assert run(*wild_words(wild), *at(service)) == errors.DATA
    files.lines(wild / "model.jsonl", [{**line, "prompt": "Who?"} for line in said])
    assert run(*wild_words(wild), *at(service)) == errors.DATA
    assert "other questions" in capsys.readouterr().err and len(service.asked) == 3


def test_mmbench_asks_the_judge_where_no_rule_helps(tmp_path, service, capsys):
    names = ("index", "question", "A", "B", "answer", "prediction")
    rows = [
        (str(n), "What?", "a dog", "a cat", "A", said)
        for n, said in enumerate(("woof", "A", "nothing"), 1)
    ]
    path, out = tmp_path / "said.tsv", tmp_path / "out.json"
    path.write_text("\n".join("\t".join(row) for row in (names, *rows)) + "\n")
    assert run("score", path, "--task=mmbench") == errors.OK
    assert "33.33 %" in capsys.readouterr().out
    service.answers += ["A", "Z"]
    words = ["score", path, "--task=mmbench", f"--out={out}"]
    assert run(*words, *at(service)) == errors.OK and len(service.asked) == 2
    assert "2 answers were shown to the judge, 1 mean an option" in capsys.readouterr().out
    assert told(out)["score"] == pytest.approx(2 / 3) and told(out)["judging"]["matched"] == 1
    assert run(*words, *at(service)) == errors.OK and len(service.asked) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge=nobody"], "no such judge"),
        (["--judge=http://localhost:1/v1"], "name of a model"),
        (["--judge=openai", "--judge-model=m", "--judge-key-env=NO_KEY"], "NO_KEY"),
        (["--judge-model=m"], "give --judge too"),
        (["--judge=replay:none.jsonl"], "no such file"),
        (["--judge=http://localhost:1/v1", "--judge-model=m", "--judge-runs=0"], "below 1"),
        (["--judge=http://localhost:1/v1", "--judge-model=m", "--judge-prompt=x"], "no such file"),
        (["--judge-max-tokens=0"], "give --judge too"),
        (["--judge=replay:none.jsonl", "--judge-model=m"], "--judge-model is of a judge that"),
        (["--judge=replay:none.jsonl", "--judge-parallel=2"], "not of replay:"),
        (["--judge=replay:none.jsonl", "--judge-record=r.jsonl"], "not of replay:"),
        (["--judge=replay:none.jsonl", "--judge-tries=2"], "not of replay:"),
        (["--judge=openai", f"--judge-prompt={__file__}"], "that of llava_wild is a .json"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(wild, words, message, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    assert run(*wild_words(wild), *words) == errors.USAGE
    assert message in capsys.readouterr().err
    tasks = ["--tasks=llava_wild", f"--root={wild}", "--checkpoint=none"]
    assert run(*tasks, *words) == errors.USAGE
    assert message in capsys.readouterr().err


def test_what_needs_no_judge_or_other_files(wild, capsys):
    judge = ("--judge=http://localhost:1/v1", "--judge-model=m")
    path = wild / "model.jsonl"
    assert run("score", path, "--task=seed", *judge) == errors.USAGE
    assert "needs no judge" in capsys.readouterr().err
    assert run(*wild_words(wild), f"--reviews={wild / 'r.jsonl'}") == errors.USAGE
    assert "--reviews is of a judge" in capsys.readouterr().err
    assert run("score", path, "--task=llava_wild", *judge) == errors.USAGE
    assert "no questions and no contexts" in capsys.readouterr().err
    assert run(*wild_words(wild)[:3], *judge, "--annotations", wild / "none") == errors.USAGE
    (wild / "empty").mkdir()
    assert run(*wild_words(wild)[:3], "--annotations", wild / "empty") == errors.USAGE
    assert "no official files" in capsys.readouterr().err
    files.lines(wild / "done.jsonl", [{"question_id": 0, "tuple": [8, 8]}])
    assert run("score", wild / "done.jsonl", "--task=llava_wild", *judge) == errors.USAGE
    assert "graded already" in capsys.readouterr().err
    assert run("score", wild / "done.jsonl", path, "--task=llava_wild") == errors.USAGE


def test_flags_are_of_the_judge_and_the_benchmarks_that_are_scored(tmp_path):
    parser = argparse.ArgumentParser()
    judge_flags.add(parser)
    files.lines(tmp_path / "r.jsonl", [{"prompt": "p", "judge": "m", "reply": "1"}])
    by = f"--judge=replay:{tmp_path / 'r.jsonl'}"
    found = judge_flags.settings(parser.parse_args([by]), ["mmvet", "gqa"])
    assert found.parallel == 1 and found.runs == 1 and not found.is_open
    assert judge_flags.settings(parser.parse_args([]), ["gqa"]).is_open
    for name in ("rule.json", "again.json", "prompt.txt"):
        (tmp_path / name).write_text("{}")
    prompts = [f"--judge-prompt={tmp_path / name}" for name in ("rule.json", "prompt.txt")]
    args = parser.parse_args([by, *prompts])
    assert (
        judge_flags.settings(args, ["mmvet", "llava_wild"]).prompt("mmvet") == args.judge_prompt[1]
    )
    for words, tasks, message in (
        (prompts, ["mmvet"], "rule.json"),
        (prompts[:1], ["mmbench"], "mmbench take none"),
        ([prompts[0], f"--judge-prompt={tmp_path / 'again.json'}"], ["llava_wild"], "one prompt"),
        (["--judge-runs=2"], ["mmbench"], "--judge-runs is of llava_wild"),
    ):
        with pytest.raises(errors.SgqlmError, match=message):
            judge_flags.settings(parser.parse_args([by, *words]), tasks)


@pytest.mark.slow
def test_questions_answers_and_grades_in_one_command(tmp_path, service, capsys):
    model, root = tiny_model.make(), files.make(tmp_path / "eval", ["llava_wild"])
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    folder = root / "llava-bench-in-the-wild"
    place = tmp_path / "run" / "checkpoints"
    checkpoint.save(place, meta, model.params, tokenizer=model.tokenizer.model_bytes)
    words = ["--tasks=llava_wild", f"--checkpoint={tmp_path / 'run'}", f"--root={root}"]
    words += [f"--out={tmp_path / 'out'}", "--max-new-tokens=4", "--template=trained"]
    words += ["--entities=none", "--batch-size=4", *at(service)]
    assert run(*words) == errors.USAGE and not (tmp_path / "out" / "llava_wild").exists()
    assert "no contexts and no references" in capsys.readouterr().err
    files.lines(
        folder / "context.jsonl", [{"image": f"00{n}.jpg", "caption": "c"} for n in range(3)]
    )
    files.lines(folder / "answers_gpt4.jsonl", [{"question_id": n, "text": "r"} for n in range(3)])
    service.answers += ["8 4", 500]
    assert run(*words) == errors.RESOURCES
    assert "not scored" in capsys.readouterr().out
    service.answers += ["8 4", "8 4"]
    assert run(*words) == errors.OK and len(service.asked) == 4
    report = told(tmp_path / "out" / "llava_wild" / "report.json")
    assert report["score"]["score"] == 0.5 and report["score"]["judge"].startswith("some/judge")
