"""Self-questioning over many images: ask, answer, test the answers, keep all in json lines."""

import dataclasses
import hashlib
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import chat
from sgqlm.decode import ask, inputs, sample
from sgqlm.evals import answers
from sgqlm.evals.metrics import questions as metrics

TASK = "questions"
# answers are drawn milder than questions: at 1.2 a sure answer would vary too
CONSISTENCY_TEMPERATURE = 0.7


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
        batch_size: answers that run at once.
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


def about(
    model: model_lib.VisionLanguageModel,
    row: inputs.Row,
    settings: Settings = Settings(),
    *,
    name: str = "",
) -> dict[str, Any]:
    """Ask about one image, answer greedily, and see whether sampled answers agree.

    Args:
        model: the model.
        row: image and entities, without turns.
        settings: how.
        name: of the image; gives its draws.

    Returns:
        `questions` and `answers`, as many; `unanswered`, the numbers of the questions that no
        conversation can hold (empty, or with the marks of a role), whose answers are empty;
        `description` in the official flow; `agreement`, if `settings.consistency` is set: a number
        a question, None where it is unanswered.
    """
    seed = _seed(settings.seed, name)
    tokens, out = settings.question_tokens, {}
    if settings.flow == "official":
        row = ask.describe(model, row, max_new_tokens=settings.description_tokens)
        out["description"] = row.turns[-1]["value"]
        draw = ask.independent
    else:
        draw = ask.questions
    asked = draw(
        model,
        row,
        count=settings.count,
        sampling=settings.sampling,
        max_new_tokens=tokens,
        seed=seed,
    )
    usable = [i for i, text in enumerate(asked) if _can_follow(model, row, text)]
    texts = [asked[i] for i in usable]
    given = ask.answer_own(
        model,
        [row] * len(texts),
        texts,
        max_new_tokens=settings.answer_tokens,
        batch_size=settings.batch_size,
    )
    by_number = dict(zip(usable, given, strict=True))
    out |= {"questions": asked, "answers": [by_number.get(i, "") for i in range(len(asked))]}
    out["unanswered"] = [i for i in range(len(asked)) if i not in by_number]
    if settings.consistency:
        found = dict(zip(usable, consistency(model, row, texts, settings, seed=seed), strict=True))
        out["agreement"] = [found.get(i) for i in range(len(asked))]
    return out


def consistency(
    model: ask.Responder, row: inputs.Row, asked: Sequence[str], settings: Settings, *, seed: int
) -> list[float]:
    """Answer each question several times and compare: what the image shows is answered alike.

    Args:
        model: the model.
        row: what the questions are about.
        asked: the questions.
        settings: number (two or more) and length of the answers.
        seed: of the draws.

    Returns:
        `metrics.agreement` of the answers to each question, 0..1.
    """
    times = settings.consistency
    given = model.respond(
        [ask.own_turn(row, text) for text in asked for _ in range(times)],
        max_new_tokens=settings.answer_tokens,
        sampling=sample.Sampling(CONSISTENCY_TEMPERATURE),
        seed=seed,
        batch_size=settings.batch_size,
    )
    return [
        round(metrics.agreement(given[i : i + times]), 4)
        for i in range(0, len(asked) * times, times)
    ]


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


def measure(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure the questions of `read`.

    Returns:
        `metrics.measure` of them, `unanswered` (their number), and the means `agreement` and
        `clip_score` over the questions that have one, None without any.
    """
    out = metrics.measure([line["questions"] for line in lines])
    out["unanswered"] = sum(len(line.get("unanswered", [])) for line in lines)
    for name in ("agreement", "clip_score"):
        values = [value for line in lines for value in line.get(name, []) if value is not None]
        out[name] = round(statistics.fmean(values), 4) if values else None
    return out


def told(found: Mapping[str, Any]) -> list[str]:
    """Return what `measure` found as lines of text."""
    out = metrics.lines(found)
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
    ask_about: Callable[[str], Mapping[str, Any]],
    *,
    update: Callable[[int], None] = lambda done: None,
) -> dict[str, errors.SgqlmError]:
    """Ask about the images that are not in the file yet.

    Args:
        names: the images.
        out: takes the questions.
        ask_about: name -> what `about` returns.
        update: told how many images are done.

    Returns:
        The images that went wrong; they are tried again by the next run.

    Raises:
        SgqlmError: something other than an image is wrong.
    """
    failed = {}
    done = sum(name in out.done for name in names)
    for name in names:
        if name in out.done:
            continue
        try:
            out.add(name, ask_about(name))
        except errors.SgqlmError as error:
            if error.code != errors.DATA:
                raise
            failed[name] = error
        done += 1
        update(done)
    return failed


def _seed(seed: int, name: str) -> int:
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
