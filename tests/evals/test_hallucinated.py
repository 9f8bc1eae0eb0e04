"""`sgqlm eval score --task hallucination` on small files in the formats that users have."""

import json

import pytest

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.evals import hallucinated, scoring

INSTANCES = {
    "images": [{"id": 42}, {"id": 43}, {"id": 44}],
    "annotations": [
        {"image_id": 42, "category_id": 1},
        {"image_id": 42, "category_id": 1},
        {"image_id": 43, "category_id": 22},
        {"image_id": 43, "category_id": 7},
    ],
    "categories": [
        {"id": 1, "name": "dog"},
        {"id": 7, "name": "train"},
        {"id": 9, "name": "person"},
        {"id": 22, "name": "elephant"},
    ],
}
SYNONYMS = "dog, puppy, hound\nperson, man, baby, passenger\ntrain\nelephant\ncar, automobile\n"


def put(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def figures(done):
    return {name: value for name, value, _ in done.rows}


@pytest.fixture
def coco(tmp_path):
    return [
        put(tmp_path / "instances_val2014.json", INSTANCES),
        put(tmp_path / "synonyms.txt", SYNONYMS),
    ]


def test_coco_by_name_and_number(coco, tmp_path):
    said = [
        {"image_id": 42, "caption": "A man and two puppies by an automobile."},
        {"image_id": 43, "caption": "a baby elephant near a passenger train"},
    ]
    done = scoring.score("hallucination", [put(tmp_path / "results.json", said)], coco)
    # a man and a car are not there; neither a baby nor a passenger is spoken of
    assert figures(done) == {
        "1 - CHAIR_s": 0.5, "CHAIR_s": 0.5, "CHAIR_i": 2 / 5, "recall": 1,
    }  # fmt: skip
    assert done.items == {"42": 0, "43": 1} and done.score == 0.5
    assert not done.faults.is_mismatch and any("over 2 of 3 images" in n for n in done.notes)
    assert "[not there: person, car]" in done.details["42"]["given"]
    ours = [
        {"question_id": f"COCO_val2014_{record['image_id']:012d}.jpg", "text": record["caption"]}
        for record in said
    ]
    lines = put(tmp_path / "answers.jsonl", "\n".join(map(json.dumps, ours)))
    assert scoring.score("hallucination", [lines], coco).items == done.items
    whole = put(
        tmp_path / "evaluated.json", {"imgToEval": {str(at): r for at, r in enumerate(said)}}
    )
    assert scoring.score("hallucination", [whole], coco).items == done.items


def test_kinds_without_an_annotation_are_looked_for(tmp_path):
    kinds = [*INSTANCES["categories"], {"id": 58, "name": "hot dog"}]
    files = [put(tmp_path / "instances.json", {**INSTANCES, "categories": kinds})]
    said = [{"image_id": 42, "caption": "A dog, a hot dog and a person."}]
    answers = put(tmp_path / "a.json", said)
    done = scoring.score("hallucination", [answers], files)
    assert "[not there: hot dog, person]" in done.details["42"]["given"]
    assert figures(done)["CHAIR_s"] == 1 and figures(done)["CHAIR_i"] == 2 / 3
    assert any(note.startswith("5 kinds") for note in done.notes)
    words = put(tmp_path / "words.txt", "sausage, hot dog\n")
    done = scoring.score("hallucination", [answers], [*files, words])
    assert "[not there: sausage, person]" in done.details["42"]["given"]
    assert any(note.startswith("5 kinds") for note in done.notes)


def test_what_captions_mention_is_there_too(coco, tmp_path):
    told = {"annotations": [{"image_id": 42, "id": 5, "caption": "A man with his hound."}]}
    files = [put(tmp_path / "captions_val2014.json", told), *coco]
    answers = put(tmp_path / "a.json", [{"image_id": 42, "caption": "a man, a dog and a car"}])
    done = scoring.score("hallucination", [answers], files)
    assert figures(done)["CHAIR_i"] == 1 / 3 and figures(done)["recall"] == 1
    assert not any("published CHAIR" in note for note in done.notes)


def test_own_lists_and_their_faults(tmp_path):
    there = {"a": ["Dog", "tree"], "b": ["car"], "c": ["cow"]}
    records = [{"image_id": key, "objects": names} for key, names in there.items()]
    records[0]["objects"] = [{"names": ["dog"]}, {"name": "tree"}]  # as Visual Genome
    said = {"a": "A dog under two trees and a cow", "b": "", "x": "a car"}
    answers = put(tmp_path / "answers.json", said)
    for value in (there, records):
        done = scoring.score("hallucination", [answers], [put(tmp_path / "objects.json", value)])
        assert figures(done)["CHAIR_i"] == 1 / 3 and figures(done)["CHAIR_s"] == 1 / 2
        assert (done.faults.missing, done.faults.unknown, done.faults.empty) == (
            ["c"],
            ["x"],
            ["b"],
        )
        assert any("no answer and are in no figure" in line for line in done.lines())
        assert any("without synonyms" in note for note in done.notes)
    silent = put(tmp_path / "silent.json", {"a": "nice", "b": "good", "c": "so"})
    done = scoring.score("hallucination", [silent], [tmp_path / "objects.json"])
    assert done.score is None and not done.items and "no text mentions" in "\n".join(done.notes)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": "dog"}, "no list of objects"),
        ({"a": [{"box": 1}]}, "no name of an object"),
        ({"a": []}, "name no object"),
        ([{"objects": ["dog"]}], "no id"),
        ([{"id": 1, "objects": ["dog"]}, {"id": 1, "objects": ["cat"]}], "stands twice"),
        ({"annotations": [{"image_id": 1, "category_id": 3}], "categories": []}, "category 3"),
        ({"annotations": [{"image_id": 1}], "categories": []}, "category_id"),
        ({"annotations": [], "categories": [], "images": [{"x": 1}]}, "`id`"),
        ({"annotations": [], "categories": [], "images": 5}, "no list"),
    ],
)
def test_files_of_another_kind(tmp_path, value, message):
    with pytest.raises(errors.SgqlmError, match=message):
        hallucinated.read([put(tmp_path / "objects.json", value)])


def test_the_command(coco, tmp_path, capsys):
    answers = put(tmp_path / "answers.json", {"42": "a hound and a train"})
    words = ["eval", "score", str(answers), "--task=hallucination"]
    given = [
        f"--annotations={coco[0]}",
        f"--synonyms={coco[1]}",
        f"--out={tmp_path / 'm' / 'h.json'}",
    ]
    assert main.main([*words, *given]) == errors.OK
    assert "CHAIR_i" in capsys.readouterr().out
    report = tmp_path / "page"
    assert main.main(["eval", "report", str(tmp_path / "m"), f"--out={report}"]) == errors.OK
    assert "a hound and a train" in (report / "evaluation.md").read_text()
    assert main.main(words) == errors.USAGE
    assert "instances_val2014.json" in capsys.readouterr().err
    assert main.main(["eval", "score", str(answers), "--task=gqa", given[1]]) == errors.USAGE
    assert "--synonyms" in capsys.readouterr().err
