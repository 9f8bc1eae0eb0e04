"""`sgqlm eval --tasks=...` on small benchmarks in their official formats, as a user types it."""

import json
import os
import shutil
import signal
import sys
import threading

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.cli import eval_model, eval_tasks, main
from sgqlm.data import graphs, records
from sgqlm.evals import benchmark
from tests.evals import benchmark_files as files
from tests.evals import caption_library

# the same shapes everywhere: programs are compiled once
FAST = ("--max-new-tokens=4", "--template=trained", "--entities=none", "--batch-size=4")
PAPERS = ("--max-new-tokens=4", "--entities=none", "--batch-size=4")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    return files.make(tmp_path_factory.mktemp("genuine"), files.GENUINE)


@pytest.fixture(scope="module")
def answered(trained, ours, tmp_path_factory):
    out = tmp_path_factory.mktemp("answered")
    assert run(trained, ours, "mmbench,seed", out, *FAST) == errors.OK
    return out


def run(trained, root, tasks, out, *words):
    given = [f"--tasks={tasks}", f"--checkpoint={trained}", f"--root={root}", f"--out={out}"]
    return main.main(["eval", *given, *map(str, words)])


def told(out, task):
    return json.loads((out / task / benchmark.REPORT).read_text())


def answers(out, task):
    return [json.loads(line) for line in (out / task / benchmark.ANSWERS).read_text().splitlines()]


def texts(out, task):
    return [(line["question_id"], line["text"]) for line in answers(out, task)]


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return files.make(tmp_path_factory.mktemp("captions"), files.CAPTIONS)


@pytest.mark.slow
def test_captions_are_answered_and_sent_without_the_package_that_scores_them(
    trained, captions, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    assert run(trained, captions, ",".join(files.CAPTIONS), tmp_path, *FAST) == errors.OK
    seen = capsys.readouterr().out
    assert seen.count("not scored") == 4 and "pip install -e '.[caption]'" in seen
    ids = {name: [key for key, _ in texts(tmp_path, name)] for name in files.CAPTIONS}
    assert ids["coco_caption"][0] == 391895 and ids["nocaps"] == [0, 1, 2, 3]
    assert ids["flickr30k"][0] == "1007129816.jpg"
    assert ids["conceptual"] == [f"00000/{at:09d}.jpg" for at in (0, 1, 3)]
    for name in files.CAPTIONS:
        line = answers(tmp_path, name)[0]
        assert line["prompt"].startswith("Provide a brief description") and not line["metadata"]
        sent = json.loads((tmp_path / name / "submission.json").read_text())
        assert [item["image_id"] for item in sent] == ids[name]
        assert sent[0]["caption"] == " ".join(line["text"].split())


@pytest.mark.slow
def test_captions_are_scored_with_the_package(trained, captions, tmp_path, capsys, monkeypatch):
    caption_library.use(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # Java takes its time
    assert run(trained, captions, "nocaps", tmp_path, *FAST, "--limit=3") == errors.OK
    assert "CIDEr-D near-domain" in capsys.readouterr().out
    score = told(tmp_path, "nocaps")["score"]
    assert score["count"] == 3 and score["faults"]["missing"]["count"] == 0
    assert "over 3 questions; published figures are over 4500" in score["notes"]


def test_official_files_of_every_kind(trained, ours, tmp_path, capsys):
    out = tmp_path / "out"
    names = "mmbench,mmbench_cn,seed,llava_wild,vqav2,vizwiz,pope"
    assert run(trained, ours, names, out, *FAST) == errors.OK
    seen = capsys.readouterr().out
    assert "circular" in seen and "mean F1" in seen and "VQA accuracy" in seen
    assert [told(out, name)["answers"] for name in names.split(",")] == [7, 7, 3, 3, 3, 3, 3]
    assert "judge" in seen and told(out, "llava_wild")["score"] is None
    assert [told(out, n)["score"]["count"] for n in ("vizwiz", "vqav2", "pope")] == [3, 3, 3]
    assert told(out, "mmbench")["score"]["count"] == 3
    # the broken pictures are two rolls of the last item
    assert len(told(out, "mmbench")["failed"]) == 2 and "cannot be decoded" in seen
    line = answers(out, "mmbench")[-1]
    assert line["text"] == "" and line["metadata"]["error"] and line["question_id"] == 1_000_002
    assert line["prompt"] == "Look.\nWhat is it?\nA. a dog\nB. a cat"
    assert answers(out, "mmbench")[0]["prompt"].startswith("What is it?")  # the hint is nan
    sent = json.loads((out / "vizwiz" / "submission.json").read_text())
    assert [item["image"] for item in sent] == [f"VizWiz_val_{at:08d}.jpg" for at in range(3)]
    assert len((out / "seed" / "submission.jsonl").read_text().splitlines()) == 3
    assert list((out / "mmbench").glob("submission.*"))
    assert told(out, "pope")["settings"]["max_new_tokens"] == 4


@pytest.mark.slow
def test_genuine_files_with_the_papers_template(trained, genuine, tmp_path, capsys):
    root, out = genuine, tmp_path / "out"
    names = "gqa,vizwiz,scienceqa,textvqa,pope,mmvet,vqav2"
    assert run(trained, root, names, out, *PAPERS) == errors.OK
    seen = capsys.readouterr()
    assert "asked with the template vicuna_v1" in seen.err and "gqa 5/5" in seen.err
    counts = [told(out, name)["answers"] for name in names.split(",")]
    assert counts == [5, 4, 4, 4, 4, 4, 4]
    assert told(out, "gqa")["score"]["count"] == 5 and not told(out, "gqa")["failed"]
    assert told(out, "textvqa")["score"]["count"] == 4  # an image with two questions
    figures = told(out, "pope")["score"]["figures"]
    assert {"adversarial f1", "random f1", "popular f1"} <= set(figures)
    assert told(out, "scienceqa")["score"]["figures"]["IMG accuracy"]["count"] == 2
    assert told(out, "vqav2")["score"] is None
    sent = json.loads((out / "vqav2" / "submission.json").read_text())
    assert len(sent) == 5 and sent[-1] == {"question_id": 7, "answer": ""}
    sent = json.loads((out / "mmvet" / "submission.json").read_text())
    assert next(iter(sent)) == "v1_0" and len(sent) == 4
    line = answers(out, "gqa")[0]
    assert list(line) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert line["prompt"].endswith("\nAnswer the question using a single word or phrase.")
    again = ["score", out / "gqa" / benchmark.ANSWERS, "--task=gqa", "--annotations"]
    again.append(root / "gqa" / "data" / "testdev_balanced_questions.json")
    assert main.main(["eval", *map(str, again)]) == errors.OK


def test_the_batch_changes_no_text_and_a_stopped_run_goes_on(
    trained, ours, answered, tmp_path, capsys
):
    for size in (1, 2):
        out = tmp_path / str(size)
        words = (*FAST, f"--batch-size={size}")
        assert run(trained, ours, "seed,mmbench", out, *words) == errors.OK
        for name in ("seed", "mmbench"):  # 3 are a part of a batch, 7 are 4 and 3 left over
            assert texts(out, name) == texts(answered, name)
    assert len({text for _, text in texts(answered, "mmbench")}) > 1
    path = tmp_path / "1" / "mmbench" / benchmark.PROGRESS
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:4]) + kept[4][:20])  # killed while it wrote
    capsys.readouterr()
    assert run(trained, ours, "mmbench", tmp_path / "1", *FAST) == errors.OK
    assert "mmbench: 3 of 7 questions have an answer" in capsys.readouterr().err
    assert path.read_text().startswith("".join(kept[:4]))
    assert texts(tmp_path / "1", "mmbench") == texts(answered, "mmbench")
    assert run(trained, ours, "mmbench", tmp_path / "1", *FAST, "--max-new-tokens=3") == 2
    assert "max_new_tokens: 4, now 3" in capsys.readouterr().err


def test_self_asked_questions_stand_in_front_and_are_not_asked_twice(
    trained, ours, answered, tmp_path, capsys
):
    words = (*FAST, "--self-questions=2", "--round-tokens=4", "--batch-size=2")
    assert run(trained, ours, "seed", tmp_path, *words) == errors.OK
    first = answers(tmp_path, "seed")
    notes = [line["metadata"]["self_questions"] for line in first]
    assert all(note["turns"][0]["value"].startswith("Can you describe") for note in notes)
    assert [len(note["turns"]) // 2 + len(note["left_out"]) for note in notes] == [3] * 3
    assert [line["prompt"] for line in first] == [
        line["prompt"] for line in answers(answered, "seed")
    ]
    assert told(tmp_path, "seed")["settings"]["self_questions"]["sampling"] == [1.2, 300, 0.95]
    path = tmp_path / "seed" / benchmark.PROGRESS
    kept = path.read_text().splitlines(keepends=True)[:3]
    path.write_text("".join(kept))  # stopped behind the second question
    assert run(trained, ours, "seed", tmp_path, *words) == errors.OK
    assert path.read_text().startswith("".join(kept)) and answers(tmp_path, "seed") == first
    capsys.readouterr()
    assert run(trained, ours, "seed", tmp_path, *FAST) == errors.USAGE
    assert "self_questions" in capsys.readouterr().err
    assert run(trained, ours, "seed", tmp_path / "b", *words, "--round-tokens=200") == errors.USAGE
    assert "give a smaller --round-tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_a_part_is_scored_alone_and_continued(trained, ours, genuine, tmp_path, capsys):
    names = "gqa,textvqa,pope,scienceqa"
    assert run(trained, genuine, names, tmp_path, *PAPERS, "--limit=3") == errors.OK
    assert "published figures are over 12578" in capsys.readouterr().out
    for name in names.split(","):
        found = told(tmp_path, name)
        faults = found["score"]["faults"]
        assert found["answers"] == found["score"]["count"] == 3
        assert faults["missing"]["count"] == faults["unknown"]["count"] == 0
    assert run(trained, ours, "mmbench", tmp_path, *FAST, "--limit=2") == errors.OK
    assert told(tmp_path, "mmbench")["answers"] == 5
    assert told(tmp_path, "mmbench")["score"]["count"] == 2
    assert "--limit" in capsys.readouterr().out
    assert run(trained, ours, "mmbench", tmp_path, *FAST) == errors.OK
    assert "5 of 7 questions have an answer" in capsys.readouterr().err


def test_entities_come_from_a_store_by_the_image(trained, ours, tmp_path, capsys):
    words = [word for word in FAST if word != "--entities=none"]
    assert run(trained, ours, "seed", tmp_path / "a", *words) == errors.USAGE
    assert "--entities=none" in capsys.readouterr().err
    found = graphs.Entities.from_boxes(np.array([[2, 2, 20, 20]]), (40, 40))
    names = ["SEED-Bench-image/d1", "SEED-Bench-image/d2", "SEED-Bench-video-image/10_v3.png"]
    store = tmp_path / "stores" / "seed"
    records.write_entities(store, [(name, found) for name in names[:2]])
    given = f"--entities={store}"
    assert run(trained, ours, "seed", tmp_path / "a", *words, given) == errors.DATA
    assert "lacks 1 images of seed" in capsys.readouterr().err
    wrong = f"--entities={tmp_path / 'stores'}"
    assert run(trained, ours, "vqav2", tmp_path / "a", *words, wrong) == errors.DATA
    seen = capsys.readouterr().err
    assert "none of vqav2" in seen and str(tmp_path / "stores" / "vqav2") in seen
    assert "why: there are seed\n" in seen
    # extracted from the folder of all benchmarks; one extraction failed
    rows = [(f"seed_bench/{names[0]}", found), (f"seed_bench/{names[1]}", "broken")]
    records.write_entities(store, [*rows, (f"seed_bench/{names[2]}", found)])
    given = f"--entities={tmp_path / 'stores'}"
    assert run(trained, ours, "seed", tmp_path / "a", *words, given) == errors.OK
    assert told(tmp_path / "a", "seed")["settings"]["entities"] != "none"
    assert run(trained, ours, "seed", tmp_path / "a", *words, "--entities=none") == errors.USAGE
    assert "entities" in capsys.readouterr().err
    pictures = tmp_path / "pictures"
    assert eval_tasks.run(["--tasks=mmbench", f"--root={ours}", f"--unpack={pictures}"]) == 0
    assert {path.name for path in pictures.iterdir()} == {"0.jpg", "1.jpg", "2.jpg"}
    assert (pictures / "1.jpg").read_bytes() == files.picture(1)


@pytest.mark.slow
def test_errors_are_noted_and_asked_again_on_request(trained, ours, tmp_path, capsys):
    root = files.copy(ours, tmp_path / "root")
    path = root / "llava-bench-in-the-wild" / "images" / "001.jpg"
    whole = path.read_bytes()
    path.unlink()
    questions = root / "llava-bench-in-the-wild" / "questions.jsonl"
    long = {"question_id": 9, "image": "000.jpg", "text": "why " * 400, "category": "conv"}
    questions.write_text(questions.read_text() + json.dumps(long) + "\n")
    assert run(trained, root, "llava_wild", tmp_path, *FAST) == errors.OK
    seen = capsys.readouterr().out
    assert "2 of 4 questions have an error" in seen and "001.jpg" in seen and "positions" in seen
    assert [bool(line["metadata"]) for line in answers(tmp_path, "llava_wild")] == [0, 1, 0, 1]
    path.write_bytes(whole)
    assert run(trained, root, "llava_wild", tmp_path, *FAST) == errors.OK
    assert "2 have an error and an empty one (--retry asks them again)" in capsys.readouterr().err
    assert run(trained, root, "llava_wild", tmp_path, *FAST, "--retry") == errors.OK
    assert "1 of 4 questions have an error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tasks=gpa",), errors.USAGE, "there is no benchmark 'gpa'"),
        (("--tasks=gqq",), errors.USAGE, "did you mean gqa? known: "),
        (("--tasks=relation",), errors.USAGE, "did you mean relations? known: "),
        (("--tasks=zzz",), errors.USAGE, ",scenes,relations"),
        (("--tasks=sqa",), errors.USAGE, "did you mean scienceqa? known: "),
        (("--tasks=GQA",), errors.USAGE, "did you mean gqa? known: "),
        (("--tasks=mme",), errors.USAGE, "sgqlm eval score ANSWERS --task mme"),
        (("--tasks=gqa", "--unpack=/dev/null"), errors.USAGE, "the output is a file"),
        (("--tasks=gqa", "--limit=x"), errors.USAGE, "where: --limit\n"),
        (("--tasks=pope", "--limit=-3"), errors.USAGE, "or give 0, which is the same"),
        (("--tasks=gqa",), errors.DATA, "the questions of gqa are not there"),
        (("--tasks=pope", "--mode=sgcls"), errors.USAGE, "--mode is a flag of relations"),
        (("--tasks=pope", "--limit=-1"), errors.USAGE, "--limit is below 0"),
        (("--tasks=pope", "--self-questions=-1"), errors.USAGE, "--self-questions is below 0"),
        (("--tasks=pope", "--round-tokens=0"), errors.USAGE, "--round-tokens is below 1"),
        (("--tasks=pope", "--round-tokens=9"), errors.USAGE, "is of self-asked questions"),
        (("--tasks=pope", "--config.model.image_fit=pad"), errors.USAGE, "the checkpoint says"),
        (("--tasks=pope", "--config.eval.batch_size=0"), errors.USAGE, "a batch of 0"),
        (("--tasks=pope", "--nonsense=1", "--entities=none"), errors.USAGE, "--nonsense"),
        (("--tasks=pope", "--entities=none"), errors.USAGE, "had no --max-new-tokens"),
        (("--tasks=pope,seed", "--questions=/dev/null"), errors.USAGE, ""),
        (("--tasks=pope", "--root=/nowhere"), errors.USAGE, "no such folder"),
        (("--tasks=",), errors.USAGE, "no task is named"),
    ],
)
def test_mistakes_are_told_before_the_work(trained, ours, tmp_path, capsys, words, code, message):
    room = ""
    if "had no" in message:
        words, message = (*words, "--max-new-tokens=600"), "too few for"
        room = "or less, which leaves room for the longest question"
    given = (f"--checkpoint={trained}", f"--root={ours}", f"--out={tmp_path / 'out'}")
    assert main.main(["eval", *given, *words]) == code
    seen = capsys.readouterr().err
    assert message in seen and room in seen
    assert not (tmp_path / "out").exists()


def test_sigterm_leaves_with_the_code_for_another_start(
    trained, ours, tmp_path, capsys, monkeypatch
):
    def stop(source):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(1)

    monkeypatch.setattr(eval_model, "load", stop)
    assert run(trained, ours, "pope", tmp_path / "out", *FAST) == errors.PREEMPTED
    told = capsys.readouterr().err
    assert "stopped by SIGTERM" in told and "the answers so far are kept" in told


def test_a_folder_without_images_is_refused(trained, ours, tmp_path, capsys):
    root = files.copy(ours, tmp_path / "root")
    (root / "pope" / "val2014").rename(root / "pope" / "elsewhere")
    assert run(trained, root, "pope", tmp_path / "out", *FAST) == errors.DATA
    assert "none of the images of pope is there" in capsys.readouterr().err
    path = root / "pope" / "coco" / "coco_pope_random.json"
    path.write_text(path.read_text() * 2)
    assert run(trained, root, "pope", tmp_path / "out", *FAST) == errors.DATA
    assert "ids stand twice" in capsys.readouterr().err
