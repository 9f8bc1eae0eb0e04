"""Answers in the shapes in which programs hold them: by id, or as records of a file."""

from collections.abc import Iterable, Mapping
from typing import Any

IDS = ("question_id", "questionId", "id", "index", "key")
TEXTS = ("text", "prediction", "pred", "answer", "output")


def first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the value of the first of these fields that a record has, else None."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def by_id(answers: Mapping | Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return answers as records by id.

    Args:
        answers: id -> text, id -> record, or records with a field of `IDS` and one of `TEXTS`.

    Returns:
        Id as a string -> record with `text`.

    Raises:
        ValueError: an id stands twice, or a record has no id.
    """
    if isinstance(answers, Mapping):
        pairs = list(answers.items())
    else:
        pairs = [(first(record, IDS), record) for record in answers]
    out: dict[str, dict[str, Any]] = {}
    for key, value in pairs:
        if key is None:
            raise ValueError(f"an answer has none of the fields {', '.join(IDS)}")
        if str(key) in out:
            raise ValueError(f"the id {key} stands twice")
        record = dict(value) if isinstance(value, Mapping) else {"text": value}
        text = first(record, TEXTS)
        out[str(key)] = record | {"text": "" if text is None else str(text)}
    return out


def mean(values: Iterable[float | int]) -> float | None:
    """Return the mean, None where there is no value."""
    values = list(values)
    return sum(values) / len(values) if values else None
