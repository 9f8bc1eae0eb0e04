import os
import signal
import threading

import pytest

from sgqlm.evals import asking


def test_answers_come_in_order_whoever_is_first():
    last = threading.Event()

    def ask(item):
        if item == 0:
            assert last.wait(10)  # the others are asked meanwhile
        if item == 2:
            last.set()
        return item * 10

    expected = [(n, n * 10) for n in range(7)]
    assert list(asking.each(ask, range(7), 3)) == expected
    assert list(asking.each(ask, range(7), 1)) == expected and not list(asking.each(ask, [], 2))


@pytest.mark.parametrize("parallel", [1, 3])
def test_what_was_answered_beside_an_error_is_kept(parallel):
    both, asked = threading.Barrier(parallel), []

    def ask(item):
        asked.append(item)
        if item < 3 and parallel > 1:
            both.wait(10)
        if item == 1:
            raise OSError("gone")
        return item

    seen = []
    with pytest.raises(OSError, match="gone"):
        for item, _ in asking.each(ask, range(20), parallel):
            seen.append(item)
    assert seen[:1] == [0] and 1 not in seen
    assert sorted([*seen, 1]) == sorted(asked) and len(asked) < 6
    if parallel > 1:
        assert 2 in seen


def test_what_is_under_way_at_a_signal_is_kept():
    """The answers that were asked for come before the interrupt, which is no failed item."""
    asked, go_on = [], threading.Event()

    def ask(item):
        asked.append(item)
        if item == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Timer(0.2, go_on.set).start()
        assert go_on.wait(10)
        return item

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for item, _ in asking.each(ask, range(20), 3):
            seen.append(item)
    assert seen == [0, 1, 2] == sorted(asked)
