"""How much of a data set a model has by heart, and whether it answers from the images."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs, images, sources
from sgqlm.decode import generate, inputs

SHOWN = 5  # wrong answers that a terminal is told


class Asked(NamedTuple):
    """One answer of a data set and what stands before it.

    Attributes:
        record: name of the record.
        turns: the true conversation up to the question.
        answer: the true answer.
        image_row: row of the image, -1 for text only.
    """

    record: str
    turns: Sequence[Mapping[str, str]]
    answer: str
    image_row: int


class Picture(NamedTuple):
    """An image as the model's square, and its entities."""

    square: Image.Image | None
    entities: graphs.Entities | None


def collect(source: sources.Source, limit: int) -> list[Asked]:
    """Return every answer of the first `limit` conversations of a data set."""
    found = []
    for index in range(min(len(source), limit)):
        sample = source.sample(index, want_image=False, want_entities=False)
        for position, turn in enumerate(sample.turns):
            if turn["from"] == "gpt" and position:
                before = sample.turns[:position]
                found.append(Asked(sample.record_key, before, turn["value"].strip(), sample.row))
    return found


def evaluate(
    model: model_lib.VisionLanguageModel,
    source: sources.Source,
    *,
    limit: int = 500,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Answer the questions of a data set again, greedily, each after its true history.

    Args:
        model: the model.
        source: the data set.
        limit: conversations to take at most.
        batch_size: questions that run at once.
        seed: of the exchange of images.
        progress: told the name of each part before it starts.

    Returns:
        `answers` and `swapped`, each `{"count", "exact", "accuracy", "wrong"}`: answers asked for,
        those given exactly (outer blanks apart), their share (None of none), and a list of
        `{"record", "question", "wanted", "given"}`. `swapped` asks the questions about images
        again, where every image and its entities gave way to those of another one; with fewer than
        two images it is empty. `broken`: what is wrong with images that cannot be read; questions
        about them are left out.
    """
    tell = progress or (lambda name: None)
    asked = collect(source, limit)
    rows = sorted({item.image_row for item in asked if item.image_row >= 0})
    pictures, broken = {}, []
    for row in rows:
        try:
            pictures[row] = _picture(model, source.image(row))
        except (errors.SgqlmError, OSError, ValueError) as error:
            broken.append(" ".join(str(error).split()))
    rows = sorted(pictures)
    asked = [item for item in asked if item.image_row < 0 or item.image_row in pictures]
    tell("answers")
    result = {"broken": broken, "answers": _score(model, asked, pictures, batch_size)}
    other = inputs.derangement(len(rows), seed)
    swapped = {row: pictures[rows[k]] for row, k in zip(rows, other, strict=True)}
    seen = [item for item in asked if item.image_row >= 0 and len(rows) > 1]
    tell("swapped")
    result["swapped"] = _score(model, seen, swapped, batch_size)
    return result


def lines(result: Mapping) -> list[str]:
    """Return what `evaluate` found as lines of text."""
    out = []
    for name, title in (("answers", "all answers"), ("swapped", "images swapped")):
        part = result[name]
        share = "-" if part["accuracy"] is None else f"{part['accuracy']:.3f}"
        out.append(f"{title:16}{share:>7}   {part['exact']} of {part['count']} exactly")
    if result["broken"]:
        out.append(f"{len(result['broken'])} images cannot be read; their questions are left out:")
        out.extend(f"  {reason}" for reason in result["broken"][:SHOWN])
    for miss in result["answers"]["wrong"][:SHOWN]:
        out.append(f"  {miss['record']}: {miss['question']!r}")
        out.append(f"    wanted {miss['wanted']!r}, given {miss['given']!r}")
    return out


def _picture(model: model_lib.VisionLanguageModel, sample: sources.Sample) -> Picture:
    if sample.image is None:
        raise errors.SgqlmError(f"{sample.record_key} has no image", code=errors.DATA)
    # the square stands for the picture: entities know the size of the picture by themselves
    opened = images.open_image(sample.image, where=sample.record_key)
    return Picture(model.square(opened), sample.entities)


def _score(model, asked: Sequence[Asked], pictures: Mapping[int, Picture], batch_size) -> dict:
    nothing = Picture(None, None)
    rows = [inputs.Row(item.turns, *pictures.get(item.image_row, nothing)) for item in asked]
    given = _respond(model, rows, [item.answer for item in asked], batch_size)
    wrong = [
        {
            "record": item.record,
            "question": item.turns[-1]["value"],
            "wanted": item.answer,
            "given": text,
        }
        for item, text in zip(asked, given, strict=True)
        if text != item.answer
    ]
    exact = len(asked) - len(wrong)
    accuracy = round(exact / len(asked), 4) if asked else None
    return {"count": len(asked), "exact": exact, "accuracy": accuracy, "wrong": wrong}


def _respond(model, rows: Sequence[inputs.Row], answers: Sequence[str], batch_size) -> list[str]:
    """Answer the rows with room for the true answers; what the model cannot hold stays empty."""
    by_room = collections.defaultdict(list)
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        wanted = len(model.tokenizer.encode(answer, bos=False)) + 1
        length = inputs.prepare(row, model.config, model.tokenizer).length
        left = model.config.model.llm.max_positions - length
        by_room[min(max(generate.power_of_two(wanted), 16), left)].append(index)
    texts = [""] * len(rows)
    for room, members in sorted(by_room.items()):
        if room < 1:
            continue
        chosen = [rows[index] for index in members]
        found = model.respond(chosen, max_new_tokens=room, batch_size=batch_size)
        for index, text in zip(members, found, strict=True):
            texts[index] = text
    return texts
