"""GQA accuracy and its parts as the official eval.py computes them."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from sgqlm.evals.metrics import records

_NOT_STEPS = ("exist", "query: name", "choose name")


def convert(text: str) -> str:
    """Return an answer in the form that LLaVA submits: no period at its end, small letters."""
    return text.rstrip(".").lower()


def score(
    predictions: Mapping[Any, Any] | Iterable[Mapping[str, Any]], questions: Mapping[str, Mapping]
) -> dict[str, Any]:
    """Score answers to the balanced questions.

    Args:
        predictions: id -> text, or records with `question_id` and `text` (or `questionId` and
            `prediction`); `convert` is applied to each.
        questions: the official questions: id -> record with `answer`, `types`, `isBalanced` ...

    Returns:
        `accuracy`, `binary`, `open` (0 to 1; None without questions of the kind), `distribution`
        (chi square over 100, lower is better), `by_structural`, `by_semantic`, `by_steps` and
        `by_words` (name -> [accuracy, number of questions]), `count`, and `items`: id -> 0 or 1.

    Raises:
        ValueError: a balanced question has no answer, or an id stands twice.
    """
    said = {key: convert(record["text"]) for key, record in records.by_id(predictions).items()}
    asked = {str(key): item for key, item in questions.items() if item.get("isBalanced", True)}
    missing = [key for key in asked if key not in said]
    if missing:
        raise ValueError(f"{len(missing)} questions have no answer, such as {missing[0]}")
    items = {key: float(said[key] == item["answer"]) for key, item in asked.items()}
    kinds = {key: _structural(item) == "query" for key, item in asked.items()}
    return {
        "accuracy": records.mean(items.values()),
        "binary": records.mean(items[key] for key in asked if not kinds[key]),
        "open": records.mean(items[key] for key in asked if kinds[key]),
        "distribution": _distribution(asked, said),
        "by_structural": _split(items, {key: _structural(item) for key, item in asked.items()}),
        "by_semantic": _split(
            items, {key: item["types"]["semantic"] for key, item in asked.items()}
        ),
        "by_steps": _split(items, {key: num_steps(item) for key, item in asked.items()}),
        "by_words": _split(
            items, {key: len(item["question"].split()) for key, item in asked.items()}
        ),
        "count": len(items),
        "items": items,
    }


def num_steps(question: Mapping[str, Any]) -> int:
    """Return the reasoning steps of a question, without those that only ask."""
    told = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return sum(not any(name in text for name in _NOT_STEPS) for text in told)


def _structural(question: Mapping) -> str:
    return question["types"]["structural"]


def _split(items: Mapping[str, float], names: Mapping[str, Any]) -> dict[str, list]:
    groups = collections.defaultdict(list)
    for key, value in items.items():
        groups[names[key]].append(value)
    return {str(name): [records.mean(part), len(part)] for name, part in sorted(groups.items())}


def _distribution(asked: Mapping[str, Mapping], said: Mapping[str, str]) -> float | None:
    """Return the chi square between answers and truth in each global group, weighted by size.

    Only the answers that are true somewhere in the group count, as in the official program.
    """
    groups = collections.defaultdict(lambda: (collections.Counter(), collections.Counter()))
    for key, item in asked.items():
        if (name := item["groups"]["global"]) is not None:
            groups[name][0][item["answer"]] += 1
            groups[name][1][said[key]] += 1
    if not groups:
        return None
    total = sum(
        sum((found[word] - count) ** 2 / count for word, count in gold.items()) * gold.total()
        for gold, found in groups.values()
    )
    return total / sum(gold.total() for gold, _ in groups.values()) / 100
