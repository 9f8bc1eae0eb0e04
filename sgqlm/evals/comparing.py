"""How sure the figures of reports are, and what two reports on the same questions tell apart."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.evals import columns, joining, measured, statistics
from sgqlm.evals.metrics import mme

FINE = 2_000  # resamples of the figures below the headline
_SAME = 1e-9  # two ways to compute one score agree to this


def images_of(report: measured.Report, items: measured.Items) -> dict[Any, Hashable] | None:
    """Return id -> its image, by which items belong together; None where one is not known."""
    names = {key: items[key].image if key in items else "" for key in report.items}
    if not all(names.values()) or len(set(names.values())) == len(names):
        return None
    return dict(names)


def interval(
    report: measured.Report, items: measured.Items
) -> tuple[statistics.Interval | None, str]:
    """Return the headline figure with its bootstrap interval, clustered by image where known.

    Returns:
        The interval in the unit of the report, None and the reason where there is none.
    """
    if report.score is None or not report.items:
        return None, "the report has no score of single questions"
    setup = _columns(report, items)
    if setup is None or not _gives(setup, report.score):
        return None, f"single scores alone do not give {report.metric}"
    table, combine, groups = setup
    found = statistics.bootstrap(table, combine=combine, groups=groups)
    doubt = found.doubt(_units(report, groups is not None))
    return (None, doubt) if doubt else (found, "")


def _gives(setup: Sequence, score: float | None) -> bool:
    """Return whether columns give the score of a report."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(setup[1](setup[0].mean(0, keepdims=True))[0])
    return score is not None and abs(value - score) <= _SAME * max(1.0, abs(score))


def _units(report: measured.Report, is_grouped: bool) -> str:
    return "images" if is_grouped or report.task == "mme" else "questions"


def figure_interval(
    report: measured.Report, items: measured.Items, name: str
) -> statistics.Interval | None:
    """Return a figure below the headline with its interval; None where items do not give it."""
    value, keys = report.figures[name][0], keys_of(report, items, name)
    if value is None or not keys:
        return None
    scores = {key: report.items[key] for key in keys}
    combine, images = None, images_of(report, items)
    table = np.array(list(scores.values()))[:, None]
    groups = [images[key] for key in keys] if images else None
    if report.task == "mme":
        (table, combine), groups = columns.mme(scores), None
    elif report.task == "pope" and name.endswith(" f1"):
        table, combine = columns.pope(keys, table[:, 0], items)
    found = statistics.bootstrap(table, combine=combine, groups=groups, resamples=FINE)
    if found.doubt() or abs(found.value - value) > _SAME * max(1.0, abs(value)):
        return None
    return dataclasses.replace(found, count=len(keys))


def keys_of(report: measured.Report, items: measured.Items, name: str) -> list[str]:
    """Return the ids of the questions that a figure below the headline is over."""
    if report.task == "mme":
        return [key for key in report.items if key.split("/")[0] == name]
    kinds = {name}
    if report.task == "pope":
        kinds = {name.removesuffix(" accuracy"), name.removesuffix(" f1")}
    return [key for key in report.items if key in items and kinds & set(items[key].kinds)]


def _columns(report: measured.Report, items: measured.Items):
    """Return (float[n, c], function of column means, groups) that give the headline figure."""
    keys, images = list(report.items), images_of(report, items)
    groups = [images[key] for key in keys] if images else None
    scores = np.array([report.items[key] for key in keys])
    if report.task == "mme":
        scores = {k: v for k, v in report.items.items() if k.split("/")[0] in mme.PERCEPTION}
        return (*columns.mme(scores), None) if scores else None
    if report.task == "pope":
        if not all(key in items and items[key].wanted in ("yes", "no") for key in keys):
            return None
        return (*columns.pope(keys, scores, items), groups)
    if report.metric in report.figures and any(report.metric in i.kinds for i in items.values()):
        part = [key in items and report.metric in items[key].kinds for key in keys]
        table = np.stack([scores * part, np.array(part, float)], axis=1)
        return table, columns.ratio, groups
    return scores[:, None], statistics.only, groups


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

    first: measured.Report
    second: measured.Report
    headline: statistics.Interval | None
    items: statistics.Difference
    better: list[str]
    worse: list[str]
    notes: list[str]
    p_adjusted: float = 1.0


def compare(
    first: measured.Report,
    second: measured.Report,
    items: tuple[measured.Items, measured.Items] = ({}, {}),
) -> Compared:
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
    elif doubt := headline.doubt(_units(first, images_of(first, known) is not None)):
        headline = None
        notes.append(f"no interval of the difference: {doubt}")
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


def _headline(
    first: measured.Report, second: measured.Report, items: tuple[measured.Items, measured.Items]
):
    """Return the paired interval of the difference of the headline figures, None without one."""
    setups = []
    for report, known in zip((first, second), items, strict=True):
        setup = _columns(report, known) if report.score is not None and report.items else None
        if setup is None or not _gives(setup, report.score):
            return None
        setups.append(setup)
    (a, combine, groups), (b, other, _) = setups
    width = a.shape[1]
    if len(a) != len(b) or width != b.shape[1]:
        return None

    def change(means: np.ndarray) -> np.ndarray:
        return other(means[:, width:]) - combine(means[:, :width])

    return statistics.bootstrap(np.concatenate([a, b], axis=1), combine=change, groups=groups)


def _against(first: measured.Report, second: measured.Report) -> list[str]:
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


def _refused(
    first: measured.Report, second: measured.Report, what: str, why: str
) -> errors.SgqlmError:
    return errors.SgqlmError(
        what,
        where=f"{first.path}, {second.path}",
        why=why,
        fix="score both against the same annotations",
        code=errors.DATA,
    )
