"""The images an extraction works on: files of a folder or a list, or rows of an image store."""

import dataclasses
import errno
import functools
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sgqlm import errors
from sgqlm.data import records

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# of files without a suffix, such as SEED-Bench's
_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*"),
    *(b"P5", b"P6"),
)


@runtime_checkable
class Source(Protocol):
    """One image to work on; pickles.

    Attributes:
        key: names the image in the entity store.
    """

    @property
    def key(self) -> str:
        """Return the name of the image in the entity store."""
        ...

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def stamp(self) -> str:
        """Return, without reading the image, what changes whenever its content does."""
        ...


@dataclasses.dataclass(frozen=True)
class File:
    """An image file."""

    key: str
    path: str

    def read(self) -> bytes:
        """Return the content; only a regular file has one, a pipe would never end."""
        with open(self.path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "it is no file")
            return file.read()

    def stamp(self) -> str:
        """Return the length and two times of the last change, as a `make` does.

        A program can set the first (`mtime`); the second (`ctime`) is set by the system alone.
        """
        try:
            found = os.stat(self.path)
        except (OSError, ValueError) as error:  # ValueError: no path at all
            return f"error {getattr(error, 'errno', error)}"
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


@dataclasses.dataclass(frozen=True)
class Row:
    """An image of an image store; `digest` is that of the store's manifest."""

    key: str
    folder: str
    row: int
    digest: str

    def read(self) -> bytes:
        """Return the image as it lies in the store."""
        return _store(self.folder, self.digest)[self.row].data

    def stamp(self) -> str:
        """Return the row and what the store says of its content."""
        return f"{self.digest} {self.row}"


def from_folder(folder: pathlib.Path) -> list[Source]:
    """Return the images below a folder in the order of their keys, their relative paths.

    A file is known by its suffix, one without by its first bytes. Bytes of a name that are no UTF-8
    are written out in the key.

    Raises:
        SgqlmError: a folder cannot be read.
    """
    found = []
    for place, _, names in os.walk(folder, onerror=_refuse):
        for name in names:
            path, suffix = os.path.join(place, name), os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES or (not suffix and _is_picture(path)):
                relative = pathlib.Path(path).relative_to(folder).as_posix()
                found.append(File(_key(relative), os.path.abspath(path)))
    return sorted(found, key=lambda source: source.key)


def from_list(file: pathlib.Path, folder: pathlib.Path) -> list[Source]:
    """Return the images that a text names, one path a line, in that order and each once.

    Args:
        file: UTF-8 text; empty lines are passed over.
        folder: what the paths are relative to.

    Raises:
        SgqlmError: the list cannot be read.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.SgqlmError(
            "the list of images cannot be read",
            where=str(file),
            why=str(error),
            fix="give a text file with the path of one image a line",
        ) from error
    keys = dict.fromkeys(line.strip() for line in lines)
    return [File(key, os.path.abspath(folder / key)) for key in keys if key]


def from_store(folder: pathlib.Path) -> list[Source]:
    """Return the images of an image store in the order of its rows."""
    store = records.ImageStore(folder)
    digest = records.file_digest(store.folder / records.MANIFEST)
    place = os.path.abspath(folder)
    return [Row(key, place, row, digest) for row, key in enumerate(store.keys())]


def check(sources: Sequence[Source], where: str) -> None:
    """Refuse no images at all, and two with one key.

    Raises:
        SgqlmError: see above.
    """
    if not sources:
        raise errors.SgqlmError(
            "there are no images to work on",
            where=where,
            fix="give a folder that holds photographs",
            code=errors.DATA,
        )
    seen: set[str] = set()
    for source in sources:
        if source.key in seen:
            raise errors.SgqlmError(
                "a key occurs twice", where=source.key, fix="give every image once",
                code=errors.DATA,
            )  # fmt: skip
        seen.add(source.key)


def _refuse(error: OSError) -> None:
    raise errors.SgqlmError(
        "a folder cannot be read", where=str(error.filename), why=str(error.strerror),
        fix="mend its permissions, or give another folder",
    ) from error  # fmt: skip


def _is_picture(path: str) -> bool:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return is_file and file.read(8).startswith(_STARTS)
    except OSError:
        return False


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe waits for its writer


def _key(relative: str) -> str:
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


@functools.lru_cache(maxsize=4)
def _store(folder: str, digest: str) -> records.ImageStore:
    """Open a store once in a process; another digest is another store at the same place."""
    return records.ImageStore(folder)
