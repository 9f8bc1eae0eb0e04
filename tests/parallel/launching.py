"""Start the processes of one run on this machine, four CPU devices in each."""

import os
import pathlib
import socket
import subprocess
import sys

from tests import paths, xla


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def environment(index: int, port: int, *, count: int = 2) -> dict[str, str]:
    """Return the variables of process `index` of `count`; eight devices in all."""
    shared = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla.flags(8 // count),
    }
    if count > 1:
        shared |= {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
    return os.environ | shared


def start(arguments: list[str], logs: pathlib.Path, *, count: int = 2) -> list[subprocess.Popen]:
    """Start `python -m ARGUMENTS` in every process; outputs go to files under `logs`."""
    port, started = free_port(), []
    logs.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        with (logs / f"{index}.out").open("w") as out, (logs / f"{index}.err").open("w") as err:
            command = [sys.executable, "-m", *arguments]
            env = environment(index, port, count=count)
            started.append(
                subprocess.Popen(command, env=env, cwd=paths.ROOT, stdout=out, stderr=err)
            )
    return started


def finish(started: list[subprocess.Popen], *, timeout: float = 400) -> list[int]:
    """Wait for all processes and return their exit codes; none is left behind."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
