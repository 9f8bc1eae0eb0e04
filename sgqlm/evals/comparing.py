"""Reports of `sgqlm eval score`: read them, say how sure their figures are, compare two of them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.data import records
from sgqlm.evals import itemised, joining, scoring, statistics, yes_no
from sgqlm.evals.metrics import mme

Items = Mapping[str, itemised.Item]
FINE = 2_000  # resamples of the figures below the headline
_SAME = 1e-9  # two ways to compute one score agree to this


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

    @property
    def scale(self) -> int:
        """Return what scores are multiplied with to be shown: per cent, points of MME as is."""
        return 1 if self.task == "mme" else 100

    @property
    def caveats(self) -> list[str]:
        """Return why the score is not comparable with published ones; empty where it is."""
        out = []
        whole = dict(scoring.PUBLISHED, pope=sum(yes_no.POPE_LINES.values())).get(self.task)
        if whole and len(self.items) != whole:
            out.append(f"over {len(self.items):,} of {whole:,} questions")
        told = {"missing": "without an answer", "unknown": "answers to other questions"}
        out += [f"{n} {told[kind]}" for kind, n in self.faults.items() if n and kind in told]
        return out


def find(paths: Sequence[str | os.PathLike]) -> tuple[list[Report], list[str]]:
    """Read reports, and those in folders.

    A report is called as the folders below the given one, without the name of its task; one that
    lies directly in a folder is called as the folder.

    Args:
        paths: files and folders.

    Returns:
        The reports in the order of their names, and the json files of folders that are none.

    Raises:
        SgqlmError: there is none, a file is no report, or two have the same name and task.
    """
    found, other = [], []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            found.append(read(path))
            continue
        files = sorted(path.rglob("*.json"))
        values = [(file, _value(file)) for file in files]
        ours = [(file, value) for file, value in values if _is_report(value)]
        other += [str(f) for f, v in values if not _is_report(v) and not _is_written_by_us(v)]
        found += [_parse(file, value, _name(file, path)) for file, value in ours]
    if not found:
        raise errors.SgqlmError(
            "there are no reports",
            where=", ".join(map(str, paths)),
            why=f"{len(other)} json files, none with `task` and `items`" if other else "",
            fix="write them with `sgqlm eval score ... --out FILE.json`",
            code=errors.DATA,
        )
    found = _told_apart(found)
    return found, other


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
        raise errors.SgqlmError(
            "the file is no report of answers",
            where=str(path),
            why="it is no json" if value is None else "it has no `task` and `items`",
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
    failed = len(value.get("failed") or ())
    notes = [*inner.get("notes", ()), *value.get("notes", ())]
    notes += [f"{failed} questions had an error, and have an empty answer"] if failed else []
    return {**inner, "notes": notes}


def _is_report(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("items"), dict) and "task" in value


def _is_written_by_us(value: Any) -> bool:
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
        items = {str(key): float(score) for key, score in value["items"].items()}
        figures = {
            str(key): (_number(part["value"]), part.get("count"))
            for key, part in value.get("figures", {}).items()
        }
        faults = {kind: int(part["count"]) for kind, part in value.get("faults", {}).items()}
        score = _number(value.get("score"))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise errors.SgqlmError(
            "the report is damaged", where=str(path), why=why, fix="score the answers again",
            code=errors.DATA,
        ) from error  # fmt: skip
    judge = value.get("judge") or ""
    return Report(
        path=path,
        name=kept,
        task=task,
        metric=str(value.get("metric", "score")),
        score=score,
        figures=figures,
        items=items,
        notes=[str(note) for note in value.get("notes", ())],
        faults=faults,
        judge=judge if isinstance(judge, str) else json.dumps(judge),
        answers=value.get("answers", ()),
        annotations=value.get("annotations", ()),
        digests=value.get("sha256", {}),
    )


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


def items_of(report: Report) -> tuple[dict[str, itemised.Item], str]:
    """Return the items behind a report, from the files that were scored.

    Returns:
        Id -> item, and in words why there are none; files that are gone or have changed since
        give none.
    """
    if not report.answers:
        return {}, "the report does not tell which files were scored"
    files = {}
    for name in (*report.answers, *report.annotations):
        near = [pathlib.Path(name), report.path.parent / name]
        there = [path for path in near if path.exists()]
        if not there:
            return {}, f"{name} is not there any more"
        if name in report.digests:
            digest = report.digests[name]
            there = [path for path in there if records.file_digest(path) == digest]
        if not there:
            return {}, f"{name} has changed since it was scored"
        files[name] = there[0]
    try:
        found = itemised.read(
            report.task,
            [files[name] for name in report.answers],
            [files[name] for name in report.annotations],
        )
    except (errors.SgqlmError, KeyError, TypeError, ValueError) as error:
        return {}, f"the files that were scored cannot be read: {error}".splitlines()[0]
    known = {key: found[key] for key in report.items if key in found}
    return known, "" if known else f"answers to {report.task} are not shown one by one"


def images_of(report: Report, items: Items) -> dict[Any, Hashable] | None:
    """Return id -> its image, by which items belong together; None where one is not known."""
    names = {key: items[key].image if key in items else "" for key in report.items}
    if not all(names.values()) or len(set(names.values())) == len(names):
        return None
    return dict(names)


def interval(report: Report, items: Items) -> tuple[statistics.Interval | None, str]:
    """Return the headline figure with its bootstrap interval, clustered by image where known.

    Returns:
        The interval in the unit of the report, None and the reason where there is none.
    """
    if report.score is None or not report.items:
        return None, "the report has no score of single questions"
    if (setup := _columns(report, items)) is None:
        return None, f"single scores do not make up {report.metric} without the files scored"
    table, combine, groups = setup
    found = statistics.bootstrap(table, combine=combine, groups=groups)
    if abs(found.value - report.score) > _SAME * max(1.0, abs(report.score)):
        return None, "single scores do not give the score of the report"
    return found, ""


def figure_interval(report: Report, items: Items, name: str) -> statistics.Interval | None:
    """Return a figure below the headline with its interval; None where items do not give it."""
    value, kinds = report.figures[name][0], (name,)
    if report.task == "pope":
        kinds = (name.removesuffix(" accuracy"), name.removesuffix(" f1"))
    keys = [key for key in report.items if key in items and set(kinds) & set(items[key].kinds)]
    if report.task == "mme":
        keys = [key for key in report.items if key.split("/")[0] == name]
    if value is None or not keys:
        return None
    scores = {key: report.items[key] for key in keys}
    combine, images = None, images_of(report, items)
    table = np.array(list(scores.values()))[:, None]
    groups = [images[key] for key in keys] if images else None
    if report.task == "mme":
        table, combine, groups = _mme(scores)
    elif report.task == "pope" and name.endswith(" f1"):
        table, combine = _pope(keys, table[:, 0], items)
    found = statistics.bootstrap(table, combine=combine, groups=groups, resamples=FINE)
    is_same = abs(found.value - value) <= _SAME * max(1.0, abs(value))
    return dataclasses.replace(found, count=len(keys)) if is_same else None


def _columns(report: Report, items: Items):
    """Return (float[n, c], function of column means, groups) that give the headline figure."""
    keys, images = list(report.items), images_of(report, items)
    groups = [images[key] for key in keys] if images else None
    scores = np.array([report.items[key] for key in keys])
    if report.task == "mme":
        scores = {k: v for k, v in report.items.items() if k.split("/")[0] in mme.PERCEPTION}
        return _mme(scores) if scores else None
    if report.task == "pope":
        if not all(key in items and items[key].wanted in ("yes", "no") for key in keys):
            return None
        return (*_pope(keys, scores, items), groups)
    if report.metric in report.figures and any(report.metric in i.kinds for i in items.values()):
        part = [key in items and report.metric in items[key].kinds for key in keys]
        table = np.stack([scores * part, np.array(part, float)], axis=1)
        return table, _ratio, groups
    same = abs(float(scores.mean()) - (report.score or 0.0)) <= _SAME
    return (scores[:, None], _only, groups) if same else None


def _only(means: np.ndarray) -> np.ndarray:
    return means[:, 0]


def _ratio(means: np.ndarray) -> np.ndarray:
    return means[:, 0] / means[:, 1]


def _pope(keys: Sequence[str], scores: np.ndarray, items: Items):
    """Return columns (true positive, wrong) of each category; F1 = 2 tp / (2 tp + fp + fn)."""
    names = list(dict.fromkeys(key.split("/")[0] for key in keys))
    table = np.zeros((len(keys), 2 * len(names)))
    for row, key in enumerate(keys):
        at = 2 * names.index(key.split("/")[0])
        table[row, at] = scores[row] and items[key].wanted == "yes"
        table[row, at + 1] = 1 - scores[row]

    def mean_f1(means: np.ndarray) -> np.ndarray:
        hits, wrong = 2 * means[:, ::2], means[:, 1::2]
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(hits / (hits + wrong)).mean(1)

    return table, mean_f1


def _mme(scores: Mapping[str, float]):
    """Return columns (share right, both right, 1) of each category; a row is an image."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for key, score in scores.items():
        category, image, _ = key.split("/", 2)
        pairs.setdefault((category, image), []).append(score)
    names = list(dict.fromkeys(category for category, _ in pairs))
    table = np.zeros((len(pairs), 3 * len(names)))
    for row, ((category, _), found) in enumerate(pairs.items()):
        at = 3 * names.index(category)
        table[row, at : at + 3] = sum(found) / len(found), all(found), 1

    def points(means: np.ndarray) -> np.ndarray:
        return (100 * (means[:, ::3] + means[:, 1::3]) / means[:, 2::3]).sum(1)

    return table, points, None


@dataclasses.dataclass(frozen=True)
class Compared:
    """Two reports of one task, second minus first.

    Attributes:
        first: a report.
        second: a report on the same questions.
        headline: difference of the headline figures, None where single scores do not give them.
        items: difference of the mean scores of the questions, with the test.
        better: ids that the second has better, the most changed first.
        worse: ids that the first has better.
        notes: what stands against the comparison.
        p_adjusted: p value over all tasks compared, after Holm.
    """

    first: Report
    second: Report
    headline: statistics.Interval | None
    items: statistics.Difference
    better: list[str]
    worse: list[str]
    notes: list[str]
    p_adjusted: float = 1.0


def compare(first: Report, second: Report, items: tuple[Items, Items] = ({}, {})) -> Compared:
    """Compare two reports question by question, joined by id.

    Args:
        first: the report that is the base.
        second: the other one.
        items: of both reports; images of the first cluster the questions.

    Raises:
        SgqlmError: they are about different tasks or different questions.
    """
    if first.task != second.task or first.metric != second.metric:
        why = f"{first.task} ({first.metric}) and {second.task} ({second.metric})"
        raise _refused(first, second, "two reports measure different things", why)
    only = [
        [key for key in a.items if key not in b.items]
        for a, b in ((first, second), (second, first))
    ]
    if any(only) or not first.items:
        both = len(first.items) - len(only[0])
        told = [
            f"{len(keys)} only in the {which} ({joining.shown(keys)})"
            for which, keys in zip(("first", "second"), only, strict=True)
            if keys
        ]
        why = f"{both} ids are in both, " + ", ".join(told) if told else "they have no items"
        raise _refused(first, second, f"the reports of {first.task} are on other questions", why)
    second = dataclasses.replace(second, items={key: second.items[key] for key in first.items})
    known = items[0] or items[1]
    scores: list[dict[Any, float]] = [dict(report.items) for report in (first, second)]
    difference = statistics.compare(*scores, groups=images_of(first, known))
    change = {key: second.items[key] - first.items[key] for key in first.items}
    better = sorted((k for k, v in change.items() if v > 0), key=lambda k: -change[k])
    worse = sorted((k for k, v in change.items() if v < 0), key=lambda k: change[k])
    headline = _headline(first, second, items)
    notes = _against(first, second)
    if headline is None:
        notes.append(f"no interval of {first.metric}: single scores do not give it")
    return Compared(first, second, headline, difference, better, worse, notes, difference.p_value)


def adjusted(found: Iterable[Compared]) -> list[Compared]:
    """Return comparisons with p values for all of them together (Holm 1979)."""
    found = list(found)
    order = sorted(range(len(found)), key=lambda at: found[at].items.p_value)
    out, highest = list(found), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(found) - rank) * found[at].items.p_value))
        out[at] = dataclasses.replace(found[at], p_adjusted=highest)
    return out


def _headline(first: Report, second: Report, items: tuple[Items, Items]):
    """Return the paired interval of the difference of the headline figures, None without one."""
    setups = []
    for report, known in zip((first, second), items, strict=True):
        if interval(report, known)[0] is None:
            return None
        setups.append(_columns(report, known))
    (a, combine, groups), (b, other, _) = setups
    width = a.shape[1]
    if len(a) != len(b) or width != b.shape[1]:
        return None

    def change(means: np.ndarray) -> np.ndarray:
        return other(means[:, width:]) - combine(means[:, :width])

    return statistics.bootstrap(np.concatenate([a, b], axis=1), combine=change, groups=groups)


def _against(first: Report, second: Report) -> list[str]:
    notes = []
    if first.judge != second.judge:
        told = f"{first.judge or 'none'} and {second.judge or 'none'}"
        notes.append(f"different judges ({told}): the scores do not compare")
    truths = [
        sorted(report.digests[name] for name in report.annotations if name in report.digests)
        for report in (first, second)
    ]
    if all(truths) and truths[0] != truths[1]:
        notes.append("the annotations of the two are different files")
    for report in (first, second):
        notes += [f"{report.name}: {caveat}" for caveat in report.caveats]
    return list(dict.fromkeys(notes))


def _refused(first: Report, second: Report, what: str, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        what,
        where=f"{first.path}, {second.path}",
        why=why,
        fix="score both against the same annotations",
        code=errors.DATA,
    )
