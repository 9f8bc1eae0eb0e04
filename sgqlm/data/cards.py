"""Data set cards: where a data set comes from, under which terms, and what its files are."""

import dataclasses
import difflib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import llava_json, records

READER = "llava_json"  # of a card that names no other
_DEPTH = ("", "*/", "*/*/")  # where below its folder a file may lie: deeper are only images


@dataclasses.dataclass(frozen=True)
class Card:
    """The content of a `card.json`.

    Attributes:
        name: the folder's name.
        title: one line.
        source: where the data comes from.
        licence: terms of data and annotations.
        files: expected files, `{"path": glob, "required": bool, "what": str}` each, optionally with
            `sha256`, and with `or`: what else will do, a glob or a list of globs that go together
            each.
        rest: all other entries.
    """

    name: str
    title: str
    source: str
    licence: str
    files: Sequence[Mapping[str, Any]]
    rest: Mapping[str, Any]

    @property
    def reader(self) -> str:
        """Return what reads the files: `llava_json`, or the name of a reader of relations."""
        return self.rest.get("reader", READER)


def load(path: str | os.PathLike) -> Card:
    """Read a card.

    Args:
        path: `card.json`, or the folder with it.

    Raises:
        SgqlmError: there is none, or it lacks an entry.
    """
    path = pathlib.Path(path)
    path = path / "card.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text("utf-8"))
        known = {key: values.pop(key) for key in ("name", "title", "source", "licence", "files")}
        faulty = [file for file in known["files"] if not _is_file(file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _problem(path, f"{type(error).__name__}: {error}") from error
    if faulty:
        why = f"a file without path, required or what, or with an `or` that is no list: {faulty[0]}"
        raise _problem(path, why)
    return Card(**known, rest=values)


def _is_file(value: Mapping[str, Any]) -> bool:
    return {"path", "required", "what"} <= set(value) and isinstance(value.get("or", []), list)


def folder() -> pathlib.Path:
    """Return the folder of the cards that come with a checkout.

    Raises:
        SgqlmError: sgqlm is installed without its checkout.
    """
    found = pathlib.Path(__file__).resolve().parents[2] / "data"
    if not any(found.glob("*/card.json")):
        raise errors.SgqlmError(
            "this installation has no data set cards",
            where=str(found),
            why="they come with a checkout of sgqlm (pip install -e), not with the package",
            fix="give the path of a card.json",
        )
    return found


def every() -> list[Card]:
    """Return the cards of the checkout, by name."""
    return [load(path) for path in sorted(folder().glob("*/card.json"))]


def find(name: str | os.PathLike, *, flag: str = "--card=") -> Card:
    """Return a card by the name of a data set, or by its path.

    Args:
        name: the name or the path.
        flag: what stands before it on the command line, for messages.

    Raises:
        SgqlmError: there is none; the nearest name is told.
    """
    path = pathlib.Path(name)
    if path.suffix == ".json" or (path / "card.json").is_file():
        return load(path)
    known = {found.parent.name: found for found in folder().glob("*/card.json")}
    if str(name) not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        fix = f"did you mean {near[0]}? " if near else ""
        raise errors.SgqlmError(
            f"there is no card {str(name)!r}",
            where=f"{flag}{name}",
            fix=fix + "known: " + ", ".join(sorted(known)),
        )
    return load(known[str(name)])


def json_file(card: Card, folder: pathlib.Path) -> pathlib.Path:
    """Return the json of a LLaVA data set, in a folder or up to two folders below it.

    Raises:
        SgqlmError: it is not there, or more than once.
    """
    if folder.is_file():
        return folder
    if (name := card.rest.get("json")) is None:
        return llava_json.find(folder)[0]
    for depth in _DEPTH:
        found = sorted(folder.glob(depth + name))
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise errors.SgqlmError(
        f"there is no {name}" if not found else f"there are several {name}",
        where=str(folder),
        why=f"{card.title}: {card.source}" if not found else ", ".join(map(str, found)),
        fix="give the folder that it lies in, or name it with --json",
        code=errors.DATA,
    )


def image_roots(card: Card, folder: pathlib.Path, file: pathlib.Path) -> list[pathlib.Path]:
    """Return existing folders that the image paths of a card's json may start from.

    Args:
        card: the card, whose `images` is the usual one below the folder.
        folder: where the data set lies.
        file: its json.
    """
    folder = folder if folder.is_dir() else folder.parent
    usual = folder / card.rest.get("images", ".")
    places = (usual, folder, folder / "images", file.parent / "images", file.parent)
    return list(dict.fromkeys(path for path in places if path.is_dir()))


def place(card: Card, root: pathlib.Path) -> pathlib.Path:
    """Return the folder of a data set below one of many: as its card calls it, or as its name.

    A benchmark's card tells the `folder` that LLaVA's programs and `sgqlm eval --root` look in.
    """
    names = dict.fromkeys((card.rest.get("folder", card.name), card.name))
    found = [root / name for name in names if (root / name).is_dir()]
    return found[0] if found else root / next(iter(names))


def names(file: Mapping[str, Any]) -> str:
    """Return a file of a card and what else will do in words: `a.json, b.json or c with d`."""
    *most, last = [" with ".join(way) for way in _ways(file)]
    return f"{', '.join(most)} or {last}" if most else last


def _ways(file: Mapping[str, Any]) -> list[list[str]]:
    """Return the files that go together, for each way to have what a card wants."""
    return [way if isinstance(way, list) else [way] for way in (file["path"], *file.get("or", ()))]


def missing_files(card: Card, folder: str | os.PathLike) -> list[str]:
    """Compare a folder with the files its card expects.

    Returns:
        One line per required file that is missing, with what stands for it, and per file with
        another checksum.
    """
    folder, lines = pathlib.Path(folder), []
    for file in card.files:
        ways = ([_found(card, folder, path) for path in way] for way in _ways(file))
        if file["required"] and not any(all(way) for way in ways):
            lines.append(f"{names(file)}: missing ({file['what']})")
        if "sha256" in file:
            there = _found(card, folder, file["path"])
            changed = [p for p in there if records.file_digest(p) != file["sha256"]]
            lines += [f"{p.relative_to(folder)}: changed" for p in changed]
    return lines


def _found(card: Card, folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    name = pattern.removeprefix("**/")
    is_deep = name != pattern or name == card.rest.get("json")
    depths = _DEPTH if is_deep else ("",)
    return [path for depth in depths for path in sorted(folder.glob(depth + name))]


def _problem(path: pathlib.Path, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        "there is no usable data set card",
        where=str(path),
        why=why,
        fix="give name, title, source, licence and files",
        code=errors.DATA,
    )
