"""Draw the pictures of docs/entities.md: a procedural scene, and what a model makes of it.

python scripts/entity_pictures.py runs/quickstart
"""

import dataclasses
import pathlib
import sys

import numpy as np

import sgqlm
from sgqlm.data import graphs
from sgqlm.scenes import render, world
from sgqlm.viz import coverage, panels, sheet

SCENE, SIDE, COLOURS = 1, 900, 128
QUESTION = "what colour is the hexagon that the green moon is pointing at?"
OUT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "pictures"


def main(checkpoint: str) -> None:
    """Write `entities_found.png` and `entities_graph.png`."""
    model = sgqlm.load(checkpoint)
    cfg = dataclasses.replace(model.config.scenes, image_size=448)
    scene = world.make_scene(cfg, "test", SCENE)
    image, id_mask = render.draw(scene)
    entities, order = world.detect(scene, id_mask, cfg)
    graph = model.scene_graph(image, QUESTION, entities)
    nodes = np.asarray(graph.source)
    attention = panels.Attention(
        QUESTION, np.arange(len(nodes)), graph.node_attention, graph.edges, graph.words,
        np.asarray(graph.word_attention),
    )  # fmt: skip
    place = {int(order[source]): k for k, source in enumerate(nodes)}
    triples = [
        (place[r.subject], r.predicate, place[r.object])
        for r in scene.relations
        if r.subject in place and r.object in place
    ]
    names = [scene.objects[int(order[source])].shape for source in nodes]
    shape = model.config.model
    view = graphs.view(shape.vision.grid, shape.image_fit, image_size=shape.vision.image_size)
    plain = panels.Record(f"scene {SCENE}", image, graph.entities, views=[coverage.parse(view)])
    relations = panels.Relations(graph.entities.boxes, names, triples)
    heard = dataclasses.replace(plain, views=[], attention=attention, relations=relations)
    for name, record, kinds in (
        ("entities_found.png", plain, ("boxes", "coverage")),
        ("entities_graph.png", heard, ("graph", "relations")),
    ):
        picture = sheet.draw(record, side=SIDE, kinds=kinds)
        picture.quantize(COLOURS).save(OUT / name, optimize=True)
        print(OUT / name, (OUT / name).stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
