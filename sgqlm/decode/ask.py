"""Visual self-questioning: the model asks about an image, then answers itself."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sgqlm.decode import inputs, sample


@runtime_checkable
class Responder(Protocol):
    """What completes rows: `model.VisionLanguageModel`."""

    def respond(
        self,
        rows: Sequence[inputs.Row],
        *,
        max_new_tokens: int,
        sampling: sample.Sampling,
        seed: int,
        batch_size: int,
    ) -> list[str]:
        """Return one text a row."""
        ...


# Temperature, top-k and top-p of the SQ-LLaVA release are 1.2, 300 and .95; its vocabulary is
# Vicuna's. The default here is milder, since a small model falls apart at 1.2.
SAMPLING = sample.Sampling(temperature=0.7, top_k=300, top_p=0.95)
OFFICIAL = sample.Sampling(temperature=1.2, top_k=300, top_p=0.95)
FIRST_TURN = "Can you describe the image in detail?"  # of the release's self-questioning programs


def questions(
    responder: Responder,
    row: inputs.Row,
    *,
    count: int,
    sampling: sample.Sampling = SAMPLING,
    max_new_tokens: int = 64,
    seed: int = 0,
    attempts: int = 4,
) -> list[str]:
    """Draw different questions about one image, each independent of the others.

    Args:
        responder: the model.
        row: image, entities and the turns so far (usually none).
        count: questions wanted.
        sampling: how a token is drawn.
        max_new_tokens: tokens of a question at most.
        seed: seed of the request.
        attempts: rounds of `count` draws; what is drawn twice is dropped.

    Returns:
        Up to `count` different questions, in the order they were drawn.
    """
    row = inputs.Row(row.turns, row.image, row.entities, "vuser", row.vusr_turns)
    found: dict[str, None] = {}
    for attempt in range(attempts):
        drawn = responder.respond(
            [row] * count,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed * attempts + attempt,
            batch_size=count,
        )
        found.update(dict.fromkeys(text for text in drawn if text))
        if len(found) >= count or sampling.mode == "greedy":
            break
    return list(found)[:count]


def describe(
    responder: Responder, row: inputs.Row, *, max_new_tokens: int = 1024, batch_size: int = 1
) -> inputs.Row:
    """Open a conversation as the released programs do before they ask.

    Args:
        responder: the model.
        row: image and entities, without turns.
        max_new_tokens: tokens of the description at most.
        batch_size: rows that run at once; one is given.

    Returns:
        The row with two turns: `FIRST_TURN`, and the model's greedy description.
    """
    turns = [*row.turns, inputs.human(FIRST_TURN)]
    (text,) = responder.respond(
        [dataclasses.replace(row, turns=turns)],
        max_new_tokens=max_new_tokens,
        sampling=sample.Sampling(),
        seed=0,
        batch_size=batch_size,
    )
    return dataclasses.replace(row, turns=[*turns, {"from": "gpt", "value": text}])


def independent(
    responder: Responder,
    row: inputs.Row,
    *,
    count: int,
    sampling: sample.Sampling = OFFICIAL,
    max_new_tokens: int = 300,
    seed: int = 0,
) -> list[str]:
    """Draw questions as the released programs do: each alone, equal and empty ones kept.

    Args:
        responder: the model.
        row: image, entities and the turns so far, see `describe`.
        count: questions.
        sampling: how a token is drawn.
        max_new_tokens: tokens of a question at most.
        seed: seed of the request.

    Returns:
        `count` questions.
    """
    return responder.respond(
        [dataclasses.replace(row, open_role="vuser")] * count,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        batch_size=count,
    )


def answer_own(
    responder: Responder,
    rows: Sequence[inputs.Row],
    asked: Sequence[str],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
) -> list[str]:
    """Answer questions that the model asked itself, greedily.

    The question stays a turn of the model (`VUSER: ... ASSISTANT:`), as it is in training.

    Args:
        responder: the model.
        rows: what each question was asked about.
        asked: the questions.
        max_new_tokens: tokens of an answer at most.
        batch_size: rows that run at once.

    Returns:
        One answer a question.
    """
    return responder.respond(
        [own_turn(row, text) for row, text in zip(rows, asked, strict=True)],
        max_new_tokens=max_new_tokens,
        sampling=sample.Sampling(),
        seed=0,
        batch_size=batch_size,
    )


def own_turn(row: inputs.Row, question: str) -> inputs.Row:
    """Append a question that the model asked itself to the turns of a row."""
    return inputs.Row(
        [*row.turns, inputs.human(question)],
        row.image,
        row.entities,
        vusr_turns=(*row.vusr_turns, len(row.turns)),
    )
