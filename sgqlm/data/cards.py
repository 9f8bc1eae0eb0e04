"""Data set cards: where a data set comes from, under which terms, and what its files are."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import records


@dataclasses.dataclass(frozen=True)
class Card:
    """The content of a `card.json`.

    Attributes:
        name: the folder's name.
        title: one line.
        source: where the data comes from.
        licence: terms of data and annotations.
        files: expected files, `{"path": glob, "required": bool, "what": str}` each, optionally with
            `sha256`.
        rest: all other entries.
    """

    name: str
    title: str
    source: str
    licence: str
    files: Sequence[Mapping[str, Any]]
    rest: Mapping[str, Any]


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
        faulty = [file for file in known["files"] if not {"path", "required", "what"} <= set(file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _problem(path, f"{type(error).__name__}: {error}") from error
    if faulty:
        raise _problem(path, f"a file without path, required or what: {faulty[0]}")
    return Card(**known, rest=values)


def missing_files(card: Card, folder: str | os.PathLike) -> list[str]:
    """Compare a folder with the files its card expects.

    Returns:
        One line per required file that is missing and per file with another checksum.
    """
    folder, lines = pathlib.Path(folder), []
    for file in card.files:
        found = sorted(folder.glob(file["path"]))
        if not found and file["required"]:
            lines.append(f"{file['path']}: missing ({file['what']})")
        if "sha256" in file:
            changed = [p for p in found if records.file_digest(p) != file["sha256"]]
            lines += [f"{p.relative_to(folder)}: changed" for p in changed]
    return lines


def _problem(path: pathlib.Path, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        "there is no usable data set card",
        where=str(path),
        why=why,
        fix="give name, title, source, licence and files",
        code=errors.DATA,
    )
