"""What a model says about scenes that is not there, by models whose words are known."""

import dataclasses

import pytest

from sgqlm import config
from sgqlm.evals import descriptions, scenes
from sgqlm.scenes import questions
from tests import tiny_model

SETTINGS = config.EvalConfig(max_new_tokens=16)


@pytest.fixture(scope="module")
def cases():
    return scenes.make_cases(tiny_model.SCENES, count=5)


class Reader:
    """Says what is in the scene whose graph it is given, as training does; nothing without one."""

    def __init__(self, cases):
        self.by_graph = {id(case.entities): questions.caption(case.scene) for case in cases}

    def respond(self, rows, *, max_new_tokens, **_):
        assert max_new_tokens == 8 * SETTINGS.max_new_tokens
        assert {row.turns[0]["value"] for row in rows} == {"describe the image."}
        return [self.by_graph.get(id(row.entities), "") for row in rows]


def test_a_model_that_reads_the_graph_alone(cases):
    told = []
    found = descriptions.evaluate(Reader(cases), cases, settings=SETTINGS, progress=told.append)
    assert told == ["described test", "described no_graph", "described shuffled_graph"]
    for level in descriptions.LEVELS:
        own, other = found["test"][level], found["shuffled_graph"][level]
        assert (own["chair_i"], own["chair_s"], own["recall"]) == (0, 0, 1)
        assert other["chair_i"] > 0.2 and other["recall"] < 1 and other["count"] == 5
        assert found["no_graph"][level]["chair_s"] is None  # silence is not faithfulness
        assert found["no_graph"][level]["mentions"] == 0
    # of the wrong graph, more shapes are there by chance than colours with their shapes
    wrong = found["shuffled_graph"]
    assert wrong["colour_shape"]["chair_i"] > wrong["shape"]["chair_i"]
    assert found["no_graph"]["empty"] == 5
    text = "\n".join(descriptions.lines(found))
    assert "colour_shape, shuffled_graph" in text and "5 descriptions" in text


def test_words_between_and_plurals(cases):
    scene = cases[0].scene
    item = scene.objects[0]
    text = f"a small {item.colour} striped {item.shape}, two crosses and a rectangle"
    found = descriptions.score([text], [scene], "colour_shape")
    assert (found["mentions"], found["chair_i"]) == (1, 0)
    shapes = {thing.shape for thing in scene.objects}
    found = descriptions.score([text], [scene], "shape")
    assert found["mentions"] == 2 and found["chair_i"] == ("cross" not in shapes) / 2


def test_what_training_taught_is_told(cases):
    def stage(name, *tasks):
        source = config.SourceConfig(name="scenes", tasks=tasks)
        return config.StageConfig(name=name, sources=(source,))

    regions = dataclasses.replace(stage("regions", "caption"), objective="region_text")
    stages = [regions, stage("align", "caption")]
    assert descriptions.taught(stages) == ["align"]
    assert descriptions.taught([stage("all")]) == ["all"]  # no tasks stand for every task
    found = descriptions.evaluate(Reader(cases), cases, settings=SETTINGS)
    assert descriptions.notes(found, stages) == []
    assert "in align, not in chat" in descriptions.notes(found, [*stages, stage("chat", "chat")])[0]
    assert "never trained" in descriptions.notes(found, [stage("chat", "chat")])[0]
