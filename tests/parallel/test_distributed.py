import subprocess
import sys

import jax
import pytest

from sgqlm import errors
from sgqlm.parallel import distributed
from tests import paths
from tests.parallel import launching

ALONE = """
import sys
from sgqlm import errors
from sgqlm.parallel import distributed
try:
    distributed.initialize(timeout=3)
except errors.SgqlmError as error:
    print(error)
    sys.exit(error.code)
"""


def test_one_process_stays_alone(tmp_path):
    for env in ({}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"TPU_WORKER_HOSTNAMES": "a"}):
        distributed.initialize(env)
    assert not jax.distributed.is_initialized()
    assert distributed.is_main()
    assert distributed.from_main(lambda: b"x", "do nothing") == b"x"
    distributed.check_shared(tmp_path / "absent")
    assert "process 0 of 1" in distributed.describe()


def test_environments_of_several_processes_are_recognised():
    env = {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    wanted = {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}
    assert distributed.options(env) == wanted
    for env in (
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"MEGASCALE_NUM_SLICES": "2"},
        {"SGQLM_DISTRIBUTED": "1"},
    ):
        assert distributed.options(env) == {}
    assert distributed.options({"SGQLM_DISTRIBUTED": "0"}) is None
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "JAX_COORDINATOR_ADDRESS": "host:1"}
    assert distributed.options(slurm) == {"coordinator_address": "host:1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_NUM_PROCESSES", None),
        ("JAX_NUM_PROCESSES", "two"),
        ("JAX_PROCESS_ID", None),
        ("JAX_PROCESS_ID", "-1"),
        ("JAX_PROCESS_ID", "2"),
    ],
)
def test_a_bad_variable_is_named(name, value):
    env = {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    env = {k: v for k, v in (env | {name: value}).items() if v is not None}
    with pytest.raises(errors.SgqlmError) as caught:
        distributed.options(env)
    assert caught.value.code == errors.USAGE
    assert caught.value.where == name


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_stays_alone_gives_up(index):
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env=launching.environment(index, launching.free_port()),
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == errors.RESOURCES, done.stderr[-2000:]
    assert "did not find each other within 3 s" in done.stdout
    assert "coordinator_address=localhost" in done.stdout
