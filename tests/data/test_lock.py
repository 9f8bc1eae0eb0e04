"""What is special here; the lock as a run holds it is tested with the work directory."""

import json
import os
import subprocess
import sys

import pytest

from sgqlm import errors
from sgqlm.data import lock

HOLD = """
import pathlib, sys
from sgqlm.data import lock
with lock.hold(pathlib.Path(sys.argv[1]), "it", "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_that_its_holder_deleted_is_none(tmp_path, monkeypatch):
    file, take, calls = tmp_path / "lock", lock.fcntl.lockf, []

    def late(stream, how):
        take(stream, how)
        calls.append(how)
        if len(calls) == 1:  # the last holder ends between opening and locking
            file.unlink()

    monkeypatch.setattr(lock.fcntl, "lockf", late)
    with lock.hold(file, "it", "take another"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
        file.unlink()
    assert not file.exists() and len(calls) == 2
    with lock.hold(file, "it", "take another"):
        assert file.exists()


def test_who_holds_it_is_told(tmp_path):
    file = tmp_path / "lock"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        known = pytest.raises(errors.SgqlmError, match=f"it is locked by process {holder.pid}")
        with known as caught, lock.hold(file, "it", "take another"):
            raise AssertionError
        assert "take another" in caught.value.fix
        holder.stdin.close()
    with lock.hold(file, "it", "take another"):
        pass


def test_a_folder_that_is_not_there_is_no_lock(tmp_path):
    with pytest.raises(OSError, match="No such file"), lock.hold(tmp_path / "a" / "b", "it", ""):
        raise AssertionError
