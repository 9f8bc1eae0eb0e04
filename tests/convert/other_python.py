"""Programs that run apart from the tests: with transformers, of this or another environment."""

import importlib.util
import os
import subprocess
import sys

import pytest


def having(package: str, variable: str = "") -> str:
    """Return an interpreter that has a package, or skip the test.

    With `variable` the one that this environment variable names, else the running one.
    """
    if variable:
        if python := os.environ.get(variable):
            return python
        pytest.skip(f"needs {package}; set {variable} to an interpreter that has it")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    return sys.executable


def run(python: str, *arguments) -> str:
    """Run a program offline and return what it prints."""
    done = subprocess.run(
        [python, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
