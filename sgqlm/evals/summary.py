"""What a reader sees of scored answers: scores beside published ones, as json and markdown."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sgqlm.evals import comparing, measured, published, statistics
from sgqlm.viz import eval_report, pages

REPORT = "sgqlm eval report"
_ROUND = (100, 200, 500, 1000)


def build(reports: Sequence[measured.Report], *, wrong: int = 40) -> dict[str, Any]:
    """Put reports together.

    Args:
        reports: what was measured.
        wrong: wrong answers of each report that are spelled out.

    Returns:
        Json values: `kind`; `reports`, with scores as they are shown (per cent, points of MME),
        intervals, `families` of figures, notes and wrong answers; `table`, of the measured beside
        the published scores; `together`, several models on one benchmark.
    """
    parts = [_part(report, wrong) for report in reports]
    shown = {"table": table(parts), "together": together(parts)}
    for group in shown["together"]:
        told = comparing.other_settings([one for one in reports if one.task == group["task"]])
        group["notes"] = [f"{group['task']}: {told}"] if told else []
    return {"kind": REPORT, "reports": parts, **shown}


def _part(report: measured.Report, wrong: int) -> dict:
    found, reason = comparing.interval(report)
    pictures = len(set((comparing.images_of(report) or {}).values())) or None
    return {
        "name": report.name,
        "task": report.task,
        "file": str(report.path),
        "metric": report.metric,
        "unit": report.unit,
        "score": scaled(report, report.score),
        "interval": interval(report, found),
        "caution": found.caution("images" if pictures else "questions") if found else "",
        "no_interval": reason,
        "count": len(report.items),
        "images": pictures,
        "judge": report.judge,
        "caveats": report.caveats,
        "notes": list(report.notes),
        "faults": {kind: count for kind, count in report.faults.items() if count},
        "families": [_family(report, *found) for found in charts(report)],
        "is_open": report.is_open,
        "is_graded": report.is_graded,
        "wrong": _wrong(report, wrong),
    }


def _wrong(report: measured.Report, most: int) -> dict:
    """Return what is spelled out: the lowest scores where none is wrong, else of all wrong ones."""
    failed = [key for key, score in report.items.items() if score < 1 or report.is_open]
    shown = min(most, len(failed))
    if report.is_open:
        chosen = sorted(failed, key=lambda key: report.items[key])[:shown]
    else:
        chosen = [failed[len(failed) * at // shown] for at in range(shown)]  # of the whole file
    rows = [answer(report, key) for key in chosen]
    is_told = not rows or any("question" in row for row in rows)
    absent = "" if is_told else "the report does not tell what was asked"
    return {"count": len(failed), "absent": absent, "shown": rows}


def answer(report: measured.Report, key: str) -> dict[str, Any]:
    """Return an item as json values, of one that the report does not tell only id and score.

    `given` is None without an answer, and absent where the report does not keep the answers.
    """
    row = {"id": key, "score": report.items[key]}
    item = report.details.get(key)
    if item is None or not (item.question or item.wanted or item.given is not None):
        return row
    told = {"question": item.question, "wanted": item.wanted, "image": item.image}
    return row | told | {"kinds": item.kinds} | ({"given": item.given} if report.has_given else {})


def graded(part: Mapping[str, Any], score: float) -> tuple[str, str]:
    """Return the score of a question in words, and `good` or `bad`; neither on an open scale.

    Args:
        part: of `reports` of `build`, or of `tasks` of `compared`.
        score: as the report has it.
    """
    if part.get("is_graded"):
        return f"grade {number(score)} of 10", ""
    if part["is_open"]:
        scale = 1 if part["unit"] == "points" else 100
        return f"{part['metric']} {number(scale * score, digits=2)}", ""
    return f"score {number(score, digits=2)}", "good" if score >= 1 else "bad"


def wrong_title(part: Mapping[str, Any]) -> str:
    """Return over what the spelled out answers of a report stand."""
    found, shown = part["wrong"], sum("question" in row for row in part["wrong"]["shown"])
    if part["is_open"]:
        text = f"the {shown:,} lowest scores of {found['count']:,}" if shown else "no answers shown"
    elif not found["count"]:
        return "every answer is fully right" if part["count"] else "no scores of single questions"
    else:
        text = f"{counted(found['count'], 'question')} not fully right"
        text += f"; {shown:,} of them" if shown else ""
    return text + (f" ({found['absent']})" if found["absent"] else "")


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: `1 question`, `2,000 questions`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def charts(report: measured.Report) -> list[tuple[str, list[str]]]:
    """Return (title, names of figures) of each chart below the headline, in their order."""
    out: dict[str, list[str]] = {}
    for name in list(report.figures)[1:]:
        out.setdefault(report.groups.get(name, "parts"), []).append(name)
    return list(out.items())


def highest(task: str, title: str, values: Iterable[float | int | None] = ()) -> float | int:
    """Return the value of a full bar: per cent, or the most points of MME (perception: 2000).

    Args:
        task: the benchmark.
        title: of the chart, or its headline.
        values: of the bars. Above 100, as CIDEr-D and ratios to a reference go, the next of
            `_ROUND` is a full bar.
    """
    if task == "mme":
        return {"sum": 800, "categories": 200}.get(title, 2000)
    most = max((value for value in values if value is not None), default=0.0)
    return next((full for full in _ROUND if most <= full), most)


def _family(report: measured.Report, title: str, names) -> dict:
    rows = []
    for name in names:
        value, count = report.figures[name]
        found = comparing.figure_interval(report, name)
        rows.append(
            {
                "name": _short(name, title),
                "value": scaled(report, value),
                "interval": interval(report, found),
                "count": count or len(comparing.keys_of(report, name)) or None,
            }
        )
    most = highest(report.task, title, [row["value"] for row in rows])
    return {"title": title, "highest": most, "rows": rows}


def _short(name: str, title: str) -> str:
    """Return the name of a figure without what the title of its chart says."""
    for told in (f"{title} ", f"{title.removesuffix('s')} "):
        name = name.removeprefix(told)
    return name.removesuffix(f" {title}")


def together(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put the figures of several models on one benchmark side by side.

    Args:
        parts: the `reports` of `build`.

    Returns:
        One a benchmark of several models: `task`, `unit`, `names` of the models and `families`,
        whose rows have `bars` (`value`, `interval` and `count`, or None) in the order of the
        names.
    """
    by_task: dict[tuple, list[Mapping]] = {}
    for part in parts:
        by_task.setdefault((part["task"], part["metric"], part["unit"]), []).append(part)
    out = []
    for (task, metric, unit), same in by_task.items():
        if len(same) < 2:
            continue
        bars = [
            {"value": part["score"], "interval": part["interval"], "count": part["count"] or None}
            for part in same
        ]
        head = {"name": metric, "bars": bars}
        titles = dict.fromkeys(f["title"] for part in same for f in part["families"])
        found = [_side_by_side(title, same) for title in titles]
        most = highest(task, metric, [bar["value"] for bar in bars])
        first = {"title": "all questions", "highest": most, "rows": [head]}
        names = [part["name"] for part in same]
        out.append({"task": task, "unit": unit, "names": names, "families": [first, *found]})
    return out


def _side_by_side(title: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [next((f for f in p["families"] if f["title"] == title), None) for p in parts]
    rows = [{row["name"]: row for row in f["rows"]} if f else {} for f in found]
    names = dict.fromkeys(name for part in rows for name in part)
    return {
        "title": title,
        "highest": max(f["highest"] for f in found if f),
        "rows": [
            {
                "name": name,
                "bars": [_bar(part[name]) if name in part else None for part in rows],
            }
            for name in names
        ],
    }


def _bar(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("value", "interval", "count")}


def scaled(report: measured.Report, value: float | None) -> float | None:
    """Return a score as it is shown."""
    return None if value is None else report.scale * value


def interval(report: measured.Report, found: statistics.Interval | None) -> dict | None:
    """Return an interval as json values, in the unit that is shown."""
    if found is None:
        return None
    low, high = report.scale * found.low, report.scale * found.high
    return {"low": low, "high": high, "level": found.level}


def table(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return measured and published scores of the benchmarks that were measured.

    Published scores of which no source is known are left out; models without any are named.

    Args:
        parts: the `reports` of `build`.

    Returns:
        `benchmarks`; `measured` and `published`: rows with `name` and `cells` by benchmark;
        `absent`: model -> why it has no row; `notes`.
    """
    tasks = list(dict.fromkeys(part["task"] for part in parts))
    order = [b for b in published.BENCHMARKS if b in tasks]
    order += [task for task in tasks if task not in order]
    rows: dict[str, dict] = {}
    for part in parts:
        cell = {name: part[name] for name in ("score", "interval", "caveats", "judge")}
        rows.setdefault(part["name"], {})[part["task"]] = cell
    known = []
    for model in published.models():
        cells = {
            benchmark: {
                "score": value.score,
                "source": value.source,
                "certainty": published.CERTAINTY[value.certainty],
                "is_own": value.certainty == published.OWN,
                "note": value.note,
            }
            for benchmark, value in published.known(model).items()
            if benchmark in order
        }
        if cells:
            known.append({"name": model, "cells": cells})
    hidden = sorted({value.model for value in published.UNVERIFIED})
    why = "its scores could not be verified in a source"
    absent = published.ABSENT | dict.fromkeys(hidden, why)
    return {
        "benchmarks": order,
        "measured": [{"name": name, "cells": cells} for name, cells in rows.items()],
        "published": known,
        "absent": absent,
        "notes": list(published.NOTES) if known else [],
    }


def number(value: float | None, *, digits: int = 1) -> str:
    """Return a score as text, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return a table of `table` as text.

    Returns:
        The header, the rows, and the footnotes, whose numbers stand in brackets in the cells.
    """
    notes: dict[str, int] = {}

    def mark(text: str) -> str:
        return f" [{notes.setdefault(text, len(notes) + 1)}]" if text else ""

    rows = []
    for row in found["measured"]:
        line = [row["name"]]
        for benchmark in found["benchmarks"]:
            cell = row["cells"].get(benchmark)
            text = number(cell and cell["score"])
            if cell and cell["interval"]:
                text += (
                    f" ({number(cell['interval']['low'])} to {number(cell['interval']['high'])})"
                )
            caveats = list(cell["caveats"]) if cell else []
            caveats += [f"judge: {cell['judge']}"] if cell and cell["judge"] else []
            line.append(text + mark("; ".join(caveats)))
        rows.append([*line, "measured here"])
    for row in found["published"]:
        line, sources = [row["name"]], []
        for benchmark in found["benchmarks"]:
            cell = row["cells"].get(benchmark)
            line.append(number(cell and cell["score"]) + (mark(_told(cell)) if cell else ""))
            sources += [cell["source"]] if cell and cell["is_own"] else []
        rows.append([*line, ", ".join(dict.fromkeys(sources)) or "see notes"])
    listed = [f"[{at}] {text}" for text, at in notes.items()]
    return ["model", *found["benchmarks"], "source"], rows, listed


def _told(cell: Mapping[str, Any]) -> str:
    third = "" if cell["is_own"] else f"{cell['certainty']}, not by its authors"
    return "; ".join(filter(None, (third, cell["note"])))


def markdown(found: Mapping[str, Any]) -> str:
    """Return what `build` returns as a document."""
    header, rows, notes = cells(found["table"])
    lines = ["# Evaluation", "", *rows_of(header, rows), ""]
    lines += [f"- {plain(note)}" for note in (*notes, *found["table"]["notes"])]
    lines += [f"- {name}: {why}" for name, why in found["table"]["absent"].items()]
    for part in found["together"]:
        lines += ["", f"## {part['task']}: {plain(', '.join(part['names']))}"]
        lines += ["", *(f"- {plain(note)}" for note in part["notes"])] if part["notes"] else []
        for family in part["families"]:
            rows = []
            for row in family["rows"]:
                values = [number(bar and bar["value"], digits=2) for bar in row["bars"]]
                rows.append([row["name"], *values, eval_report.sizes(row["bars"])])
            lines += ["", *rows_of([family["title"], *part["names"], "questions"], rows)]
    for part in found["reports"]:
        lines += ["", f"## {part['task']}: {plain(part['name'])}", "", *_about(part)]
        for family in part["families"]:
            rows = [
                [row["name"], number(row["value"], digits=2), span(row["interval"]), row["count"]]
                for row in family["rows"]
            ]
            head = [family["title"], part["unit"], "interval", "questions"]
            lines += ["", *rows_of(head, rows)]
        lines += ["", *_wrong_lines(part)]
    return "\n".join(lines) + "\n"


def headline(part: Mapping[str, Any]) -> str:
    """Return the headline figure of a report in words."""
    text = f"{part['metric']} {number(part['score'], digits=2)}"
    text += " %" if part["unit"] == "%" and part["score"] is not None else ""
    if part["task"] == "mme":
        text += f" of {highest('mme', part['metric'])}"
    return text + _sure(part) + _beside(part)


def _beside(part: Mapping[str, Any]) -> str:
    """Return the other sum of MME in words, nothing for other benchmarks."""
    if part["task"] != "mme":
        return ""
    rows = [
        row for family in part["families"] if family["title"] == "sum" for row in family["rows"]
    ]
    most = highest("mme", "sum")
    told = [f"{row['name']} {number(row['value'], digits=2)} of {most}" for row in rows]
    return "".join(f"; {line}" for line in told)


def _sure(part: Mapping[str, Any]) -> str:
    if not (found := part["interval"]):
        return f" (no interval: {part['no_interval']})"
    cluster = f", clustered by {part['images']:,} images" if part["images"] else ""
    level = f"{100 * found['level']:.0f} %"
    caution = f"; {part['caution']}" if part["caution"] else ""
    return f", {level} interval {span(found)} (bootstrap over questions{cluster}{caution})"


def facts(part: Mapping[str, Any]) -> list[str]:
    """Return judge, notes, faults and file of a report as sentences."""
    out = [f"judge: {part['judge']}"] if part["judge"] else []
    out += part["notes"]
    out += [counted(count, f"{kind} id") for kind, count in part["faults"].items()]
    return [*out, f"{counted(part['count'], 'question')}, from {part['file']}"]


def _about(part: Mapping[str, Any]) -> list[str]:
    lines = [headline(part), *facts(part)]
    return [f"- {plain(line)}" for line in lines]


def _wrong_lines(part: Mapping[str, Any]) -> list[str]:
    names = ["id", "question", "wanted", "given"]
    rows = [
        [item["id"], item["question"], item["wanted"], item.get("given")]
        + [graded(part, item["score"])[0]] * part["is_open"]
        for item in part["wrong"]["shown"]
        if "question" in item
    ]
    lines = [plain(wrong_title(part)), ""]
    return lines + rows_of([*names, *(["score"] * part["is_open"])], rows) if rows else lines[:1]


def span(found: Mapping[str, Any] | None) -> str:
    """Return an interval as text, a dash where there is none."""
    if not found:
        return "–"
    return f"{number(found['low'], digits=2)} to {number(found['high'], digits=2)}"


def rows_of(header: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table as lines of markdown, a dash where a cell has None."""
    lines = [header, ["---"] * len(header), *rows]
    return [
        "| " + " | ".join(plain("–" if c is None else c) for c in line) + " |" for line in lines
    ]


def plain(text: object) -> str:
    """Return text in one line that markdown does not read as a table, link or tag."""
    out = html.escape(pages.visible(" ".join(str(text).split())), quote=False)
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", out)
