import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import paths


@pytest.mark.timeout(400)
def test_eight_devices_equal_one():
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(paths.ROOT),
    }
    command = [sys.executable, "-m", "tests.train.eight_devices"]
    done = subprocess.run(command, env=env, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    (one, one_compiled), (eight, eight_compiled) = found["one"], found["eight"]
    # float32 sums in another order over ten steps
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
    assert one[-1] != one[0]
    assert (one_compiled, eight_compiled) == (1, 1)
