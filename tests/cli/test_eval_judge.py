"""Benchmarks with a judge as a user types them, against a service that runs."""

import json
import os
import signal
import time

import pytest

from sgqlm import config, errors
from sgqlm.cli import main
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
    assert "1 of 3 reviews have no two scores" in seen.out and "judge: some/judge" in seen.out
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
    assert "1 questions have no answer: 1; 1 questions have no annotation: 8" in seen
    assert run(*wild_words(wild)) == errors.DATA
    assert "answer all questions, or give the official files" in seen and "allow-mis" in seen
    service.answers += ["8 4"] * 2
    assert run(*wild_words(wild), *at(service), "--allow-mismatch") == errors.OK
    assert len(service.asked) == 2  # none about the missing answer
    seen = capsys.readouterr().out
    assert "50.00 %  of 2" in seen and "no answer and are left out: 1" in seen
    files.lines(wild / "model.jsonl", [*said, {**said[0], "text": "other"}])
    assert run(*wild_words(wild), *at(service)) == errors.DATA
    files.lines(wild / "model.jsonl", [{**line, "prompt": "Who?"} for line in said])
    assert run(*wild_words(wild), *at(service)) == errors.DATA
    assert "other questions" in capsys.readouterr().err and len(service.asked) == 2


def test_a_missing_answer_to_mmvet_counts_as_0_and_costs_nothing(vet, service, capsys):
    files.value(vet / "model.json", {"v1_1": "said"})
    words = ["score", vet / "model.json", "--task=mmvet", "--annotations", vet / "mm-vet.json"]
    words += [f"--out={vet / 'out.json'}", *at(service)]
    assert run(*words) == errors.DATA and not service.asked
    seen = capsys.readouterr().err
    assert "answer all questions, or give --allow-mismatch" in seen and "official" not in seen
    service.answers += ["0.9"]
    assert run(*words, "--allow-mismatch") == errors.OK and len(service.asked) == 1
    assert "2 annotated questions have no answer and count as wrong" in capsys.readouterr().out
    report = told(vet / "out.json")
    assert report["score"] == pytest.approx(0.3) and report["count"] == 3
    assert report["judging"]["graded"] == 1 and report["judging"]["unparsable"] == 0
    files.value(vet / "model.json", {**{f"v1_{n}": "said" for n in range(4)}})
    service.answers += ["0.3"] * 2
    assert run(*words) == errors.DATA and len(service.asked) == 1
    seen = capsys.readouterr().err
    assert "fix: give the official files of the version that is answered, or give --allow" in seen
    assert run(*words, "--allow-mismatch") == errors.OK and len(service.asked) == 3


def replies(path, service, wild, *texts):
    """Record replies to all questions, run by run."""
    service.answers += [text for text in texts for _ in range(3)]
    words = [*at(service), f"--judge-record={path}", f"--judge-runs={len(texts)}"]
    assert run(*wild_words(wild), *words, f"--reviews={path.with_name('old.jsonl')}") == errors.OK


def test_a_replay_goes_on_after_the_replies_that_are_used(wild, service, capsys):
    path, out = wild / "replies.jsonl", wild / "out.json"
    replies(path, service, wild, "10 5", "10 9")
    words = [*wild_words(wild), f"--judge=replay:{path}", f"--out={out}"]
    assert run(*words) == errors.OK and told(out)["score"] == 0.5
    assert run(*words, "--judge-runs=2") == errors.OK and told(out)["score"] == 0.7
    capsys.readouterr()
    assert run(*words, "--judge-runs=3") == errors.DATA
    assert "used up" in capsys.readouterr().err
    # what was asked for again has used a reply too
    files.lines(path, [json.loads(line) for line in path.read_text().splitlines()[:3]])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    unread = {**lines[0], "reply": "sorry"}
    files.lines(path, [unread, *lines[1:], {**lines[0], "reply": "10 8"}])
    words.append(f"--reviews={wild / 'new.jsonl'}")
    assert run(*words) == errors.OK and told(out)["judging"]["unparsable"] == 1
    assert run(*words, "--judge-retry") == errors.OK and told(out)["score"] == 0.6
    assert run(*words, "--judge-runs=2") == errors.DATA


def test_a_replay_of_mmvet_goes_on_after_the_retries_that_are_used(vet, service):
    path, out = vet / "replies.jsonl", vet / "out.json"
    words = ["score", vet / "model.json", "--task=mmvet", "--annotations", vet / "mm-vet.json"]
    service.answers += ["?", "0.1", "0.2", "0.3", "?", "0.4", "0.5", "0.6"]
    live = [*at(service), f"--judge-record={path}", "--judge-runs=2"]
    assert run(*words, *live, f"--reviews={vet / 'old.json'}") == errors.OK
    words += [f"--judge=replay:{path}", f"--out={out}", f"--reviews={vet / 'new.json'}"]
    assert run(*words) == errors.OK and run(*words, "--judge-runs=2") == errors.OK
    assert told(out)["judging"]["totals"] == pytest.approx([20, 50])
    assert run(*words, "--judge-runs=3") == errors.DATA


def test_replies_that_cannot_be_read_are_told_and_asked_for_again(wild, service, capsys):
    service.answers += ["sorry"] * 3
    words = [*wild_words(wild), *at(service)]
    assert run(*words) == errors.DATA and len(service.asked) == 3
    seen = capsys.readouterr().out
    assert "not scored: 3 of 3 reviews have no two scores" in seen and "--judge-retry" in seen
    assert "None" not in seen and "over 0" not in seen and "count as -1" not in seen
    assert run(*words) == errors.DATA and len(service.asked) == 3
    service.answers += ["8 4", "sorry", "8 4"]
    assert run(*words, "--judge-retry") == errors.OK and len(service.asked) == 6
    seen = capsys.readouterr()
    assert "1 of 3 reviews have no two scores; they count as -1" in seen.out
    old = wild / "model_some-judge-review-replaced.jsonl"
    assert str(old) in seen.out and old.read_text().count("sorry") == 3
    service.answers += ["8 4"]
    assert run(*words, "--judge-retry") == errors.OK and len(service.asked) == 7
    seen = capsys.readouterr().out
    assert "50.00 %  of 3" in seen and str(old) in seen
    assert run(*words) == errors.OK and str(old) not in capsys.readouterr().out


def test_grades_of_an_evaluation_say_how_its_report_gets_them(wild, service, capsys):
    service.answers += ["8 4"] * 3
    said = (wild / "model.jsonl").rename(wild / "answers.jsonl")
    report = wild / "report.json"
    files.value(report, {"task": "llava_wild", "score": None})
    words = [said if word == wild / "model.jsonl" else word for word in wild_words(wild)]
    assert run(*words, *at(service)) == errors.OK
    assert f"next: for these figures in {report}, give the command" in capsys.readouterr().out
    assert run(*words, *at(service), f"--out={report}") == errors.OK
    assert "next:" not in capsys.readouterr().out and len(service.asked) == 3


def test_grades_that_cannot_be_read_are_asked_for_again(vet, service, capsys):
    words = ["score", vet / "model.json", "--task=mmvet", "--annotations", vet / "mm-vet.json"]
    words += [*at(service), "--judge-runs=2", f"--out={vet / 'out.json'}"]
    service.answers += [*["?"] * 6, "0.5", "0.5", "1.0", "0.5", "0.5"]
    assert run(*words) == errors.OK and told(vet / "out.json")["judging"]["unparsable"] == 1
    seen = capsys.readouterr().out
    assert "1 of 6 grades could not be read" in seen and "--judge-retry" in seen
    service.answers += ["0.0"]
    assert run(*words, "--judge-retry") == errors.OK and not service.answers
    grades = told(vet / "model_some-judge-grade.json")
    assert grades["v1_0"]["score"] == [1.0, 0.0] and grades["v1_0"]["content"] == ["1.0", "0.0"]
    old = json.loads((vet / "model_some-judge-grade-replaced.jsonl").read_text())
    assert old["question_id"] == "v1_0" and old["content"] == ["?"] and old["score"] == [0.0]
    assert run(*words, "--judge-retry") == errors.OK and len(service.asked) == 12


def test_a_finished_grading_is_told_once(wild, service, capsys):
    service.answers += ["8 4"] * 3
    assert run(*wild_words(wild), *at(service)) == errors.OK
    capsys.readouterr()
    assert run(*wild_words(wild), *at(service)) == errors.OK
    assert capsys.readouterr().err.count("llava_wild judge 3/3") == 1


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
    path.write_text(path.read_text().replace("woof", "bark"))
    service.answers += ["hm"] * 3
    assert run(*words, *at(service)) == errors.OK and len(service.asked) == 5
    assert "1 replies name none (--judge-retry" in capsys.readouterr().out
    service.answers += ["A"]
    assert run(*words, *at(service), "--judge-retry") == errors.OK and len(service.asked) == 6
    assert told(out)["judging"]["matched"] == 1


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
    said = tmp_path / "out" / "llava_wild" / "answers.jsonl"
    scoring = ["score", said, "--task=llava_wild", "--annotations", folder, *at(service)]
    assert run(*scoring) == errors.OK and len(service.asked) == 4
    assert "next: for these figures in" in capsys.readouterr().out
    assert run(*words) == errors.OK and len(service.asked) == 4  # as it has said
    report = told(tmp_path / "out" / "llava_wild" / "report.json")
    assert report["score"]["score"] == 0.5 and report["score"]["judge"].startswith("some/judge")
