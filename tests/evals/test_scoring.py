import json

import pytest

from sgqlm import errors
from sgqlm.evals import human_answers, scored, scoring
from tests import paths


def put(path, value):
    path.write_text(json.dumps(value))
    return path


def say(folder, texts, **fields):
    records = [{"question_id": key, "text": text, **fields} for key, text in texts.items()]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def figures(done):
    return {name: value for name, value, _ in done.rows}


def test_gqa_by_file(tmp_path):
    official = json.loads(paths.fixture("llava/gqa_sample.json").read_text())
    file = put(tmp_path / "questions.json", official["questions"])
    sent = put(tmp_path / "sent.json", official["converted"])
    texts = {item["question_id"]: item["text"] for item in official["answers_jsonl"]}
    done = scoring.score("gqa", [say(tmp_path, texts)], [file])
    assert done.score == pytest.approx(5 / 6)
    assert done.items == scoring.score("gqa", [sent], [file]).items
    assert any("published figures are over 12578" in note for note in done.notes)
    texts.pop("20200000")
    done = scoring.score("gqa", [say(tmp_path, texts)], [file])
    assert done.score == pytest.approx(4 / 6) and done.faults.missing == ["20200000"]


def test_scienceqa_by_file(tmp_path):
    official = json.loads(paths.fixture("llava/scienceqa.json").read_text())
    files = [put(tmp_path / f"{name}.json", official[name]) for name in ("problems", "pid_splits")]
    answers = put(tmp_path / "answers.json", official["answers"])
    done = scoring.score("scienceqa", [answers], files)
    assert figures(done)["accuracy"] == pytest.approx(0.2) and done.score == pytest.approx(0.2)
    assert done.faults.missing == ["121"] and done.faults.empty == ["120"]
    assert scoring.score("scienceqa", [answers], [tmp_path]).items == done.items
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.SgqlmError, match="no annotations of pope"):
        scoring.score("pope", [answers], [tmp_path / "empty"])
    with pytest.raises(errors.SgqlmError, match="no split 'val'"):
        scoring.score("scienceqa", [answers], files, split="val")


def test_seed_by_file(tmp_path):
    official = json.loads(paths.fixture("llava/seed.json").read_text())
    file = put(tmp_path / "SEED-Bench.json", official["annotation"])
    done = scoring.score("seed", [put(tmp_path / "a.json", official["answers"])], [file])
    assert done.score == pytest.approx(1 / 6) and len(done.items) == 24
    assert figures(done)["Action Recognition"] == pytest.approx(1 / 6)
    sent = scoring.score("seed", [put(tmp_path / "a.json", official["upload"])], [file])
    assert sent.items == done.items


def test_textvqa_is_joined_by_image_and_question(tmp_path):
    known = [
        {"image_id": "x", "question_id": n, "question": f"What is {n}?", "answers": [str(n)] * 10}
        for n in (1, 2)
    ]
    file = put(tmp_path / "TextVQA_0.5.1_val.json", {"data": known})
    end = "\nReference OCR token: 1, 2\nAnswer the question using a single word or phrase."
    records = [{"question_id": "x", "prompt": f"what is {n}?{end}", "text": n} for n in ("2", "1")]
    done = scoring.score("textvqa", [put(tmp_path / "a.json", records)], [file])
    assert done.score == 1 and not done.faults.is_mismatch
    by_number = scoring.score("textvqa", [say(tmp_path, {1: "1", 2: "3"})], [file])
    assert by_number.items == {"1": 1, "2": 0}
    known[0]["answers"] = ["1"]
    with pytest.raises(errors.SgqlmError) as told:
        put(file, {"data": known})
        scoring.score("textvqa", [say(tmp_path, {1: "1"})], [file])
    assert "1 human answers, 10 are needed" in told.value.why


@pytest.mark.parametrize(
    "prompt",
    [
        "What is it?\nReference OCR token: a\nAnswer",
        "Reference OCR token: a\nWhat is it?\nAnswer",
        "<image>\nWhat is it?\nAnswer",
        "OCR tokens: a. Question: What is it? Short answer:",
    ],
)
def test_the_question_of_a_textvqa_prompt(prompt):
    assert human_answers.question_of(prompt) == "What is it?"


def test_vqav2_as_its_server_scores_it(tmp_path):
    official = json.loads(paths.fixture("llava/vqa.json").read_text())["items"]
    known = [
        {
            **{name: item[name] for name in ("question_id", "question_type", "answer_type")},
            "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(item["answers"])],
        }
        for item in official
    ]
    file = put(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": known})
    sent = [{"question_id": i["question_id"], "answer": i["prediction"]} for i in official]
    done = scoring.score("vqav2", [put(tmp_path / "sent.json", sent)], [file])
    for item in official:
        assert 100 * done.items[str(item["question_id"])] == pytest.approx(
            item["official_vqaeval_acc"]
        )
    assert "yes/no" in figures(done) and "how many" in figures(done)
    texts = {item["question_id"]: item["prediction"] for item in official}
    raw = scoring.score("vqav2", [say(tmp_path, texts)], [file])
    assert raw.items["0"] == 1 and done.items["0"] == 0  # `Yes` is brought to `yes` first
    asked = put(tmp_path / "q.json", {"questions": [{"question_id": 0, "question": "Is it?"}]})
    with pytest.raises(errors.SgqlmError, match="do not fit"):
        scoring.score("vqav2", [say(tmp_path, {0: "yes"}, prompt="Is he?")], [file, asked])


def test_vizwiz_is_joined_by_image(tmp_path):
    known = [{"image": "a.jpg", "question": "What?", "answers": [{"answer": "cup"}] * 10}]
    file = put(tmp_path / "val.json", known)
    sent = put(tmp_path / "sent.json", [{"image": "a.jpg", "answer": "cup"}])
    assert scoring.score("vizwiz", [sent], [file]).score == 1
    asked = put(tmp_path / "q.json", [{"question_id": 7, "image": "a.jpg", "text": "What?"}])
    assert scoring.score("vizwiz", [say(tmp_path, {7: "The Cup"})], [file, asked]).score == 1
    with pytest.raises(errors.SgqlmError) as told:
        scoring.score("vizwiz", [sent], [asked])
    assert "no human answers" in told.value.why


def test_mmbench_by_table(tmp_path):
    rows = json.loads(paths.fixture("llava/mmbench_sample.json").read_text())["rows"]
    file = put(tmp_path / "mmbench.json", rows)
    texts = {row["index"]: row["prediction"] for row in rows}
    done = scoring.score("mmbench", [say(tmp_path, texts)], [file])
    assert done.score == pytest.approx(0.6) and figures(done)["FP-S"] == 0
    assert scoring.score("mmbench_cn", [file]).items == done.items
    for row in rows:
        del row["answer"]
    with pytest.raises(errors.SgqlmError) as told:
        scoring.score("mmbench", [say(tmp_path, texts)], [put(file, rows)])
    assert "only its server" in told.value.why
    with pytest.raises(errors.SgqlmError, match="nothing to compare") as told:
        scoring.score("mmbench", [say(tmp_path, texts)])
    assert "--annotations" in told.value.fix


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("scienceqa/full_llava-v1.5-13b.tsv", {"IMG accuracy": 71.641, "accuracy": 74.393}),
        (
            "scienceqa/full_test_sqa_llava_lcs_558k_sqa_12e_vicuna_v1_3_13b.tsv",
            {"accuracy": 91.087},
        ),
        ("seed_bench/full_gpt4v.tsv.gz", {"accuracy": 67.283, "image": 69.073, "video": 60.5}),
    ],
)
def test_published_answers_have_their_score(name, wanted):
    task = name.split("/")[0].removesuffix("_bench")
    done = scoring.score(task, [paths.shared(f"samples/{name}")])
    found = {key: round(100 * value, 3) for key, value in figures(done).items() if key in wanted}
    assert found == wanted
    assert len(done.items) == {"seed": 17997, "scienceqa": 4241}[task]


def test_genuine_excerpts_fit_together():
    folder = paths.shared("samples")
    sheet = folder / "mmbench/mmbench_dev_20230712_llava-v1.5-13b.tsv"
    answers = folder / "mmbench/answers/llava-v1.5-13b.jsonl"
    joined = scoring.score("mmbench", [answers], [sheet])
    assert joined.items == scoring.score("mmbench", [sheet]).items and len(joined.items) == 12
    done = scoring.score(
        "gqa",
        [folder / "gqa/answers/llava-v1.5-13b.jsonl"],
        [folder / "gqa/testdev_balanced_questions.json"],
    )
    assert done.score == 0.7 and not done.faults.is_mismatch


@pytest.mark.parametrize("task", sorted({*scoring.TASKS} - {"mme"}))
def test_files_of_another_kind_are_refused(task, tmp_path):
    answers = say(tmp_path, {1: "yes"})
    with pytest.raises(errors.SgqlmError):
        scoring.score(task, [answers], [put(tmp_path / "x.json", [{"a": 1}])])
    with pytest.raises(errors.SgqlmError):
        scoring.score(task, [answers])  # neither truth nor annotations


def test_a_report_is_json_and_has_its_figures(tmp_path):
    rows = [{"question_id": "1", "answer": "yes", "label": "yes"}] * 2
    done = scoring.score("pope", [put(tmp_path / "random.json", rows)])
    told = json.loads(json.dumps(done.report(), allow_nan=False))
    assert told["score"] == 1 and told["figures"]["random f1"] == {"value": 1, "count": 2}
    assert told["items"] == {"random/1": 1, "random/1#1": 1} and told["count"] == 2
    text = "\n".join(done.lines())
    assert "100.00 %" in text and "more than once: 1" in text
    none = scored.Scored("mme", None, "points", [("cognition", None, None)], {}, done.faults)
    assert none.lines()[1].split() == ["cognition", "-"]


def test_a_split_of_mmbench_without_answers_is_told(tmp_path):
    sheet, said = tmp_path / "mmbench_test.tsv", tmp_path / "a.jsonl"
    said.write_text('{"question_id": 1, "text": "A"}')
    for head, row in (("", ""), ("\tanswer", "\t")):
        sheet.write_text(f"index\tquestion\tA\tB{head}\n1\tWhich?\tcat\tdog{row}\n")
        with pytest.raises(errors.SgqlmError, match="the table has no answers") as told:
            scoring.score("mmbench", [said], [sheet])
        assert "sgqlm eval submit --task mmbench" in told.value.fix
