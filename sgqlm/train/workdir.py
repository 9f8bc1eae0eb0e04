"""The folder of a run: may it be written, is there room, and is no other process in it."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from flax import traverse_util

from sgqlm import config, errors, types
from sgqlm.models import lora
from sgqlm.train import checkpoint, writing

LOCK = ".lock"
BEAT_SECONDS = 10.0  # between two signs of life
WATCH_SECONDS = 45.0  # without one, the process of another host is gone


def local(path: str | os.PathLike) -> pathlib.Path:
    """Return the path of a work directory, which must be a folder and no address of a bucket.

    Raises:
        SgqlmError: it is an address such as `gs://bucket/run`.
    """
    address = re.match(r"(\w+):/", os.fspath(path))
    if address:
        raise errors.SgqlmError(
            f"an address ({address[1]}://) is not a folder that can be a work directory",
            where="config.train.workdir",
            why="a checkpoint gets its name by renaming a folder once it is complete",
            fix="mount the bucket (gcsfuse) and give the folder; docs/laptop_to_slice.md shows how",
        )
    return pathlib.Path(path)


@contextlib.contextmanager
def claim(folder: pathlib.Path, *, watch_seconds: float = WATCH_SECONDS) -> Iterator[None]:
    """Make the folder and keep other processes out of it while the context lasts.

    The lock is a POSIX record lock on `.lock`, which the system drops with the process, so a killed
    run leaves nothing behind. Its holder touches the file now and then: where a file system does
    not share locks between hosts, that tells a living process of another host from a dead one.

    Args:
        folder: of the run.
        watch_seconds: how long to look for a sign of life of another host.

    Raises:
        SgqlmError: the folder cannot be written, or another process is in it.
    """
    try:
        (folder / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / checkpoint.FOLDER):
            probe = place / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        stream = (folder / LOCK).open("a+")
    except OSError as error:
        raise errors.SgqlmError(
            "the work directory cannot be written",
            where=str(folder),
            why=str(error),
            fix="give another config.train.workdir",
        ) from error
    stopped = threading.Event()
    with stream:
        _take(stream, folder / LOCK, watch_seconds)
        beat = threading.Thread(target=_beat, args=(folder / LOCK, stopped), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stopped.set()
            beat.join()
            with contextlib.suppress(OSError):
                stream.truncate(0)  # removing it could remove the lock of the next process


def check_room(folder: pathlib.Path, needed: int, what: str) -> None:
    """Refuse to begin what would fill the disk.

    Args:
        folder: where it will be written; need not exist. Its checkpoints count as room, since new
            ones replace them.
        needed: bytes.
        what: for the message.

    Raises:
        SgqlmError: there is too little room (code `RESOURCES`).
    """
    free = shutil.disk_usage(writing.existing(folder)).free
    files = (folder / checkpoint.FOLDER).rglob("*")
    held = sum(file.stat().st_size for file in files if file.is_file())
    if free + held < needed:
        raise errors.SgqlmError(
            f"the disk has too little room for {what}",
            where=str(folder),
            why=f"{writing.megabytes(needed)} are needed and {writing.megabytes(free)} are free",
            fix="free some room, lower config.train.keep, or give another config.train.workdir",
            code=errors.RESOURCES,
        )


def checkpoint_bytes(
    shapes: types.Params, rows: Sequence[config.StageConfig], *, has_base: bool
) -> int:
    """Estimate the size of the largest checkpoint: what differs from the base, and the optimizer.

    Args:
        shapes: of all parameters.
        rows: the stages. Parameters of parts that train are float32, Adam keeps two moments.
        has_base: what does not train lies in the base.

    Returns:
        Bytes, before compression.
    """
    sizes: dict[str, int] = {}
    flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
    for path, leaf in flat.items():
        part = lora.part_of(path)
        sizes[part] = sizes.get(part, 0) + 4 * leaf.size
    trained = {part for row in rows for part in row.learning_rates}
    params = sum(size for part, size in sizes.items() if part in trained or not has_base)
    moments = (sum(2 * sizes.get(part, 0) for part in row.learning_rates) for row in rows)
    return params + max(moments, default=0)


def _take(stream, file: pathlib.Path, watch_seconds: float):
    host, is_shared = socket.gethostname(), True
    stream.seek(0)
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _locked(file, _owner(stream)) from None
    except OSError:  # a file system without locks: the content alone decides
        is_shared = False
    owner = _owner(stream)
    if owner:
        is_here = owner.get("host") == host
        is_alive = not is_shared and _runs(owner) if is_here else _beats(file, owner, watch_seconds)
        if is_alive:
            raise _locked(file, owner)
        gone = "process {pid} on {host}, which is gone".format(**{"pid": "?", "host": "?"} | owner)
        print(f"{file}: taken over from {gone}", file=sys.stderr, flush=True)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    stream.truncate(0)
    json.dump({"pid": os.getpid(), "host": host, "since": now}, stream)
    stream.flush()


def _owner(stream) -> dict[str, Any]:
    stream.seek(0)
    text = stream.read()
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {"pid": "?", "host": "?"}


def _runs(owner: dict[str, Any]) -> bool:
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, ValueError, KeyError):
        return False
    except PermissionError:
        pass
    return True


def _beats(file: pathlib.Path, owner: dict[str, Any], seconds: float) -> bool:
    """Watch the time stamp of the file; clocks are not compared, since they may differ."""
    about = f"locked by process {owner.get('pid')} on {owner.get('host')}"
    print(f"{file}: {about}; is it alive? ({seconds:.0f} s)", file=sys.stderr, flush=True)
    before, waiting = file.stat().st_mtime_ns, threading.Event()
    for _ in range(20):
        waiting.wait(seconds / 20)
        if file.stat().st_mtime_ns != before:
            return True
    return False


def _beat(file: pathlib.Path, stopped: threading.Event):
    while not stopped.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


def _locked(file: pathlib.Path, owner: dict[str, Any]) -> errors.SgqlmError:
    about = {"pid": "?", "host": "?", "since": "?"} | owner
    return errors.SgqlmError(
        "the work directory is locked by process {pid} on {host} since {since}".format(**about),
        where=str(file),
        why="two runs in one work directory would overwrite each other",
        fix=f"wait for it, give another config.train.workdir, or, if it is gone, delete {file}",
    )
