"""Start-up of a run over several processes, and what its processes tell each other."""

import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sgqlm import errors

TIMEOUT_SECONDS = 300
HEARTBEAT_SECONDS = 100  # as jax has it
SWITCH = "SGQLM_DISTRIBUTED"  # set to 1 where jax finds everything by itself, as on TPU hosts
SHARED_SECONDS = 30  # how long a network disk may take to show a new file


def initialize(
    environment: Mapping[str, str] | None = None,
    *,
    timeout: int = TIMEOUT_SECONDS,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> None:
    """Join the other processes when the environment describes several; call before any array.

    Recognised: `JAX_COORDINATOR_ADDRESS` with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; Slurm and
    Open MPI with several tasks; TPU hosts and slices that their variables name; and
    `SGQLM_DISTRIBUTED=1`, for any other place where jax knows the rest. On GPU nodes Slurm and Open
    MPI give one device to each process, else `JAX_LOCAL_DEVICE_IDS` or `CUDA_VISIBLE_DEVICES` does.

    Args:
        environment: the environment variables, default those of the process.
        timeout: seconds to wait for the others.
        heartbeat: seconds without a sign of one process after which jax ends all of them.

    Raises:
        SgqlmError: a variable is missing or wrong, or the other processes did not come in time.
    """
    env = os.environ if environment is None else environment
    found = options(env)
    if found is None or jax.distributed.is_initialized():
        return
    failure = _join(found, timeout, heartbeat)
    if failure:
        raise errors.SgqlmError(
            f"the processes of this run did not find each other within {timeout} s",
            where=", ".join(f"{k}={v}" for k, v in found.items()) or "detected by jax",
            why=failure,
            fix="start every process with the same coordinator address, and open its port",
            code=errors.RESOURCES,
        )
    print(describe(), file=sys.stderr, flush=True)


def describe() -> str:
    """Return one line that says which process this is and what devices it has."""
    local, kind = jax.local_device_count(), jax.devices()[0].device_kind
    which = f"process {jax.process_index()} of {jax.process_count()}"
    return f"{which}: {local} of {jax.device_count()} devices ({kind})"


def is_main() -> bool:
    """Tell whether this process writes logs and files."""
    return jax.process_index() == 0


def options(env: Mapping[str, str]) -> dict | None:
    """Return arguments of `jax.distributed.initialize`, or None if there is one process.

    Raises:
        SgqlmError: a variable is missing or not a number.
    """
    is_slurm = "SLURM_PROCID" in env and _number(env, "SLURM_NTASKS", default=1) > 1
    is_mpi = _number(env, "OMPI_COMM_WORLD_SIZE", default=1) > 1
    is_slice = len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    is_slice |= _number(env, "MEGASCALE_NUM_SLICES", default=1) > 1
    is_known = is_slurm or is_mpi or is_slice or env.get(SWITCH, "") not in ("", "0")
    if not env.get("JAX_COORDINATOR_ADDRESS"):
        return {} if is_known else None
    found: dict = {"coordinator_address": env["JAX_COORDINATOR_ADDRESS"]}
    numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    for name, variable in numbers.items():
        if variable in env or not is_known:
            found[name] = _number(env, variable)
    index, count = found.get("process_id", 0), found.get("num_processes", 2**31)
    if not 0 <= index < count:
        raise errors.SgqlmError(
            f"JAX_PROCESS_ID={index} is not one of {count} processes",
            where="JAX_PROCESS_ID",
            fix="number the processes from 0 to JAX_NUM_PROCESSES - 1",
        )
    return found


def on_main(action: Callable[[], Any], what: str) -> None:
    """Run `action` in the main process while the others wait; its failure ends all of them.

    Args:
        action: what is done once, such as writing files.
        what: what it does, for the message of the other processes.

    Raises:
        SgqlmError: in the other processes, that it failed there; in the main one, what `action`
            raised comes through.
    """
    failure = None
    if is_main():
        try:
            action()
        except Exception as error:  # the others must hear of it before it goes on
            failure = error
    if jax.process_count() > 1:
        own = getattr(failure, "code", errors.RESOURCES) if failure else 0
        code = multihost_utils.broadcast_one_to_all(np.int32(own))
        if code and failure is None:
            why = f"process 0 could not {what}; its own message says more"
            raise errors.SgqlmError("another process of the run failed", why=why, code=int(code))
    if failure is not None:
        raise failure


def from_main(make: Callable[[], bytes], what: str) -> bytes:
    """Return in every process the bytes that `make` returns in the main one.

    Args:
        make: called in the main process only.
        what: what it does, for the message of the other processes.

    Raises:
        SgqlmError: as `on_main`.
    """
    made = []
    on_main(lambda: made.append(make()), what)
    if jax.process_count() == 1:
        return made[0]
    data = np.frombuffer(made[0] if made else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(data))))
    data = data if made else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes()


def check_shared(
    folder: pathlib.Path,
    *,
    patience: float = SHARED_SECONDS,
    what: str = "the work directory",
    fix: str = "give a config.train.workdir on a disk that all hosts mount",
) -> None:
    """Make sure that all processes see the same folder: the main one leaves a file for the others.

    Args:
        folder: exists for the main process.
        patience: seconds to wait for the file.
        what: the folder is, for messages.
        fix: what to do where it is not shared.

    Raises:
        SgqlmError: some process does not see the file.
    """
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    file = folder / f".shared-{token}"
    on_main(lambda: file.write_text(""), f"write {what}")
    began = time.monotonic()
    while not (is_seen := file.exists()) and time.monotonic() - began < patience:
        time.sleep(0.2)
    seen = np.asarray(multihost_utils.process_allgather(np.int32(is_seen))).reshape(-1)
    if is_main():
        file.unlink(missing_ok=True)
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(seen == 0)))
        raise errors.SgqlmError(
            f"the processes do not share {what}",
            where=str(folder),
            why=f"process {blind} does not see what process 0 writes there",
            fix=fix,
            code=errors.RESOURCES,
        )


def _join(found: dict, timeout: int, heartbeat: int) -> str:
    """Initialise jax and return what went wrong.

    At its own time limit jax aborts the process without an exception. It therefore waits longer, in
    a thread, and the main thread gives up first.
    """
    failures = []

    def join():
        try:
            jax.distributed.initialize(
                initialization_timeout=2 * timeout + 60,
                heartbeat_timeout_seconds=heartbeat,
                **found,
            )
        except (RuntimeError, ValueError) as error:
            failures.append((str(error).splitlines() or [type(error).__name__])[0])

    thread = threading.Thread(target=join, name="join", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        return "a process did not start, or cannot reach process 0"
    return "".join(failures)


def _number(env: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = env.get(name, "")
    if not text and default is not None:
        return default
    if not text.strip().isdecimal():
        raise errors.SgqlmError(
            f"{name} is {text!r}, not a number" if text else f"{name} is missing",
            where=name,
            why="the environment describes a run of several processes",
            fix="set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process",
        )
    return int(text)
