"""What a reader sees of two models compared: as json values, a table and markdown."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm.evals import comparing, measured, summary

KIND = "sgqlm eval comparison"
Pair = tuple[measured.Report, measured.Report]


def named(pairs: Sequence[Pair]) -> list[Pair]:
    """Return reports under the names of their models: `model_id`, else the folder of the report.

    Where that does not tell the two sides apart, they are called `first` and `second`.

    Args:
        pairs: of two models, one a task.
    """
    sides = list(zip(*pairs, strict=True))
    for choice in (_by_id, lambda report: report.name):
        names = [{choice(report) for report in side} for side in sides]
        if all(len(side) == 1 for side in names) and names[0] != names[1]:
            called = names[0].pop(), names[1].pop()
            break
    else:
        called = "first", "second"
    return [
        (dataclasses.replace(a, name=called[0]), dataclasses.replace(b, name=called[1]))
        for a, b in pairs
    ]


def _by_id(report: measured.Report) -> str:
    """Return the model that answered, as it was called; the number of a checkpoint is no name."""
    told = str(report.settings.get("model_id") or "")
    return report.name if not told or told.isdecimal() else told


def compared(
    found: Sequence[comparing.Compared],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return comparisons as json values; `changed` has every question that changed.

    Args:
        found: of `comparing.adjusted`.
        notes: on the whole comparison.
    """
    return {"kind": KIND, "tasks": list(map(_compared, found)), "notes": list(notes)}


def _compared(one: comparing.Compared) -> dict[str, Any]:
    first, second, items = one.first, one.second, one.items

    def rows(keys: Sequence[str]) -> list[dict]:
        out = []
        for key in keys:
            row, other = summary.answer(first, key), summary.answer(second, key)
            row["second_score"] = other["score"]
            row |= {"second_given": other["given"]} if "given" in other else {}
            out.append(row)
        return out

    change = None
    if first.score is not None and second.score is not None:
        change = first.scale * (second.score - first.score)
    return {
        "task": first.task,
        "metric": first.metric,
        "unit": first.unit,
        "is_open": first.is_open or second.is_open,
        "is_graded": first.is_graded,
        "first": _side(first),
        "second": _side(second),
        "difference": change,
        "interval": summary.interval(first, one.headline),
        "count": items.interval.count,
        "item_difference": items.interval.value,
        "test": items.test,
        "p_value": items.p_value,
        "p_adjusted": one.p_adjusted,
        "better": items.wins,
        "worse": items.losses,
        "same": items.interval.count - items.wins - items.losses,
        "notes": one.notes,
        "changed": {"better": rows(one.better), "worse": rows(one.worse)},
    }


def _side(report: measured.Report) -> dict[str, Any]:
    score = summary.scaled(report, report.score)
    return {"name": report.name, "file": str(report.path), "score": score}


def cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a comparison as text."""
    header = ["task", *_names(found), "difference", "95 % interval", "p", "p (Holm)"]
    header += ["better", "worse", "same", "test"]
    rows = [
        [
            part["task"],
            summary.number(part["first"]["score"], digits=2),
            summary.number(part["second"]["score"], digits=2),
            _change(part),
            summary.span(part["interval"]),
            _p(part["p_value"]),
            _p(part["p_adjusted"]),
            str(part["better"]),
            str(part["worse"]),
            str(part["same"]),
            part["test"],
        ]
        for part in found["tasks"]
    ]
    return header, rows


def _names(found: Mapping[str, Any]) -> list[str]:
    """Return the names of both sides; they are the same in all tasks (`named`)."""
    sides = [
        list(dict.fromkeys(part[side]["name"] for part in found["tasks"]))
        for side in ("first", "second")
    ]
    is_told = all(len(side) == 1 for side in sides)
    return [side[0] for side in sides] if is_told else ["first", "second"]


def _change(part: Mapping[str, Any]) -> str:
    return "–" if part["difference"] is None else f"{part['difference']:+.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def headline(part: Mapping[str, Any]) -> str:
    """Return what a comparison found, of a task of `compared`, as a sentence."""
    unit = " %" if part["unit"] == "%" else ""
    scores = [
        f"{part[side]['name']} {summary.number(part[side]['score'], digits=2)}{unit}"
        for side in ("first", "second")
    ]
    found = part["interval"]
    sure = (
        f"{100 * found['level']:.0f} % interval {summary.span(found)}" if found else "no interval"
    )
    p_values = [_p(part[name]) for name in ("p_value", "p_adjusted")]
    p_values = [value if value.startswith("<") else f"= {value}" for value in p_values]
    better = summary.counted(part["better"], "question")
    return (
        f"difference {_change(part)} ({sure}), p {p_values[0]} (Holm {p_values[1]}): "
        f"{part['metric']} of {', of '.join(scores)}; {better} "
        f"better, {part['worse']:,} worse, {part['same']:,} the same"
    )


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return what has to be known to read all of a comparison, as sentences."""
    first, second = _names(found)
    out = [f"differences are {second} minus {first}"]
    out.append("p tests whether the questions' scores differ; Holm: over all tasks of this table")
    if any(part["is_graded"] for part in found["tasks"]):
        out.append("of LLaVA-Bench, p tests the ratio; better and worse count the model's grades")
    return out + list(found["notes"])


def caveats(found: Mapping[str, Any]) -> list[str]:
    """Return what stands against the comparison of single tasks, as sentences."""
    return [f"{part['task']}: {note}" for part in found["tasks"] for note in part["notes"]]


def markdown(found: Mapping[str, Any], *, most: int = 40) -> str:
    """Return what `compared` returns as a document, with `most` changes each way."""
    lines = ["# Comparison", "", *summary.rows_of(*cells(found)), ""]
    lines += [f"- {summary.plain(note)}" for note in notes(found)]
    for part in found["tasks"]:
        told = [headline(part), *part["notes"]]
        lines += ["", f"## {part['task']}", "", *(f"- {summary.plain(line)}" for line in told)]
        names = [part[side]["name"] for side in ("first", "second")]
        for way in ("better", "worse"):
            rows = [
                [
                    *(item.get(name) or "" for name in ("id", "question", "wanted", "given")),
                    item.get("second_given") or "",
                ]
                for item in part["changed"][way][:most]
            ]
            title = f"### {part['task']}: {part[way]} {way} in {summary.plain(names[1])}"
            header = ["id", "question", "wanted", *names]
            lines += ["", title, *(["", *summary.rows_of(header, rows)] if rows else [])]
    return "\n".join(lines) + "\n"
