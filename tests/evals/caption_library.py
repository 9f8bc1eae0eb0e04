"""pycocoevalcap for the tests: installed, or kept in a folder of its own between runs."""

import fcntl
import importlib.util
import subprocess
import sys

import pytest

from tests import paths

_NAME, _WANTED = "pycocoevalcap", "pycocoevalcap==1.2"
PLACE = paths.ROOT / ".pytest_cache" / "captions"


def use(monkeypatch, *, install: bool = False) -> None:
    """Make the package importable, or skip the test.

    Args:
        monkeypatch: that of the test.
        install: whether to fetch it (104 MB) where it is not there, once for all later runs.
    """
    if importlib.util.find_spec(_NAME):
        return
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests may run in several processes
        done = PLACE / "done"
        if not done.is_file() and not install:
            pytest.skip("needs .[caption]; the slow tests fetch it")
        if not done.is_file():
            command = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", PLACE)
            told = subprocess.run([*command, _WANTED], capture_output=True, text=True, check=False)
            if told.returncode:
                pytest.skip(f"{_WANTED} cannot be installed: {told.stderr[-300:]}")
            done.touch()
    monkeypatch.syspath_prepend(str(PLACE))
