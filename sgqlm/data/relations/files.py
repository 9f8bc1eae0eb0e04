"""Official files: found by name, read in pieces; images found in the trees they come in."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from PIL import ExifTags, Image

from sgqlm import errors
from sgqlm.data import json_stream
from sgqlm.data.relations import types

_CHUNK = 1 << 20
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
_SPACE = " \t\r\n"
OFFICIAL = "take the official one, since the annotations do not tell its size"


@dataclasses.dataclass(frozen=True)
class Context:
    """What a reader works with.

    Attributes:
        folder: holds the official files, directly or in sub-folders.
        tree: the images, or None to read annotations alone.
        report: counts what is odd.
        splits: splits that are wanted; empty for all.
        text: caption and phrases to relations, for data sets without relations.
        progress: called with ("read", done, altogether).
        keep_missing: images that are not there are counted and given all the same.
    """

    folder: pathlib.Path
    tree: "ImageTree | None"
    report: types.Report
    splits: Sequence[str] = ()
    text: Callable[..., Any] | None = None
    progress: types.Progress = lambda what, done, total: None
    keep_missing: bool = False

    def wants(self, split: str, count: int = 1) -> bool:
        """Return whether a split is asked for; `count` of its images are met here."""
        self.report.splits[split] += count
        return not self.splits or split in self.splits

    def locate(self, names: Sequence[str], *, expected: bool = True) -> str | None:
        """Return the key of an image, or None (and count it) if there are images but not this one.

        Args:
            names: paths below the image root at which the image may be; the first is its key where
                images are not looked at.
            expected: whether a missing image is a fault (or part of the nature of the data set).
        """
        if self.tree is None:
            return names[0]
        if (key := self.tree.find(names)) is None:
            count = self.report.fault if expected else self.report.note
            count("image missing", names[0])
            return names[0] if expected and self.keep_missing else None
        return key

    def size(self, key: str) -> tuple[int, int]:
        """Return (height, width) of an image from its header; (0, 0) without images."""
        return self.tree.size(key) if self.tree else (0, 0)


class ImageTree:
    """Images below a root, found by one of their usual paths or else by their name."""

    def __init__(self, root: str | os.PathLike):
        """Take the images below `root`.

        Raises:
            SgqlmError: there is no such folder.
        """
        self.root = pathlib.Path(root)
        if not self.root.is_dir():
            raise errors.SgqlmError(
                "there is no image folder", where=str(root), fix="name it with --images",
                code=errors.DATA,
            )  # fmt: skip
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, names: Sequence[str]) -> str | None:
        """Return the path below the root of an image that may be at any of `names`.

        If it is at none of them, a file of the same name (another suffix counts as the same)
        anywhere below the root is taken, if there is exactly one.
        """
        for name in names:
            if _is_inside(name) and (self.root / name).is_file():
                return name
        if self._by_stem is None:
            self._by_stem = self._index()
        found = self._by_stem.get(pathlib.PurePosixPath(names[0]).stem, [])
        return found[0] if len(found) == 1 else None

    def _index(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for folder, _, names in os.walk(self.root):
            prefix = pathlib.Path(folder).relative_to(self.root).as_posix()
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in _SUFFIXES:
                    path = name if prefix == "." else f"{prefix}/{name}"
                    index.setdefault(stem, []).append(path)
        return index

    def size(self, key: str) -> tuple[int, int]:
        """Return (height, width) as the image is shown; (0, 0) where the header is damaged."""
        try:
            with Image.open(self.root / key) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except (
            Exception
        ):  # Pillow raises anything for damaged headers; the build says what is wrong
            return 0, 0
        return (width, height) if turned else (height, width)


def _is_inside(name: str) -> bool:
    parts = pathlib.PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def find(folder: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
    """Return the files below a folder that fit the first pattern with any, sorted."""
    for pattern in patterns:
        if found := sorted(p for p in folder.rglob(pattern) if p.is_file()):
            return found
    return []


def need(folder: pathlib.Path, patterns: Sequence[str], what: str) -> list[pathlib.Path]:
    """Return the files that fit, at least one.

    Raises:
        SgqlmError: there is none; the message names what was expected.
    """
    if found := find(folder, patterns):
        return found
    beside = sorted(p.name for p in folder.iterdir())[:10] if folder.is_dir() else []
    raise errors.SgqlmError(
        f"a file of the data set is missing: {patterns[0]}",
        where=str(folder),
        why=f"{what}; the folder holds " + (", ".join(beside) or "nothing"),
        fix="put the official file there; the card of the data set says where it comes from",
        code=errors.DATA,
    )


def need_one(folder: pathlib.Path, patterns: Sequence[str], what: str) -> pathlib.Path:
    """Return the only file that fits; see `need`.

    Raises:
        SgqlmError: there is none, or more than one.
    """
    found = need(folder, patterns, what)
    if len(found) > 1:
        raise errors.SgqlmError(
            f"{len(found)} files could be {patterns[0]}",
            where=str(folder),
            why=", ".join(str(p.relative_to(folder)) for p in found[:10]),
            fix="keep one of them in the folder",
            code=errors.DATA,
        )
    return found[0]


def wrong(path: pathlib.Path, expected: str, why: str = "") -> errors.SgqlmError:
    """Return the error for a file that is not what its name says."""
    return errors.SgqlmError(
        "this is not the expected file",
        where=str(path),
        why=f"expected {expected}" + (f"; {why}" if why else ""),
        fix="take the official file; the card of the data set says where it comes from",
        code=errors.DATA,
    )


def load_json(path: pathlib.Path, expected: str, kind: type = dict) -> Any:
    """Return a json value of a kind.

    Raises:
        SgqlmError: the file is no json, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(path, expected, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise wrong(path, expected, f"it holds {json_stream.kind(value)}")
    return value


def stream_json(
    path: pathlib.Path, expected: str, progress: Callable[[int, int], None] = lambda d, t: None
) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a json list (with empty keys) or object, without holding the whole.

    Args:
        path: a json file.
        expected: what it should be, for messages.
        progress: called with (bytes read, bytes in all).

    Raises:
        SgqlmError: the file is no json list or object.
    """
    text = _Text(path, expected, progress)
    try:
        yield from _entries(text, path, expected)
    finally:
        text.close()


def _entries(text: "_Text", path: pathlib.Path, expected: str) -> Iterator[tuple[str, Any]]:
    opening = text.take()
    if opening not in ("[", "{"):
        raise wrong(path, expected, f"it begins with {opening!r}")
    closing = "]" if opening == "[" else "}"
    if text.peek() == closing:
        return
    while True:
        key = ""
        if opening == "{":
            key = text.value()
            if not isinstance(key, str) or text.take() != ":":
                raise text.problem("a key and a colon should stand here")
        yield key, text.value()
        mark = text.take()
        if mark == closing:
            return
        if mark != ",":
            raise text.problem(f"{mark!r} where a comma should stand" if mark else "it is cut off")


class _Text:
    """A json file read in pieces: single marks and whole values, one after the other."""

    def __init__(self, path, expected, progress):
        self._path, self._expected, self._progress = path, expected, progress
        try:
            self._file = path.open(encoding="utf-8-sig")
            self._total = path.stat().st_size
        except OSError as error:
            raise wrong(path, expected, str(error.strerror)) from error
        self._decoder = json.JSONDecoder()
        self._buffer, self._at, self._done, self._is_over = "", 0, 0, False

    def problem(self, why: str) -> errors.SgqlmError:
        return wrong(self._path, self._expected, f"near byte {self._done}: {why}")

    def close(self) -> None:
        self._file.close()
        self._is_over = True

    def peek(self) -> str:
        """Return the next character that is no space, without taking it; empty at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def take(self) -> str:
        mark = self.peek()
        self._at += len(mark)
        return mark

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                position = getattr(error, "pos", len(self._buffer))
                # an error far before the end of what is read is not one of a value cut in two
                if len(self._buffer) - position > 16 * _CHUNK or not self._more():
                    raise self.problem(str(error)) from error
                continue
            if end < len(self._buffer) or not self._more():  # a number may go on
                self._at = end
                return found

    def _more(self) -> bool:
        if self._is_over:
            return False
        try:
            piece = self._file.read(_CHUNK)
        except UnicodeDecodeError as error:
            raise self.problem(f"byte {error.start} is not UTF-8") from error
        if not piece:
            self.close()
            return False
        self._done += len(piece)  # characters; near enough for a message and for progress
        self._progress(min(self._done, self._total), self._total)
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return True


class Lookup:
    """Values of a second stream by key, when both streams have (nearly) the same order.

    Only what was passed over is kept, so two files of a million images in one order need no memory.
    """

    def __init__(self, entries: Iterable[tuple[Any, Any]]):
        """Take (key, value) pairs."""
        self._entries, self._skipped = iter(entries), {}

    def get(self, key: Any, default: Any = None) -> Any:
        """Return and forget the value of `key`."""
        if key in self._skipped:
            return self._skipped.pop(key)
        for found, value in self._entries:
            if found == key:
                return value
            self._skipped[found] = value
        return default


def read_csv(path: pathlib.Path) -> Iterator[list[str]]:
    """Yield the rows of a csv file, quoted or not, empty lines left out.

    Raises:
        SgqlmError: the file is no text or no csv.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.reader(file):
                if row and any(row):
                    yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise wrong(path, "a csv file", f"{type(error).__name__}: {error}") from error
