"""Reports are found, their intervals belong to their scores, and pairs are compared by id."""

import dataclasses
import json
import pathlib

import pytest

from sgqlm import errors
from sgqlm.evals import comparing, measured, statistics
from tests import paths
from tests.evals import reports

RIGHT = "ny" * 6


@pytest.fixture
def two(tmp_path):
    a = reports.pope(tmp_path / "a", RIGHT[:9] + "nnn")
    return measured.read(a), measured.read(reports.pope(tmp_path / "b", RIGHT[:8] + "yyny"))


def changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return path


def test_names_come_from_folders(tmp_path):
    reports.pope(tmp_path / "x" / "a", RIGHT)
    reports.pope(tmp_path / "x" / "b" / "pope", RIGHT, name="report")
    (tmp_path / "x" / "other.json").write_text("[1]")
    found, other, _ = measured.find([tmp_path / "x"])
    assert [(one.name, one.task) for one in found] == [("a", "pope"), ("b", "pope")]
    assert str(tmp_path / "x" / "other.json") in other and len(other) == 3 and found[0].score == 1
    assert measured.find([tmp_path / "x" / "b"])[0][0].name == "b"
    reports.pope(tmp_path / "x" / "a", RIGHT, name="second")
    names = [one.name for one in measured.find([tmp_path / "x" / "a"])[0]]
    assert names == ["a/pope", "a/second"]


def test_what_is_no_report_is_told(tmp_path):
    path = reports.pope(tmp_path / "a", RIGHT)
    for words, wrong in (
        (["given twice"], [path, path]),
        (["no such report"], [tmp_path / "none.json"]),
        (["no reports"], [tmp_path / "a" / "answers"]),
    ):
        with pytest.raises(errors.SgqlmError, match=words[0]):
            measured.find(wrong)
    with pytest.raises(errors.SgqlmError, match="damaged"):
        measured.read(changed(path, items={"random/1": None}))
    path.write_text("{")
    with pytest.raises(errors.SgqlmError) as told:
        measured.read(path)
    assert told.value.code == errors.DATA and "no json" in told.value.why


def test_f1_has_an_interval_clustered_by_image(two):
    first = two[0]
    items, why = measured.items_of(first)
    assert not why and len(set(comparing.images_of(first, items).values())) == 6
    found, why = comparing.interval(first, items)
    assert not why and found.value == pytest.approx(first.score) and found.low < found.high
    below = comparing.figure_interval(first, items, "random f1")
    assert below.value == pytest.approx(first.score)
    assert comparing.figure_interval(first, items, "random accuracy").value == 10 / 12
    assert comparing.figure_interval(first, items, "random recall") is None
    assert comparing.interval(first, {})[0] is None
    swapped = {"random/1": 0.0, **{k: v for k, v in first.items.items() if k != "random/1"}}
    other = dataclasses.replace(first, items=swapped)
    assert "scores alone do not give mean F1" in comparing.interval(other, items)[1]


def test_files_that_changed_give_no_items(two):
    first = two[0]
    answers = pathlib.Path(first.answers[0])
    answers.write_text(answers.read_text() + "\n")
    assert "has changed" in measured.items_of(first)[1]
    answers.unlink()
    assert "not there" in measured.items_of(first)[1]
    lost = dataclasses.replace(first, answers=())
    assert measured.items_of(lost) == ({}, "the report does not tell which files were scored")


def test_pairs_are_joined_by_id(two):
    first, second = two
    items = tuple(measured.items_of(one)[0] for one in two)
    turned = dict(reversed(list(second.items.items())))
    done = comparing.compare(first, dataclasses.replace(second, items=turned), items)
    assert set(done.better) == {"random/10", "random/12"} and set(done.worse) == {"random/9"}
    assert (done.items.wins, done.items.losses) == (2, 1)
    assert done.headline == comparing.compare(first, second, items).headline
    assert done.headline.value == pytest.approx(second.score - first.score)
    assert done.items.test == "sign-flip permutation"  # questions share images
    plain = comparing.compare(first, second)
    assert plain.items.p_value == statistics.mcnemar(2, 1) and plain.headline is None
    assert any("no interval" in note for note in plain.notes)


def test_other_questions_are_refused_with_counts(two, tmp_path):
    other = measured.read(reports.pope(tmp_path / "c", RIGHT[:9], count=9))
    with pytest.raises(errors.SgqlmError) as told:
        comparing.compare(two[0], other)
    assert (
        told.value.code == errors.DATA
        and "9 ids are in both, 3 only in the first" in told.value.why
    )
    with pytest.raises(errors.SgqlmError, match="different things"):
        comparing.compare(two[0], dataclasses.replace(two[1], task="gqa"))


def test_holm_and_judges(two, tmp_path):
    done = comparing.compare(*two)
    values = [0.01, 0.04, 0.03]
    many = [
        dataclasses.replace(done, items=dataclasses.replace(done.items, p_value=value))
        for value in values
    ]
    assert [one.p_adjusted for one in comparing.adjusted(many)] == pytest.approx([0.03, 0.06, 0.06])
    judged = measured.read(reports.pope(tmp_path / "d", RIGHT, judge="gpt-x"))
    notes = comparing.compare(two[0], judged).notes
    assert any("different judges (none and gpt-x)" in note for note in notes)
    assert two[0].caveats == ["over 12 of 8,910 questions"]


@pytest.mark.parametrize(
    ("task", "files", "low", "high"),
    [
        ("scienceqa", ["scienceqa/full_llava-v1.5-13b.tsv"], 0.68, 0.75),
        ("mme", ["mme/count.txt", "mme/existence.txt", "mme/color.txt"], 450, 560),
        ("pope", ["pope/full_random.tsv", "pope/full_popular.tsv"], 0.85, 0.88),
    ],
)
def test_published_answers(task, files, low, high, tmp_path):
    files = [paths.shared(f"samples/{name}") for name in files]
    report = measured.read(reports.write(tmp_path / "r.json", task, files))
    found, why = comparing.interval(report, measured.items_of(report)[0])
    assert not why and found.value == pytest.approx(report.score)
    assert low < found.low < found.value < found.high < high


def test_reports_of_tasks_hold_their_score_inside(tmp_path):
    path = reports.pope(tmp_path / "mine" / "pope", RIGHT[:11] + "n", name="report")
    inner = json.loads(path.read_text())
    source = pathlib.Path(inner["answers"][0])
    source.rename(path.parent / "answers.jsonl")
    inner |= {"answers": ["answers.jsonl"], "sha256": {}}
    outer = {"task": "pope", "answers": 12, "notes": ["cut"], "failed": ["1: broken"]}
    path.write_text(json.dumps(outer | {"score": inner}))
    report = measured.find([tmp_path / "mine"])[0][0]
    assert report.name == "mine" and report.notes[-2] == "cut" and "1 questions" in report.notes[-1]
    items, why = measured.items_of(report)
    assert not why and items["random/12"].given == "No"
    path.write_text(json.dumps(outer | {"score": None}))
    with pytest.raises(errors.SgqlmError, match="no report of answers"):
        measured.read(path)
