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


def make_case(cfg: config.SceneConfig, split: str, index: int, *, seed: int = 0) -> SceneCase:
    """Draw one scene of a split; its entities have no labels."""
    scene = world.make_scene(cfg, split, index)
    image, id_mask = render.draw(scene)
    entities, _ = world.detect(scene, id_mask, cfg)
    return SceneCase(scene, image, entities, tuple(questions.ask_all(scene, seed=seed)))


def make_cases(
    cfg: config.SceneConfig, *, count: int, split: str = "test", tagger: Tagger | None = None
) -> list[SceneCase]:
    """Draw the first scenes of a split.

    Args:
        cfg: the world.
        count: scenes.
        split: `train`, `val` or `test`.
        tagger: puts labels that it predicts from the pixels on the entities of the detector,
            such as `model.tag`; None leaves them without.

    Returns:
        One case a scene.
    """
    cases = [make_case(cfg, split, index) for index in range(count)]
    if tagger is None:
        return cases
    found = tagger([case.image for case in cases], [case.entities for case in cases])
    return [
        dataclasses.replace(case, entities=entities)
        for case, entities in zip(cases, found, strict=True)
    ]


def train_questions(
    cfg: config.SceneConfig, *, limit: int = 2000, seed: int = 0
) -> Iterator[questions.Question]:
    """Yield the questions of the first training scenes, which the answer prior is counted from.

    Args:
        cfg: the world.
        limit: scenes at most.
        seed: of the choice of questions.

    Yields:
        Questions of the same families and shares as the test has.
    """
    for index in range(min(cfg.num_train, limit)):
        yield from questions.ask_all(world.make_scene(cfg, "train", index), seed=seed)
