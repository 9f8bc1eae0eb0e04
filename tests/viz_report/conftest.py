"""A report's worth of made-up results and real pictures."""

import numpy as np
import pytest

from sgqlm import config
from sgqlm.scenes import render, world
from sgqlm.viz import quickstart_report

FAMILIES = ("attribute", "one_hop", "exist", "count", "left_right")


def make_report() -> dict:
    """Return the content of a `report.json`."""

    def arm(value):
        shares = {name: round(value + 0.05 * i, 3) for i, name in enumerate(FAMILIES)}
        return {"accuracy": value, "by_family": shares}

    return {
        "seconds": 781.4,
        "stages": {"pretrain": {"steps": 900, "first_loss": 5.1, "last_loss": 0.8}},
        "test": arm(0.66),
        "prior": arm(0.22),
        "no_graph": arm(0.48),
        "shuffled_graph": arm(0.31),
        "edges_permuted": arm(0.64),
        "asked": {
            "questions": 100,
            "distinct_share": 0.93,
            "well_formed_share": 0.61,
            "well_formed_share_shuffled": 0.27,
        },
    }


def make_example(index: int) -> quickstart_report.Example:
    """Return a test scene with invented attention and answers."""
    rng = np.random.Generator(np.random.Philox(index))
    cfg = config.SceneConfig()
    scene = world.make_scene(cfg, "test", index)
    image, id_mask = render.draw(scene)
    entities, _ = world.detect(scene, id_mask, cfg)
    edges = rng.random((len(entities), len(entities))) ** 3
    np.fill_diagonal(edges, 0)
    return quickstart_report.Example(
        image=image,
        entities=entities,
        node_attention=rng.random(len(entities)),
        edges=edges / edges.sum(1, keepdims=True),
        nearest=rng.integers(6, size=(8, 8)),
        square=image,
        question="what colour is the star that the red circle is pointing at ?",
        answer="red" if index % 2 else "blue",
        truth="red",
        asked=[("is there a <green> square ?", "yes"), ("how many circles are there ?", "two")],
    )


def make_losses() -> dict:
    """Return a falling curve per stage."""
    steps = np.arange(10, 900, 20)
    fall = 4 * np.exp(-steps / 200) + 0.8
    curve = list(zip(steps.tolist(), fall.tolist(), strict=True))
    validation = [(s, v + 0.2) for s, v in curve[::9]]
    names = ("pretrain_regions", "pretrain", "align", "graph", "instruct")
    return {name: {"training": curve, "validation": validation} for name in names}


@pytest.fixture(scope="session")
def report():
    """Return the content of a `report.json`."""
    return make_report()


@pytest.fixture(scope="session")
def examples():
    """Return two examples."""
    return [make_example(0), make_example(1)]


@pytest.fixture(scope="session")
def losses():
    """Return curves of five stages."""
    return make_losses()
