"""Records for the tests of pictures: a drawn scene with invented attention, and random boxes."""

import dataclasses

import numpy as np
from PIL import Image

from sgqlm import config
from sgqlm.data import graphs
from sgqlm.scenes import render, world
from sgqlm.viz import coverage, panels

NASTY = "<b>\"поезд\" & 'кот'</b>"


def image(record: panels.Record) -> Image.Image:
    """Return the image of a record that has one."""
    assert record.image is not None
    return record.image


def scene_record(index: int = 1, *, question: str = "what is it ?") -> panels.Record:
    """Return a drawn scene with labels, attention, relations and coverage."""
    rng = np.random.default_rng(index)
    cfg = config.SceneConfig()
    scene = world.make_scene(cfg, "test", index)
    drawn, id_mask = render.draw(scene)
    entities, order = world.detect(scene, id_mask, cfg)
    count, words = len(entities), question.split()
    names = [" ".join(scene.objects[o].words) if o >= 0 else "" for o in order]
    entities = dataclasses.replace(entities, labels=names)
    edges = rng.random((count, count)) ** 2
    np.fill_diagonal(edges, 0)
    on_words = rng.dirichlet(np.ones(len(words) + 1), count)[:, :-1]
    attention = panels.Attention(
        question, np.arange(count), on_words.sum(1), edges / edges.sum(1, keepdims=True),
        words, on_words,
    )  # fmt: skip
    place = {int(o): k for k, o in enumerate(order)}
    triples = [
        (place[r.subject], r.predicate, place[r.object])
        for r in scene.relations
        if r.subject in place and r.object in place
    ]
    relations = panels.Relations(entities.boxes, list(entities.labels), triples)
    views = [coverage.parse("8x8:pad")]
    return panels.Record(f"scene{index}.png", drawn, entities, "ok", attention, relations, views)


def random_record(count: int, *, size: tuple[int, int] = (427, 640)) -> panels.Record:
    """Return `count` random boxes with long, short and non-ASCII labels."""
    rng = np.random.default_rng(count)
    height, width = size
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width, height)
    names = ["dog", "a very long label of a thing that nobody can name", NASTY, "日本の猫", ""]
    entities = graphs.Entities.from_boxes(
        corners.reshape(count, 4), size,
        labels=[names[i % len(names)] for i in range(count)],
        scores=rng.random(count).astype(np.float32),
    )  # fmt: skip
    picture = Image.new("RGB", (min(width, 640), min(height, 640)), (90, 120, 150))
    return panels.Record("random.png", picture, entities, views=[coverage.parse("24x24:pad")])
