"""Graphs are shown of the model that answered, and of no other."""

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs
from sgqlm.evals import graph_views, measured, pictures


def report(**settings):
    empty = {"figures": {}, "items": {}, "metric": "m", "score": None}
    return measured.Report(pathlib.Path("r.json"), "a", "gqa", **empty, settings=settings)


def run(folder, *steps):
    for step in steps:
        place = folder / "checkpoints" / step
        place.mkdir(parents=True)
        (place / "manifest.json").write_text("{}")
    return str(folder)


def test_a_model_is_known_by_its_checkpoint(tmp_path):
    one, two = run(tmp_path / "one", "0001", "0002"), run(tmp_path / "two", "0002")
    both = graph_views.Viewer([one, two])
    newest = str(tmp_path / "one" / "checkpoints" / "0002")
    assert not both.why_not(report(checkpoint=newest))
    assert not both.why_not(report(checkpoint="/elsewhere/two/checkpoints/0002"))  # a copy
    older = str(tmp_path / "one" / "checkpoints" / "0001")
    assert older in both.why_not(report(checkpoint=older))
    assert "unknown checkpoint" in both.why_not(report())
    assert not graph_views.Viewer([one]).why_not(report())  # the user says whose answers they are
    assert "without entities" in both.why_not(report(checkpoint=newest, entities="none"))
    rounds = report(checkpoint=newest, self_questions={"rounds": 2})
    assert "self-asked rounds" in both.why_not(rounds)
    assert both.views(report(), {}, pictures.Pictures(None, None)) == ({}, [both.why_not(report())])
    with pytest.raises(errors.SgqlmError, match="no such model"):
        graph_views.Viewer([str(tmp_path / "none")])


def test_nodes_and_edges_are_told_the_strongest_first():
    entities = graphs.Entities(
        np.zeros((2, 4, 4), bool), np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32),
        ["cup", "tray"], np.ones(2, np.float32), (4, 4),
    )  # fmt: skip
    attention, edges = np.array([0.25, 0.5]), np.array([[0.9, 0.125], [0.375, 0.625]])
    graph = model_lib.SceneGraph(entities, attention, edges)
    bare = dataclasses.replace(graph, entities=dataclasses.replace(entities, labels=[]))
    nodes = graph_views.View(Image.new("RGB", (4, 4)), bare, "").told()["nodes"]
    assert nodes == [{"label": "", "attention": 0.25}, {"label": "", "attention": 0.5}]
    told = graph_views.View(Image.new("RGB", (4, 4)), graph, "").told()
    assert told["nodes"] == [
        {"label": "cup", "attention": 0.25},
        {"label": "tray", "attention": 0.5},
    ]
    assert told["edges"] == [
        {"from": 0, "to": 1, "weight": 0.375},
        {"from": 1, "to": 0, "weight": 0.125},
    ]
