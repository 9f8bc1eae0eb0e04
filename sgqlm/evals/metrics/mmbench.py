"""MMBench: which option an answer means, and circular accuracy (as VLMEvalKit, no judge)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sgqlm.evals.metrics import records

ROLL = 1_000_000  # the index of a rotated copy is that of its item plus a multiple of this
REFUSED = "Z"
OPTIONS = ("A", "B", "C", "D", "E", "F")
DIMENSIONS = {
    "CP": "coarse_perception",
    "FP-S": "finegrained_perception (instance-level)",
    "FP-C": "finegrained_perception (cross-instance)",
    "AR": "attribute_reasoning",
    "LR": "logic_reasoning",
    "RR": "relation_reasoning",
}
_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SENTENCE = re.compile(r"answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_WORDS = 5


def match(answer: str, choices: Mapping[str, str]) -> str | Literal[False]:
    """Return the option that an answer means, by the rules before any judge.

    Args:
        answer: the answer of a model.
        choices: letter -> text of the option.

    Returns:
        The only option letter among the words, if it stands near the end; else the letter after
        `answer is`; else the only option whose text the answer has in it. `Z` for a refusal, False
        where the rules find nothing and a judge would be asked.
    """
    answer = str(answer)
    return _letter(answer, choices) or _text(answer, choices)


def circular(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Score answers to items and their rotated copies: all of an item must be right.

    Args:
        rows: of the official table with `index`, the options `A` to `D` (empty or None where there
            is none), `answer`, `prediction`, and where known `category` and `l2-category`.

    Returns:
        `accuracy` (mean hit over the items, 0 to 1), `vanilla` (over the rows as they are in the
        table first, unrotated), `dimensions` and `categories` (name -> [accuracy, number]; the
        official table's six dimensions under their short names), `hits` (index of the item -> 0
        or 1), `unmatched` (indices of rows whose answer means no option), `count`.

    Raises:
        ValueError: an index stands twice, or an item lacks its unrotated row.
    """
    groups: dict[int, dict[int, Mapping]] = {}
    for row in rows:
        index = int(row["index"])
        if index in groups.setdefault(index % ROLL, {}):
            raise ValueError(f"the index {index} stands twice")
        groups[index % ROLL][index] = row
    headless = [item for item, copies in groups.items() if item not in copies]
    if headless:
        raise ValueError(f"the item {headless[0]} lacks its unrotated row")
    found = {index: match_row(row) for part in groups.values() for index, row in part.items()}
    right = {
        index: found[index] == row["answer"]
        for part in groups.values()
        for index, row in part.items()
    }
    hits = {item: int(all(right[index] for index in part)) for item, part in groups.items()}
    heads = {item: part[item] for item, part in groups.items()}
    dimensions = _means(hits, heads, "l2-category")
    short = {name: key for key, name in DIMENSIONS.items()}
    return {
        "accuracy": records.mean(hits.values()),
        "vanilla": records.mean(float(right[item]) for item in hits),
        "dimensions": {short.get(name, name): value for name, value in dimensions.items()},
        "categories": _means(hits, heads, "category"),
        "hits": hits,
        "unmatched": [index for index, letter in found.items() if not letter],
        "count": len(hits),
    }


def choices_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Return letter -> text of the options that a row of the table has."""
    return {name: str(row[name]) for name in OPTIONS if not is_blank(row.get(name))}


def match_row(row: Mapping[str, Any]) -> str | Literal[False]:
    """Return `match` of the prediction of a row; False without one."""
    said = row.get("prediction")
    return False if is_blank(said) else match(str(said), choices_of(row))


def is_blank(value: Any) -> bool:
    """Return whether a cell of the table is empty (None, not a number, or no text)."""
    return value is None or value == "" or value != value


def _letter(answer: str, choices: Mapping[str, str]) -> str | Literal[False]:
    if _FAILURE in answer:
        return False
    if any(phrase in answer for phrase in _REFUSALS):
        return REFUSED
    words = answer.translate(_SIGNS).split()
    there = [letter for letter in choices if letter in words]
    if len(there) == 1 and words.index(there[0]) > len(words) - _LAST_WORDS:
        return there[0]
    if not there and REFUSED in words:
        return REFUSED
    told = _SENTENCE.search(answer)
    return told[1].upper() if told and told[1].upper() in choices else False


def _text(answer: str, choices: Mapping[str, str]) -> str | Literal[False]:
    """Return the only option whose text is in an answer that is not much longer than all."""
    texts = {letter: str(text).lower() for letter, text in choices.items()}
    if len(answer) > 2 * sum(map(len, texts.values())):
        return False
    there = [letter for letter, text in texts.items() if text in answer.lower()]
    return there[0] if len(there) == 1 else False


def _means(hits: Mapping[int, int], heads: Mapping[int, Mapping], name: str) -> dict[str, list]:
    groups: dict[str, list[int]] = {}
    for item, hit in hits.items():
        if not is_blank(value := heads[item].get(name)):
            groups.setdefault(str(value), []).append(hit)
    return {key: [records.mean(part), len(part)] for key, part in sorted(groups.items())}
