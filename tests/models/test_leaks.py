"""Nothing that is to be predicted reaches a graph token."""

import dataclasses

import jax
import numpy as np
import pytest

from sgqlm import config
from sgqlm.data import pipeline
from sgqlm.models import vlm
from sgqlm.scenes import render, world
from tests import tiny_model

encode_images = jax.jit(vlm.encode_images, static_argnums=1)
visual_tokens = jax.jit(vlm.visual_tokens, static_argnums=1)
graph_tokens = jax.jit(vlm.graph_tokens, static_argnums=1)
QUESTIONS = ("what colour is the star?", "how many rings are there?")


def _turns(questions, answers):
    turns = []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        opening = "<image>\n" if i == 0 else ""
        turns += [{"from": "human", "value": opening + question}, {"from": "gpt", "value": answer}]
    return turns


def _graph_tokens(template, placement, self_questioning, *, turns, annotated, relations):
    model = tiny_model.make()
    settings = model.config.model
    settings = dataclasses.replace(
        settings, graph=dataclasses.replace(settings.graph, placement=placement)
    )
    scene = world.make_scene(tiny_model.SCENES, "test", 3)
    image, id_mask = render.draw(scene)
    entities, _ = world.detect(scene, id_mask, tiny_model.SCENES)
    entities = dataclasses.replace(entities, labels=["red star"] * len(entities))
    batch = pipeline.make_batch(
        [pipeline.Sample(0, image, turns, entities, "same", annotated, relations)],
        model=settings,
        text=config.TextConfig(system=""),
        tokenizer=model.tokenizer,
        template=template,
        self_questioning=self_questioning,
    )
    features = encode_images(model.params, settings, batch.images)
    nodes = visual_tokens(model.params, settings, features).node_features
    found = graph_tokens(model.params, settings, nodes, batch.graph)
    assert len(entities) > 2
    return np.asarray(found.tokens)[0][:, np.asarray(batch.graph.valid[0])]


@pytest.mark.parametrize("placement", ["after_image", "after_question"])
@pytest.mark.parametrize(
    ("template", "self_questioning"),
    [("plain", 0.0), ("vicuna_v1", 0.0), ("v1_sq", 0.0), ("v1_sq", 1.0)],
)
def test_no_target_predicate_or_annotation_reaches_a_graph_token(
    template, self_questioning, placement
):
    count = 1 if template == "plain" else 2
    asked = QUESTIONS[:count]
    # a self-asked question is a target too
    others = ("is there a ring?", "is there a moon?")[:count] if self_questioning else asked

    def tokens(questions, answers, annotated, relations):
        turns = _turns(questions, answers)
        given = {"turns": turns, "annotated": annotated, "relations": relations}
        return _graph_tokens(template, placement, self_questioning, **given)

    first = tokens(asked, ("red", "two")[:count], ("star",) * 12, [(0, "chasing", 1)])
    second = tokens(others, ("blue", "one")[:count], ("ring",) * 12, [(1, "holding", 0)])
    np.testing.assert_array_equal(first, second)
    if template != "plain" and not self_questioning:  # what is asked does reach it
        changed = tokens(("is there a ring?", QUESTIONS[1]), ("red", "two"), (), ())
        assert np.abs(changed - first).max() > 1e-4
