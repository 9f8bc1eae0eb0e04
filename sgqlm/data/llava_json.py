"""LLaVA json files with their image folders: reading, and a report of all that is wrong."""

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sgqlm import errors
from sgqlm.data import images
from sgqlm.text import rules

IMAGE = "<image>"
Turn = dict[str, str]
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # `http://...`, also `file:/...`
_SHOWN = 100  # characters of an id or a path that a message repeats
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample: its id, its image (resolved path and key, the path below the root), its turns."""

    id: str
    image: pathlib.Path | None
    key: str
    turns: Sequence[Turn]


class Fault(NamedTuple):
    """One broken rule of one record; `record` is its id, or empty for the file as a whole."""

    record: str
    rule: str
    message: str

    @property
    def drops(self) -> bool:
        """Whether the record cannot be used; a repeated id is only reported."""
        return self.rule != "unique id"

    def __str__(self) -> str:
        """Return one line: record, rule, message."""
        return f"{self.record or 'file'}: {self.rule}: {self.message}"


class Scan(NamedTuple):
    """The usable records of a file, all faults, and how many records there are in all.

    A line of a jsonl file that cannot be read counts as a record.
    """

    records: list[Record]
    faults: list[Fault]
    total: int


def find(path: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
    """Find the json file and the image root a user means.

    Args:
        path: a LLaVA json (or jsonl) file, or a folder with exactly one.

    Returns:
        The json file, and its folder or the `images` folder beside it, if there is one.

    Raises:
        SgqlmError: there is none, or more than one.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise errors.SgqlmError(
                "a folder of photographs needs exactly one LLaVA json",
                where=str(path),
                why=f"found: {names}",
                fix="name the json file itself",
                code=errors.DATA,
            )
        path = found[0]
    elif not path.is_file():
        raise errors.SgqlmError(
            "there is no LLaVA json", where=str(path), fix="correct the path", code=errors.DATA
        )
    root = path.parent / "images"
    return path, root if root.is_dir() else path.parent


def read(json_file: str | os.PathLike, image_root: str | os.PathLike) -> list[Record]:
    """Read all records of a file whose json, turns and image paths are right.

    Raises:
        SgqlmError: there is a fault; the message lists the first 20. Images are not decoded.
    """
    scan = examine(json_file, image_root, decode=False)
    refuse([fault for fault in scan.faults if fault.drops], str(json_file))
    return scan.records


def check(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    template: str = "v1_sq",
    progress: Progress | None = None,
) -> list[Fault]:
    """List every fault of a file and its images; see `examine`."""
    return examine(json_file, image_root, template=template, progress=progress).faults


def examine(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    template: str = "v1_sq",
    decode: bool = True,
    progress: Progress | None = None,
) -> Scan:
    """Read a file as far as it can be read.

    Rules of this layer: `json`, `record shape`, `unique id`, `image inside root`, `image exists`,
    `image decodes`, `image has <image>`, `<image> has image`, `one <image>`; those of the turns
    (roles, order, empty text, ...) are in `text.rules`.

    Args:
        json_file: a list of `{"id", "image", "conversations"}`, or one such object a line (jsonl).
        image_root: folder that image paths start from and may not leave, also not by a link.
        template: conversation format that the turns have to fit.
        decode: also decode every image.
        progress: called with (records done, records in all).

    Returns:
        Usable records in order, faults in order, number of records.
    """
    json_file, root = pathlib.Path(json_file), pathlib.Path(image_root).resolve()
    entries, faults = _entries(json_file)
    total = len(entries) + (len(faults) if json_file.suffix == ".jsonl" else 0)
    records: list[Record] = []
    seen: dict[str, str] = {}  # image key: fault of the image, or empty
    ids: dict[str, list[int]] = collections.defaultdict(list)
    for index, entry in enumerate(entries):
        record, found = _record(entry, index, root, template)
        same = ids[_id(entry, index)]
        same.append(index)
        if len(same) == 2:
            found.append(Fault(record.id, "unique id", f"records #{same[0]} and #{index} have it"))
        if decode and record.image is not None:
            if record.key not in seen:
                seen[record.key] = _decode_fault(record.image)
            if seen[record.key]:
                found.append(Fault(record.id, "image decodes", seen[record.key]))
        faults += found
        if not any(fault.drops for fault in found):
            records.append(record)
        if progress:
            progress(index + 1, len(entries))
    return Scan(records, faults, total)


def refuse(faults: Sequence[Fault], where: str, *, shown: int = 20) -> None:
    """Raise for faults, if there are any, naming the first of them.

    Raises:
        SgqlmError: with exit code `DATA`.
    """
    if not faults:
        return
    counts = collections.Counter(fault.rule for fault in faults)
    lines = [str(fault) for fault in faults[:shown]]
    if len(faults) > shown:
        lines.append(f"... and {len(faults) - shown} more")
    raise errors.SgqlmError(
        f"{len(faults)} faults in the data: "
        + ", ".join(f"{rule} ({count})" for rule, count in counts.most_common()),
        where=where,
        why="\n    ".join(lines),
        fix="correct or remove these records; `sgqlm data check` lists all",
        code=errors.DATA,
    )


def _entries(path: pathlib.Path) -> tuple[list[Any], list[Fault]]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        return [], [Fault("", "json", f"the file cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return [], [Fault("", "json", f"byte {error.start} is not UTF-8")]
    if path.suffix == ".jsonl":
        return _lines(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [], [Fault("", "json", _json_problem(error))]
    if not isinstance(value, list):
        return [], [Fault("", "json", f"the file holds a {type(value).__name__}, not a list")]
    return value, []


def _lines(text: str) -> tuple[list[Any], list[Fault]]:
    values, faults = [], []
    # not `splitlines`: json allows U+2028 and its like inside a text
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            faults.append(Fault("", "json", _json_problem(error, number)))
    return values, faults


def _json_problem(error: Exception, line: int = 0) -> str:
    """Say what is wrong with a json text, and where if that is known."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {line or error.lineno}, column {error.colno}: {error.msg}"
    problem = "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)
    return f"line {line}: {problem}" if line else problem


def _id(entry: Any, index: int) -> str:
    given = entry.get("id") if isinstance(entry, dict) else None
    return str(given) if given not in (None, "") else f"#{index}"


def _shown(text: str) -> str:
    """Return a text of a data set as messages may show it: short, on one line, printable."""
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def _record(entry: Any, index: int, root: pathlib.Path, template: str):
    """Return the record of an entry, as far as there is one, and its faults."""
    name = _shown(_id(entry, index))
    if not isinstance(entry, dict):
        fault = Fault(name, "record shape", f"it is a {type(entry).__name__}, not an object")
        return Record(name, None, "", []), [fault]
    turns, image = entry.get("conversations"), entry.get("image")
    faults = []
    if image is not None and (not isinstance(image, str) or not image):
        faults.append(Fault(name, "record shape", "`image` is not one path"))
        path = None
    else:
        path, problem = _locate(image, root) if image is not None else (None, None)
        faults += [Fault(name, *problem)] if problem else []
    key = path.relative_to(root).as_posix() if path else ""
    if not isinstance(turns, list):
        kind = f"is a {type(turns).__name__}, not a list"
        problem = kind if "conversations" in entry else "is missing"
        faults.append(Fault(name, "record shape", f"`conversations` {problem}"))
        return Record(name, path, key, []), faults
    return Record(name, path, key, turns), faults + _turn_faults(name, turns, template, image)


def _turn_faults(name: str, turns: list, template: str, image: Any) -> list[Fault]:
    has_image = image is not None
    found = [
        Fault(name, f.rule, f.message if f.turn is None else f"turn {f.turn}: {f.message}")
        for f in rules.faults(turns, template=template, has_image=has_image)
        if f.rule != "image placeholder"
    ]
    if not any(fault.rule == "turn shape" for fault in found):
        found += [Fault(name, *problem) for problem in _placeholder_faults(turns, has_image)]
    return found


def _locate(image: str, root: pathlib.Path):
    """Return the file an image path means and no fault, or no file and (rule, message).

    What the text alone gives away is refused before the file system is asked.
    """
    outside = "image inside root"
    shown = _shown(image)
    if "\0" in image:
        return None, (outside, f"{shown} has a zero byte")
    if _ADDRESS.match(image):
        return None, (outside, f"{shown} is an address, outside the image folder")
    is_away = os.path.isabs(image) or os.path.normpath(image).split(os.sep)[0] == os.pardir
    try:
        path = root if is_away else (root / image).resolve()
        if is_away or not path.is_relative_to(root):
            return None, (outside, f"{shown} is outside the image folder")
        if not path.is_file():
            return None, ("image exists", f"{shown} is missing")
    except (OSError, ValueError, RuntimeError) as error:  # too long, half a character, a link loop
        problem = getattr(error, "strerror", "") or type(error).__name__
        return None, ("image exists", f"{shown}: {problem}")
    return path, None


def _placeholder_faults(turns: Iterable[Turn], has_image: bool) -> Iterator[tuple[str, str]]:
    holders = [
        (index, turn["from"])
        for index, turn in enumerate(turns)
        for _ in range(turn["value"].count(IMAGE))
    ]
    if not has_image and holders:
        yield "<image> has image", f"turn {holders[0][0]}: {IMAGE} in a record without image"
    if has_image and not holders:
        yield "image has <image>", f"no turn has {IMAGE}"
    if has_image and len(holders) > 1:
        yield "one <image>", f"{IMAGE} stands {len(holders)} times"
    if has_image and any(who == "gpt" for _, who in holders):
        yield "one <image>", f"{IMAGE} in an answer"


def _decode_fault(path: pathlib.Path) -> str:
    try:
        images.open_image(path)
    except errors.SgqlmError as error:
        return f"{path.name}: {error.what}" + (f" ({error.why})" if error.why else "")
    return ""
