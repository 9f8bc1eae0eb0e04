"""Visual self-questioning: the model asks about images, then answers itself."""

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
        draws: Sequence[tuple[int, int]] | None = None,
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
    """Draw different questions about one image; see `different`."""
    (found,) = different(
        responder,
        [row],
        seeds=[seed],
        count=count,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        batch_size=count,
        attempts=attempts,
    )
    return found


def different(
    responder: Responder,
    rows: Sequence[inputs.Row],
    *,
    seeds: Sequence[int],
    count: int,
    sampling: sample.Sampling = SAMPLING,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    attempts: int = 4,
) -> list[list[str]]:
    """Draw different questions about each image, each independent of the others.

    Args:
        responder: the model.
        rows: images, entities and the turns so far (usually none).
        seeds: of the draws of each row; what a row asks does not depend on the other rows.
        count: questions wanted about each.
        sampling: how a token is drawn.
        max_new_tokens: tokens of a question at most.
        batch_size: questions that are drawn at once.
        attempts: rounds of `count` draws; what is drawn twice is dropped.

    Returns:
        For each row up to `count` different questions, in the order they were drawn.
    """
    found: list[dict[str, None]] = [{} for _ in rows]
    short = list(range(len(rows)))
    for attempt in range(attempts):
        drawn = independent(
            responder,
            [rows[at] for at in short],
            seeds=[seeds[at] * attempts + attempt for at in short],
            count=count,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        for at, texts in zip(short, drawn, strict=True):
            found[at].update(dict.fromkeys(text for text in texts if text))
        short = [at for at in short if len(found[at]) < count]
        if not short or sampling.mode == "greedy":
            break
    return [list(texts)[:count] for texts in found]


def independent(
    responder: Responder,
    rows: Sequence[inputs.Row],
    *,
    seeds: Sequence[int],
    count: int,
    sampling: sample.Sampling = OFFICIAL,
    max_new_tokens: int = 300,
    batch_size: int = 16,
) -> list[list[str]]:
    """Draw questions as the released programs do: each alone, equal and empty ones kept.

    Args:
        responder: the model.
        rows: images, entities and the turns so far, see `describe`.
        seeds: of the draws of each row.
        count: questions about each.
        sampling: how a token is drawn.
        max_new_tokens: tokens of a question at most.
        batch_size: questions that are drawn at once.

    Returns:
        `count` questions a row.
    """
    asking = [dataclasses.replace(row, open_role="vuser") for row in rows]
    drawn = responder.respond(
        [row for row in asking for _ in range(count)],
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        draws=[(seed, number) for seed in seeds for number in range(count)],
        batch_size=batch_size,
    )
    return [drawn[start : start + count] for start in range(0, len(drawn), count)]


def describe(
    responder: Responder,
    rows: Sequence[inputs.Row],
    *,
    max_new_tokens: int = 1024,
    batch_size: int = 16,
) -> list[inputs.Row]:
    """Open conversations as the released programs do before they ask.

    Args:
        responder: the model.
        rows: images and entities, without turns.
        max_new_tokens: tokens of a description at most.
        batch_size: rows that run at once.

    Returns:
        The rows with two turns: `FIRST_TURN`, and the model's greedy description.
    """
    asked = [dataclasses.replace(row, turns=[*row.turns, inputs.human(FIRST_TURN)]) for row in rows]
    texts = responder.respond(
        asked,
        max_new_tokens=max_new_tokens,
        sampling=sample.Sampling(),
        batch_size=batch_size,
    )
    return [
        dataclasses.replace(row, turns=[*row.turns, inputs.answer(text)])
        for row, text in zip(asked, texts, strict=True)
    ]


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
        batch_size=batch_size,
    )


def own_turn(row: inputs.Row, question: str) -> inputs.Row:
    """Append a question that the model asked itself to the turns of a row."""
    return dataclasses.replace(
        row,
        turns=[*row.turns, inputs.human(question)],
        open_role="assistant",
        vusr_turns=(*row.vusr_turns, len(row.turns)),
    )
