"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from sgqlm import errors


class Interrupt:
    """Remembers SIGTERM and SIGINT so that the loop can save first; a context manager.

    A second signal acts at once, as without this class. Signals can be caught in the main thread
    only; in another one they act as usual.
    """

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc_info):
        """Put the handlers back that were there before."""
        self._restore()

    def is_requested(self, step: int) -> bool:
        """Tell whether to stop before `step`; all processes of a run agree on the step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def error(self, saved: str) -> errors.SgqlmError:
        """Return the error to leave with after the state was saved at `saved`."""
        is_term = self.signal == signal.SIGTERM
        return errors.SgqlmError(
            "stopped by SIGTERM" if is_term else "stopped by Ctrl-C",
            where=saved,
            why="the state was saved first",
            fix="run the same command again to go on from there",
            code=errors.PREEMPTED if is_term else errors.INTERRUPTED,
        )

    def _remember(self, number, frame):
        del frame
        self.signal = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
