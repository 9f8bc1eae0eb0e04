"""What a user sees while something takes long."""

import sys
import time

from rich import console as rich_console
from rich import progress as rich_progress


class Progress:
    """One line of progress: a moving bar on a terminal, a plain line every interval elsewhere.

    Use it as a context manager.

    Args:
        what: name of the work, such as `align`.
        total: number of steps.
        done: steps that were done before.
        is_active: False on all processes but the first.
        interval: seconds between plain lines.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        is_active: bool = True,
        interval: float = 10.0,
    ):
        self._what, self._total, self._done, self._start = what, total, done, done
        self._is_active, self._interval = is_active, interval
        self._began = self._told = time.monotonic()
        self._bar, self._task = None, None
        if is_active and sys.stderr.isatty():
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
                rich_progress.TimeRemainingColumn(),
                console=rich_console.Console(stderr=True),
            )

    def __enter__(self):
        """Start to show."""
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                self._what, total=self._total, completed=self._done, note=""
            )
        return self

    def __exit__(self, *exc_info):
        """Stop to show."""
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` steps are done; `note` is shown beside, such as the loss."""
        self._done = done
        now = time.monotonic()
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self._is_active and (now - self._told >= self._interval or done == self._total):
            self._told = now
            self.print(f"{self._what} {done}/{self._total} {note} {self._left(now)}")

    def print(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar:
            self._bar.console.print(line, highlight=False)
        elif self._is_active:
            print(line, file=sys.stderr, flush=True)

    def _left(self, now: float) -> str:
        fresh = self._done - self._start
        if not fresh or self._done >= self._total:
            return f"took {duration(now - self._began)}"
        left = (now - self._began) / fresh * (self._total - self._done)
        return f"left {duration(left)}"


def duration(seconds: float) -> str:
    """Return a time span in words. Example: 3725 gives `1h02m`, 65 gives `1m05s`."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
