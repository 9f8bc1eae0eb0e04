import os
import subprocess
import sys

import pytest

from tests import paths

SCRIPT = """
import jax
from sgqlm import model as model_lib
from sgqlm.evals import scenes
from tests import tiny_model

one = tiny_model.make()
cases = scenes.make_cases(tiny_model.SCENES, count=4)
rows = [c.image for c in cases], [c.questions[0].text for c in cases], [c.entities for c in cases]
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 1), ("data", "tensor"), axis_types=auto)
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
two = model_lib.VisionLanguageModel(
    one.config, jax.device_put(one.params, whole), one.tokenizer
)
assert one.generate(*rows, max_new_tokens=4) == two.generate(*rows, max_new_tokens=4)
assert one.generate(*(r[:1] for r in rows)) == two.generate(*(r[:1] for r in rows))
"""


@pytest.mark.slow
def test_two_devices_write_what_one_writes():
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=paths.ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
