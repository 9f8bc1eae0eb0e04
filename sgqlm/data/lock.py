"""A lock file that one living process holds, also in a folder that several hosts share."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from sgqlm import errors

BEAT_SECONDS = 10.0  # between two signs of life
WATCH_SECONDS = 45.0  # without one, the process of another host is gone


@contextlib.contextmanager
def hold(
    file: pathlib.Path, what: str, fix: str, *, watch_seconds: float = WATCH_SECONDS
) -> Iterator[None]:
    """Keep other processes out while the context lasts.

    The lock is a POSIX record lock, which the system drops with the process, so a killed process
    leaves nothing behind. Its holder touches the file now and then: where a file system does not
    share locks between hosts, that tells a living process of another host from a dead one.

    Args:
        file: of the lock; its folder exists. The holder may delete it.
        what: is locked, for messages.
        fix: what a second process can do instead.
        watch_seconds: how long to look for a sign of life of another host.

    Raises:
        SgqlmError: another process holds the lock.
        OSError: the file cannot be written.
    """
    with _open(file, what, fix) as (stream, is_shared):
        _take(stream, file, what, fix, is_shared=is_shared, watch_seconds=watch_seconds)
        stopped = threading.Event()
        beat = threading.Thread(target=_beat, args=(file, stopped), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stopped.set()
            beat.join()
            with contextlib.suppress(OSError):
                stream.truncate(0)  # removing it here could remove the lock of the next process


@contextlib.contextmanager
def _open(file: pathlib.Path, what: str, fix: str) -> Iterator[tuple[TextIO, bool]]:
    """Open and lock the file that bears the name now: the last holder may have deleted another."""
    while True:
        with file.open("a+") as stream:
            is_shared = True
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise _locked(file, _owner(stream), what, fix) from None
            except OSError:  # a file system without locks: the content alone decides
                is_shared = False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                    yield stream, is_shared
                    return


def _take(
    stream: TextIO,
    file: pathlib.Path,
    what: str,
    fix: str,
    *,
    is_shared: bool,
    watch_seconds: float,
) -> None:
    host = socket.gethostname()
    if owner := _owner(stream):
        is_here = owner.get("host") == host
        is_alive = not is_shared and _runs(owner) if is_here else _beats(file, owner, watch_seconds)
        if is_alive:
            raise _locked(file, owner, what, fix)
        gone = "process {pid} on {host}, which is gone".format(**{"pid": "?", "host": "?"} | owner)
        print(f"{file}: taken over from {gone}", file=sys.stderr, flush=True)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    stream.truncate(0)
    json.dump({"pid": os.getpid(), "host": host, "since": now}, stream)
    stream.flush()


def _owner(stream: TextIO) -> dict[str, Any]:
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


def _beat(file: pathlib.Path, stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


def _locked(file: pathlib.Path, owner: dict[str, Any], what: str, fix: str) -> errors.SgqlmError:
    about = {"pid": "?", "host": "?", "since": "?"} | owner
    return errors.SgqlmError(
        "{what} is locked by process {pid} on {host} since {since}".format(what=what, **about),
        where=str(file),
        why=f"two processes in {what} would overwrite each other",
        fix=f"wait for it, {fix}, or, if it is gone, delete {file}",
    )
