"""Reports of `sgqlm eval score` and `sgqlm eval --tasks`: find them, read them, and their items."""

import base64
import binascii
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import records
from sgqlm.evals import reviewed, scoring, tables, tasks, yes_no

BARE = "the report has no `details`: no questions, pictures and graphs; score the answers again"
_RATIOS = ("llava_wild", "llava_coco")  # of two means of grades


@dataclasses.dataclass(frozen=True)
class Item:
    """What a reader needs to judge one answer.

    Attributes:
        question: as it was asked; empty where the report does not tell.
        wanted: the right answer; of several people, each with its number.
        given: what the model said; None where it has no answer.
        image: name of the image, empty where none is known.
        pixels: the encoded image, in benchmarks that have it in their table.
        kinds: names of the figures that the item counts in.
        asked: the whole prompt, where it is known and is not the question alone.
        grades: of LLaVA-Bench, those of reference and model in each run of the judge; None in a
            run that lacks the question.
    """

    question: str = ""
    wanted: str = ""
    given: str | None = None
    image: str = ""
    pixels: bytes = dataclasses.field(default=b"", repr=False)
    kinds: tuple[str, ...] = ()
    asked: str = ""
    grades: tuple[tuple[float, float] | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report of `sgqlm eval score`.

    Attributes:
        path: the file.
        name: what was measured, as the folders tell.
        task: the benchmark.
        metric: what `score` is.
        score: its headline figure, None where there is none.
        figures: name -> (value, number of items or None), in order.
        items: id -> score of a question; empty where the report has none.
        notes: what a reader has to know to compare the figures.
        faults: kind -> number of ids that do not fit.
        judge: who graded; empty without a judge.
        answers: files that were scored.
        annotations: files they were scored against.
        digests: file -> SHA-256 when it was scored.
        unit: of the figures; `points` are shown as they are, others times 100.
        groups: name of a figure -> title of its chart.
        details: id -> what the report tells of a question.
        settings: of the answers, in reports of `sgqlm eval --tasks`: `checkpoint`, `entities` ...
    """

    path: pathlib.Path
    name: str
    task: str
    metric: str
    score: float | None
    figures: Mapping[str, tuple[float | None, int | None]]
    items: Mapping[str, float]
    notes: Sequence[str] = ()
    faults: Mapping[str, int] = dataclasses.field(default_factory=dict)
    judge: str = ""
    answers: Sequence[str] = ()
    annotations: Sequence[str] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unit: str = "%"
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Item] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def scale(self) -> int:
        """Return what scores are multiplied with to be shown: points as they are, others by 100."""
        return 1 if self.unit == "points" else 100

    @property
    def is_open(self) -> bool:
        """Whether a score of 1 is not the most there is, so that none is right or wrong.

        So with CIDEr-D, 10 at most, and the ratio to a reference of LLaVA-Bench.
        """
        is_open = self.is_ratio or self.unit not in ("%", "points")
        return is_open or any(score > 1 for score in self.items.values())

    @property
    def is_ratio(self) -> bool:
        """Whether the score is a ratio to a reference, whose grades stand in `details`."""
        return self.task in _RATIOS

    @functools.cached_property
    def is_graded(self) -> bool:
        """Whether `details` have the grades that a ratio is of; then `items` are grades."""
        told = self.details
        return bool(self.items) and all(key in told and any(told[key].grades) for key in self.items)

    @functools.cached_property
    def has_given(self) -> bool:
        """Whether `details` tell what was answered; then one without it has no answer."""
        return any(one.given is not None for one in self.details.values())

    @property
    def caveats(self) -> list[str]:
        """Return why the score is not comparable with published ones; empty where it is."""
        out = []
        known = {**scoring.PUBLISHED, **reviewed.PUBLISHED, "pope": sum(yes_no.POPE_LINES.values())}
        whole = known.get(self.task)
        if whole and len(self.items) != whole:
            out.append(f"over {len(self.items):,} of {whole:,} questions")
        told = {"missing": "without an answer", "unknown": "answers to other questions"}
        out += [f"{n} {told[kind]}" for kind, n in self.faults.items() if n and kind in told]
        usual = tasks.TASKS[self.task].max_new_tokens if self.task in tasks.TASKS else None
        if usual and (given := self.settings.get("max_new_tokens", usual)) != usual:
            out.append(f"answers of up to {given} tokens, {usual} in the papers' program")
        return out


def find(paths: Sequence[str | os.PathLike]) -> tuple[list[Report], list[str], list[str]]:
    """Read reports, and those in folders.

    A report is called as the folders below the given one, without the name of its task; one that
    lies directly in a folder is called as the folder.

    Args:
        paths: files and folders.

    Returns:
        The reports in the order of their names; the json files of folders that are none; and what
        results below folders have no score, and why, one line each.

    Raises:
        SgqlmError: there is none, a file is no report, or two have the same name and task.
    """
    found, other, left = [], [], []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            found.append(read(path))
            continue
        left += _unfinished(path)
        for file in sorted(path.rglob("*.json")):
            value = _value(file) if file.name != "submission.json" else {"kind": "sgqlm eval"}
            if _is_report(value):
                found.append(_parse(file, value, _name(file, path)))
            elif _is_unscored(value):
                told = [note for note in _notes(value) if "not scored" in note]
                left.append(f"{file.parent}: {told[0] if told else 'not scored'}")
            elif not _is_page(value):
                other.append(str(file))
    if not found:
        why = [*left, *([f"{len(other)} json files, none with `task` and `items`"] * bool(other))]
        raise errors.SgqlmError(
            "there are no reports",
            where=", ".join(map(str, paths)),
            why="; ".join(why) or "there is no json file",
            fix="`sgqlm eval --tasks=...` and `sgqlm eval score ... --out FILE.json` write them",
            code=errors.DATA,
        )
    return _told_apart(found), other, list(dict.fromkeys(left))


def _unfinished(folder: pathlib.Path) -> Iterator[str]:
    for file in sorted(folder.rglob("progress*.jsonl")):
        if not (file.parent / "report.json").is_file():
            yield f"{file.parent} is not finished: give its command again"


def read(path: str | os.PathLike) -> Report:
    """Read one report.

    Raises:
        SgqlmError: the file is missing or damaged, or no report of `sgqlm eval score`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.SgqlmError("there is no such report", where=str(path), fix="correct the path")
    value = _value(path)
    if not _is_report(value):
        why = "it is no json" if value is None else "it has no `task` and `items`"
        notes = "; ".join(_notes(value)) if isinstance(value, dict) else ""
        raise errors.SgqlmError(
            "the file is no report of answers",
            where=str(path),
            why=notes or why,
            fix="give what `sgqlm eval score ... --out FILE.json` wrote",
            code=errors.DATA,
        )
    return _parse(path, value, _name(path, path.parent))


def _value(path: pathlib.Path) -> Any:
    """Return the content of a report; of one of `sgqlm eval --tasks`, its part on the score."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError):
        return None
    inner = value.get("score") if isinstance(value, dict) else None
    if not isinstance(inner, dict):
        return value
    notes = [*_notes(inner), *_notes(value)]
    if failed := len(_list(value.get("failed"))):
        notes.append(f"{failed} questions had an error, and have an empty answer")
    return {**inner, "notes": notes, "settings": value.get("settings")}


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _notes(value: Mapping[str, Any]) -> list[str]:
    return [str(note) for note in _list(value.get("notes"))]


def _is_report(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("items"), dict) and "task" in value


def _is_unscored(value: Any) -> bool:
    """Return whether a value is the report of answers that have no score."""
    is_result = isinstance(value, dict) and {"task", "score", "settings"} <= set(value)
    return is_result and not _is_report(value)


def _is_page(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("kind", "")).startswith("sgqlm eval")


def _name(path: pathlib.Path, root: pathlib.Path) -> str:
    below = path.parent.resolve().relative_to(root.resolve()).parts
    return "/".join(below) or root.resolve().name


def _above(path: pathlib.Path) -> str:
    """Return the folder of the folder that is called as the task."""
    return path.resolve().parent.parent.name or path.stem


def _parse(path: pathlib.Path, value: Mapping[str, Any], name: str) -> Report:
    task = str(value["task"])
    kept = "/".join(part for part in name.split("/") if part != task) or _above(path)
    try:
        found = _report(path, value, kept, task)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise errors.SgqlmError(
            "the report is damaged", where=str(path), why=why, fix="score the answers again",
            code=errors.DATA,
        ) from error  # fmt: skip
    return _with_pixels(found) if task in scoring.LETTERS and found.details else found


def _report(path: pathlib.Path, value: Mapping[str, Any], name: str, task: str) -> Report:
    def field(key: str, kind: type) -> Any:
        found = value.get(key)
        if found is not None and not isinstance(found, kind):
            raise TypeError(f"`{key}` is no {'list' if kind is list else 'object'}")
        return found or kind()

    figures = {
        str(key): (_number(part["value"]), part.get("count") and int(part["count"]))
        for key, part in field("figures", dict).items()
    }
    judge = value.get("judge") or ""
    notes = [str(note) for note in field("notes", list)]
    if value["items"] and not field("details", dict):
        notes.append(BARE)
    return Report(
        path=path,
        name=name,
        task=task,
        metric=str(value.get("metric", "score")),
        score=_number(value.get("score")),
        figures=figures,
        items={str(key): float(score) for key, score in value["items"].items()},
        notes=notes,
        faults={kind: int(part["count"]) for kind, part in field("faults", dict).items()},
        judge=judge if isinstance(judge, str) else json.dumps(judge),
        answers=[str(file) for file in field("answers", list)],
        annotations=[str(file) for file in field("annotations", list)],
        digests=field("sha256", dict),
        unit=str(value.get("unit") or ("points" if task == "mme" else "%")),
        groups={name: str(title) for name, title in field("groups", dict).items()},
        details={key: _told(one) for key, one in field("details", dict).items()},
        settings=field("settings", dict),
    )


def _told(found: Mapping[str, Any]) -> Item:
    names = ("question", "wanted", "given", "image", "asked")
    told: dict[str, Any] = {n: str(found[n]) for n in names if found.get(n) is not None}
    kinds = found.get("kinds") or ()
    if isinstance(kinds, str):
        raise TypeError("`kinds` is no list")
    grades = tuple(map(_pair, found.get("grades") or ()))
    return Item(**told, kinds=tuple(map(str, kinds)), grades=grades)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    reference, model = map(float, value)
    return reference, model


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _told_apart(found: list[Report]) -> list[Report]:
    """Return reports with names of their own; two of a task in one folder get their file's name."""
    seen: dict[tuple[str, str], list[Report]] = {}
    for report in found:
        seen.setdefault((report.name, report.task), []).append(report)
    out = []
    for (name, task), same in seen.items():
        if len({report.path.resolve() for report in same}) < len(same):
            fix = "name every report once"
            where = str(same[0].path)
            raise errors.SgqlmError("a report is given twice", where=where, fix=fix)
        names = {report.path.stem for report in same}
        if len(same) > 1 and len(names) < len(same):
            where = ", ".join(str(report.path) for report in same)
            fix = "put the reports of each model into a folder of its own name"
            raise errors.SgqlmError(f"two reports of {name} are about {task}", where=where, fix=fix)
        for report in same:
            told = f"{name}/{report.path.stem}" if len(same) > 1 else name
            out.append(dataclasses.replace(report, name=told))
    return sorted(out, key=lambda report: (report.name, report.task))


def _with_pixels(report: Report) -> Report:
    """Return a report of MMBench with the pictures that the table has, if that is the same."""
    details, notes = dict(report.details), list(report.notes)
    for name in report.annotations or report.answers:
        near = [pathlib.Path(name), report.path.parent / name]
        there = [path for path in near if path.is_file()]
        digest = report.digests.get(name)
        same = [path for path in there if not digest or records.file_digest(path) == digest]
        try:
            rows = tables.items(same[0], ("index",)) if same else []
        except errors.SgqlmError as error:
            rows, why = [], error.line
        else:
            why = "it has changed since it was scored" if there else "it is not there any more"
        for row in rows:
            key = str(row["index"])
            if key in details and (pixels := _pixels(row)):
                details[key] = dataclasses.replace(details[key], pixels=pixels)
        notes += [] if rows else [f"no pictures of {name}: {why}"]
    return dataclasses.replace(report, details=details, notes=notes)


def _pixels(row: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(row.get("image") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return b""  # the table names a file, or another row that has the image
