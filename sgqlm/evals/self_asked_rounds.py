"""Rounds of self-asked questions in front of a question: SQ-LLaVA's protocol for captions.

Four rounds, each over a whole batch of images: a greedy description, sampled questions (each alone,
behind the description), greedy answers to them, and the caption prompt or the question of the
benchmark with all of it as turns in front:

    USER: <image> Can you describe ...? ASSISTANT: ... USER: own question ASSISTANT: ... USER: ...

The first three rounds need the VUSER role, so they have the v1_sq template where that of the
benchmark lacks it. The last one keeps the template of the benchmark: own questions stand there as
USER turns as in the release, or stay VUSER turns if the template has them (v1_sq).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.decode import ask, inputs
from sgqlm.evals import benchmark, self_questioning
from sgqlm.text import templates

KEY = "self_questions"  # in the header of the answers and in their metadata


@dataclasses.dataclass(frozen=True)
class Rounds:
    """How a model asks itself before it is asked.

    Attributes:
        count: questions about an image; 0 for none.
        tokens: of a description, of a question and of an answer at most.
        seed: of the draws; every image has its own, made of this and its name.
    """

    count: int = 0
    tokens: int = 256
    seed: int = 0

    def header(self) -> dict[str, Any]:
        """Return what the answers depend on; nothing where nothing is asked."""
        if not self.count:
            return {}
        return {KEY: {**dataclasses.asdict(self), "sampling": list(ask.OFFICIAL)}}


def answering(
    model: model_lib.VisionLanguageModel,
    job: benchmark.Job,
    chosen: benchmark.Settings,
    rounds: Rounds,
    *,
    batch_size: int,
) -> benchmark.Respond:
    """Return what answers a batch of `benchmark.run` behind rounds of self-asked questions.

    Rounds are drawn by the name of the image, so they depend on neither the batch nor the order,
    and all questions about an image have those of the first one.
    Questions without an image are answered as they are. The metadata of an answer has `KEY`: the
    `turns` in front of the question, and `left_out`, the own questions that are not among them
    since no conversation can hold them or all of it would be too long for the model.

    Args:
        model: the model, see `benchmark.with_template`.
        job: of the questions.
        chosen: how the questions are asked.
        rounds: how the model asks itself; with none this is `benchmark.greedy`.
        batch_size: questions that run at once.

    Raises:
        SgqlmError: the model cannot hold the rounds, or its template no conversation.
    """
    then = benchmark.greedy(model, job, chosen, batch_size=batch_size)
    if not rounds.count:
        return then
    asked = _settings(model, rounds, batch_size)
    room = chosen.max_new_tokens or job.place.task.max_new_tokens
    known: dict[str, dict[str, Any] | str] = {}

    def respond(batch: Sequence[int], rows: Sequence[inputs.Row | str]) -> list[benchmark.Said]:
        names = [job.questions[at].image for at in batch]
        seen = {
            name: row
            for name, row in zip(names, rows, strict=True)
            if isinstance(row, inputs.Row) and row.image is not None and name not in known
        }
        known.update(_about_images(model, seen, asked))
        placed = [
            _place(model, row, known.get(name), room) for name, row in zip(names, rows, strict=True)
        ]
        given = then(batch, [row for row, _ in placed])
        return [
            said._replace(metadata={**said.metadata, **note})
            for said, (_, note) in zip(given, placed, strict=True)
        ]

    return respond


def order(about: Sequence[Sequence[int]], *, batch_size: int) -> list[int]:
    """Return positions of questions in the order in which their rounds run together.

    Images come `batch_size` at a time: first one question about each, then the others image by
    image. A run that was stopped repeats the rounds of few images.

    Args:
        about: the questions of each image.
        batch_size: questions that run at once.
    """
    out: list[int] = []
    for start in range(0, len(about), batch_size):
        images = about[start : start + batch_size]
        out += [image[0] for image in images]
        out += [at for image in images for at in image[1:]]
    return out


def _settings(
    model: model_lib.VisionLanguageModel, rounds: Rounds, batch_size: int
) -> self_questioning.Settings:
    """Return how the first three rounds are asked, once it is sure that the model can hold them."""
    name = model.config.text.template
    if name == "plain":
        raise errors.SgqlmError(
            "the template plain holds no conversation, and so no self-asked questions",
            where="--template",
            fix="leave --self-questions out, or give another template",
        )
    made = self_questioning.Settings(
        flow="official",
        count=rounds.count,
        sampling=ask.OFFICIAL,
        description_tokens=rounds.tokens,
        question_tokens=rounds.tokens,
        answer_tokens=rounds.tokens,
        seed=rounds.seed,
        batch_size=batch_size,
        template="" if templates.get(name).can_ask else "v1_sq",
    )
    self_questioning.check_room(model, made, flag="--round-tokens")
    return made


def in_front(
    model: model_lib.VisionLanguageModel,
    row: inputs.Row,
    said: Mapping[str, Any],
    *,
    room: int,
) -> tuple[inputs.Row, dict[str, Any]]:
    """Put the description and the own questions with their answers in front of a question.

    What is too long for the model goes, the oldest question first and the description last.

    Args:
        model: the model.
        row: one question about an image.
        said: of `self_questioning.about_each`.
        room: tokens of the answer at most.

    Returns:
        The row, and the note on it for the answer, see `responding`.
    """
    opening = [inputs.human(ask.FIRST_TURN), inputs.answer(said["description"])]
    pairs = [
        [inputs.human(question), inputs.answer(text)]
        for question, text in zip(said["questions"], said["answers"], strict=True)
    ]
    opening = opening if _length(model, _behind(model, row, opening, [])) else []
    kept = [pair for pair in pairs if _length(model, _behind(model, row, [], [pair]))]
    most = model.config.model.llm.max_positions - room
    choices = [(opening, kept[first:]) for first in range(len(kept) + 1)] + [([], [])]
    for first, some in choices:
        made = _behind(model, row, first, some)
        if _length(model, made) <= most:
            break
    used = [id(pair) for pair in some]
    return made, {
        "turns": list(made.turns[: len(made.turns) - len(row.turns)]),
        "left_out": [pair[0]["value"] for pair in pairs if id(pair) not in used],
    }


def _place(
    model, row: inputs.Row | str, said: Mapping[str, Any] | str | None, room: int
) -> tuple[inputs.Row | str, dict[str, Any]]:
    if isinstance(row, str) or row.image is None or said is None:
        return row, {}
    if isinstance(said, str):
        return said, {}
    made, note = in_front(model, row, said, room=room)
    return made, {KEY: note}


def _about_images(
    model, rows: Mapping[str, inputs.Row], asked: self_questioning.Settings
) -> dict[str, dict[str, Any] | str]:
    """Return what is asked about each image, or why nothing is."""
    bare = [dataclasses.replace(row, turns=(), template=asked.template) for row in rows.values()]
    try:
        found = self_questioning.about_each(model, bare, asked, names=list(rows)) if rows else []
        return dict(zip(rows, found, strict=True))
    except errors.SgqlmError as error:
        if error.code not in (errors.USAGE, errors.DATA):
            raise
        if len(rows) == 1:
            return dict.fromkeys(rows, error.line)
        alone = [_about_images(model, {name: row}, asked) for name, row in rows.items()]
        return {name: value for part in alone for name, value in part.items()}


def _behind(model, row: inputs.Row, opening: Sequence, pairs: Sequence) -> inputs.Row:
    turns = [*opening, *(turn for pair in pairs for turn in pair)]
    vusr = range(len(opening), len(turns), 2)
    can_ask = templates.get(model.config.text.template).can_ask
    return dataclasses.replace(
        row, turns=[*turns, *row.turns], vusr_turns=tuple(vusr) if can_ask else ()
    )


def _length(model, row: inputs.Row) -> int:
    """Return the length of a prompt in tokens; 0 for one that breaks a rule of conversations."""
    try:
        return inputs.prepare(row, model.config, model.tokenizer).length
    except errors.SgqlmError as error:
        if error.code != errors.DATA:
            raise
        return 0
