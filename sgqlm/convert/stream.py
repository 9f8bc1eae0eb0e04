"""An export folder, written tensor by tensor and named only when it is complete.

The place of every tensor is planned first, so tensors may arrive in any order and in parts, and
no more than one of them is in memory.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sgqlm import errors
from sgqlm.convert import header, manifest

MANIFEST = "sgqlm_export.json"
_MARK = ".unfinished"  # in a folder aside: it is ours to remove, and locked while we live
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_BLOCK = 32 * 2**20  # bytes that are made contiguous at a time; two of them are in memory


class TensorSpec(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


class Shard(NamedTuple):
    """One file of a plan: its name, its first bytes, the place of every tensor, its size."""

    file: str
    head: bytes
    infos: dict[str, header.Info]
    num_bytes: int


class Plan(NamedTuple):
    """Where every tensor of an export goes.

    Attributes:
        stem: what the files are called.
        shards: the files.
        total_size: bytes of all tensors.
        num_bytes: bytes of all files, headers included.
    """

    stem: str
    shards: tuple[Shard, ...]
    total_size: int
    num_bytes: int


def plan(
    tensors: Sequence[TensorSpec], *, max_shard_size: int = 5_000_000_000, stem: str = "model"
) -> Plan:
    """Plan the files of an export; the same tensors in any order give the same plan.

    Args:
        tensors: what will be written.
        max_shard_size: bytes of tensors in a file; a larger tensor has a file of its own.
        stem: `model` gives `model.safetensors` or `model-00001-of-00002.safetensors`.

    Raises:
        SgqlmError: there is no tensor, a name comes twice, or a dtype cannot be stored.
    """
    groups: list[list[tuple[str, str, tuple[int, ...]]]] = []
    room, total, seen = 0, 0, set()
    for name, dtype, shape in sorted(tensors, key=lambda spec: _natural(spec.name)):
        if name in seen or name == header.METADATA or dtype not in header.CODES:
            kind = "comes twice" if name in seen else f"cannot be stored ({dtype})"
            raise header.fault(f"the tensor {name} {kind}", stem, fix="mend the table of names")
        seen.add(name)
        size = math.prod(shape) * dtype.itemsize
        if not groups or size > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append((name, header.CODES[dtype], tuple(shape)))
        room, total = room - size, total + size
    if not groups:
        raise header.fault("there is no tensor to write", stem, fix="give at least one")
    shards = []
    for number, group in enumerate(groups, 1):
        part = f"-{number:05d}-of-{len(groups):05d}" if len(groups) > 1 else ""
        head, infos = header.encode(group)
        num_bytes = max(info.stop for info in infos.values())
        shards.append(Shard(f"{stem}{part}.safetensors", head, infos, num_bytes))
    return Plan(stem, tuple(shards), total, sum(shard.num_bytes for shard in shards))


class Weights:
    """Writes the tensors of a plan, in any order; each exactly once."""

    def __init__(self, folder: pathlib.Path, plan: Plan, *, out: pathlib.Path):
        self._folder, self._plan, self._out = folder, plan, out
        self._places: dict[str, tuple[int, header.Info]] = {}
        self._written: dict[str, list[tuple[int, int]]] = {}  # name -> parts, in elements
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            for shard in plan.shards:
                file = _open_new(folder / shard.file)
                opened.callback(os.close, file)
                os.ftruncate(file, shard.num_bytes)
                _pwrite(file, shard.head, 0)
                self._places |= {name: (file, info) for name, info in shard.infos.items()}
            self._stack = opened.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:
            self.abandon()

    def put(self, name: str, array: npt.ArrayLike) -> None:
        """Write a whole tensor.

        Raises:
            SgqlmError: it is not planned, not as planned, already written, or the disk is full.
        """
        array = np.asarray(array)
        info = self._check(name, array.dtype)
        if array.shape != info.shape:
            raise self._error(f"{name} has the shape {array.shape}, planned is {info.shape}")
        self._write(name, array, 0)

    def put_rows(self, name: str, array: npt.ArrayLike, *, start: int) -> None:
        """Write `array` as the rows of a tensor from `start` on; the parts may come in any order.

        Raises:
            SgqlmError: as `put`, or the rows overlap with others or are not in the tensor.
        """
        array = np.asarray(array)
        shape = self._check(name, array.dtype).shape
        is_part = bool(shape) and array.ndim == len(shape) and array.shape[1:] == shape[1:]
        if not is_part or start < 0 or start + len(array) > shape[0]:
            raise self._error(f"rows {array.shape} from {start} on are not in {name} {shape}")
        self._write(name, array, start * math.prod(shape[1:]))

    def close(self) -> None:
        """Put everything on the disk and write the index; called again, it does nothing.

        Raises:
            SgqlmError: a planned tensor was not, or not wholly, written.
        """
        if not self._places:
            return
        lacking = []
        for name, (_, info) in self._places.items():
            count = sum(stop - start for start, stop in self._written.get(name, ()))
            if name not in self._written or count != math.prod(info.shape):
                lacking.append(f"{name} ({count} of {math.prod(info.shape)} elements)")
        if lacking:
            what = f"{len(lacking)} planned tensors were not written"
            raise self._error(what, why=header.table(lacking))
        with _told(self._out):
            for file in {file for file, _ in self._places.values()}:
                os.fsync(file)
            self.abandon()
            if len(self._plan.shards) > 1:
                self._write_index()

    def abandon(self) -> None:
        """Close the files as they are."""
        self._places = {}
        self._stack.close()

    def _write_index(self) -> None:
        files = {name: shard.file for shard in self._plan.shards for name in shard.infos}
        tree = {
            "metadata": {"total_size": self._plan.total_size},
            "weight_map": dict(sorted(files.items())),
        }
        path = self._folder / f"{self._plan.stem}.safetensors.index.json"
        _write_new(path, json.dumps(tree, indent=2).encode() + b"\n")

    def _check(self, name: str, dtype: np.dtype) -> header.Info:
        if name not in self._places:
            raise self._error(f"{name} is not planned")
        info = self._places[name][1]
        if dtype != info.dtype:
            raise self._error(f"{name} has the dtype {dtype}, planned is {info.dtype}")
        return info

    def _write(self, name: str, array: np.ndarray, first: int) -> None:
        file, info = self._places[name]
        parts, last = self._written.setdefault(name, []), first + array.size
        is_empty = not math.prod(info.shape)
        if any(first < stop and start < last for start, stop in parts) or (parts and is_empty):
            raise self._error(f"{name} is written twice from element {first} on")
        offset = info.start + first * info.dtype.itemsize
        with _told(self._out):
            for block in _blocks(array):
                # the bytes are wanted in the order of the axes, not as a transposed array lies
                view = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
                _pwrite(file, view.data, offset)
                offset += len(view)
        parts.append((first, last))

    def _error(self, what: str, why: str = "") -> errors.SgqlmError:
        fix = "mend the table of names; nothing was exported"
        return header.fault(what, self._out, why=why, fix=fix)


class Folder:
    """An export folder, as a context; it appears under its name when `finish` has returned.

    Args:
        out: its name. What is written lies in `<out>.tmp-<pid>` until then, and is removed if
            anything is raised, or by the next export if the process is killed.
        overwrite: replace an earlier export; it stays until the new one is complete.
        needed_bytes: what will be written; more room must be free.

    Raises:
        SgqlmError: something else is there, or there is not enough room.
    """

    def __init__(self, out: str | os.PathLike, *, overwrite: bool = False, needed_bytes: int = 0):
        self._out, self._overwrite = pathlib.Path(out).resolve(), overwrite
        self._needed = needed_bytes
        self._aside = self._out.with_name(f"{self._out.name}.tmp-{os.getpid()}")
        self._writers: list[Weights] = []

    def __enter__(self):
        with _told(self._out):
            self._out.parent.mkdir(parents=True, exist_ok=True)
            _remove_left(self._out)
            _check_target(self._out, overwrite=self._overwrite)
            _check_room(self._out, self._needed)
            self._aside.mkdir()
            self._mark = _open_new(self._aside / _MARK)
            _lock(self._mark)
        return self

    def __exit__(self, kind, *_):
        for writer in self._writers:
            writer.abandon()
        os.close(self._mark)
        if self._aside.exists():
            shutil.rmtree(self._aside, ignore_errors=True)
            if kind is None:
                what = "the export was left without `finish`"
                raise header.fault(what, self._out, fix="call finish(...) as the last step")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a small file; `name` may have folders, and is written once."""
        parts = pathlib.PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or name in (MANIFEST, _MARK):
            what = f"{name!r} is no name for a file of an export"
            raise header.fault(what, self._out, fix="give a name inside the folder")
        path = self._aside.joinpath(*parts)
        with _told(self._out):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_new(path, data)

    def weights(self, plan: Plan) -> Weights:
        """Return the writer of a plan; `finish` closes it if nothing else has."""
        with _told(self._out):
            self._writers.append(Weights(self._aside, plan, out=self._out))
        return self._writers[-1]

    def finish(self, facts: Mapping[str, Any]) -> pathlib.Path:
        """Write the manifest, which is `facts` and the checksum of every file, and name the folder.

        Raises:
            SgqlmError: a planned tensor is missing, or the name was taken in the meantime.
        """
        with _told(self._out):
            for writer in self._writers:
                writer.close()
            listed = manifest.listing(self._aside, manifest=MANIFEST)
            del listed[_MARK]
            text = json.dumps({**facts, "files": listed}, indent=1)
            _write_new(self._aside / MANIFEST, text.encode() + b"\n")
            (self._aside / _MARK).unlink()
            for path in [self._aside, *self._aside.rglob("*")]:
                if path.is_dir():
                    path.chmod(_FOLDER_MODE)
                    _fsync(path)
            self._rename()
        return self._out

    def _rename(self) -> None:
        old = self._out.with_name(f"{self._out.name}.sgqlm-old-{os.getpid()}")
        is_old = self._overwrite and self._out.exists()
        if is_old:
            _check_target(self._out, overwrite=True)
            self._out.rename(old)
        try:
            self._aside.rename(self._out)  # fails if the target is there and not empty
        except OSError:
            if is_old:
                old.rename(self._out)
            else:
                _check_target(self._out, overwrite=False)
            raise
        _fsync(self._out.parent)
        if is_old:
            shutil.rmtree(old, ignore_errors=True)  # what stays is removed by the next export


def verify(folder: str | os.PathLike) -> list[str]:
    """Return what is wrong with the files of an export: missing, not listed, changed."""
    return manifest.faults(pathlib.Path(folder), manifest=MANIFEST)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that puts layer 2 before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array, cut along its leading axis where it has to be copied to be contiguous."""
    if array.flags.c_contiguous or array.ndim < 2:
        yield array
        return
    rows = max(1, _BLOCK * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _open_new(path: pathlib.Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    os.fchmod(file, _FILE_MODE)  # whatever the umask: a server under another user reads it
    return file


def _write_new(path: pathlib.Path, data: bytes) -> None:
    file = _open_new(path)
    try:
        _pwrite(file, data, 0)
        os.fsync(file)
    finally:
        os.close(file)


def _pwrite(file: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view[: 2**30], offset)
        view, offset = view[count:], offset + count


def _fsync(folder: pathlib.Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Take a lock, which goes with the process, and tell whether nobody else had it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks, where nobody can tell
        return False
    return True


def _is_left(folder: pathlib.Path) -> bool:
    """Tell whether a folder is one of ours and the process that wrote it is dead."""
    pid = int(folder.name.rpartition("-")[2])
    try:
        if pid != os.getpid():  # in a container every process may have the same number
            os.kill(pid, 0)
            return False
    except ProcessLookupError:
        pass
    except (PermissionError, OverflowError):
        return False
    if ".sgqlm-old-" in folder.name:
        return True
    try:
        file = os.open(folder / _MARK, os.O_RDWR)
    except OSError:
        return False
    try:
        return _lock(file)
    finally:
        os.close(file)


def _remove_left(out: pathlib.Path) -> None:
    """Remove what killed exports to `out` left, and put back what one of them had moved away."""
    name = re.compile(re.escape(out.name) + r"\.(tmp|sgqlm-old)-\d+")
    for folder in sorted(p for p in out.parent.iterdir() if name.fullmatch(p.name)):
        if folder.is_symlink() or not folder.is_dir() or not _is_left(folder):
            continue
        is_moved = ".sgqlm-old-" in folder.name and not out.exists()
        if is_moved:
            folder.rename(out)
        else:
            shutil.rmtree(folder)
        done = f"put back as {out.name}" if is_moved else "removed"
        print(f"{folder}: left by a killed export, {done}", file=sys.stderr, flush=True)


def _check_target(out: pathlib.Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise header.fault("the target is not a folder", out, fix="choose another name")
    if not any(out.iterdir()):
        return
    if not overwrite:
        fix = "choose another name, or overwrite an earlier export (--overwrite)"
        raise header.fault("the target exists and is not empty", out, fix=fix)
    if not (out / MANIFEST).is_file():
        why = f"it has no {MANIFEST}, so it is no export, and overwriting would delete it"
        raise header.fault("the target is not replaced", out, why=why, fix="choose another name")


def _check_room(out: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < 1.05 * needed:
        raise errors.SgqlmError(
            "there is no room for the export",
            where=str(out),
            why=f"{1.05 * needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free",
            fix="free some room, or export to another disk",
            code=errors.RESOURCES,
        )


@contextlib.contextmanager
def _told(out: pathlib.Path):
    """Turn an error of the file system into one with a remedy."""
    try:
        yield
    except FileExistsError as error:
        what = f"{error.filename} is written twice"
        raise header.fault(what, out, fix="export to one name from one place") from error
    except OSError as error:
        raise errors.SgqlmError(
            "the export could not be written",
            where=str(out),
            why=str(error),
            fix="free some room, or export to another disk; nothing was left behind",
            code=errors.RESOURCES,
        ) from error
