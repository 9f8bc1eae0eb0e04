"""Ask for many things at once, and get what was answered in order."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(ask: Callable[[T], R], todo: Iterable[T], parallel: int = 1) -> Iterator[tuple[T, R]]:
    """Yield every item with its answer, in the order of the items.

    After an error or a signal to stop nothing new is asked; what was under way is waited for and
    yielded before the error is raised, since somebody may have paid for it. A second signal ends
    the waiting.

    Args:
        ask: item -> answer; called by several threads where `parallel` is above 1.
        todo: the items.
        parallel: how many are asked at once.
    """
    if parallel <= 1:
        for item in todo:
            yield item, ask(item)
        return
    rest, failed = iter(todo), None
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        coming = collections.deque(
            (item, pool.submit(ask, item)) for item in itertools.islice(rest, parallel)
        )
        while coming:
            item, future = coming[0]
            try:
                answer = future.result()
            except BaseException as error:
                if isinstance(failed, KeyboardInterrupt) and isinstance(error, KeyboardInterrupt):
                    raise
                if isinstance(error, KeyboardInterrupt):  # of this thread: the answer may yet come
                    failed = error
                else:
                    failed = failed or error
                    coming.popleft()
                continue
            coming.popleft()
            yield item, answer
            if failed is None:
                coming.extend((new, pool.submit(ask, new)) for new in itertools.islice(rest, 1))
    if failed is not None:
        raise failed
