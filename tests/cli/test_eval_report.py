"""`sgqlm eval report` and `sgqlm eval compare`, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.cli import eval_report, main
from sgqlm.data import graphs, records
from tests import paths, tiny_model
from tests.evals import reports


def run(*words):
    return main.main(["eval", *map(str, words)])


@pytest.fixture
def place(tmp_path):
    reports.pope(tmp_path / "runs" / "a", "nynynynynyyn")
    reports.pope(tmp_path / "runs" / "b", "ny" * 6)
    (tmp_path / "images").mkdir()
    for n in range(6):
        Image.fromarray(np.full((20, 30, 3), 40 * n, np.uint8)).save(
            tmp_path / "images" / f"COCO_val2014_{n:012d}.jpg"
        )
    return tmp_path


def test_a_report_is_written(place, capsys):
    words = ["report", place / "runs", "--out", place / "runs", "--images", place / "images"]
    assert run(*words) == errors.OK
    assert "measured here" in capsys.readouterr().out
    page = (place / "runs" / "evaluation.html").read_text()
    assert page.count("data:image/") == 2 and "2 questions not fully right" in page
    assert "is 10 |" not in page and "Is there a 10 | &lt;b&gt;" in page
    told = json.loads((place / "runs" / "evaluation.json").read_text())
    assert [part["name"] for part in told["reports"]] == ["a", "b"]
    assert "model zoo of LLaVA" in (place / "runs" / "evaluation.md").read_text()
    assert run(*words) == errors.OK  # what it wrote is no report of answers
    assert capsys.readouterr().err.startswith("1 json files are no reports")  # the labels


def store(place):
    """Write entities of the pictures: two boxes each."""
    rows = []
    for path in sorted((place / "images").iterdir()):
        boxes = np.array([[0, 0, 12, 12], [10, 4, 29, 19]], np.float32)
        masks = np.zeros((2, 20, 30), bool)
        masks[0, :12, :12] = masks[1, 4:19, 10:29] = True
        found = graphs.Entities(masks, boxes, ["cup", "tray"], np.ones(2, np.float32), (20, 30))
        rows.append((path.name, found, records.file_digest(path)))
    records.write_entities(place / "store", rows, about={})
    return place / "store"


def test_the_graphs_behind_wrong_answers(place, trained, capsys):
    reports.pope(place / "runs" / "b", "yn" * 6)
    words = ["report", place / "runs" / "b", "--out", place / "out", "--images", place / "images"]
    words += ["--entities", store(place), "--checkpoint", trained, "--wrong=4", "--graphs=3"]
    broken = place / "images" / f"COCO_val2014_{1:012d}.jpg"
    broken.write_bytes(b"no picture")  # of the second that is shown
    assert run(*words) == errors.OK
    seen = capsys.readouterr()
    assert "graphs of pope, b 3/3" in seen.err and "without the picture" in seen.err
    page = (place / "out" / "evaluation.html").read_text()
    assert page.count("scene graph: of these") == 2 and page.count("nodes and edges") == 2
    told = json.loads((place / "out" / "evaluation.json").read_text())["reports"][0]
    drawn = [one for one in told["wrong"]["shown"] if "graph" in one]
    assert len(drawn) == 2 and any("1 of 3" in note for note in told["notes"])
    model, item = tiny_model.make(), drawn[0]
    entities = records.EntityStore(place / "store")
    row = entities.keys().index(item["image"])
    graph = model.scene_graph(
        Image.open(place / "images" / item["image"]), item["question"], entities[row]
    )
    nodes = item["graph"]["nodes"]
    assert [node["label"] for node in nodes] == list(graph.entities.labels)
    assert [node["attention"] for node in nodes] == pytest.approx(graph.node_attention, abs=1e-3)
    edge = item["graph"]["edges"][0]
    weights = graph.edges - np.diag(np.diag(graph.edges))
    assert edge["weight"] == pytest.approx(weights.max(), abs=1e-3)
    assert weights[edge["to"], edge["from"]] == weights.max()


def test_answers_of_another_model_get_no_graphs(place, trained, capsys):
    base = ["report", place / "runs" / "b", "--images", place / "images"]
    base += ["--checkpoint", trained]
    assert run(*base, "--out", place / "out") == errors.USAGE
    assert "--entities" in capsys.readouterr().err
    base += ["--entities", store(place), "--out", place / "out"]
    reports.pope(place / "runs" / "b", "yn" * 6, settings={"checkpoint": "/x/other/checkpoints/7"})
    assert run(*base) == errors.OK
    assert "the answers are those of /x/other" in capsys.readouterr().err
    assert "scene graph: of" not in (place / "out" / "evaluation.html").read_text()
    reports.pope(place / "runs" / "b", "yn" * 6, settings={"entities": "none"})
    assert run(*base) == errors.OK
    assert "answered without entities" in (place / "out" / "evaluation.md").read_text()
    assert run(*base, "--checkpoint", place / "none") == errors.USAGE
    assert "no such model" in capsys.readouterr().err


def test_two_models_are_compared(place, capsys):
    words = ["compare", place / "runs" / "a", place / "runs" / "b" / "pope.json"]
    assert run(*words) == errors.OK
    assert "+16.67" in capsys.readouterr().out and not (place / "out").exists()
    assert run(*words, "--out", place / "out", "--images", place / "images") == errors.OK
    page = (place / "out" / "comparison.html").read_text()
    assert "2 questions better in b; 2 of them" in page and page.count("data:image/") == 2
    told = json.loads((place / "out" / "comparison.json").read_text())
    assert told["tasks"][0]["better"] == 2
    assert (place / "out" / "comparison.md").read_text().startswith("# Comparison")


def test_a_report_that_does_not_tell_its_questions(place, capsys):
    path = place / "runs" / "a" / "pope.json"
    told = json.loads(path.read_text())
    del told["details"]
    path.write_text(json.dumps(told))
    assert run("report", path, "--out", place / "out") == errors.OK
    assert "pope, a: the report has no `details`" in capsys.readouterr().err
    assert run("compare", path, place / "runs" / "b") == errors.OK
    assert "a: the report has no `details`" in capsys.readouterr().out


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
        (["report", runs, out, "--graphs=3"], errors.USAGE, "--graphs needs a model"),
        (["report", runs, out, "--base", runs], errors.USAGE, "--base needs a model"),
        (["report", runs, "--out", runs / "a" / "pope.json"], errors.USAGE, "is a file"),
        (["report", runs, "--out", place / "x.html"], errors.USAGE, "name of a file"),
        (["compare", runs, runs, "--out", place / "x.json"], errors.USAGE, "name of a file"),
        (["compare", runs, runs / "a"], errors.USAGE, "several reports of pope"),
    ):
        assert run(*words) == code
        assert text in capsys.readouterr().err
    assert not (place / "out").exists()
    with pytest.raises(errors.SgqlmError, match="--out"):
        eval_report.run([str(runs)])


def test_outputs_are_of_the_kind_that_is_written(place, capsys):
    answers, folder = place / "runs" / "a" / "answers" / "a.jsonl", place / "runs"
    score, submit = ("score", answers, "--task=pope", "--annotations", place / "none"), "submit"
    for words, text in (
        ((*score, f"--out={folder}"), f"name a file, such as {folder / 'report.json'}"),
        ((*score, f"--out={place / 'new'}"), f"name a file, such as {place / 'new.json'}"),
        ((submit, answers, "--task=gqa", f"--out={folder}"), "the output is a folder"),
        ((submit, answers, "--task=mmbench", f"--out={place / 'x.json'}"), ".xlsx or .tsv"),
        (("--tasks=pope", f"--root={place}", f"--out={place / 'x.json'}"), f"{place / 'x'}"),
    ):
        assert run(*words) == errors.USAGE
        assert text in capsys.readouterr().err
    assert not list(place.glob("x*")) and not list(place.glob("new*"))


def test_published_answers_beside_published_scores(tmp_path, capsys):
    sample = paths.shared("samples/scienceqa/full_llava-v1.5-13b.tsv")
    reports.write(tmp_path / "mine" / "scienceqa.json", "scienceqa", [sample])
    assert run("report", tmp_path / "mine", "--out", tmp_path / "out") == errors.OK
    rows = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "71.6 (" in rows["mine"] and "71.6" in rows["LLaVA-1.5-13B"]
