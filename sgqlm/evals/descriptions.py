"""What a model says about test scenes that is not there: CHAIR on drawn scenes, beside controls.

The model is asked for a caption as training asks. An object is a shape (`ring`), or a colour and a
shape (`blue ring`), which together name one object of a scene. A model that looks at the picture
and its graph says more that is not there when the graph is left out or another scene's.
"""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from sgqlm import config as config_lib
from sgqlm.decode import ask, inputs, sample
from sgqlm.evals import scenes
from sgqlm.evals.metrics import hallucination
from sgqlm.scenes import grammar, world

ARMS = ("test", "no_graph", "shuffled_graph")
LEVELS = ("shape", "colour_shape")
PROMPT = grammar.write("caption", 0)
FACTOR = 8  # a description may be so many times as long as an answer


def names(level: str) -> dict[str, str]:
    """Return what may be said -> the object it means: `red striped ring` -> `red ring`."""
    if level == "shape":
        return {shape: shape for shape in world.SHAPES}
    return {
        " ".join(filter(None, (colour, texture, shape))): f"{colour} {shape}"
        for colour, texture, shape in itertools.product(
            world.COLOURS, ("", *world.TEXTURES), world.SHAPES
        )
    }


def objects(scene: world.Scene, level: str) -> set[str]:
    """Return the objects of a scene by the names of a level."""
    if level == "shape":
        return {item.shape for item in scene.objects}
    return {f"{item.colour} {item.shape}" for item in scene.objects}


def evaluate(
    model: ask.Responder,
    cases: Sequence[scenes.SceneCase],
    *,
    settings: config_lib.EvalConfig = config_lib.EvalConfig(),
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Let the model describe scenes, and compare what it mentions with what is there.

    Args:
        model: the model.
        cases: test scenes.
        settings: batch size, tokens (`FACTOR` times those of an answer), and the seed that chooses
            whose graph `shuffled_graph` has.
        progress: told the name of each part before it starts.

    Returns:
        `scenes`, `prompt`, `max_new_tokens` and, for each of `ARMS`, `empty` (descriptions without
        text) and the figures of each of `LEVELS`, see `score`.
    """
    other = inputs.derangement(len(cases), settings.seed)
    rows = [inputs.Row([inputs.human(PROMPT)], case.image, case.entities) for case in cases]
    changed = {
        "test": rows,
        "no_graph": [dataclasses.replace(row, entities=None) for row in rows],
        "shuffled_graph": [
            dataclasses.replace(row, entities=cases[at].entities)
            for row, at in zip(rows, other, strict=True)
        ],
    }
    room = FACTOR * settings.max_new_tokens
    out: dict[str, Any] = {"scenes": len(cases), "prompt": PROMPT, "max_new_tokens": room}
    for arm in ARMS:
        progress(f"described {arm}")
        texts = model.respond(
            changed[arm],
            max_new_tokens=room,
            sampling=sample.Sampling(),
            batch_size=settings.batch_size,
        )
        found = {level: score(texts, [case.scene for case in cases], level) for level in LEVELS}
        out[arm] = {"empty": sum(not text.strip() for text in texts), **found}
    return out


def score(texts: Sequence[str], drawn: Sequence[world.Scene], level: str) -> dict[str, Any]:
    """Compare descriptions with their scenes.

    Args:
        texts: one a scene.
        drawn: the scenes.
        level: of `LEVELS`.

    Returns:
        `chair_i` and `recall` in 0..1, None where nothing is mentioned; `chair_s`, the share of
        descriptions with an object that is not there, None where none mentions an object;
        `mentions` and `count`, the descriptions.
    """
    known = names(level)
    said: dict[Hashable, list[str]] = {
        at: hallucination.mentions(text, known) for at, text in enumerate(texts)
    }
    there: dict[Hashable, set[str]] = {at: objects(scene, level) for at, scene in enumerate(drawn)}
    if not any(said.values()):  # silence is not faithfulness
        found = dict.fromkeys(("chair_i", "chair_s", "recall"))
        return {**found, "mentions": 0, "count": len(texts)}
    done = hallucination.score(said, there)
    shares = {"chair_i": done.chair_i, "chair_s": done.chair_s, "recall": done.recall}
    return {**shares, "mentions": done.mentions, "count": done.texts}


def taught(stages: Iterable[config_lib.StageConfig]) -> list[str]:
    """Return the stages of training whose texts have captions of scenes."""
    return [
        stage.name
        for stage in stages
        if stage.objective == "lm"
        and any(
            source.name == "scenes" and (not source.tasks or "caption" in source.tasks)
            for source in stage.sources
        )
    ]


def lines(found: Mapping[str, Any], stages: Sequence[config_lib.StageConfig] = ()) -> list[str]:
    """Return descriptions as lines of text: a table, and what has to be known to read it."""
    columns = ("chair_i", "chair_s", "recall")
    out = [f"{'described':28}" + "".join(f"{name:>12}" for name in columns)]
    for level in LEVELS:
        for arm in ARMS:
            cells = (found[arm][level][name] for name in columns)
            told = "".join(f"{'-' if cell is None else f'{cell:.3f}':>12}" for cell in cells)
            out.append(f"{level + ', ' + arm:28}{told}")
    own = found["test"]
    out.append(
        f"{found['scenes']} descriptions, {own['shape']['mentions']} mentions of a shape, "
        f"{own['colour_shape']['mentions']} of a colour with its shape"
    )
    return out + notes(found, stages)


def notes(found: Mapping[str, Any], stages: Sequence[config_lib.StageConfig] = ()) -> list[str]:
    """Return what has to be known to read the figures, as sentences."""
    out = []
    if not found["test"]["shape"]["mentions"]:
        out.append("no description mentions an object: there is no hallucination to measure")
    named, last = taught(stages), [stage.name for stage in stages if stage.objective == "lm"][-1:]
    if stages and not named:
        out.append("the model was never trained on captions of scenes")
    elif named and last and last[0] not in named:
        out.append(f"captions of scenes were trained in {', '.join(named)}, not in {last[0]}")
    return out
