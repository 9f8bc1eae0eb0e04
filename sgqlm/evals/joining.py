"""Join answers with annotations by id, and tell apart what does not fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sgqlm import errors
from sgqlm.evals import tables

SHOWN = 3
MISFIT = "the answers and the annotations do not fit together"


@dataclasses.dataclass
class Faults:
    """Ids that do not fit, by kind.

    Attributes:
        missing: annotated, without an answer.
        unknown: answered, not annotated.
        repeated: answered more than once, with the same text, or beside the truth in one table.
        empty: answered with nothing.
        fate: what becomes of the missing ones.
    """

    fate: ClassVar[str] = "count as wrong"
    missing: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    repeated: list[str] = dataclasses.field(default_factory=list)
    empty: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: "Faults") -> None:
        """Take over the faults of another part of the benchmark."""
        for name, found in vars(other).items():
            getattr(self, name).extend(found)

    @property
    def is_mismatch(self) -> bool:
        """Whether answers and annotations are not to the same questions."""
        return bool(self.missing or self.unknown)

    def counts(self) -> dict[str, dict]:
        """Return kind -> `count` and some `ids`, for a report."""
        return {
            name: {"count": len(found), "ids": found[:SHOWN]} for name, found in vars(self).items()
        }

    def lines(self) -> list[str]:
        """Return one line for each kind that there is."""
        told = {
            "missing": f"annotated questions have no answer and {self.fate}",
            "unknown": "answers are to questions that are not annotated, and are left out",
            "repeated": "ids are answered more than once",
            "empty": "answers are empty",
        }
        return [
            f"{len(found)} {told[name]}: {shown(found)}"
            for name, found in vars(self).items()
            if found
        ]


def shown(ids: Sequence[str]) -> str:
    """Return the first ids of a list as text."""
    return ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")


def join(
    given: Sequence[tuple[str, tables.Answer]],
    truth: Mapping[str, Any],
    *,
    where: str,
    questions: Mapping[str, str] | None = None,
) -> tuple[dict[str, tables.Answer], Faults]:
    """Return the answers by id.

    Args:
        given: (id as the annotations write it, answer).
        truth: id -> annotation.
        where: the file of the answers, for messages.
        questions: id -> text of the question; an answer whose prompt lacks it is to another one.

    Returns:
        Id -> answer for the ids of `truth` that have one, in the order of `truth`, and the faults.

    Raises:
        SgqlmError: an id has two different answers, no id fits, or prompts are of other questions.
    """
    faults, found, doubled = Faults(), {}, []
    for key, answer in given:
        if key in found and found[key].text != answer.text:
            doubled.append(key)
        elif key in found:
            faults.repeated.append(key)
        found.setdefault(key, answer)
    if doubled:
        raise errors.SgqlmError(
            f"{len(doubled)} ids have two different answers",
            where=where,
            why=shown(doubled),
            fix="keep one answer for each question",
            code=errors.DATA,
        )
    faults.missing = [key for key in truth if key not in found]
    faults.unknown = [key for key in found if key not in truth]
    faults.empty = [key for key in truth if key in found and not found[key].text.strip()]
    joined = {key: found[key] for key in truth if key in found}
    if not joined:
        raise misfit(where, "no id of the answers is annotated", faults.unknown)
    _check_prompts(joined, questions or {}, where)
    return joined, faults


def _check_prompts(
    joined: Mapping[str, tables.Answer], questions: Mapping[str, str], where: str
) -> None:
    other = [
        key
        for key, answer in joined.items()
        if answer.prompt and _plain(questions.get(key, "")) not in _plain(answer.prompt)
    ]
    if other:
        asked = f"{questions[other[0]]!r} is annotated, {joined[other[0]].prompt!r} was asked"
        raise misfit(where, f"{len(other)} ids stand for other questions: {asked}", other)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def misfit(where: str, why: str, ids: Sequence[str] = ()) -> errors.SgqlmError:
    """Return the error for answers and annotations of different questions."""
    return errors.SgqlmError(
        MISFIT,
        where=where,
        why=f"{why} ({shown(ids)})" if ids else why,
        fix="give the annotations of the revision and split that was answered",
        code=errors.DATA,
    )
