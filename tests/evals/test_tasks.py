"""What the benchmarks ask: official files give the prompts of LLaVA's files and answers."""

import base64
import csv
import json

import pytest

from sgqlm import errors
from sgqlm.data import cards
from sgqlm.evals import questions, tasks
from tests import paths
from tests.evals import benchmark_files as files


def read(name, root):
    return tasks.read(tasks.locate(tasks.get(name), root))


def genuine(name):
    return [json.loads(line) for line in paths.shared(f"samples/{name}").read_text().splitlines()]


def test_gqa_official_equals_llavas(tmp_path):
    files.gqa(tmp_path)
    theirs = {q.id: (q.image, q.text) for q in read("gqa", tmp_path)}
    (tmp_path / "gqa" / "llava_gqa_testdev_balanced.jsonl").unlink()
    assert {q.id: (q.image, q.text) for q in read("gqa", tmp_path)} == theirs
    assert len(theirs) == 5


def test_pope_official_has_the_ids_and_prompts_of_llavas_answers(tmp_path):
    for name in ("adversarial", "popular", "random"):
        text = paths.shared(f"samples/pope/coco_pope_{name}.json").read_text()
        (tmp_path / f"coco_pope_{name}.json").write_text(text)
    asked = {q.id: q.prompt for q in read("pope", tmp_path)}
    assert len(asked) == 144
    for name in ("adversarial", "popular", "random"):
        for line in genuine(f"pope/answers_llava-v1.5-13b_{name}.jsonl"):
            assert asked[line["question_id"]] == line["prompt"]


def test_scienceqa_problems_give_llavas_conversation(tmp_path):
    problems = json.loads(paths.shared("samples/scienceqa/problems.json").read_text())
    talks = json.loads(paths.shared("samples/llava_json/llava_test_CQM-A.json").read_text())
    shared = {talk["id"]: talk for talk in talks if talk["id"] in problems}
    pair = next(talk for talk in talks if "<image>\nContext" in talk["conversations"][0]["value"])
    lines = pair["conversations"][0]["value"].removeprefix("<image>\n").split("\n")
    options = [line[3:] for line in lines if line[1:3] == ". "]
    body = lines[: len(lines) - len(options)]
    context = {
        "hint": "\n".join(body[:-1]).removeprefix("Context: "), "question": body[-1],
        "choices": options, "answer": 0, "image": "image.png",
    }  # fmt: skip
    chosen = {key: problems[key] for key in shared} | {pair["id"]: context}
    files.value(tmp_path / "problems.json", chosen)
    files.value(tmp_path / "pid_splits.json", {"test": list(chosen)})
    ours = {q.id: q for q in read("scienceqa", tmp_path)}
    files.value(tmp_path / "llava_test_CQM-A.json", [*shared.values(), pair])
    theirs = {q.id: q for q in read("scienceqa", tmp_path)}
    assert len(ours) == 2
    assert {k: (q.text, q.prompt) for k, q in ours.items()} == {
        k: (q.text, q.prompt) for k, q in theirs.items()
    }
    found = ours[pair["id"]]
    assert found.image == f"{pair['id']}/image.png" and found.prompt == "<image>\n" + found.text
    assert found.text.endswith("from the given choices directly.") and "<image>" not in found.text


def test_vizwiz_and_vqav2_official_equal_llavas(tmp_path):
    theirs = genuine("vizwiz/llava_test.jsonl")[:3]
    plain = [{"image": q["image"], "question": q["text"].split("\nWhen the")[0]} for q in theirs]
    files.value(tmp_path / "vizwiz" / "test.json", plain)
    found = read("vizwiz", tmp_path)
    assert [(q.image, q.text) for q in found] == [(q["image"], q["text"]) for q in theirs]
    assert [q.id for q in found] == [0, 1, 2]
    line = genuine("vqav2/bunny_vqav2_mscoco_test-dev2015.jsonl")[0]
    asked = {"question": line["text"].split("\n")[0], "question_id": line["question_id"]}
    asked["image_id"] = line["question_id"] // 1000
    value = {"data_subtype": "test-dev2015", "questions": [asked]}
    files.value(tmp_path / "vqav2" / "v2_OpenEnded_mscoco_test-dev2015_questions.json", value)
    (one,) = read("vqav2", tmp_path)
    assert (one.id, one.image, one.text) == (line["question_id"], line["image"], line["text"])


def test_mmbench_prompts_are_those_of_llavas_answers(tmp_path):
    said = {line["question_id"]: line for line in genuine("mmbench/answers/llava-v1.5-13b.jsonl")}
    path = paths.shared("samples/mmbench/mmbench_dev_20230712_llava-v1.5-13b.tsv")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    for row in rows:  # the sheet that is sent has no hint: what stands before the question is it
        prompt = said[int(row["index"])]["prompt"]
        at = prompt.index(row["question"].replace("\\n", "\n"))
        row["question"] = row["question"].replace("\\n", "\n")
        row |= {"hint": prompt[:at].removesuffix("\n"), "image": "aWNvbg=="}
        row |= {letter: row[letter].replace("\\n", "\n") for letter in "ABCD"}
    with (tmp_path / "mmbench_dev_20230712.tsv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    found = read("mmbench", tmp_path)
    assert len(found) == len(said) == 44
    for question in found:
        line = said[question.id]
        assert question.prompt == line["prompt"]
        assert question.text == question.prompt + questions.LETTER
        assert question.more["options"] == line["options"]
        assert question.more["option_char"] == line["option_char"]
    assert found[0].data == b"icon" and found[0].image == f"{found[0].id % 1_000_000}.jpg"


def test_pictures_of_mmbench_are_shared_by_number(tmp_path):
    files.mmbench_cn(tmp_path)
    found = read("mmbench_cn", tmp_path)
    assert all(q.text.endswith("\n请直接回答选项字母。") for q in found)
    assert {q.data for q in found if q.image == "1.jpg"} == {files.picture(1)}
    task = tasks.get("mmbench_cn")
    assert [found[at].id for at in tasks.limited(task, found, 1)] == [0, 1_000_000]
    assert len(tasks.limited(task, found, 0)) == len(found) == 7


def test_seed_and_mmvet_official(tmp_path):
    files.seed(tmp_path)
    found = read("seed", tmp_path)
    assert found[0].text.split("\n")[:2] == ["What is there?", "A. a a"]
    assert found[0].text.endswith(questions.LETTER)
    place = tasks.locate(tasks.get("seed"), tmp_path)
    assert all(place.image(question).is_file() for question in found)
    item = {"imagename": "v1_3.png", "question": "What?", "answer": "4", "capability": ["ocr"]}
    files.value(tmp_path / "mm-vet" / "mm-vet.json", {"v1_4": item})
    (one,) = read("mmvet", tmp_path)
    assert (one.id, one.image, one.text) == (4, "v1_3.png", "What?")


def test_the_digest_tells_revisions_apart(tmp_path):
    files.llava_wild(tmp_path)
    first = questions.digest(read("llava_wild", tmp_path))
    path = tmp_path / "llava-bench-in-the-wild" / "questions.jsonl"
    path.write_text(path.read_text().replace("Why?", "How?"))
    assert questions.digest(read("llava_wild", tmp_path)) != first


def test_files_of_another_kind_are_refused(tmp_path):
    asked = {"data": [{"question": "What?", "image_id": "a", "question_id": 1, "answers": []}]}
    files.value(tmp_path / "textvqa" / "TextVQA_0.5.1_val.json", asked["data"])
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        read("textvqa", tmp_path)
    assert "OCR tokens" in str(caught.value)
    (tmp_path / "mmbench").mkdir()
    for name in ("mmbench_dev_20250101.tsv", "mmbench_dev_20260101.tsv"):
        (tmp_path / "mmbench" / name).write_text("index\tquestion\n")
    with pytest.raises(errors.SgqlmError, match="several files can be the questions"):
        read("mmbench", tmp_path)
    code = base64.b64encode(b"x").decode()
    one = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    one.write_text(f"index\tquestion\tA\tB\timage\nfirst\tWhat?\ta\tb\t{code}\n")
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        read("mmbench", tmp_path)
    assert "'first' is no number" in str(caught.value)
    files.lines(tmp_path / "pope" / "llava_pope_test.jsonl", [
        {"question_id": "x", "image": "a.jpg", "text": "Is it?"}])  # fmt: skip
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        read("pope", tmp_path)
    assert "another kind" in str(caught.value)


def test_every_benchmark_has_a_card(tmp_path):
    for name, task in tasks.TASKS.items():
        card = json.loads((paths.ROOT / "data" / name / "card.json").read_text())
        assert card["folder"] in task.folders
        named = " ".join(f"{cards.names(file)} {file['what']}" for file in card["files"])
        assert all(file in named for file in task.files if "*" not in file)


def test_one_question_file_and_a_root_that_is_the_folder_itself(tmp_path):
    root = files.make(tmp_path / "root", ["pope", "gqa"])
    (own,) = {path.parent for path in root.rglob("testdev_balanced_questions.json")}
    two = [next(own.glob("*.json"))] * 2
    with pytest.raises(errors.SgqlmError, match="gqa has one question file") as caught:
        tasks.locate(tasks.get("gqa"), root, two)
    assert caught.value.code == errors.USAGE
    pope = (root / "pope").rename(tmp_path / "POPE")
    for path in pope.glob("llava_pope*"):
        path.unlink()
    found = tasks.locate(tasks.get("pope"), pope)
    assert found.files and all(path.parent.name == "coco" for path in found.files)
    assert tasks.locate(tasks.get("pope"), pope, found.files).files == found.files
    with pytest.raises(errors.SgqlmError, match="are not there"):  # of another benchmark
        tasks.locate(tasks.get("vizwiz"), root)
