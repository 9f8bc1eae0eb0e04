"""True train steps through the TPU compiler, for slices that are not there.

libtpu must be importable: `pip install -e '.[tpu-compile]'`, or a folder on PYTHONPATH. A large
model takes minutes on an idle core and 5 GiB of memory.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from sgqlm import config
from sgqlm.parallel import chips
from tests import paths
from tests.parallel import fsdp_program

_SPEC = importlib.util.find_spec("libtpu")
pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        _SPEC is None or _SPEC.origin is None, reason="needs libtpu: .[tpu-compile]"
    ),
]


def compiled(tmp_path, name, topology, *words):
    file, settings = tmp_path / "plan.json", tmp_path / "config.json"
    settings.write_text(json.dumps(config.to_dict(fsdp_program.settings(name))))
    count = chips.topology(topology).num_chips
    command = [sys.executable, "-m", "sgqlm", "plan", f"--config={settings}", f"--json={file}"]
    command += [f"--topology={topology}", f"--mesh=data=1,fsdp={count},tensor=1", *words]
    # libtpu reads XLA_FLAGS too, and those of the tests are for the CPU
    own = {"PYTHONPATH": f"{paths.ROOT}:{os.environ.get('PYTHONPATH', '')}", "XLA_FLAGS": ""}
    env = os.environ | own
    done = subprocess.run(command, env=env, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"compiled    for {topology}" in done.stdout
    (found,) = json.loads(file.read_text())
    return found


def check(found, topology):
    said, chip = found["compiled"], chips.topology(topology).chip
    # exact but for the tiles that TPU arrays are padded to, which small arrays feel most
    assert said["arguments"] == pytest.approx(found["arguments"], rel=0.02)
    assert 0 < said["peak"] < chip.memory
    # the estimate is on the safe side, and not so far that it would be of no use
    need = said["arguments"] + said["temporary"]
    assert 0.9 * need < found["memory"]["total"] < 2.5 * need


@pytest.mark.timeout(1800)
def test_a_small_step_compiles_for_a_slice(tmp_path):
    found = compiled(tmp_path, "small", "v5e:2x2", "--config.data.buckets=512")
    assert found["compiled"]["peak"] > 0
    assert found["fits"] is True


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("topology", ["v5e:4x4", "v4:2x2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("name", ["vicuna_7b", "vicuna_13b"])
def test_large_steps_compile_and_fit(name, topology, tmp_path):
    batch = 2 * chips.topology(topology).num_chips
    setting = f"--config.train.stages.instruct.batch_size={batch}"
    check(compiled(tmp_path, name, topology, setting), topology)
