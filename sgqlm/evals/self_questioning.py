"""Self-questioning over many images: ask, answer, test the answers, keep all in json lines."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import chat
from sgqlm.decode import ask, inputs, sample
from sgqlm.evals import answers
from sgqlm.evals.metrics import questions as metrics

TASK = "questions"
FEWER = (
    "what was drawn again was left out; --flow=official draws each on its own and keeps all, a "
    "higher --temperature varies more"
)
# answers are drawn milder than questions: at 1.2 a sure answer would vary too
CONSISTENCY_TEMPERATURE = 0.7
_MARKS = 32  # more than the roles and marks of two further turns take


@dataclasses.dataclass(frozen=True)
class Settings:
    """How questions are asked.

    Attributes:
        flow: `official`: a greedy description first, then independent samples, as the released
            programs do; `sgqlm`: different questions right after the image.
        count: questions about an image.
        sampling: how a question is drawn.
        description_tokens: of the description at most.
        question_tokens: of a question at most.
        answer_tokens: of an answer at most.
        consistency: answers drawn for each question to see whether they agree; 0 for none.
        seed: of the draws; every image has its own, made of this and its name.
        batch_size: rows that run at once.
        template: conversation format, with its own system text; empty for those of the model.
    """

    flow: Literal["official", "sgqlm"] = "sgqlm"
    count: int = 5
    sampling: sample.Sampling = ask.SAMPLING
    description_tokens: int = 1024
    question_tokens: int = 128
    answer_tokens: int = 128
    consistency: int = 0
    seed: int = 0
    batch_size: int = 16
    template: str = ""

    @property
    def images_at_once(self) -> int:
        """Return about how many images fill a batch."""
        return self.batch_size if self.flow == "official" else -(-self.batch_size // self.count)


def about_each(
    model: model_lib.VisionLanguageModel,
    rows: Sequence[inputs.Row],
    settings: Settings = Settings(),
    *,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Ask about images, answer greedily, and see whether sampled answers agree.

    What is said about an image depends on neither the other images nor the batch size.

    Args:
        model: the model.
        rows: images and entities, without turns.
        settings: how.
        names: of the images; each gives the draws about its image.

    Returns:
        Of each image `questions` and `answers`, as many; `unanswered`, the numbers of the questions
        that no conversation can hold (empty, or with the marks of a role), whose answers are empty;
        `description` in the official flow (one that no conversation can hold is left out of the
        questions' prompts); `agreement`, if `settings.consistency` is set: a number a question,
        None where it is unanswered.
    """
    seeds, size = [seed_of(settings.seed, name) for name in names], settings.batch_size
    found: list[dict[str, Any]] = [{} for _ in rows]
    if settings.flow == "official":
        opened = ask.describe(
            model, rows, max_new_tokens=settings.description_tokens, batch_size=size
        )
        found = [{"description": row.turns[-1]["value"]} for row in opened]
        pairs = zip(rows, opened, strict=True)
        rows = [new if _can_follow(model, new, "?") else row for row, new in pairs]
    asked = (ask.independent if settings.flow == "official" else ask.different)(
        model,
        rows,
        seeds=seeds,
        count=settings.count,
        sampling=settings.sampling,
        max_new_tokens=settings.question_tokens,
        batch_size=size,
    )
    usable = [
        [number for number, text in enumerate(texts) if _can_follow(model, row, text)]
        for row, texts in zip(rows, asked, strict=True)
    ]
    places = [(at, number) for at, numbers in enumerate(usable) for number in numbers]
    answers_of = _answer(model, rows, asked, places, settings)
    agreements = _agreement(model, rows, asked, places, settings, seeds)
    for at, (out, texts) in enumerate(zip(found, asked, strict=True)):
        numbers = range(len(texts))
        out["questions"] = texts
        out["answers"] = [answers_of.get((at, number), "") for number in numbers]
        out["unanswered"] = [number for number in numbers if (at, number) not in answers_of]
        if settings.consistency:
            out["agreement"] = [agreements.get((at, number)) for number in numbers]
    return found


def check_room(model: model_lib.VisionLanguageModel, settings: Settings, *, flag: str) -> None:
    """Refuse lengths that a model may not be able to hold.

    Args:
        model: the model.
        settings: the tokens of description, question and answer.
        flag: what the user can make smaller.

    Raises:
        SgqlmError: description, question and answer of full length are too long together.
    """
    config, is_official = model.config.model, settings.flow == "official"
    row = inputs.Row([inputs.human(ask.FIRST_TURN)], Image.new("RGB", (8, 8)))
    if not is_official:
        row = dataclasses.replace(row, turns=(), open_role="vuser")
    row = dataclasses.replace(row, template=settings.template)
    longest = inputs.prepare(row, model.config, model.tokenizer).length + _MARKS
    if config.graph.enabled:
        runs = 2 if config.graph.placement == "after_question" else 1
        longest += runs * config.graph.num_nodes
    longest += settings.question_tokens + settings.answer_tokens
    longest += settings.description_tokens if is_official else 0
    if longest > config.llm.max_positions:
        raise errors.SgqlmError(
            "the model is too short for an image with questions and answers",
            where=flag,
            why=f"it has {config.llm.max_positions} positions, and they can take {longest}",
            fix=f"give a smaller {flag}",
        )


def _answer(model, rows, asked, places, settings: Settings) -> dict[tuple[int, int], str]:
    given = ask.answer_own(
        model,
        [rows[at] for at, _ in places],
        [asked[at][number] for at, number in places],
        max_new_tokens=settings.answer_tokens,
        batch_size=settings.batch_size,
    )
    return dict(zip(places, given, strict=True))


def _agreement(
    model, rows, asked, places, settings: Settings, seeds
) -> dict[tuple[int, int], float]:
    """Answer each question several times and compare: what the image shows is answered alike."""
    times = settings.consistency
    if not times:
        return {}
    draws, counts = [], collections.Counter()
    for at, _ in places:
        draws += [(seeds[at], counts[at] + k) for k in range(times)]
        counts[at] += times
    given = model.respond(
        [ask.own_turn(rows[at], asked[at][number]) for at, number in places for _ in range(times)],
        max_new_tokens=settings.answer_tokens,
        sampling=sample.Sampling(CONSISTENCY_TEMPERATURE),
        draws=draws,
        batch_size=settings.batch_size,
    )
    return {
        place: round(metrics.agreement(given[i * times : (i + 1) * times]), 4)
        for i, place in enumerate(places)
    }


class QuestionFile:
    """Json lines, one an image: `{"image", "questions", "answers", ...}`.

    A file that a killed run left goes on with the images that are not in it. The settings stand in
    a file beside it; others are refused.

    Args:
        path: the file; made with its folder where it is missing.
        about: json values that say what is asked of what.

    Raises:
        SgqlmError: the file was made with other settings, or is no such file.
    """

    def __init__(self, path: str | os.PathLike, about: Mapping[str, Any]):
        """Open the file, and read what is there."""
        self.path = pathlib.Path(path)
        beside = self.path.with_name(self.path.name + ".settings")
        self.done = {line["image"] for line in read(self.path)} if self.path.is_file() else set()
        if self.done and not beside.is_file():
            raise errors.SgqlmError(
                "the file has questions, but nothing says how they were asked",
                where=str(self.path),
                why=f"there is no {beside.name} beside it",
                fix="give another --out",
            )
        if not self.done:
            beside.unlink(missing_ok=True)  # nothing was asked with these settings
        with answers.AnswerFile(beside, {"task": TASK, **about}):
            pass  # compares the settings, or writes them
        self.path.touch()

    def add(self, image: str, found: Mapping[str, Any]) -> None:
        """Append what was asked about an image."""
        chat.append(self.path, {"image": image, **found})
        self.done.add(image)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the lines of a file of `QuestionFile`.

    Raises:
        SgqlmError: there is no such file, or a line is of another kind.
    """
    found = list(answers.iterate(path))
    for number, line in enumerate(found, 1):
        if not isinstance(line.get("image"), str) or not _are_texts(line.get("questions")):
            raise errors.SgqlmError(
                "a line has no questions about an image",
                where=f"{path}:{number}",
                why=json.dumps(line)[:80],
                fix='give lines {"image": ..., "questions": [...], "answers": [...]}',
                code=errors.DATA,
            )
    return found


def measure(lines: Sequence[Mapping[str, Any]], *, wanted: int = 0) -> dict[str, Any]:
    """Measure the questions of `read`.

    Args:
        lines: of the images.
        wanted: questions that were wanted about each.

    Returns:
        `metrics.measure` of them, `wanted`, `fewer` (the number of images with fewer questions),
        `unanswered` (their number), and the means `agreement` and `clip_score` over the questions
        that have one, None without any.
    """
    out = metrics.measure([line["questions"] for line in lines])
    out |= {"wanted": wanted, "fewer": sum(len(line["questions"]) < wanted for line in lines)}
    out["unanswered"] = sum(len(line.get("unanswered", [])) for line in lines)
    for name in ("agreement", "clip_score"):
        values = [value for line in lines for value in line.get(name, []) if value is not None]
        out[name] = round(statistics.fmean(values), 4) if values else None
    return out


def told(found: Mapping[str, Any]) -> list[str]:
    """Return what `measure` found as lines of text."""
    out = metrics.lines(found)
    if found["fewer"]:
        few, wanted = found["fewer"], found["wanted"]
        out.append(f"fewer        {few} images have fewer than {wanted}: {FEWER}")
    if found["unanswered"]:
        out.append(f"unanswered   {found['unanswered']} (empty, or with the marks of a role)")
    if found["agreement"] is not None:
        out.append(f"agreement    {found['agreement']:.3f} of sampled answers")
    if found["clip_score"] is not None:
        out.append(f"CLIPScore    {found['clip_score']:.3f} of questions")
    return out


def run(
    names: Sequence[str],
    out: QuestionFile,
    load: Callable[[str], Any],
    ask_about: Callable[[Sequence[str], Sequence[Any]], Sequence[Mapping[str, Any]]],
    *,
    at_once: int = 1,
    update: Callable[[int], None] = lambda done: None,
) -> dict[str, errors.SgqlmError]:
    """Ask about the images that are not in the file yet.

    Args:
        names: the images.
        out: takes the questions.
        load: name -> image, or what else `ask_about` wants.
        ask_about: names and what was loaded -> what `about_each` returns.
        at_once: images of one call of `ask_about`.
        update: told how many images are done.

    Returns:
        The images that went wrong; they are tried again by the next run.

    Raises:
        SgqlmError: something other than an image is wrong.
    """
    todo = [name for name in names if name not in out.done]
    failed: dict[str, errors.SgqlmError] = {}
    for start in range(0, len(todo), at_once):
        chunk = todo[start : start + at_once]
        found = _ask(chunk, load, ask_about)
        for name in chunk:
            if isinstance(found[name], errors.SgqlmError):
                failed[name] = found[name]
            else:
                out.add(name, found[name])
        update(len(names) - len(todo) + start + len(chunk))
    return failed


def _ask(chunk: Sequence[str], load: Callable, ask_about: Callable) -> dict[str, Any]:
    """Return what was asked about each image, or its error."""
    loaded = {name: _attempt(lambda one: [load(*one)], [name])[0] for name in chunk}
    good = [name for name in chunk if not isinstance(loaded[name], errors.SgqlmError)]
    asked = _attempt(lambda some: ask_about(some, [loaded[name] for name in some]), good)
    return loaded | dict(zip(good, asked, strict=True))


def _attempt(work: Callable[[Sequence[str]], Sequence], names: Sequence[str]) -> list:
    """Return what `work` makes of the images; if it fails, of each alone, or the error of that."""
    try:
        return list(work(names)) if names else []
    except errors.SgqlmError as error:
        if error.code != errors.DATA:
            raise
        if len(names) == 1:
            return [error]
        return [found for name in names for found in _attempt(work, [name])]


def seed_of(seed: int, name: str) -> int:
    """Return the seed of the draws about one thing: its name tells it from the others."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:3], "big")


def _can_follow(model: model_lib.VisionLanguageModel, row: inputs.Row, question: str) -> bool:
    try:
        inputs.prepare(ask.own_turn(row, question), model.config, model.tokenizer)
    except errors.SgqlmError as error:
        if error.code != errors.DATA:
            raise
        return False
    return True


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
