import json

import pytest

from sgqlm import errors
from sgqlm.evals import yes_no
from tests import paths

QUESTIONS = ["Is there a dog?", "Is there a cat?"]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def labels(folder, name, *, count=2, question="Is there a {}?"):
    items = [
        {"question_id": n + 1, "text": question.format(n), "label": ["yes", "no"][n % 2]}
        for n in range(count)
    ]
    return write(folder / f"coco_pope_{name}.json", items)


def answered(folder, block=0, *, count=2, prompt=True, text=("Yes", "No"), name="a.jsonl"):
    items = []
    for n in range(count):
        item = {"question_id": block * 10_000_000 + n + 1, "text": text[n % 2]}
        items.append(item | ({"prompt": f"Is there a {n}?\nAnswer"} if prompt else {}))
    return write(folder / name, items)


def test_categories_are_found_by_the_ids_of_llavas_question_file(tmp_path):
    files = [labels(tmp_path, name) for name in ("random", "popular", "adversarial")]
    parts = [answered(tmp_path, at, name=f"{at}.jsonl") for at in range(3)]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(part.read_text() for part in reversed(parts)))
    done = yes_no.score_pope([whole], files)
    assert (done.metric, done.rows[0][0]) == ("mean F1", "mean F1")
    assert done.score == 1 and len(done.items) == 6 and not done.faults.is_mismatch
    assert done.items["random/1"] == 1
    figures = {name: value for name, value, _ in done.rows}
    assert figures["popular f1"] == 1 and figures["adversarial yes_ratio"] == 0.5
    one = yes_no.score_pope([whole], files[:1])
    assert one.score == 1 and any("no labels of popular" in note for note in one.notes)
    assert any("absent: adversarial, popular" in note for note in one.notes)
    two = yes_no.score_pope([whole], files[:2])  # no one takes it for the published figure
    assert two.metric == two.rows[0][0] == "mean F1 of 2 of 3 categories"
    part = yes_no.score_pope([parts[1]], files)  # labels of all, answers to one
    assert part.score == 1 and list(part.items) == ["random/1", "random/2"]
    assert "no answers to popular: left out" in part.notes and not part.faults.is_mismatch


def test_categories_are_taken_from_a_question_file_or_the_name(tmp_path):
    files = [labels(tmp_path, name) for name in ("random", "popular")]
    asked = [{"question_id": n, "category": "random", "text": ""} for n in (1, 2)]
    asked += [
        {"question_id": n, "category": "popular", "text": ""} for n in (10_000_001, 10_000_002)
    ]
    parts = [answered(tmp_path, at, name=f"{at}.jsonl") for at in range(2)]
    done = yes_no.score_pope(parts, [*files, write(tmp_path / "q.jsonl", asked)])
    assert done.score == 1 and len(done.items) == 4
    named = [answered(tmp_path, name=f"{name}.jsonl") for name in ("random", "popular")]
    assert yes_no.score_pope(named, files).items == done.items


def test_another_revision_is_refused(tmp_path):
    today = labels(tmp_path, "random", count=4)
    with pytest.raises(errors.SgqlmError, match="2 answers and 4 labels") as told:
        yes_no.score_pope([answered(tmp_path, prompt=False)], [today])
    assert told.value.code == errors.DATA and "2910" in told.value.fix
    other = labels(tmp_path, "random", question="Is there some {}?")
    with pytest.raises(errors.SgqlmError, match="do not fit together"):
        yes_no.score_pope([answered(tmp_path)], [other])


def test_a_missing_answer_is_wrong_whatever_the_label(tmp_path):
    file = labels(tmp_path, "random", count=4)
    done = yes_no.score_pope([answered(tmp_path, count=2)], [file])  # prompts tell it is the same
    assert done.faults.missing == ["random 3", "random 4"] and sum(done.items.values()) == 2


def test_ids_that_are_no_numbers(tmp_path):
    bad = write(tmp_path / "a.jsonl", [{"question_id": "x1", "text": "No"}] * 2)
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        yes_no.score_pope([bad], [labels(tmp_path, "random")])


def test_published_pope_answers():
    folder = paths.shared("samples/pope")
    done = yes_no.score_pope([folder / "full_random.tsv", folder / "full_popular.tsv"], [])
    figures = {name: value for name, value, _ in done.rows}
    assert round(100 * figures["random f1"], 3) == 87.136
    assert round(100 * figures["popular f1"], 3) == 86.246
    names = ("random", "popular", "adversarial")
    given = [folder / f"answers_llava-v1.5-13b_{name}.jsonl" for name in names]
    joined = yes_no.score_pope(given, [folder / f"coco_pope_{name}.json" for name in names])
    assert len(joined.items) == 144 and not joined.faults.is_mismatch


def test_mme_answers_of_llava_are_joined_with_the_release(tmp_path):
    rows = [("a.png", "Is it 1?", "Yes"), ("a.png", "Is it 2?", "No")]
    release = tmp_path / "release"
    for folder in ("count", "OCR/questions_answers_YN"):
        (release / folder).mkdir(parents=True)
        text = "".join(f"{q}  Please answer yes or no.\t{t}\n" for _, q, t in rows)
        (release / folder / "a.txt").write_text(text)
    end = "\nAnswer the question using a single word or phrase."
    said = [
        {"question_id": f"{place}/a.png", "prompt": question + end, "text": truth}
        for place in ("count", "OCR/images")
        for _, question, truth in rows
    ]
    said[3]["text"] = "Perhaps"
    file = write(tmp_path / "llava.jsonl", said)
    done = yes_no.score_mme([file], [release])
    assert done.score == 200 + 50 and any("1 answers are neither" in note for note in done.notes)
    missing = yes_no.score_mme([write(file, said[:3])], [release])
    assert missing.score == 250 and len(missing.faults.missing) == 1
    sheet = tmp_path / "count.txt"
    sheet.write_text("".join("\t".join([*row, "Yes"]) + "\n" for row in rows))
    assert yes_no.score_mme([sheet], []).score == 50
    assert yes_no.score_mme([write(file, said[:2])], [sheet]).score == 200
    sheet.write_text("a.png\tIs it 1?\tYes\n")
    with pytest.raises(errors.SgqlmError) as told:
        yes_no.score_mme([sheet], [])
    assert "line 1 has 3 columns" in told.value.why


def test_published_mme_answers():
    done = yes_no.score_mme([paths.shared("samples/mme")], [])
    assert round(done.score, 3) == 1531.319
    assert any("commonsense_reasoning" in note for note in done.notes)
