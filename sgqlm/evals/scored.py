"""The figures of a file of answers: for a report, for a terminal, and item by item."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import joining, tables


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
        groups: name of a row -> title of the chart it belongs to; for tasks without rules of their
            own in `summary.families`.
        details: id -> `question`, `wanted`, `given`, `image` and `kinds` (names of the rows it
            counts in), as far as known; for tasks that `itemised` does not read.
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
        told = {"unit": self.unit, "groups": dict(self.groups), "details": dict(self.details)}
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


def numbered(found: Sequence[tables.Answer], values: Sequence[float]) -> dict[str, float]:
    """Return id -> score; an id that stands again gets its position behind it."""
    out: dict[str, float] = {}
    for at, (answer, value) in enumerate(zip(found, values, strict=True)):
        out[answer.key if answer.key not in out else f"{answer.key}#{at}"] = value
    return out
