"""Annotations that stand twice, are damaged or lie in a folder, by way of whole scores."""

import json

import pytest

from sgqlm import errors
from sgqlm.evals import annotated, scoring, tasks
from tests.evals import benchmark_files

GQA = {
    "imageId": "n",
    "question": "What?",
    "answer": "yes",
    "types": {"structural": "query", "semantic": "obj"},
    "semantic": [{"operation": "select", "argument": "x"}],
    "groups": {"global": None},
    "isBalanced": True,
}
SEED = {"question_id": 1, "answer": "A", "data_type": "image", "question_type_id": 1}
VQA = {"question_id": 1, "answers": [{"answer": "a"}] * 10}
POPE = {"question_id": 1, "text": "Is it?", "label": "yes"}
MMBENCH = {"index": 1, "A": "x", "B": "y", "answer": "A"}
MME = "a.jpg\tIs it?\tYes\n"
ANSWER = {"question_id": 1, "text": "A"}


def put(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def say(folder, *records):
    return put(folder / "answers.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def told(task, answers, annotations):
    with pytest.raises(errors.SgqlmError) as found:
        scoring.score(task, [answers], annotations)
    assert found.value.code == errors.DATA
    return found.value


@pytest.mark.parametrize(
    ("task", "record", "other"),
    [
        ("seed", SEED, {"answer": "B"}),
        ("vqav2", VQA, {"answers": ["b"] * 10}),
        ("pope", POPE, {"label": "no"}),
        ("mmbench", MMBENCH, {"answer": "B"}),
        ("textvqa", VQA | {"image_id": 1, "question": ""}, {"answers": ["b"] * 10}),
    ],
)
def test_ids_that_are_annotated_twice(tmp_path, task, record, other):
    file, answers = tmp_path / f"{task}.json", say(tmp_path, ANSWER)
    one = scoring.score(task, [answers], [put(file, [record])])
    two = scoring.score(task, [answers], [put(file, [record, record])])
    assert two.items == one.items and set(two.notes) - set(one.notes) == {
        "1 ids are annotated twice and alike: 1"
    }
    found = told(task, answers, [put(file, [record, {**record, **other}])])
    assert found.what.startswith("1 ids are annotated twice") and found.why == "1"
    assert found.where == str(file)


def test_questions_of_two_files_and_of_mme_and_submissions(tmp_path):
    files = [put(tmp_path / f"{n}.json", {"1": GQA | {"answer": n}}) for n in ("yes", "no")]
    assert told("gqa", say(tmp_path, ANSWER), files).where == ", ".join(map(str, files))
    mme = put(tmp_path / "artwork.txt", MME + MME.replace("Yes", "No"))
    record = {"question_id": "artwork/a.jpg", "prompt": "Is it?", "text": "Yes"}
    assert "annotated twice" in told("mme", say(tmp_path, record), [mme]).what
    captions = [{"image": "1.jpg", "img_id": 1, "caption": [text]} for text in "ab"]
    found = told("nocaps", say(tmp_path, ANSWER), [put(tmp_path / "n.json", captions)])
    assert "annotated twice" in found.what


@pytest.mark.parametrize(
    ("task", "value", "why"),
    [
        ("gqa", {"7": GQA | {"types": None}}, "record 1 (7): TypeError"),
        ("gqa", {"7": GQA | {"groups": None}}, "record 1 (7): TypeError"),
        (
            "gqa",
            {"7": GQA, "8": GQA | {"semantic": [{"operation": "x"}]}},
            "record 2 (8): KeyError",
        ),
        ("gqa", {"7": GQA | {"isBalanced": False}}, "none of its questions is balanced"),
        ("gqa", {"1": GQA, "2": GQA | {"types": {**GQA["types"], "semantic": None}}}, "TypeError"),
        ("vqav2", [VQA | {"answers": None}], "record 1 (1): Type"),
        ("vqav2", [VQA | {"answers": [{}]}], "record 1 (1): KeyError 'answer'"),
        ("vqav2", [VQA | {"answers": []}], "record 1 (1): there are no human answers"),
        ("scienceqa", {"1": {"choices": None, "answer": 0}}, "record 1 (1): TypeError"),
        ("pope", [POPE | {"label": "Yes"}], "record 1 (1): labels are yes or no, not 'Yes'"),
        ("mmbench", [MMBENCH | {"index": "x"}], "record 1 (x): invalid literal"),
        ("seed", [SEED, SEED | {"question_id": 2, "question_type_id": "a"}], "TypeError"),
    ],
)
def test_damaged_annotations_are_blamed_and_not_the_answers(tmp_path, task, value, why):
    file = put(tmp_path / "file.json", value)
    answers = say(tmp_path, *[ANSWER | {"question_id": key} for key in (1, 7, 8)])
    found = told(task, answers, [file])
    assert found.where == str(file) and why in found.why


def test_a_fault_that_is_not_of_the_record_stays():
    with pytest.raises(OSError, match="disk"), annotated.blamed("file"):
        raise OSError("disk")


def test_questions_of_gqa_that_are_not_balanced(tmp_path):
    known = {str(n): GQA | {"isBalanced": n % 2 == 0} for n in range(4)}
    file = put(tmp_path / "testdev_all_questions.json", known)
    said = [{"question_id": key, "text": "Yes", "prompt": "What?"} for key in known]
    done = scoring.score("gqa", [say(tmp_path, *said)], [file])
    assert done.items == {"0": 1, "2": 1} and not done.faults.lines()
    assert any("2 answers are to questions that are not balanced" in note for note in done.notes)
    part = scoring.score("gqa", [say(tmp_path, *said[1:])], [file])
    assert part.faults.missing == ["0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return benchmark_files.make(tmp_path_factory.mktemp("root"), benchmark_files.OURS)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("pope", ["coco_pope_random.json"]),
        ("mmbench", ["mmbench_dev_20230712.tsv"]),
        ("mmbench_cn", ["mmbench_dev_cn_20231003.tsv"]),
        ("seed", ["SEED-Bench.json"]),
        ("vqav2", ["v2_mscoco_val2014_annotations.json"]),
        ("vizwiz", ["val.json"]),
    ],
)
def test_a_folder_stands_for_the_files_in_it(root, task, names):
    own = next(root / name for name in tasks.get(task).folders if (root / name).is_dir())
    for folder in (own, root):
        assert [path.name for path in scoring.opened(task, [folder])] == names
    assert scoring.opened("mme", [root]) == scoring.opened("mmvet", [root]) == [root]


def test_a_folder_without_the_files_or_with_too_many(tmp_path):
    for task in ("gqa", "textvqa", "mmbench", "coco_caption", "hallucination"):
        with pytest.raises(errors.SgqlmError, match="the folder has no annotations") as found:
            scoring.opened(task, [tmp_path])
        assert ".json" in found.value.why or ".tsv" in found.value.why
    assert scoring.opened("conceptual", [tmp_path]) == [tmp_path]  # of img2dataset
    for name in ("MMBench_DEV_EN.tsv", "MMBench_DEV_EN_V11.tsv"):
        put(tmp_path / name, "x")
    with pytest.raises(errors.SgqlmError, match="several files") as found:
        scoring.opened("mmbench", [tmp_path])
    assert "MMBench_DEV_EN_V11.tsv" in found.value.why
    both = ("instances_val2014.json", "captions_val2014.json")
    (tmp_path / "annotations").mkdir()
    files = [put(tmp_path / "annotations" / name, "x") for name in both]
    assert scoring.opened("hallucination", [tmp_path]) == files
