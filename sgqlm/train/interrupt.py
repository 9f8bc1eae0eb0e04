"""Requests to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import contextlib
import multiprocessing
import os
import select
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sgqlm import errors

GRACE_SECONDS = 10.0  # for the main thread to leave, before a signal ends a long compilation
_CODES = {signal.SIGTERM: errors.PREEMPTED, signal.SIGINT: errors.INTERRUPTED}


class Stopped(KeyboardInterrupt):
    """Ends a run that has nothing to save; no handler of ordinary errors takes it for one."""


class Interrupt:
    """Turns SIGTERM and Ctrl-C into an orderly end; a context manager.

    Until `hold` nothing would be lost: a signal ends the run at once. From then on it is remembered
    and the loop, which asks `is_requested` before every step, saves first. A second Ctrl-C ends the
    process on the spot. Signals can be caught in the main thread only; in another one they act as
    usual. With several processes jax receives SIGTERM and all stop before the same step; Ctrl-C is
    passed on as SIGTERM.

    Attributes:
        signal: the first one that came.
        saved: the newest checkpoint, for messages.
    """

    def __init__(self):
        self.signal: int | None = None
        self.saved = ""
        self._is_held, self._is_alone, self._asked = False, True, 0
        self._previous: dict[int, Any] = {}
        self._pipe = (-1, -1)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)

    def __enter__(self):
        """Install the handlers."""
        if threading.current_thread() is not threading.main_thread():
            return self
        self._is_alone = jax.process_count() == 1
        caught = [signal.SIGTERM, signal.SIGINT] if self._is_alone else [signal.SIGINT]
        for number in caught:
            self._previous[number] = signal.signal(number, self._remember)
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, kind, *exc_info):
        """Put the handlers back; leave with the error of a signal that came before `hold`."""
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            self._previous = {}
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # ends the thread
            self._thread.join()
        if kind is not None and issubclass(kind, Stopped):
            raise self.error() from None

    def hold(self) -> None:
        """Remember signals from now on: there is something to save."""
        self._is_held = True

    def release(self) -> None:
        """Leave at once on a signal again: all is saved."""
        self._is_held = False

    def is_pending(self) -> bool:
        """Tell whether to end what comes between two steps; with several processes none does."""
        return self.signal is not None and self._is_alone

    def is_requested(self) -> bool:
        """Tell whether to stop before the next step; all processes of a run agree on the step."""
        if self._is_alone:
            return self.signal is not None
        self._asked += 1  # not the step of a stage, which begins again with every stage
        if not multihost_utils.reached_preemption_sync_point(self._asked):
            return False
        is_key = np.asarray(self.signal == signal.SIGINT)
        is_key = multihost_utils.process_allgather(is_key).any()
        self.signal = signal.SIGINT if is_key else signal.SIGTERM
        return True

    def error(self, saved: str = "") -> errors.SgqlmError:
        """Return the error to leave with.

        Args:
            saved: where the state was saved for this; empty: there was nothing to save.
        """
        name = "SIGTERM" if self.signal == signal.SIGTERM else "Ctrl-C"
        why = "the state was saved first"
        if not saved:
            why = "nothing was done since it was saved" if self.saved else "nothing to save yet"
        return errors.SgqlmError(
            f"stopped by {name}",
            where=saved or self.saved,
            why=why,
            fix="run the same command again to go on from there",
            code=_CODES[signal.Signals(self.signal or signal.SIGINT)],
        )

    def _remember(self, number, frame):
        del frame
        is_first, self.signal = self.signal is None, self.signal or number
        if not self._is_alone:
            os.kill(os.getpid(), signal.SIGTERM)  # to the service by which processes agree
        elif is_first and not self._is_held:
            raise Stopped

    def _watch(self):
        """Act where the main thread cannot, since it waits for compiled code."""
        keys, unseen = 0, None
        with os.fdopen(self._pipe[0], "rb", buffering=0) as stream:
            while True:
                limit = None if unseen is None or self._is_held else GRACE_SECONDS
                if not select.select([stream], [], [], limit)[0]:
                    if self.signal is None and unseen is not None:
                        self._leave(unseen, "the process was busy")
                    unseen = None
                    continue
                received = stream.read(64)
                if not received:
                    return
                asked = [number for number in received if number in _CODES]
                unseen = asked[0] if asked and unseen is None else unseen
                if signal.SIGINT in asked:
                    keys += asked.count(signal.SIGINT)
                    if keys > 1:
                        self._leave(signal.SIGINT, "Ctrl-C came twice")
                    _say("Ctrl-C: stopping; press it again to end at once")

    def _leave(self, number: int, why: str):
        kept = f"; the last checkpoint is {self.saved}" if self.saved else ""
        _say(f"stopped at once, {why}{kept}")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(_CODES[signal.Signals(number)])


def _say(line: str):
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
