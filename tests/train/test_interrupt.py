import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sgqlm import errors
from sgqlm.train import interrupt

BUSY = """
import numpy as np
from sgqlm.train import interrupt
interrupt.GRACE_SECONDS = 0.3
with interrupt.Interrupt() as stop:
    stop.saved = "the-checkpoint"
    work = np.ones((9000, 9000))
    print("busy", flush=True)
    work @ work  # compiled code, in which Python sees no signal
"""


def stop(number):
    os.kill(os.getpid(), number)
    for _ in range(1000):
        time.sleep(0.001)  # the handler runs at the latest here


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, errors.PREEMPTED), (signal.SIGINT, errors.INTERRUPTED)],
)
def test_with_nothing_to_save_a_signal_ends_the_run_at_once(number, code):
    before = signal.getsignal(number)
    known = pytest.raises(errors.SgqlmError, match="nothing to save yet")
    with known as caught, interrupt.Interrupt():
        try:
            stop(number)
        except Exception:  # as code does that goes on after a broken record
            raise AssertionError from None
    assert caught.value.code == code
    assert signal.getsignal(number) is before


def test_what_is_to_be_saved_is_waited_for(capfd):
    with interrupt.Interrupt() as held:
        held.hold()
        assert not held.is_requested()
        stop(signal.SIGTERM)
        assert held.is_requested()
        assert held.is_pending()
        stop(signal.SIGTERM)  # a scheduler that asks again waits as well
        held.release()
    error = held.error("there")
    assert (error.code, error.where) == (errors.PREEMPTED, "there")
    assert "the state was saved first" in str(error)
    held.saved = "before"
    assert "nothing was done since it was saved" in str(held.error())
    assert capfd.readouterr().err == ""


def test_a_busy_process_leaves_by_itself():
    command = [sys.executable, "-c", BUSY]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "busy\n"
        time.sleep(1.0)  # by now it is inside the product, which takes many seconds
        process.terminate()
        _, told = process.communicate(timeout=100)
    assert process.returncode == errors.PREEMPTED
    assert "stopped at once, the process was busy; the last checkpoint is the-checkpoint" in told


def test_other_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with interrupt.Interrupt() as held:
            seen.append((signal.getsignal(signal.SIGTERM), held.is_requested()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
