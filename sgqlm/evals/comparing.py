"""How sure the figures of reports are, and what two reports on the same questions tell apart."""

import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.evals import joining, measured, statistics
from sgqlm.evals.metrics import mme

FINE = 2_000  # resamples of the figures below the headline
_SAME = 1e-9  # two ways to compute one score agree to this


def images_of(report: measured.Report) -> dict[Any, Hashable] | None:
    """Return id -> its image, by which items belong together; None where one is not known."""
    told = report.details
    names = {key: told[key].image if key in told else "" for key in report.items}
    if not all(names.values()) or len(set(names.values())) == len(names):
        return None
    return dict(names)


def interval(report: measured.Report) -> tuple[statistics.Interval | None, str]:
    """Return the headline figure with its bootstrap interval, clustered by image where known.

    Returns:
        The interval in the unit of the report, None and the reason where there is none.
    """
    if report.score is None or not report.items:
        return None, "the report has no score of single questions"
    setup = _columns(report)
    if setup is None or not _gives(setup, report.score):
        more = "" if report.details else "; the report has no `details`: score the answers again"
        return None, f"single scores alone do not give {report.metric}{more}"
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


def figure_interval(report: measured.Report, name: str) -> statistics.Interval | None:
    """Return a figure below the headline with its interval; None where items do not give it."""
    value, keys = report.figures[name][0], keys_of(report, name)
    if value is None or not keys:
        return None
    scores = {key: report.items[key] for key in keys}
    combine, images = statistics.only, images_of(report)
    table = np.array(list(scores.values()))[:, None]
    groups = [images[key] for key in keys] if images else None
    if report.task == "mme":
        (table, combine), groups = mme_columns(scores), None
    elif report.task == "pope" and name.endswith(" f1"):
        table, combine = pope_columns(keys, table[:, 0], report.details)
    elif report.is_ratio:
        if not report.is_graded:
            return None
        table, combine = ratio_columns(keys, report.details)
    if not _gives((table, combine), value):
        return None
    found = statistics.bootstrap(table, combine=combine, groups=groups, resamples=FINE)
    if found.doubt():
        return None
    return dataclasses.replace(found, count=len(keys))


def keys_of(report: measured.Report, name: str) -> list[str]:
    """Return the ids of the questions that a figure below the headline is over."""
    if report.task == "mme":
        return [key for key in report.items if key.split("/")[0] == name]
    kinds = {name}
    if report.task == "pope":
        kinds = {name.removesuffix(" accuracy"), name.removesuffix(" f1")}
    told = report.details
    return [key for key in report.items if key in told and kinds & set(told[key].kinds)]


def _columns(report: measured.Report):
    """Return (float[n, c], function of column means, groups) that give the headline figure."""
    keys, images, items = list(report.items), images_of(report), report.details
    groups = [images[key] for key in keys] if images else None
    scores = np.array([report.items[key] for key in keys])
    if report.task == "mme":
        scores = {k: v for k, v in report.items.items() if k.split("/")[0] in mme.PERCEPTION}
        return (*mme_columns(scores), None) if scores else None
    if report.task == "pope":
        if not all(key in items and items[key].wanted in ("yes", "no") for key in keys):
            return None
        return (*pope_columns(keys, scores, items), groups)
    if report.is_ratio:
        return (*ratio_columns(keys, items), groups) if report.is_graded else None
    if report.metric in report.figures and any(report.metric in i.kinds for i in items.values()):
        part = [key in items and report.metric in items[key].kinds for key in keys]
        table = np.stack([scores * part, np.array(part, float)], axis=1)
        return table, _ratio, groups
    return scores[:, None], statistics.only, groups


def _ratio(means: np.ndarray) -> np.ndarray:
    """Return the first column over the second."""
    return means[:, 0] / means[:, 1]


def pope_columns(
    keys: Sequence[str], scores: np.ndarray, items: Mapping[str, measured.Item]
) -> tuple[np.ndarray, statistics.Combine]:
    """Return columns (true positive, wrong) of each category of POPE, and their mean F1.

    F1 = 2 tp / (2 tp + fp + fn).

    Args:
        keys: ids, `category/...`.
        scores: f64[n], 1 for a right answer.
        items: id -> item with the right answer.

    Returns:
        f64[n, 2 * categories], and the function of their means.
    """
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


def ratio_columns(
    keys: Sequence[str], items: Mapping[str, measured.Item]
) -> tuple[np.ndarray, statistics.Combine]:
    """Return columns (reference, model) of each run of a judge, and the mean of their ratios.

    A question that a run lacks is 0 in both columns, and so in neither sum.

    Args:
        keys: ids.
        items: id -> item with its grades.

    Returns:
        f64[n, 2 * runs], and the function of their means.
    """
    runs = max(len(items[key].grades) for key in keys)
    table = np.zeros((len(keys), 2 * runs))
    for row, key in enumerate(keys):
        found = [grade for pair in items[key].grades for grade in pair or (0, 0)]
        table[row, : len(found)] = found

    def mean_ratio(means: np.ndarray) -> np.ndarray:
        return (means[:, 1::2] / means[:, ::2]).mean(1)

    return table, mean_ratio


def mme_columns(scores: Mapping[str, float]) -> tuple[np.ndarray, statistics.Combine]:
    """Return columns (share right, both right, 1) of each category of MME, and their points.

    Args:
        scores: id -> 1 for a right answer; ids are `category/image/...`.

    Returns:
        f64[images, 3 * categories], and the function of their means.
    """
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

    return table, points


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


def compare(first: measured.Report, second: measured.Report) -> Compared:
    """Compare two reports question by question, joined by id.

    Args:
        first: the report that is the base; its images cluster the questions.
        second: the other one.

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
    images = images_of(first if first.details else second)
    scores: list[dict[Any, float]] = [dict(report.items) for report in (first, second)]
    difference = statistics.compare(*scores, groups=images)
    if first.is_ratio:
        p_value, test = _swapped(first, second, images), "pair-swap permutation"
        difference = dataclasses.replace(difference, p_value=p_value, test=test)
    change = {key: second.items[key] - first.items[key] for key in first.items}
    better = sorted((k for k, v in change.items() if v > 0), key=lambda k: -change[k])
    worse = sorted((k for k, v in change.items() if v < 0), key=lambda k: change[k])
    headline = _headline(first, second)
    notes = _against(first, second)
    if headline is None:
        notes.append(f"no interval of {first.metric}: single scores do not give it")
    elif doubt := headline.doubt(_units(first, images is not None)):
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


def _headline(first: measured.Report, second: measured.Report):
    """Return the paired interval of the difference of the headline figures, None without one."""
    setups = []
    for report in (first, second):
        setup = _columns(report) if report.score is not None and report.items else None
        if setup is None or not _gives(setup, report.score):
            return None
        setups.append(setup)
    (a, combine, groups), (b, other, _) = setups
    width = a.shape[1]
    if len(a) != len(b):
        return None

    def change(means: np.ndarray) -> np.ndarray:
        return other(means[:, width:]) - combine(means[:, :width])

    return statistics.bootstrap(np.concatenate([a, b], axis=1), combine=change, groups=groups)


def _swapped(
    first: measured.Report, second: measured.Report, images: Mapping[Any, Hashable] | None
) -> float:
    """Return the p value of the difference of two ratios, of the mean grades over the runs.

    Raises:
        SgqlmError: a report has no grades; its items are no grades either.
    """
    keys, tables = list(first.items), []
    for report in (first, second):
        if not report.is_graded:
            raise errors.SgqlmError(
                f"the report of {report.task} cannot be compared",
                where=str(report.path),
                why="its `details` have no grades of reference and model for each question",
                fix="score it again: `sgqlm eval score`, or the same `sgqlm eval --tasks`",
                code=errors.DATA,
            )
        table = ratio_columns(keys, report.details)[0].reshape(len(keys), -1, 2)
        known = np.array([sum(g is not None for g in report.details[k].grades) for k in keys])
        tables.append(table.sum(1) / known[:, None])
    groups = [images[key] for key in keys] if images else None
    return statistics.swap_pairs(
        *tables, combine=lambda means: means[:, 1] / means[:, 0], groups=groups
    )


_SETTINGS = ("template", "system", "max_new_tokens", "image_fit", "self_questions", "entities")


def other_settings(reports: Sequence[measured.Report]) -> str:
    """Return in what the ways differ that models were asked a benchmark; empty where in nothing.

    Args:
        reports: of one benchmark. Those that do not tell, such as of another program's answers,
            differ in nothing.
    """
    known = [report for report in reports if "max_new_tokens" in report.settings]
    out = []
    for name in _SETTINGS:
        values = [(report.name, _setting(report.settings.get(name))) for report in known]
        if len({value for _, value in values}) > 1:
            told = ", ".join(f"{value} ({model})" for model, value in values)
            out.append(f"{name} {told}")
    return f"not asked alike: {'; '.join(out)}" if out else ""


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {one}" for key, one in value.items())
    text = "none" if value in (None, "", 0) else str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text  # digest of a store


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
    notes += [told] if (told := other_settings((first, second))) else []
    for report in (first, second):
        notes += [f"{report.name}: {caveat}" for caveat in report.caveats]
        if not report.details:
            notes.append(f"{report.name}: {measured.BARE}")
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
