"""Every id of a score has its question, answers and image."""

import base64
import itertools
import json

import pytest

from sgqlm.evals import measured, scoring, summary
from tests import paths
from tests.evals import reports


@pytest.fixture
def both(tmp_path):
    """Return figures, and the items of a report of them that was written and read again."""

    def score(task, answers, annotations=()):
        done = scoring.score(task, answers, annotations)
        path = reports.write(tmp_path / "report.json", task, answers, annotations, done=done)
        return done, measured.read(path).details

    return score


def titles(folder):
    return [title for title, _ in summary.charts(measured.read(folder / "report.json"))]


def test_gqa(tmp_path, both):
    official = json.loads(paths.fixture("llava/gqa_sample.json").read_text())
    truth, said = tmp_path / "q.json", tmp_path / "a.json"
    truth.write_text(json.dumps(official["questions"]))
    said.write_text(json.dumps(official["converted"]))
    done, items = both("gqa", [said], [truth])
    assert set(done.items) <= set(items)
    for key, score in done.items.items():
        item = items[key]
        assert score == float(item.given == item.wanted) and item.image and item.question
        assert len(item.kinds) == 3 and set(item.kinds) <= {figure for figure, *_ in done.rows}
    assert titles(tmp_path) == ["question types", "structural", "semantic"]


def test_seed_and_scienceqa(tmp_path, both):
    official = json.loads(paths.fixture("llava/seed.json").read_text())
    truth, said = tmp_path / "SEED-Bench.json", tmp_path / "a.json"
    truth.write_text(json.dumps(official["annotation"]))
    said.write_text(json.dumps(official["answers"]))
    done, items = both("seed", [said], [truth])
    assert set(items) == set(done.items)
    assert titles(tmp_path) == ["images and videos", "question types"]
    assert all(done.items[k] == float(i.given == i.wanted) for k, i in items.items())
    known = official["annotation"]["questions"][0] | {"data_id": "1_2", "data_type": "image"}
    truth.write_text(json.dumps({"questions": [known | {"question_type_id": 1}]}))
    (item,) = both("seed", [said], [truth])[1].values()
    assert item.image == "SEED-Bench-image/1_2"
    official = json.loads(paths.fixture("llava/scienceqa.json").read_text())
    grades = itertools.cycle(["grade2", "grade6", "grade7"])
    for problem in official["problems"].values():
        problem |= {"subject": "social science", "grade": next(grades), "hint": ""}
    for name in ("problems", "pid_splits", "answers"):
        (tmp_path / f"{name}.json").write_text(json.dumps(official[name]))
    files = [tmp_path / "problems.json", tmp_path / "pid_splits.json"]
    done, items = both("scienceqa", [tmp_path / "answers.json"], files)
    assert set(done.items) <= set(items) and items["121"].given is None
    pictured = [done.items[key] for key in done.items if "IMG accuracy" in items[key].kinds]
    assert sum(pictured) / len(pictured) == pytest.approx(done.score)
    for name, value, count in done.rows[1:]:  # subjects, contexts and grades too
        part = [done.items[key] for key in done.items if name in items[key].kinds]
        assert len(part) == count and sum(part) / len(part) == pytest.approx(value)
    assert titles(tmp_path)[:2] == ["parts", "context"] and titles(tmp_path)[-1] == "subject"
    names = {name for name, *_ in done.rows[2:]}
    assert {"subject SOC", "grade G1-6", "grade G7-12"} < names and len(names) in (4, 5)
    assert both("scienceqa", [tmp_path / "answers.json"], [tmp_path])[1] == items


def test_people_answer_vqa_textvqa_and_vizwiz(tmp_path, both):
    votes = [{"answer": text} for text in ["blue"] * 8 + ["navy", "sky"]]
    truth, said = tmp_path / "t.json", tmp_path / "a.jsonl"
    known = {"question_id": 7, "image_id": 42, "answer_type": "other", "answers": votes}
    asked = {"question_id": 7, "image_id": 42, "question": "What colour?"}
    truth.write_text(json.dumps({"annotations": [known]}))
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps({"questions": [asked]}))
    reports.lines(said, [{"question_id": 7, "text": "Blue"}])
    done, items = both("vqav2", [said], [truth, questions])
    assert done.items == {"7": 1} and items["7"].wanted == "blue (8), navy, sky"
    assert items["7"].question == "What colour?" and items["7"].image == "42"
    assert titles(tmp_path) == ["answer types"]
    truth.write_text(
        json.dumps([{"image": f"V_{n}.jpg", "question": "What?", "answers": votes} for n in (1, 2)])
    )
    reports.lines(said, [{"image": f"V_{n}.jpg", "answer": "red"} for n in (1, 2)])
    done, items = both("vizwiz", [said], [truth])
    assert done.items == {"V_1.jpg": 0, "V_2.jpg": 0} and items["V_1.jpg"].given == "red"
    known = {"image_id": "x", "question_id": 1, "question": "What is it?", "answers": ["a"] * 10}
    truth.write_text(json.dumps({"data": [known]}))
    reports.lines(said, [{"question_id": "x", "prompt": "what is it?\nAnswer", "text": "b"}])
    done, items = both("textvqa", [said], [truth])
    assert set(done.items) <= set(items)
    item = items[next(iter(done.items))]
    assert item.given == "b" and item.wanted == "a (10)" and item.image == "x"


def test_mmbench_has_all_rolls_and_the_image(tmp_path, both):
    pixels = base64.b64encode(b"any").decode()
    head = "index\tquestion\tA\tB\tanswer\tprediction\tcategory\timage\n"
    rows = [
        f"1\tWhich?\tcat\tdog\tA\tA\tc\t{pixels}",
        f"1000001\tWhich?\tdog\tcat\tB\tA\tc\t{pixels}",
    ]
    sheet = tmp_path / "s.tsv"
    sheet.write_text(head + "\n".join(rows) + "\n")
    done, items = both("mmbench", [sheet])
    assert done.items == {"1": 0} and items["1"].given == "A | A" and items["1"].pixels == b"any"
    assert titles(tmp_path) == ["answers", "categories"]
    assert "rotated: A, B" in items["1"].wanted and "B. dog" in items["1"].question
    answers = reports.lines(tmp_path / "a.jsonl", [{"question_id": 1, "text": "A"}])
    items = both("mmbench", [answers], [sheet])[1]
    assert items["1"].given == "A | no answer" and items["1"].image == "1.jpg"
    assert not items["1"].asked
    reports.lines(answers, [{"question_id": 1, "prompt": "Which?\nA. cat", "text": "A"}])
    (item,) = both("mmbench_cn", [answers], [sheet])[1].values()
    assert item.asked.startswith("Which?\nA. cat\n") and "选项" in item.asked
    sheet.write_text(sheet.read_text() + "\n")
    for why in ("it has changed since it was scored", "it is not there any more"):
        report = measured.read(tmp_path / "report.json")
        assert report.notes[-1] == f"no pictures of {sheet}: {why}"
        assert not report.details["1"].pixels and report.details["1"].given
        sheet.unlink(missing_ok=True)


def test_mme_in_both_layouts(tmp_path, both):
    truth = tmp_path / "count.txt"
    truth.write_text("1.jpg\tIs it 1? Please answer yes or no.\tYes\n1.jpg\tIs it 2?\tNo\n")
    prompts = ("Is it 1?\nAnswer the question using a single word or phrase.", "Is it 2?")
    said = [
        {"question_id": "count/1.jpg", "prompt": prompt, "text": text}
        for prompt, text in zip(prompts, ("Yes", "Yes"), strict=True)
    ]
    done, items = both("mme", [reports.lines(tmp_path / "a.jsonl", said)], [truth])
    assert titles(tmp_path) == ["sum", "categories"]
    assert set(done.items) == set(items) and sorted(i.given for i in items.values()) == ["Yes"] * 2
    truth.write_text("1.jpg\tIs it 1?\tYes\tyes\n1.jpg\tIs it 2?\tNo\tyes\n")
    done, items = both("mme", [truth])
    assert {key: item.given for key, item in items.items()} == dict.fromkeys(done.items, "yes")


def test_samples_with_their_own_truth(both):
    for task, name in (
        ("pope", "pope/full_random.tsv"),
        ("scienceqa", "scienceqa/full_llava-v1.5-13b.tsv"),
        ("seed", "seed_bench/full_gpt4v.tsv.gz"),
    ):
        done, items = both(task, [paths.shared(f"samples/{name}")])
        assert set(items) == set(done.items) and items[next(iter(items))].wanted
