"""Reads pickled torch weights: run as a program, so that torch stays out of sgqlm.

`python -m sgqlm.convert.hf_code.read_pickle FILE OUT` writes safetensors, with `weights_only`,
limited memory, and accepting nothing but tensors by name.
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
import sys
import zipfile
from collections.abc import Mapping
from typing import Any

from sgqlm.convert import header, unpickle

_ZIP = b"PK\x03\x04"
_MAX_ALIASES = 4  # names that share one tensor (tied embeddings) are written once each
_SPARE = 2**30  # bytes of memory the process may take beside the file
_WRAPPERS = ("state_dict", "model")


def main(arguments: list[str]) -> int:
    """Read argument 0, write argument 1, print as JSON why not, and return the exit code."""
    try:
        import torch
    except ImportError:
        return unpickle.NO_TORCH
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
        return unpickle.NO_ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else unpickle.REFUSED
    except Exception as error:  # whatever a stranger's file provokes is a reason to refuse it
        print(json.dumps(_reason(error)))
        return unpickle.REFUSED
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
