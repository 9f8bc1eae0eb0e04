"""Test scenes and what is asked about them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from sgqlm import config
from sgqlm.data import graphs
from sgqlm.scenes import questions, render, world

Tagger = Callable[[Sequence[Image.Image], Sequence[graphs.Entities]], Sequence[graphs.Entities]]


@dataclasses.dataclass(frozen=True)
class SceneCase:
    """One scene of a split: the truth, the picture, what a detector sees, what is asked."""

    scene: world.Scene
    image: Image.Image
    entities: graphs.Entities
    questions: tuple[questions.Question, ...]


def make_case(cfg: config.SceneConfig, split: str, index: int) -> SceneCase:
    """Draw one scene of a split; its entities have no labels."""
    scene = world.make_scene(cfg, split, index)
    image, id_mask = render.draw(scene)
    entities, _ = world.detect(scene, id_mask, cfg)
    return SceneCase(scene, image, entities, tuple(questions.ask_all(scene, seed=0)))


def make_cases(
    cfg: config.SceneConfig, *, count: int, tagger: Tagger | None = None
) -> list[SceneCase]:
    """Draw the first test scenes.

    Args:
        cfg: the world.
        count: scenes.
        tagger: puts labels that it predicts from the pixels on the entities of the detector,
            such as `model.tag`; None leaves them without.

    Returns:
        One case a scene.
    """
    cases = [make_case(cfg, "test", index) for index in range(count)]
    if tagger is None:
        return cases
    found = tagger([case.image for case in cases], [case.entities for case in cases])
    return [
        dataclasses.replace(case, entities=entities)
        for case, entities in zip(cases, found, strict=True)
    ]


def train_questions(cfg: config.SceneConfig, *, limit: int = 2000) -> Iterator[questions.Question]:
    """Yield the questions of the first training scenes, which the answer prior is counted from.

    Args:
        cfg: the world.
        limit: scenes at most.

    Yields:
        Questions of the same families and shares as the test has.
    """
    for index in range(min(cfg.num_train, limit)):
        yield from questions.ask_all(world.make_scene(cfg, "train", index), seed=0)
