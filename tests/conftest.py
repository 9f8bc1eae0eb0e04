"""Settings of every test run: CPU, checked shapes and types, and what a mark needs."""

import os
import pathlib
import shutil

import jaxtyping
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# annotations are checked at every call in the tests; users do not pay for it
_CHECKED = ("config", "parallel", "train", "evals", "viz", "scenes", "entities", "cli")
_HOOK = jaxtyping.install_import_hook(
    [f"sgqlm.{name}" for name in _CHECKED], "beartype.beartype"
)


def pytest_collection_modifyitems(items):
    """Skip, with the reason, what this machine cannot run."""
    lacking = {
        "gpu": not pathlib.Path("/proc/driver/nvidia").exists() and "needs an NVIDIA GPU",
        "browser": not shutil.which("chromium") and "needs chromium on the PATH",
    }
    for item in items:
        for mark, reason in lacking.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
