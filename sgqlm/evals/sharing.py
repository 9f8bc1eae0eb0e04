"""One evaluation by several processes: who asks what, what they tell each other, who still lives.

Each process holds the model on devices of its own and writes answers to a file of its own. While
they work they meet only in a folder on the disk that they share, never in a collective of jax: one
that is slow, stopped or killed keeps no other waiting in a program.
"""

import atexit
import contextlib
import json
import os
import pathlib
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from sgqlm import errors
from sgqlm.data import lock
from sgqlm.evals import answers
from sgqlm.parallel import distributed

LOCK = ".lock"
BEAT_SECONDS = 5.0  # between two signs of life
WATCH_SECONDS = 80.0  # without one a process is dead; network disks may show a file a minute late
POLL_SECONDS = 0.5
GO_ON = "start the same command again, with as many processes or another number: answers are kept"
_BEAT, _FAILED, _FINISHED = "beat", "failed", "finished"


class Team:
    """The processes of one evaluation as each of them sees it; `join` makes it.

    Args:
        folder: of the signs that they leave for each other; one process alone leaves none.
        index: of this process; 0 is the main one.
        count: of all.
        watch_seconds: without a sign of life another process is dead.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        index: int = 0,
        count: int = 1,
        *,
        watch_seconds: float = WATCH_SECONDS,
    ):
        """See the class."""
        self.folder, self.index, self.count = folder, index, count
        self.has_lost = False
        self._watch_seconds = watch_seconds
        self._seen = {at: ("", time.monotonic()) for at in self._others}

    @property
    def is_main(self) -> bool:
        """Whether this process tells, merges and scores."""
        return self.index == 0

    @property
    def _others(self) -> list[int]:
        return [at for at in range(self.count) if at != self.index]

    def say(self, name: str, text: str = "null") -> None:
        """Leave a sign for the others."""
        if self.count > 1:
            aside = self.folder / f".{name}-{self.index}.tmp"
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, self.folder / name)

    def hear(self, name: str, about: str = "") -> str:
        """Wait for a sign and return its text; see `check` for what ends the waiting.

        Args:
            name: of the sign.
            about: what is waited for, for a line where it is not there yet.
        """
        while not (text := self._read(name)):
            if about:
                print(f"waiting for {about}", file=sys.stderr, flush=True)
                about = ""
            self.check()
            time.sleep(POLL_SECONDS)
        return text

    def agree(self, name: str, make: Callable[[], Any]) -> Any:
        """Return in every process the json value that `make` gives in the main one."""
        if self.is_main:
            value = make()
            self.say(name, json.dumps(value))
            return value
        return json.loads(self.hear(name))

    def done(self, name: str) -> None:
        """Say that this process has done its share of `name`; the main one waits for the others."""
        self.say(f"done-{name}-{self.index}")
        if self.is_main:
            for at in self._others:
                self.hear(f"done-{name}-{at}", f"the answers of process {at} to {name}")

    def check(self) -> None:
        """Make sure that the others are at work.

        Raises:
            SgqlmError: another process failed, with its exit code; or it is gone.
        """
        for at in self._others:
            if failed := self._read(f"{_FAILED}-{at}"):
                about = json.loads(failed)
                raise errors.SgqlmError(
                    f"process {at} of the evaluation failed",
                    where=about["host"],
                    why=about["what"],
                    fix=GO_ON,
                    code=about["code"],
                )
            text = self._read(f"{_BEAT}-{at}")
            before, since = self._seen[at]
            now = time.monotonic()
            if text != before:
                self._seen[at] = (text, now)
            elif now - since > self._watch_seconds or _is_gone(text):
                self.has_lost = True
                raise errors.SgqlmError(
                    f"process {at} of the evaluation is gone",
                    where=json.loads(text)["host"] if text else str(self.folder),
                    why="it was killed, or its machine cannot be reached any more",
                    fix=GO_ON,
                    code=errors.RESOURCES,
                )

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Give signs of life, and tell the others how the work ended here."""
        if self.count == 1:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stopped = threading.Event()
        beat = threading.Thread(target=self._give_signs, args=(stopped,), daemon=True)
        beat.start()
        try:
            yield
            if self.is_main:
                self.say(_FINISHED)
            else:  # the main one may still work, and jax ends no process before the others
                self.hear(_FINISHED)
        except BaseException as error:
            self._tell(error)
            raise
        finally:
            stopped.set()
            beat.join()
            with contextlib.suppress(OSError):
                (self.folder / f"{_BEAT}-{self.index}").unlink(missing_ok=True)
        if self.is_main:
            self._clear()

    def _read(self, name: str) -> str:
        """Return the text of a sign; empty where there is none, or the disk does not show it."""
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except OSError:
            return ""

    def _give_signs(self, stopped: threading.Event) -> None:
        number = 0
        while not stopped.is_set():
            about = {
                "host": socket.gethostname(),
                "space": pid_space(),
                "pid": os.getpid(),
                "beat": number,
            }
            with contextlib.suppress(OSError):
                self.say(f"{_BEAT}-{self.index}", json.dumps(about))
            number += 1
            stopped.wait(BEAT_SECONDS)

    def _tell(self, error: BaseException) -> None:
        code = errors.INTERRUPTED if isinstance(error, KeyboardInterrupt) else errors.RESOURCES
        about = {
            "host": socket.gethostname(),
            "what": getattr(error, "what", "") or f"{type(error).__name__}: {error}",
            "code": getattr(error, "code", None) or code,
        }
        with contextlib.suppress(OSError):
            self.say(f"{_FAILED}-{self.index}", json.dumps(about))
        if self.has_lost:
            _end_without_waiting(about["code"])

    def _clear(self) -> None:
        """Remove the signs once the others have left; after a failure they stay to be seen."""
        limit = time.monotonic() + distributed.SHARED_SECONDS
        while any(self.folder.glob(f"{_BEAT}-*")) and time.monotonic() < limit:
            time.sleep(POLL_SECONDS / 5)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def join(folders: Sequence[pathlib.Path]) -> Iterator[Team]:
    """Claim folders of results for the processes of this evaluation while the context lasts.

    All processes call it, after `distributed.initialize`. A folder that stays empty is removed.

    Args:
        folders: of the results, one or more; made where they are missing.

    Yields:
        The team.

    Raises:
        SgqlmError: another evaluation works there, or the processes do not share the folders.
    """
    above = [path for folder in folders for path in (folder, *folder.parents)]
    missing = sorted(
        {path for path in above if not path.exists()}, key=lambda path: -len(path.parts)
    )
    with contextlib.ExitStack() as stack:

        def claim():
            for folder in folders:
                stack.enter_context(_claimed(folder))

        try:
            distributed.on_main(claim, "claim the folder of the results")
            distributed.check_shared(
                folders[0], what="the folder of the results", fix="give an --out on a disk that "
                "all hosts mount",
            )  # fmt: skip
            token = distributed.from_main(lambda: secrets.token_hex(4).encode(), "begin").decode()
            team = Team(folders[0] / f".run-{token}", jax.process_index(), jax.process_count())
            with team.at_work():
                yield team
        finally:
            if distributed.is_main():
                _remove_empty(folders, missing)


def share(groups: Sequence[Sequence[int]], team: Team) -> list[Sequence[int]]:
    """Return what this process asks, of a list that is the same in all of them.

    Groups stay whole, and all processes get as much, as far as that can be: the largest group that
    is left goes to the one that has least.
    """
    loads, own = [0] * team.count, []
    for number in sorted(range(len(groups)), key=lambda at: -len(groups[at])):
        least = loads.index(min(loads))
        loads[least] += len(groups[number])
        if least == team.index:
            own.append(number)
    return [groups[number] for number in sorted(own)]


def own_file(path: pathlib.Path, team: Team) -> pathlib.Path:
    """Return the file of this process; the main one has `path`. Example: progress.3.jsonl."""
    return path if team.is_main else path.with_suffix(f".{team.index}{path.suffix}")


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of all processes of this and earlier runs, the main one's first."""
    others = path.parent.glob(f"{path.stem}.*{path.suffix}")
    numbered = [(other.suffixes[-2][1:], other) for other in others if len(other.suffixes) > 1]
    rest = sorted((int(number), other) for number, other in numbered if number.isdecimal())
    return [path] * path.is_file() + [other for _, other in rest]


def known(
    path: pathlib.Path, header: Mapping[str, Any] | None = None, *, is_idle: bool = True
) -> dict[str, dict]:
    """Return the answers in the files of all processes by their key.

    Args:
        path: of the main process; the others lie beside it.
        header: what the answers must be to; None for anything.
        is_idle: nobody writes: a last line that a killed run left unfinished is cut off. Else it
            is passed over, since the disk may show the rest of it later.

    Raises:
        SgqlmError: a file has answers to another evaluation, or is damaged.
    """
    found: dict[str, dict] = {}
    for file in files(path):
        if not (answers.cut_unfinished(file) if is_idle else b"\n" in file.read_bytes()):
            continue
        head, lines = answers.read(file)
        if header is not None:
            answers.compare(head, header, file)
        for line in lines:
            found.setdefault(line["key"], line)
    return found


def wait_for(path: pathlib.Path, keys: Sequence[str]) -> list[dict]:
    """Return the answers to these keys; `known` has all, at the latest when the disk shows them.

    Raises:
        SgqlmError: it has not.
    """
    limit = time.monotonic() + distributed.SHARED_SECONDS
    while True:
        found = known(path, is_idle=False)
        missing = [key for key in keys if key not in found]
        if not missing:
            return [found[key] for key in keys]
        if time.monotonic() > limit or len(files(path)) < 2:  # no other process: nothing to come
            raise errors.SgqlmError(
                f"{len(missing)} of {len(keys)} answers are not there",
                where=str(path.parent),
                why="a file of another process was removed, or the disk does not show it",
                fix="start the same command again: answers that are there are kept",
                code=errors.RESOURCES,
            )
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _claimed(folder: pathlib.Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).open("a").close()
    except OSError as error:
        raise errors.SgqlmError(
            "the folder of the results cannot be written",
            where=str(folder),
            why=str(error),
            fix="give another --out",
        ) from error
    with lock.hold(folder / LOCK, "the folder of the results", "give another --out"):
        for old in folder.glob(".run-*"):  # of a run that was killed
            shutil.rmtree(old, ignore_errors=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()


def _remove_empty(folders: Sequence[pathlib.Path], made: Sequence[pathlib.Path]) -> None:
    """Remove folders that this run made for nothing, as after a mistake in the command."""
    for folder in made:
        if folder in folders and {path.name for path in folder.glob("*")} <= {LOCK}:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def pid_space() -> str:
    """Return what processes share whose numbers mean the same; empty where it is not known.

    The host's name is not enough: two containers can have one, each with numbers of its own.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot.strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(text: str) -> bool:
    """Tell whether a sign of life is of a process of this machine that has ended."""
    about = json.loads(text) if text else {}
    if not about.get("space") or about["space"] != pid_space():
        return False
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:  # one that has ended keeps its number until its parent asks how
        about_it = pathlib.Path(f"/proc/{about['pid']}/stat").read_text(encoding="utf-8")
        return about_it.rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False


def _end_without_waiting(code: int) -> None:
    """Let the process end at once: jax would wait for the one that is gone, and then abort."""

    def end():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(end)  # functions of atexit run in reverse order, so before that of jax
