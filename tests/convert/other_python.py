"""Programs that run apart from the tests: with transformers, of this or another environment."""

import fcntl
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests import paths

# Marks of what needs an environment of its own: installing it takes minutes the first time.
MARKS = (pytest.mark.slow, pytest.mark.timeout(1800))
WANTED = {"4": "transformers==4.57.6", "5": ""}  # "": the version that the constraints pin
VARIABLES = {
    "4": ("SGQLM_TRANSFORMERS4_PYTHON", "SGQLM_PEFT4_PYTHON"),
    "5": ("SGQLM_PEFT_PYTHON",),
}
_PINNED = ("torch", "peft", "accelerate", "numpy", "safetensors", "sentencepiece", "pillow")
_FREE_BYTES = 4 * 2**30  # of a new environment with its downloads
_SCRIPT = paths.ROOT / "scripts" / "setup_env.sh"


def having(package: str) -> str:
    """Return the running interpreter if it has a package, or skip the test."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    return sys.executable


def environment(major: str, folder: pathlib.Path) -> str:
    """Return an interpreter with that transformers, torch and peft, and without this project.

    A variable of `VARIABLES` names one; else an environment is made in `folder`, once for all
    later runs. The test is skipped where that cannot be.

    Args:
        major: a key of `WANTED`.
        folder: where environments are kept.
    """
    for variable in VARIABLES[major]:
        if given := os.environ.get(variable):
            return given
    if os.environ.get("TORCH") == "none":
        pytest.skip("TORCH=none: no torch for the tests")
    wanted = requirements(major)
    place = folder / re.sub(r"[^\w.]+", "-", f"py{sys.version_info.minor}-{wanted[0]}-{wanted[1]}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests may run in several processes
        stamp = place / "installed.txt"
        if not stamp.is_file() or stamp.read_text().splitlines() != wanted:
            shutil.rmtree(place, ignore_errors=True)
            if problem := _make(place, wanted):
                shutil.rmtree(place, ignore_errors=True)
                pytest.skip(f"no environment with {wanted[0]} can be made: {problem}")
            stamp.write_text("\n".join(wanted))
    return str(place / "bin" / "python")


def requirements(major: str) -> list[str]:
    """Return what an environment holds, transformers and torch first."""
    text = (paths.ROOT / "constraints" / "cpu.txt").read_text()
    pins = {line.split("==")[0]: line for line in text.splitlines() if "==" in line}
    return [WANTED[major] or pins["transformers"], *(pins[name] for name in _PINNED)]


def _make(place: pathlib.Path, wanted: list[str]) -> str:
    """Make an environment; return the problem, or an empty string."""
    free = shutil.disk_usage(place.parent).free
    if free < _FREE_BYTES:
        return f"{free >> 20} MiB are free on the disk, {_FREE_BYTES >> 20} are needed"
    if problem := _run(sys.executable, "-m", "venv", place):
        return problem
    install = (place / "bin" / "python", "-m", "pip", "install", "-q", "--prefer-binary")
    # as in the set-up script: torch of the CPU index where that answers, else of the default one
    (index,) = re.findall(r"^torch_index=(\S+)$", _SCRIPT.read_text(), re.MULTILINE)
    quick = {"PIP_TIMEOUT": "10", "PIP_RETRIES": "0"}
    _run(*install, "--no-deps", "--index-url", index, wanted[1], **quick)
    return _run(*install, *wanted)


def _run(*command, **settings: str) -> str:
    """Run a command; return the end of what it complains about, or an empty string."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        env={**clean, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stderr or done.stdout)[-300:] or "it failed" if done.returncode else ""


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
