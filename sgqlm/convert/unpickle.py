"""Pickled torch weights turned into safetensors, in a process of its own.

The caller never unpickles and needs no torch. `python -m sgqlm.convert.unpickle FILE OUT` does:
with `weights_only`, limited memory and time, and accepting nothing but tensors by name.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import pickle
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

from sgqlm import errors
from sgqlm.convert import header

_REFUSED, _NO_TORCH, _NO_ROOM = 10, 11, 12  # exit codes of the process
_ZIP = b"PK\x03\x04"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_MAX_ALIASES = 4  # names that share one tensor (tied embeddings) are written once each
_SPARE = 2**30  # bytes of memory the process may take beside the file
_WRAPPERS = ("state_dict", "model")


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
    command = [sys.executable, "-P", "-W", "ignore", "-m", "sgqlm.convert.unpickle"]
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
    if done.returncode == _NO_TORCH:
        raise header.fault(
            f"{file.name} is a pickle of torch, and torch is not installed",
            file,
            fix='pip install "sgqlm[hf]", or give the weights as safetensors',
        )
    if done.returncode == _NO_ROOM:
        raise _no_room(file, size)
    if done.returncode == _REFUSED:
        raise _refused(file, header.show(json.loads(done.stdout.splitlines()[-1])))
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = f"the process that read it ended with {done.returncode}"
        raise _refused(file, ": ".join([why, *map(header.show, last)]))


def main(arguments: list[str]) -> int:
    """Read argument 0, write argument 1, print as JSON why not, and return the exit code."""
    try:
        import torch
    except ImportError:
        return _NO_TORCH
    file, out = arguments
    try:
        size = os.stat(file).st_size
        _limit_memory(2 * size + _SPARE)
        torch.set_num_threads(1)
        is_zip = _check_zip(file, size)
        tree = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
        _write(_tensors(tree, torch), out, most=_MAX_ALIASES * size)
    except OSError as error:
        print(json.dumps(f"it cannot be read or copied ({error.strerror})"))
        return _NO_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else _REFUSED
    except Exception as error:  # whatever a stranger's file provokes is a reason to refuse it
        print(json.dumps(_reason(error)))
        return _REFUSED
    return 0


def _limit_memory(spare: int) -> None:
    """Let this process take at most `spare` bytes more, where the system can say and limit it."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + spare
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _check_zip(file: str, size: int) -> bool:
    with open(file, "rb") as stream:
        if stream.read(4) != _ZIP:
            return False
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch never does")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("it declares more data than the file has")
    return True


def _tensors(tree: Any, torch: Any) -> dict[str, Any]:
    """Return the tensors by name, or refuse the tree."""
    if isinstance(tree, Mapping) and len(tree) == 1:
        name, inner = next(iter(tree.items()))
        tree = inner if name in _WRAPPERS and isinstance(inner, Mapping) else tree
    if not isinstance(tree, Mapping):
        raise ValueError(f"it holds one {type(tree).__name__}, not tensors by name")
    for name, value in tree.items():
        if not isinstance(name, str) or name == header.METADATA:
            raise ValueError("a key is not the name of a tensor")
        shown = header.show(name)
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"{shown} is not a tensor but a {type(value).__name__}")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{shown} is not a plain tensor with data")
        # an expanded tensor repeats the few bytes it has
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"{shown} declares more data than the file has")
    return dict(tree)


def _write(tensors: dict[str, Any], out: str, *, most: int) -> None:
    """Write safetensors, one tensor at a time."""
    codes = {name: _code(name, tensor) for name, tensor in tensors.items()}
    first, places = header.encode([(n, codes[n], tuple(t.shape)) for n, t in tensors.items()])
    if places and max(info.stop for info in places.values()) - len(first) > most:
        raise ValueError(f"its tensors take more than {_MAX_ALIASES} times the bytes of the file")
    with open(out, "wb") as stream:
        stream.write(first)
        for name in places:  # in the order of the offsets
            if math.prod(tensors[name].shape):
                stream.write(_bytes(tensors[name]))


def _bytes(tensor: Any) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _code(name: str, tensor: Any) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    names = {str(dtype): code for dtype, code in header.CODES.items()}
    if kind not in names:
        raise ValueError(f"{header.show(name)} has the dtype {kind}")
    return names[kind]


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "reading it takes more memory than its size explains"
    # torch's own text goes on to advise switching the protection off
    if found := re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error)):
        return f"it holds {found[1]}; loading that could run code, and nothing was run"
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle holds more than tensors; nothing was run"
    if type(error) is ValueError:
        return str(error)
    return f"torch cannot read it ({type(error).__name__})"


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
