"""Pickled torch weights turned into safetensors, in a process of its own.

The caller never unpickles and needs no torch; `hf_code/read_pickle.py` does, in a child process
with limited memory and time.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from sgqlm import errors
from sgqlm.convert import header

# exit codes of the process
REFUSED, NO_TORCH, NO_ROOM = 10, 11, 12
_ZIP = b"PK\x03\x04"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def to_safetensors(file: pathlib.Path, out: pathlib.Path, *, timeout: float | None = None) -> None:
    """Turn a pickle of `torch.save` into a safetensors file.

    Accepted is a flat dict of tensors by name, also as the only entry `state_dict` (Lightning) or
    `model` (RAM, Grounding DINO) of another dict. Zipped pickles are mapped, so one tensor is in
    memory at a time; the format before torch 1.6 has to be read whole.

    Args:
        file: the pickle.
        out: the file to write; what lies there after an error is of no use.
        timeout: seconds; None: a minute, and a second for every 10 MB.

    Raises:
        SgqlmError: the file holds anything else, would run code, or torch is missing.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(64)
    if not first.startswith(_ZIP) and not _PICKLE.match(first):
        pointer = first.startswith(b"version https://git-lfs")
        raise _refused(file, "it is a pointer of git-lfs" if pointer else "it is no zip or pickle")
    if shutil.disk_usage(out.parent).free < 1.05 * size:
        raise _no_room(file, size)
    timeout = 60 + size / 1e7 if timeout is None else timeout
    command = [sys.executable, "-P", "-W", "ignore", "-m", "sgqlm.convert.hf_code.read_pickle"]
    try:
        done = subprocess.run(
            [*command, str(file.absolute()), str(out.absolute())],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(file, f"it was not read after {timeout:.0f} s") from None
    if done.returncode == NO_TORCH:
        raise header.fault(
            f"{file.name} is a pickle of torch, and torch is not installed",
            file,
            fix="pip install -e '.[hf]' in the clone, or give the weights as safetensors",
        )
    if done.returncode == NO_ROOM:
        raise _no_room(file, size)
    if done.returncode == REFUSED:
        raise _refused(file, header.show(json.loads(done.stdout.splitlines()[-1])))
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = f"the process that read it ended with {done.returncode}"
        raise _refused(file, ": ".join([why, *map(header.show, last)]))


def _environment() -> dict[str, str]:
    """Return the environment of the process: this sgqlm, no devices, the current folder unseen."""
    root = str(pathlib.Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([root, *(os.path.abspath(entry) for entry in known if entry)])
    fixed = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **fixed}


def _refused(file: pathlib.Path, why: str) -> errors.SgqlmError:
    return header.fault(
        f"{file.name} is refused",
        file,
        why=why,
        fix="fetch it again, or give the weights as safetensors",
    )


def _no_room(file: pathlib.Path, size: int) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"there is no room for a copy of {file.name} as safetensors",
        where=str(file),
        why=f"{size / 1e9:.2f} GB are needed in the folder of temporary files",
        fix="set TMPDIR to a folder with more room, or give the weights as safetensors",
        code=errors.RESOURCES,
    )
