import jax

from sgqlm.parallel import distributed


def test_one_process_stays_alone():
    for env in ({}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {"TPU_WORKER_HOSTNAMES": "a"}):
        distributed.initialize(env)
    assert not jax.distributed.is_initialized()
    assert distributed.is_main()


def test_environments_of_several_processes_are_recognised():
    env = {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    wanted = {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}
    assert distributed.options(env) == wanted
    assert distributed.options({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}) == {}
    assert distributed.options({"TPU_WORKER_HOSTNAMES": "a,b"}) == {}
