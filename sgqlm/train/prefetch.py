"""Batches made ahead of time by one background thread."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any


class Prefetch:
    """Draws `count` items in a thread, two ahead, and applies `transform` to each there.

    Args:
        items: what is drawn; closed at the end if it is a generator.
        transform: applied to every item.
        count: how many items are drawn at most.
        depth: how many results wait at most.
    """

    def __init__(
        self,
        items: Iterable[Any],
        transform: Callable[[Any], Any],
        *,
        count: int,
        depth: int = 2,
    ):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        args = (items, transform, count)
        self._thread = threading.Thread(target=self._work, args=args, daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """Return the next result, or raise what went wrong while it was made."""
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

    def _work(self, items, transform, count):
        iterator = iter(items)
        try:
            for _ in range(count):
                if self._stopped.is_set():
                    break
                self._queue.put((transform(next(iterator)), None))
        except Exception as error:  # raised where the batch is used
            self._queue.put((None, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
