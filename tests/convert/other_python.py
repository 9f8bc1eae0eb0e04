"""Programs that run apart from the tests: with transformers, of this or another environment."""

import importlib.util
import os
import pathlib
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


def transformers_4(folder: pathlib.Path) -> str:
    """Return an interpreter with transformers 4.57 and without this project.

    `SGQLM_TRANSFORMERS4_PYTHON` names one; else an environment is made in `folder`, or the test
    is skipped where nothing can be installed.
    """
    if given := os.environ.get("SGQLM_TRANSFORMERS4_PYTHON"):
        return given
    python = str(folder / "bin" / "python")
    wanted = ["transformers==4.57.6", "torch==2.13.0", "sentencepiece", "Pillow"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "-q", "--prefer-binary", *wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no environment with transformers 4.57: {done.stderr[-300:]}")
    return python


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
