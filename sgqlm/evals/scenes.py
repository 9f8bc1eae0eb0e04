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


def make_cases(
    cfg: config.SceneConfig,
    *,
    split: str = "test",
    count: int,
    tagger: Tagger | None = None,
    seed: int = 0,
) -> list[SceneCase]:
    """Draw the first scenes of a split.

    Args:
        cfg: the world.
        split: `train`, `val` or `test`.
        count: scenes.
        tagger: puts labels that it predicts from the pixels on the entities of the detector;
            None leaves them without.
        seed: of the choice of questions.

    Returns:
        One case a scene.
    """
    scenes = [world.make_scene(cfg, split, index) for index in range(count)]
    drawn = [render.draw(scene) for scene in scenes]
    pictures = [image for image, _ in drawn]
    found = [
        world.detect(scene, id_mask, cfg)[0]
        for scene, (_, id_mask) in zip(scenes, drawn, strict=True)
    ]
    if tagger is not None:
        found = tagger(pictures, found)
    return [
        SceneCase(scene, image, entities, tuple(questions.ask_all(scene, seed=seed)))
        for scene, image, entities in zip(scenes, pictures, found, strict=True)
    ]


def train_questions(
    cfg: config.SceneConfig, *, count: int, seed: int = 0
) -> Iterator[questions.Question]:
    """Yield the questions of the first training scenes, which the answer prior is counted from."""
    for index in range(count):
        yield from questions.ask_all(world.make_scene(cfg, "train", index), seed=seed)
