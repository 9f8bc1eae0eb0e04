"""What `sgqlm data check` prints and writes: faults by rule, folders with missing images."""

import collections
import contextlib
import csv
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from sgqlm import errors
from sgqlm.data import image_tree, leaks, llava_json
from sgqlm.data.relations import types

_LISTED = 100  # faults up to which all are shown
_OF_A_RULE = 20  # faults of each rule that are shown where there are more
_FOLDERS = 30


def table(faults: Sequence[llava_json.Fault], *, all_: bool = True) -> str:
    """Return faults as aligned columns: record, rule, message.

    Args:
        faults: in order.
        all_: show all of them; else at most 20 of a rule where there are more than 100.
    """
    shown, more = list(faults), collections.Counter[str]()
    if not all_ and len(faults) > _LISTED:
        shown = []
        for fault in faults:
            more[fault.rule] += 1
            if more[fault.rule] <= _OF_A_RULE:
                shown.append(fault)
    rows = [("record", "rule", "message")]
    rows += [
        (f.record or "(file)", f.rule + ("" if f.drops else " (note)"), f.message) for f in shown
    ]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in rows]
    for rule, count in more.items():
        if count > _OF_A_RULE:
            hidden = count - _OF_A_RULE
            lines.append(f"... and {hidden} more of `{rule}` (--all, or --report=FILE)")
    return "\n".join(lines)


def verdict(faults: Sequence[llava_json.Fault]) -> str:
    """Return the counts by rule in one line."""
    if not faults:
        return "no faults"
    counts = collections.Counter(fault.rule for fault in faults)
    noun = "fault" if len(faults) == 1 else "faults"
    listed = ", ".join(f"{rule} ({count})" for rule, count in counts.most_common())
    return f"{len(faults)} {noun}: {listed}"


def folders(found: Sequence[image_tree.Folder]) -> str:
    """Return the distinct images of each folder as a table; empty where one line would say it."""
    missing = sum(folder.missing for folder in found)
    if len(found) < 2 and not missing:
        return ""
    order = sorted(found, key=lambda folder: (-folder.missing, folder.name))
    rows = [("folder", "images", "found", "missing", "of them")]
    rows += [
        (f.name or ".", str(f.needed), str(f.found), str(f.missing), ", ".join(f.examples))
        for f in order[:_FOLDERS]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  "
        + "  ".join(f"{row[c]:>{widths[c]}}" for c in (1, 2, 3))
        + (f"  {row[4]}" if row[4] else "")
        for row in rows
    ]
    if len(order) > _FOLDERS:
        lines.append(f"... and {len(order) - _FOLDERS} more folders (--report=FILE)")
    return "\n".join(lines)


def lists(found: Sequence[leaks.List]) -> list[str]:
    """Return one line for each list of images to leave out."""
    lines = []
    for item in found:
        spaces = collections.Counter(name.space or "any number" for name in item.names)
        kinds = ", ".join(f"{space} {count}" for space, count in spaces.most_common())
        if item.count:
            lines.append(f"to leave out: {item.label}: {item.count} images ({kinds})")
        if item.same:
            told = f"{len(item.same)} images under their names in several sets"
            lines.append(f"to leave out: {item.label}: {told}; nothing by itself")
    return lines


def excluded(found: Sequence[llava_json.Excluded], given: Sequence[leaks.List]) -> list[str]:
    """Return, for each list, how many records it leaves out, and the first of them."""
    lines = []
    for item in given:
        hits = [record for record in found if item.label in record.lists]
        if not item.count:
            continue
        if not hits:
            lines.append(f"left out: no record for {item.label}")
            continue
        images = len({record.image for record in hits})
        first = ", ".join(f"{r.record} ({r.image})" for r in hits[:3])
        more = ", ..." if len(hits) > 3 else ""
        noun = "record" if len(hits) == 1 else "records"
        lines.append(
            f"left out: {len(hits)} {noun} ({images} images) for {item.label}: {first}{more}"
        )
    return lines


def refuse_suffix(path: pathlib.Path) -> None:
    """Refuse a report that is neither json nor csv."""
    if path.suffix not in (".json", ".csv"):
        raise errors.SgqlmError("a report is json or csv", where=f"--report={path}")


def write_relations(path: pathlib.Path, report: types.Report, about: dict[str, Any]) -> None:
    """Write everything that is odd about relation data: kind, reason, count and every example.

    Raises:
        SgqlmError: it cannot be written, or has another suffix.
    """
    refuse_suffix(path)
    found = [
        {"kind": kind, "reason": reason, "count": count, "examples": report.examples[reason]}
        for kind, counts in (("fault", report.faults), ("note", report.notes))
        for reason, count in counts.most_common()
    ]
    with _written(path) as file:
        if path.suffix == ".json":
            json.dump(about | {"found": found}, file, indent=1, ensure_ascii=True)
            return
        rows = csv.writer(file)
        rows.writerow(("kind", "reason", "count", "example"))
        for item in found:
            start = (item["kind"], item["reason"], item["count"])
            rows.writerows((*start, example) for example in item["examples"])


@contextlib.contextmanager
def _written(path: pathlib.Path) -> Iterator[TextIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise errors.SgqlmError(
            "the report cannot be written", where=f"--report={path}", why=str(error.strerror)
        ) from error


def write(path: pathlib.Path, scan: llava_json.Scan, about: dict[str, Any]) -> None:
    """Write the whole report, as json or, by the suffix, as a table of faults and exclusions.

    Raises:
        SgqlmError: it cannot be written, or has another suffix.
    """
    refuse_suffix(path)
    faults = [{"record": f.record, "rule": f.rule, "message": f.message} for f in scan.faults]
    for record in scan.excluded:
        message = f"{record.image} is in " + ", ".join(record.lists)
        faults.append({"record": record.record, "rule": "excluded", "message": message})
    with _written(path) as file:
        if path.suffix == ".csv":
            rows = csv.writer(file)
            rows.writerow(("record", "rule", "message"))
            rows.writerows(fault.values() for fault in faults)
            return
        trees = [
            {"folder": f.name, "images": f.needed, "found": f.found, "missing": f.missing}
            | {"renamed": f.renamed, "missing_examples": f.examples}
            for f in scan.folders
        ]
        counts = collections.Counter(item["rule"] for item in faults)
        value = about | {
            "records": scan.total, "usable": len(scan.records), "rules": dict(counts),
            "folders": trees, "faults": faults,
        }  # fmt: skip
        json.dump(value, file, indent=1, ensure_ascii=True)
