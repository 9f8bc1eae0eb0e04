"""`import sgqlm` and `sgqlm --help` stay light; what needs jax loads it when it runs."""

import json
import subprocess
import sys
import time

import pytest

from tests import paths

HEAVY = ("jax", "jaxlib", "flax", "torch", "tensorflow", "gradio", "numpy", "PIL", "absl")
PROGRAM = """
import json, sys
{body}
print(json.dumps(sorted(set(sys.modules))), file=sys.stderr)
"""
HELP = "from sgqlm.cli import main; assert main.main(['--help']) == 0"


def _run(code):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True
    )
    return done, time.perf_counter() - start


@pytest.mark.parametrize("body", ["import sgqlm", HELP])
def test_nothing_heavy_is_imported(body):
    done, _ = _run(PROGRAM.format(body=body))
    loaded = json.loads(done.stderr)
    assert "sgqlm" in loaded
    assert not {name.split(".")[0] for name in loaded} & set(HEAVY)


def test_help_answers_at_once():
    bare = min(_run("pass")[1] for _ in range(3))
    seconds = min(_run(HELP)[1] for _ in range(3))
    assert seconds - bare < 0.3  # over the start of Python itself, which depends on the machine


def test_load_is_there_without_being_imported():
    code = "import sgqlm, sys; assert callable(sgqlm.load) and 'sgqlm.model' not in sys.modules"
    _run(code)


def test_version_is_that_of_the_package():
    done, _ = _run("from sgqlm.cli import main; main.main(['--version'])")
    assert (
        done.stdout.strip()
        == "sgqlm " + _run("import sgqlm; print(sgqlm.__version__)")[0].stdout.strip()
    )
