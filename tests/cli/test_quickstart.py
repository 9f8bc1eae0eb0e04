"""`sgqlm quickstart` on a few scenes and the smallest model: stages, figures, report, resume."""

import json

import pytest

from sgqlm import config, errors
from sgqlm.cli import main, quickstart
from sgqlm.train import metrics
from tests.train import micro

RECIPE = """
import json

import ml_collections


def get_config():
    return ml_collections.ConfigDict(json.loads({text!r}))
"""


@pytest.fixture
def words(tmp_path):
    """Return the words of a command that trains two stages of one step."""
    regions = micro.stage("regions", 1, "regions", "vision", objective="region_text")
    settings = micro.settings(regions, micro.stage("instruct", 1, "llm_lora", "graph"))
    tree = config.to_dict(settings)
    tree["model"]["region_words"] = 1
    tree["eval"] |= {"num_scenes": 2, "num_asked": 1, "max_new_tokens": 2, "batch_size": 4}
    file = tmp_path / "small.py"
    file.write_text(RECIPE.format(text=json.dumps(tree)))
    return [f"--config={file}", f"--config.train.workdir={tmp_path / 'run'}"]


@pytest.mark.slow
def test_every_part_runs_and_a_second_call_keeps_what_is_done(words, tmp_path, capsys):
    assert main.main(["quickstart", *words]) == errors.OK
    folder = tmp_path / "run"
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    found = json.loads((folder / "report.json").read_text())
    assert set(found["stages"]) == {"regions", "instruct"}
    assert {"test", "prior", "no_graph", "shuffled_graph", "edges_permuted"} <= set(found)
    page = (folder / "report.html").read_text()
    assert page.count("<svg") > quickstart.NUM_EXAMPLES  # a graph an example, and curves
    assert main.main(["quickstart", *words]) == errors.OK
    assert "instruct: done before" in capsys.readouterr().err
    again = json.loads((folder / "report.json").read_text())
    assert again["test"] == found["test"]
    assert again["seconds"] > found["seconds"]  # the time of both calls


def test_losses_are_curves_of_known_figures(tmp_path):
    writer = metrics.Writer(tmp_path, is_active=True, tensorboard=False)
    for step in (2, 1):
        values = {"loss": 1.0 / step, "answer_loss": 2.0, "question_loss": float("nan"), "lr": 3.0}
        writer.write("train", "align", step, values)
    writer.close()
    found = quickstart._losses(tmp_path)
    assert found == {"align": {"loss": [(1, 1.0), (2, 0.5)], "answers": [(1, 2.0), (2, 2.0)]}}


def test_help_and_misspelt_settings(capsys):
    assert main.main(["quickstart", "--help"]) == errors.OK
    assert "usage: sgqlm quickstart" in capsys.readouterr().out
    assert main.main(["quickstart", "--config.train.sed=1"]) == errors.USAGE
    assert "seed" in capsys.readouterr().err


def test_the_recipe_must_be_there(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "RECIPE", tmp_path / "none.py")
    assert main.main(["quickstart"]) == errors.USAGE
    assert "the quickstart recipe is not here" in capsys.readouterr().err
