"""Which human turns the model asks itself: drawn from (seed, record, epoch), nothing else."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sgqlm.text import templates


def candidates(
    turns: Sequence[dict[str, str]],
    *,
    has_image: bool,
    compat: Literal["strict", "official"] = "strict",
) -> tuple[int, ...]:
    """Return the human turns that may become self-asked.

    Args:
        turns: the LLaVA json list.
        has_image: whether the sample has an image; without one there are no candidates.
        compat: `strict` takes every human turn from the image on, also the first, if it asks
            something and no second image stands in it. `official` takes all but turn 0.

    Returns:
        Indices into `turns`, ascending.
    """
    if not has_image:
        return ()
    human = [index for index, turn in enumerate(turns) if turn["from"] == "human"]
    if compat == "official":
        return tuple(index for index in human if index > 0)
    images = [index for index in human if templates.IMAGE in turns[index]["value"]]
    if not images:
        return ()
    return tuple(
        index
        for index in human
        if index >= images[0]
        and (index == 0 or index not in images)
        and templates.without_image(turns[index]["value"]).strip()
    )


def choose_turns(
    turns: Sequence[dict[str, str]],
    probability: float,
    *,
    seed: int,
    record: int | str,
    epoch: int,
    has_image: bool,
    compat: Literal["strict", "official"] = "strict",
) -> tuple[int, ...]:
    """Draw the turns that the model asks itself, each independently.

    The number of a turn depends on (seed, record, epoch, index) only, so the same record gets the
    same turns on any worker and host, and a larger `probability` only adds turns.

    Args:
        turns: the LLaVA json list.
        probability: share of candidates to take, 0..1.
        seed: seed of the run.
        record: row number or key of the record.
        epoch: pass over the data.
        has_image: whether the sample has an image.
        compat: see `candidates`.

    Returns:
        Indices into `turns`, ascending; give them to `conversation.encode` as `vusr_turns`.
    """
    allowed = candidates(turns, has_image=has_image, compat=compat)
    if not allowed or probability <= 0:
        return ()
    parts = repr((int(seed), record if isinstance(record, str) else int(record), int(epoch)))
    words = hashlib.sha256(parts.encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(words, np.uint64)))
    draws = generator.random(len(turns))
    return tuple(index for index in allowed if draws[index] < probability)
