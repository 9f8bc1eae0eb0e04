"""ScienceQA accuracy as LLaVA's eval_science_qa.py computes it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sgqlm.evals.metrics import records

OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"
_SUBJECTS = {"natural": "NAT", "social": "SOC", "language": "LAN"}
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the dot is any sign, but there must be one


def parse(text: str) -> str:
    """Return the letter that an answer chooses.

    Nothing is stripped: `A.`, `(A)` and `A ` choose nothing.

    Args:
        text: the answer of a model.

    Returns:
        The letter of a text that is one of A to E, or that begins with `A. `; else the letter of
        the only `The answer is X.`, which may be any from A to Z; else `FAILED`.
    """
    if text in OPTIONS:
        return text
    if text[:1] in OPTIONS and text[1:3] == ". ":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else FAILED


def score(
    answers: Mapping[Any, Any] | Iterable[Mapping[str, Any]],
    problems: Mapping[str, Mapping[str, Any]],
    split: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Score answers to the problems of a split.

    A problem without an answer counts as wrong, and not as one with an image.

    Args:
        answers: id -> record with `text` and `prompt` (or the text alone), or such records with
            `question_id`. A prompt with `<image>`, or a true `is_multimodal`, makes an image item.
        problems: the official problems.json: id -> record with `choices` and `answer`, a number.
        split: ids of the problems to score, or a pid_splits.json that has one split; None: all.

    Returns:
        `accuracy` and `image_accuracy` (0 to 1; None without items), `correct`, `count`,
        `image_count`, `missing` (ids), `correct_ids`, `parsed` (id -> letter or `FAILED`),
        `chosen` (id -> number of the choice, -1 for none of the item's) and `items` (id -> 0 or 1).

    Raises:
        ValueError: an id of the answers stands twice, or it is not clear which split is meant.
        KeyError: an id of the split is no problem.
    """
    if isinstance(split, Mapping):
        if len(split) != 1:
            raise ValueError(f"give the ids of one split, such as split[{next(iter(split), '')!r}]")
        (split,) = split.values()
    said = records.by_id(answers)
    keys = [str(key) for key in (problems if split is None else split)]
    parsed = {key: parse(said[key]["text"]) if key in said else FAILED for key in keys}
    chosen = {key: _number(parsed[key], len(problems[key]["choices"])) for key in keys}
    items = {key: float(chosen[key] == problems[key]["answer"]) for key in keys}
    images = [key for key in keys if key in said and has_image(said[key])]
    return {
        "accuracy": records.mean(items.values()),
        "image_accuracy": records.mean(items[key] for key in images),
        "correct": int(sum(items.values())),
        "count": len(keys),
        "image_count": len(images),
        "missing": [key for key in keys if key not in said],
        "correct_ids": [key for key in keys if items[key]],
        "parsed": parsed,
        "chosen": chosen,
        "items": items,
    }


def groups(problem: Mapping[str, Any]) -> list[str]:
    """Return the groups of ScienceQA's own table that a problem counts in.

    Args:
        problem: of problems.json, with `subject`, `grade`, `hint` and `image` as far as known.

    Returns:
        One of `subject NAT`, `SOC` and `LAN`; of `context TXT`, `IMG` and `NO` all that fit;
        `grade G1-6` or `G7-12`.
    """
    subject = str(problem.get("subject", "")).split(" ")[0]
    found = [f"subject {_SUBJECTS[subject]}"] if subject in _SUBJECTS else []
    contexts = [n for n, key in (("TXT", "hint"), ("IMG", "image")) if problem.get(key)]
    if "hint" in problem or "image" in problem:
        found += [f"context {name}" for name in contexts or ["NO"]]
    grade = str(problem.get("grade", "")).removeprefix("grade")
    if grade.isdecimal():
        found.append("grade G1-6" if int(grade) <= 6 else "grade G7-12")
    return found


def has_image(answer: Mapping[str, Any]) -> bool:
    """Return whether an answer was to a prompt with an image."""
    flag = answer.get("is_multimodal")
    if flag is not None:
        return str(flag).lower() in ("1", "true")
    return "<image>" in str(answer.get("prompt") or "")


def _number(letter: str, num_choices: int) -> int:
    options = OPTIONS[:num_choices]
    return options.index(letter) if letter in options else -1
