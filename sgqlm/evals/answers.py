"""Answer files: one json line an item, written one by one, so that a killed run goes on."""

import codecs
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import files
from sgqlm.evals import tables


class AnswerFile:
    """A file of answers under one header; use it as a context manager.

    The first line says what was asked. Every other line is one answer, on disk before the next
    item is begun. A last line that a killed run left unfinished is cut off.

    Args:
        path: the file; made with its folder where it is missing.
        header: json values; those of an existing file must be equal.

    Raises:
        SgqlmError: the file has answers to something else.
    """

    def __init__(self, path: str | os.PathLike, header: Mapping[str, Any]):
        """Open the file, and read what is there."""
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        whole = cut_unfinished(self.path)
        wanted = json.loads(json.dumps(header))
        self.done: set[str] = set()
        if whole:
            found, lines = read(self.path)
            compare(found, wanted, self.path)
            self.done = {line["key"] for line in lines}
        # half a surrogate pair, as a json file may hold, becomes its escape in json
        self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
        if not whole:
            self._write(wanted)

    def __enter__(self) -> "AnswerFile":
        """Return the file."""
        return self

    def __exit__(self, *exc_info) -> None:
        """Close the file."""
        self._file.close()

    def add(self, answer: Mapping[str, Any]) -> None:
        """Append one answer; it has a `key` that no other answer has."""
        self.extend([answer])

    def extend(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Append answers that came at once; see `add`."""
        self._write(*answers)
        self.done.update(answer["key"] for answer in answers)

    def _write(self, *values: Mapping[str, Any]) -> None:
        for value in values:
            self._file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def cut_unfinished(path: pathlib.Path) -> int:
    """Cut off a last line that a killed run left unfinished; return the bytes of the others."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return whole


def read(path: str | os.PathLike) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the header and the answers of a file of `AnswerFile`.

    Raises:
        SgqlmError: there is no such file, or a line is no json object or has no key.
    """
    numbered = list(_numbered(path, is_ours=True))
    for number, line in numbered[1:]:
        if "key" not in line:
            raise _damaged(path, number, "it has no key", is_ours=True)
    lines = [line for _, line in numbered]
    if not lines or "task" not in lines[0]:
        raise errors.SgqlmError(
            "the answers have no header",
            where=str(path),
            fix="give the answers.jsonl that `sgqlm eval --tasks=...` wrote",
            code=errors.DATA,
        )
    return lines[0], lines[1:]


def iterate(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of json lines; an unfinished last line is left out.

    Raises:
        SgqlmError: there is no such file, or a line is no json object.
    """
    return (line for _, line in _numbered(path, is_ours=False))


def _numbered(path: str | os.PathLike, *, is_ours: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.SgqlmError(
            "there is no such file of answers", where=str(path), fix="correct the path"
        )
    lines = tables.read_bytes(path).removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no line end: a run was killed while it wrote
                return
            raise _damaged(path, number, str(error), is_ours=is_ours) from error
        if not isinstance(value, dict):
            raise _damaged(path, number, "it is no json object", is_ours=is_ours)
        yield number, value


def write(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a whole file of json lines in place of what is there."""
    files.write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _damaged(path: str | os.PathLike, number: int, why: str, *, is_ours: bool) -> errors.SgqlmError:
    fix = "give a file with one json object a line"
    if is_ours:  # the first line is the header
        lost = f"line {number}, and what it answers" if number > 1 else "the file, and all of it"
        fix = f"delete {lost} is asked again"
    return errors.SgqlmError(
        "a line of the answers cannot be read",
        where=f"{path}:{number}",
        why=why,
        fix=fix,
        code=errors.DATA,
    )


def compare(found: Mapping, wanted: Mapping, path: pathlib.Path) -> None:
    """Refuse a file whose header differs from the one that is wanted.

    Raises:
        SgqlmError: it does; what differs is told.
    """
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        told = [
            f"{name}: {str(found.get(name))[:60]}, now {str(wanted.get(name))[:60]}"
            for name in names
        ]
        raise errors.SgqlmError(
            "the file has answers to another evaluation",
            where=str(path),
            why="; ".join(told),
            fix="give another --out, or the same settings to go on",
        )
