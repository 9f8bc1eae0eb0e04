"""Settings of every test run: CPU, checked shapes and types, and what a mark needs."""

import os
import pathlib
import shutil
import signal

import jaxtyping
import pytest

from tests import xla

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# compiling is most of the time of these tests: a second run takes a quarter of the first
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # a third less time to compile
if xla.QUICK not in os.environ.get("XLA_FLAGS", ""):  # a worker of xdist has them already
    os.environ["XLA_FLAGS"] = f"{xla.QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()

# a shell starts background jobs with Ctrl-C ignored, and every process of a test would inherit that
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

# Annotations, shapes included, are checked at every call in the tests. `text` and `data` are left
# out: they take what users give and refuse it themselves, and tests give them wrong types.
_UNCHECKED = {"text", "data"}
_NAMES = {path.stem for path in (ROOT / "sgqlm").iterdir() if path.stem[0] not in "._"}
_HOOK = jaxtyping.install_import_hook(
    [f"sgqlm.{name}" for name in sorted(_NAMES - _UNCHECKED)], "beartype.beartype"
)


@pytest.fixture(autouse=True)
def same_devices():
    """Undo what a verb sets for its own process: the processes of later tests would inherit it."""
    before = {name: os.environ.get(name) for name in ("XLA_FLAGS", "JAX_PLATFORMS")}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pytest_configure(config):
    """Let xdist take the files in their order: by number of tests, few long ones come last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


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
