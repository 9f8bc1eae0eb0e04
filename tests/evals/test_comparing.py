"""Reports are found, their intervals belong to their scores, and pairs are compared by id."""

import dataclasses
import json

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.evals import comparing, measured, statistics
from sgqlm.evals.metrics import mme
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
    assert len(set(comparing.images_of(first).values())) == 6
    found, why = comparing.interval(first)
    assert not why and found.value == pytest.approx(first.score) and found.low < found.high
    below = comparing.figure_interval(first, "random f1")
    assert below.value == pytest.approx(first.score)
    assert comparing.figure_interval(first, "random accuracy").value == 10 / 12
    assert comparing.figure_interval(first, "random recall") is None
    assert comparing.interval(dataclasses.replace(first, details={}))[0] is None
    swapped = {"random/1": 0.0, **{k: v for k, v in first.items.items() if k != "random/1"}}
    other = dataclasses.replace(first, items=swapped)
    assert "scores alone do not give mean F1" in comparing.interval(other)[1]


def test_pairs_are_joined_by_id(two):
    first, second = two
    turned = dict(reversed(list(second.items.items())))
    done = comparing.compare(first, dataclasses.replace(second, items=turned))
    assert set(done.better) == {"random/10", "random/12"} and set(done.worse) == {"random/9"}
    assert (done.items.wins, done.items.losses) == (2, 1)
    assert done.headline == comparing.compare(first, second).headline
    assert done.headline.value == pytest.approx(second.score - first.score)
    assert done.items.test == "sign-flip permutation"  # questions share images
    plain = comparing.compare(*(dataclasses.replace(one, details={}) for one in two))
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
    found, why = comparing.interval(report)
    assert not why and found.value == pytest.approx(report.score)
    assert low < found.low < found.value < found.high < high


def test_reports_of_tasks_hold_their_score_inside(tmp_path):
    path = reports.pope(tmp_path / "mine" / "pope", RIGHT[:11] + "n", name="report")
    inner = json.loads(path.read_text())
    outer = {"task": "pope", "answers": 12, "notes": ["cut"], "failed": ["1: broken"]}
    path.write_text(json.dumps(outer | {"score": inner}))
    report = measured.find([tmp_path / "mine"])[0][0]
    assert report.name == "mine" and report.notes[-2] == "cut" and "1 questions" in report.notes[-1]
    assert report.details["random/12"].given == "No"
    path.write_text(json.dumps(outer | {"score": None}))
    with pytest.raises(errors.SgqlmError, match="no report of answers"):
        measured.read(path)


def test_mean_f1_of_categories():
    wanted = {"random/1": "yes", "random/2": "no", "random/3": "yes", "popular/1": "yes"}
    items = {key: measured.Item(wanted=text) for key, text in wanted.items()}
    scores = np.array([1.0, 0.0, 0.0, 1.0])  # tp, fp, fn; tp
    table, combine = comparing.pope_columns(list(wanted), scores, items)
    assert combine(table.mean(0, keepdims=True))[0] == pytest.approx((2 / 4 + 2 / 2) / 2)
    assert combine(np.zeros((1, 4)))[0] == 0  # a resample without a right yes


def test_points_of_images_with_two_questions():
    name = mme.PERCEPTION[0]
    scores = {f"{name}/1.jpg/a": 1.0, f"{name}/1.jpg/b": 1.0}
    scores |= {f"{name}/2.jpg/a": 1.0, f"{name}/2.jpg/b": 0.0}
    table, combine = comparing.mme_columns(scores)
    assert table.shape == (2, 3)
    assert combine(table.mean(0, keepdims=True))[0] == pytest.approx(75 + 50)
