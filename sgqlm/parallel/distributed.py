"""Start-up of a run over several processes."""

import os
from collections.abc import Mapping

import jax

from sgqlm import errors

TIMEOUT_SECONDS = 300


def initialize(environment: Mapping[str, str] | None = None) -> None:
    """Join the other processes when the environment describes several; call before any array.

    Recognised: `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, Slurm with
    several tasks, and TPU slices of several hosts (the last two are read by jax itself).

    Args:
        environment: the environment variables, default those of the process.

    Raises:
        SgqlmError: the other processes did not come within five minutes.
    """
    env = os.environ if environment is None else environment
    found = options(env)
    if found is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(initialization_timeout=TIMEOUT_SECONDS, **found)
    except RuntimeError as error:
        raise errors.SgqlmError(
            "the processes of this run did not find each other",
            where=str(found or "detected by jax"),
            why=str(error).splitlines()[0],
            fix="start every process with the same coordinator address, and open its port",
            code=errors.RESOURCES,
        ) from error


def is_main() -> bool:
    """Tell whether this process writes logs and files."""
    return jax.process_index() == 0


def options(env: Mapping[str, str]) -> dict | None:
    """Return arguments of `jax.distributed.initialize`, or None if there is one process."""
    if env.get("JAX_COORDINATOR_ADDRESS"):
        return {
            "coordinator_address": env["JAX_COORDINATOR_ADDRESS"],
            "num_processes": int(env["JAX_NUM_PROCESSES"]),
            "process_id": int(env["JAX_PROCESS_ID"]),
        }
    is_slurm = int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env
    is_slice = len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    return {} if is_slurm or is_slice else None
