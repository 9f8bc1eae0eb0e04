"""Reports are found, their intervals belong to their scores, and pairs are compared by id."""

import dataclasses
import json

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.evals import comparing, measured, reviewed, statistics
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


def graded(folder, pairs, runs=1):
    """Write and read the report of reviews: (reference, model) of each question."""
    files = [
        reports.lines(
            folder / f"reviews-{run}.jsonl",
            [
                {"question_id": n, "category": "ab"[n % 2], "tuple": pair}
                for n, pair in enumerate(pairs)
            ],
        )
        for run in range(runs)
    ]
    done = reviewed.score("llava_wild", files)
    return measured.read(reports.write(folder / "r.json", "llava_wild", files, done=done))


def test_one_other_grade_of_a_reference_changes_one_question(tmp_path):
    pairs = [[8 + n % 2, 5 + n % 4] for n in range(20)]
    first = graded(tmp_path / "a", pairs)
    second = graded(tmp_path / "b", [[pairs[0][0] - 2, pairs[0][1]], *pairs[1:]])
    done = comparing.compare(first, second)
    assert (done.items.wins, done.items.losses, done.items.interval.count) == (0, 0, 20)
    assert done.items.p_value == 1.0 and done.items.test.startswith("pair-swap")
    # no resample without that question differs
    assert done.headline.low == 0 and done.headline.high > done.headline.value > 0
    better = graded(tmp_path / "c", [[a, b + 2] for a, b in pairs], runs=2)
    done = comparing.compare(first, better)
    assert (done.items.wins, done.items.losses) == (20, 0) and done.items.p_value < 0.01
    assert done.headline.value == pytest.approx(better.score - first.score)
    assert comparing.figure_interval(better, "a").value == better.figures["a"][0]
    old = dataclasses.replace(first, details={})
    assert "no `details`" in comparing.interval(old)[1]
    with pytest.raises(errors.SgqlmError, match="cannot be compared"):
        comparing.compare(old, second)


def test_public_reviews_have_the_interval_of_a_ratio():
    sample = paths.shared("samples/llava_bench_wild/reviews/llava-v1.5-13b-eval1.jsonl")
    done = reviewed.score("llava_wild", [sample])
    pairs = np.array([done.details[key]["grades"][0] for key in done.items])
    items = {k: measured.Item(grades=(tuple(v["grades"][0]),)) for k, v in done.details.items()}
    report = measured.Report(sample, "a", "llava_wild", done.metric, done.score, {}, done.items)
    found, _ = comparing.interval(dataclasses.replace(report, details=items))
    drawn = pairs[np.random.default_rng(3).integers(0, 60, (20_000, 60))].mean(1)
    ends = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(ends, abs=0.002)


def test_models_that_were_not_asked_alike_are_told(two):
    usual = {"template": "vicuna_v1", "max_new_tokens": 128, "entities": "a" * 64}
    first, second = (dataclasses.replace(one, settings=usual) for one in two)
    assert comparing.other_settings([first, second]) == "" and not first.caveats[1:]
    other = {**usual, "max_new_tokens": 24, "self_questions": {"count": 2}, "entities": "none"}
    second = dataclasses.replace(second, settings=other)
    notes = comparing.compare(first, second).notes
    told = "; ".join(
        (
            "max_new_tokens 128 (a), 24 (b)",
            "self_questions none (a), count 2 (b)",
            "entities aaaaaaaaaaaa (a), none (b)",
        )
    )
    assert f"not asked alike: {told}" in notes
    assert "b: answers of up to 24 tokens, 128 in the papers' program" in notes
    foreign = dataclasses.replace(second, settings={"model_id": "x"})  # another program's answers
    assert comparing.other_settings([first, foreign]) == ""
