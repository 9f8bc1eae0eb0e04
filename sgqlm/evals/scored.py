"""The figures of a file of answers: for a report, for a terminal, and item by item."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import joining, tables

_IMAGES = ("image", "imageId", "image_id", "data_id")
_LONGEST = 300  # of a name; longer is a picture itself, as sheets hold it


@dataclasses.dataclass
class Scored:
    """The figures of one file of answers.

    Attributes:
        task: the benchmark.
        score: its headline figure, 0 to 1 (points for MME); None where nothing is there for it.
        metric: what `score` is.
        rows: (name, value, number of items or None) of a table, the values as `score`.
        items: id -> score of one question.
        faults: ids that do not fit.
        notes: what a reader has to know to compare the figures.
        unit: of the figures as they are shown: `%` and other names stand for 100 times the values,
            `points` for the values; empty for that of the task.
        groups: name of a row -> title of the chart it belongs to; the others share one.
        details: id -> what is known of a question, see `told`.
        more: what else the report holds, such as `judge`, who graded.
    """

    task: str
    score: float | None
    metric: str
    rows: Sequence[tuple[str, float | None, int | None]]
    items: dict[str, float]
    faults: joining.Faults
    notes: list[str] = dataclasses.field(default_factory=list)
    unit: str = ""
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """Return the figures as json values."""
        details = {key: self.details[key] for key in self.items if key in self.details}
        told = {"unit": self.unit, "groups": dict(self.groups), "details": details}
        return {
            "task": self.task,
            "metric": self.metric,
            "score": self.score,
            "count": len(self.items),
            "figures": {name: {"value": value, "count": n} for name, value, n in self.rows},
            "faults": self.faults.counts(),
            "notes": self.notes,
            "items": self.items,
            **{name: value for name, value in told.items() if value},
            **self.more,
        }

    def lines(self) -> list[str]:
        """Return the figures as lines of a terminal."""
        scale, unit = (1, "") if self.task == "mme" else (100, " %")
        unit = unit if self.unit in ("", "%") else ""
        width = max(len(name) for name, *_ in self.rows)
        out = [f"{self.task}: {self.metric}"]
        for name, value, count in self.rows:
            told = "-" if value is None else f"{scale * value:.2f}{unit}"
            out.append(f"  {name:{width}}  {told:>10}" + (f"  of {count}" if count else ""))
        judge = [f"judge: {self.more['judge']}"] if "judge" in self.more else []
        return out + judge + self.notes + self.faults.lines()


def told(
    question: Any,
    wanted: Any,
    answer: tables.Answer | None,
    record: Mapping[str, Any],
    kinds: Iterable[Any] = (),
) -> dict[str, Any]:
    """Return what a report tells of one question, as json values.

    Args:
        question: as it was asked.
        wanted: the right answer.
        answer: what was said; None where there is no answer.
        record: has the name of the image.
        kinds: names of the rows that the question counts in; None where one is not known.

    Returns:
        `question`, `wanted`, `image`, `kinds`, and of an answer `given` and, where it is known and
        not the question alone, the whole prompt `asked`.
    """
    names = [str(record[name]) for name in _IMAGES if record.get(name) is not None]
    image = next((name for name in names if len(name) <= _LONGEST), "")
    out: dict[str, Any] = {"question": str(question), "wanted": str(wanted), "image": image}
    out["kinds"] = [str(kind) for kind in kinds if kind is not None]
    if answer is not None:
        out["given"] = answer.text
        out |= {"asked": answer.prompt} if answer.prompt not in ("", out["question"]) else {}
    return out


def voted(answers: Iterable[str]) -> str:
    """Return the answers of several people in words, each with its number."""
    counts = collections.Counter(answers).most_common()
    return ", ".join(f"{text} ({n})" if n > 1 else text for text, n in counts)


def own_truth(path: pathlib.Path) -> list[tables.Answer]:
    """Return the answers of a file that holds the truth beside each of them.

    Raises:
        SgqlmError: it does not.
    """
    found = tables.answers(path)
    if any(answer.truth is None for answer in found):
        raise errors.SgqlmError(
            "there is nothing to compare the answers with",
            where=str(path),
            why="it has no column label, gt_answer or ground_truth",
            fix="give the official annotations with --annotations",
        )
    return found


def of_table(found: Sequence[tables.Answer]) -> joining.Faults:
    """Return the faults of a file that holds its own truth: ids that stand twice are kept."""
    faults, seen = joining.Faults(), set()
    for answer in found:
        if answer.key in seen:
            faults.repeated.append(answer.key)
        seen.add(answer.key)
    faults.empty = [answer.key for answer in found if not answer.text.strip()]
    return faults


def of_own(
    found: Sequence[tables.Answer], kinds: Callable[[tables.Answer], list[str]]
) -> dict[str, dict]:
    """Return `Scored.details` of a file that holds its own truth; `kinds` of each answer."""
    return {
        key: told(answer.prompt, answer.truth or "", answer, answer.record, kinds(answer))
        for key, answer in zip(keys_of(found), found, strict=True)
    }


def numbered(found: Sequence[tables.Answer], values: Sequence[float]) -> dict[str, float]:
    """Return id -> score, see `keys_of`."""
    return dict(zip(keys_of(found), values, strict=True))


def keys_of(found: Sequence[tables.Answer]) -> list[str]:
    """Return the ids of answers; one that stands again gets its position behind it."""
    out: dict[str, None] = {}
    for at, answer in enumerate(found):
        out[answer.key if answer.key not in out else f"{answer.key}#{at}"] = None
    return list(out)
