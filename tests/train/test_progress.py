import itertools

import pytest

from sgqlm.train import prefetch, progress


def test_plain_lines_say_what_how_much_and_time_left(capsys):
    with progress.Progress("align", 4, interval=0.0) as shown:
        for done in range(1, 5):
            shown.update(done, f"loss {done}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("align 2/4 loss 2 left ")
    assert lines[3].startswith("align 4/4 loss 4 took ")


def test_lines_come_at_intervals_and_at_the_end(capsys):
    with progress.Progress("align", 4, interval=1e6) as shown:
        for done in range(1, 5):
            shown.update(done)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_processes_are_silent(capsys):
    with progress.Progress("align", 1, is_active=False) as shown:
        shown.update(1)
        shown.print("hello")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3s"), (65.0, "1m05s"), (3725.0, "1h02m")])
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_prefetch_keeps_order_and_stops():
    drawn, closed = [], []

    def items():
        try:
            for step in itertools.count(2):
                drawn.append(step)
                yield step
        finally:
            closed.append(True)

    ahead = prefetch.Prefetch(items(), lambda step: step * step, count=100)
    assert [ahead.next() for _ in range(3)] == [4, 9, 16]
    ahead.close()
    assert len(drawn) < 10
    assert closed


def test_prefetch_raises_where_the_batch_is_used():
    def transform(step):
        if step == 1:
            raise ValueError("broken")
        return step

    ahead = prefetch.Prefetch(range(3), transform, count=3)
    assert ahead.next() == 0
    with pytest.raises(ValueError, match="broken"):
        ahead.next()
    ahead.close()
