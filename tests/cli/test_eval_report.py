"""`sgqlm eval report` and `sgqlm eval compare`, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.cli import eval_report, main
from tests import paths
from tests.evals import reports


def run(*words):
    return main.main(["eval", *map(str, words)])


@pytest.fixture
def place(tmp_path):
    reports.pope(tmp_path / "runs" / "a", "nynynynynyyn")
    reports.pope(tmp_path / "runs" / "b", "ny" * 6)
    (tmp_path / "images").mkdir()
    for n in range(4):
        Image.fromarray(np.full((20, 30, 3), 60 * n, np.uint8)).save(
            tmp_path / "images" / f"COCO_val2014_{n:012d}.jpg"
        )
    return tmp_path


def test_a_report_is_written(place, capsys):
    words = ["report", place / "runs", "--out", place / "runs", "--images", place / "images"]
    assert run(*words) == errors.OK
    assert "measured here" in capsys.readouterr().out
    page = (place / "runs" / "evaluation.html").read_text()
    assert page.count("data:image/") == 2 and "2 questions are not fully right" in page
    assert "is 10 |" not in page and "Is there a 10 | &lt;b&gt;" in page
    told = json.loads((place / "runs" / "evaluation.json").read_text())
    assert [part["name"] for part in told["reports"]] == ["a", "b"]
    assert "model zoo of LLaVA" in (place / "runs" / "evaluation.md").read_text()
    assert run(*words) == errors.OK  # what it wrote is no report of answers
    assert capsys.readouterr().err.startswith("1 json files are no reports")  # the labels


def test_two_models_are_compared(place, capsys):
    words = ["compare", place / "runs" / "a", place / "runs" / "b" / "pope.json"]
    assert run(*words) == errors.OK
    assert "+16.67" in capsys.readouterr().out and not (place / "out").exists()
    assert run(*words, "--out", place / "out", "--images", place / "images") == errors.OK
    page = (place / "out" / "comparison.html").read_text()
    assert "2 questions are better in b; 2 of them" in page and page.count("data:image/") == 2
    told = json.loads((place / "out" / "comparison.json").read_text())
    assert told["tasks"][0]["better"] == 2
    assert (place / "out" / "comparison.md").read_text().startswith("# Comparison")


def test_other_questions_are_refused(place, capsys):
    reports.pope(place / "runs" / "c", "nynynynyn", count=9)
    words = ["compare", place / "runs" / "a", place / "runs" / "c", "--out", place / "out"]
    assert run(*words) == errors.DATA
    assert "9 ids are in both, 3 only in the first" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_mistakes_are_told(place, capsys):
    runs, out = place / "runs", f"--out={place / 'out'}"
    for words, code, text in (
        (["report", place / "none", out], errors.USAGE, "no such report"),
        (["report", place / "images", out], errors.DATA, "there are no reports"),
        (["report", runs, out, "--wrong=-1"], errors.USAGE, "out of range"),
        (["report", runs, out, "--entities", runs], errors.USAGE, "--images"),
        (["report", runs, out, "--images", place / "none"], errors.USAGE, "no such folder"),
        (["report", runs, out, "--picture", "x"], errors.USAGE, "--picture"),
        (["report", runs, "--out", runs / "a" / "pope.json"], errors.USAGE, "is a file"),
        (["compare", runs, runs / "a"], errors.USAGE, "several reports of pope"),
    ):
        assert run(*words) == code
        assert text in capsys.readouterr().err
    assert not (place / "out").exists()
    with pytest.raises(SystemExit):
        eval_report.run([str(runs)])


def test_published_answers_beside_published_scores(tmp_path, capsys):
    sample = paths.shared("samples/scienceqa/full_llava-v1.5-13b.tsv")
    reports.write(tmp_path / "mine" / "scienceqa.json", "scienceqa", [sample])
    assert run("report", tmp_path / "mine", "--out", tmp_path / "out") == errors.OK
    rows = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "71.6 (" in rows["mine"] and "71.6" in rows["LLaVA-1.5-13B"]
