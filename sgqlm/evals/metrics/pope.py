"""POPE: does a model say yes to objects that are not there (as LLaVA's eval_pope.py scores it)."""

from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm.evals.metrics import records

NO = {"No", "not", "no"}
CATEGORY_IDS = 10_000_000  # LLaVA's question file adds a multiple of this to the ids of a category


def parse(text: str) -> str:
    """Return `yes` or `no` for an answer.

    Args:
        text: the answer of a model.

    Returns:
        `no` where the first sentence has the word `No`, `not` or `no`, else `yes`, also for an
        empty answer, `NO`, `nope` and `none`.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if NO.intersection(words) else "yes"


def score(predictions: Any, labels: Any) -> dict[str, Any]:
    """Score the answers of one category; `yes` is the positive class.

    Args:
        predictions: texts, or records with `text`, or id -> text.
        labels: `yes` or `no`, or records with `label`, or id -> label. Where both sides have ids
            they are joined by them (ids of LLaVA's question file too), else by position.

    Returns:
        `accuracy`, `precision`, `recall`, `f1`, `yes_ratio` (of the predictions), from 0 to 1;
        `tp`, `fp`, `tn`, `fn`, `count`; `items`: 0 or 1 in the order of the labels.

    Raises:
        ValueError: the numbers or the ids differ (another revision of the file), there are none,
            or a label is neither yes nor no.
    """
    said, true = _pairs(predictions, labels)
    wrong = sorted({str(label) for label in true} - {"yes", "no"})
    if wrong or not true:
        raise ValueError(f"labels are yes or no, not {wrong[0]!r}" if wrong else "no labels")
    pairs = [(parse(text), label) for text, label in zip(said, true, strict=True)]
    tp, fp = pairs.count(("yes", "yes")), pairs.count(("yes", "no"))
    tn, fn = pairs.count(("no", "no")), pairs.count(("no", "yes"))
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    return {
        "accuracy": (tp + tn) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": (tp + fp) / len(pairs),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "count": len(pairs),
        "items": [float(text == label) for text, label in pairs],
    }


def _share(part: float | int, whole: float | int) -> float:
    """Return part / whole, 0 of nothing, where the official program stops with an error."""
    return part / whole if whole else 0.0


def _pairs(predictions, labels) -> tuple[list[str], list[str]]:
    predictions, labels = (  # read more than once
        items if isinstance(items, Mapping) else list(items) for items in (predictions, labels)
    )
    said, true = _by_id(predictions, records.TEXTS), _by_id(labels, ("label",))
    if said is None or true is None:
        given = [_value(item, records.TEXTS) for item in _values(predictions)]
        wanted = [_value(item, ("label",)) for item in _values(labels)]
        if len(given) != len(wanted):
            raise ValueError(
                f"{len(given)} answers and {len(wanted)} labels: another revision of POPE"
            )
        return given, wanted
    if set(said) != set(true):
        raise ValueError(
            f"{len(said)} answers and {len(true)} labels, {len(set(said) & set(true))} with the "
            "same id: another revision of POPE"
        )
    return [said[key] for key in true], list(true.values())


def _by_id(items, names: Sequence[str]) -> dict[int, str] | None:
    """Return id within the category -> value, None where the items have no ids."""
    if isinstance(items, Mapping):
        pairs = list(items.items())
    else:
        if not all(isinstance(item, Mapping) for item in items):
            return None
        pairs = [(records.first(item, records.IDS), item) for item in items]
    if any(key is None for key, _ in pairs):
        return None
    out = {int(key) % CATEGORY_IDS: _value(value, names) for key, value in pairs}
    if len(out) < len(pairs):
        raise ValueError("an id stands twice, or there is more than one category")
    return out


def _values(items) -> Sequence:
    return list(items.values()) if isinstance(items, Mapping) else items


def _value(item, names: Sequence[str]) -> str:
    value = records.first(item, names) if isinstance(item, Mapping) else item
    return "" if value is None else str(value)
