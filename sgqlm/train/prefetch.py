"""Batches made ahead of time by one background thread."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class Prefetch:
    """Calls `make(step)` for step = start, start + 1, ... up to `stop` in a thread, two ahead.

    Args:
        make: builds what a step needs; its exception is raised by `next` of that step.
        start: first step.
        stop: step after the last one.
        depth: how many results wait at most.
    """

    def __init__(self, make: Callable[[int], Any], *, start: int, stop: int, depth: int = 2):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        args = (make, start, stop)
        self._thread = threading.Thread(target=self._work, args=args, daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """Return the result of the next step, waiting for it."""
        result, error = self._queue.get()
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _work(self, make, start, stop):
        for step in range(start, stop):
            if self._stopped.is_set():
                return
            try:
                entry = (make(step), None)
            except Exception as error:  # raised where the batch is used
                entry = (None, error)
            self._queue.put(entry)
            if entry[1] is not None:
                return
