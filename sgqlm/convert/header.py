"""The header of a safetensors file: parsed with every check before any data is read, and encoded.

A file is 8 bytes of header length, a JSON object `name -> {dtype, shape, data_offsets}`, and the
data of all tensors without gaps.
"""

import collections
import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from sgqlm import errors

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
METADATA = "__metadata__"
MAX_JSON = 8 * 2**20  # some 70,000 tensors; parsed, hostile JSON takes about 20 times its bytes
_MAX_BYTES, _MAX_DIMS = 2**48, 32
_LFS = b"version https://git-lfs"


class Info(NamedTuple):
    """One tensor of a file: what it is, and the bytes of the file that hold it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def fault(what: str, where: Any, *, why: str = "", fix: str) -> errors.SgqlmError:
    """Return the error of a checkpoint or export."""
    return errors.SgqlmError(what, where=str(where), why=why, fix=fix, code=errors.CHECKPOINT)


def show(name: str) -> str:
    """Return a name from a file as it may be printed: no control characters, not endless."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 120 else shown[:120] + "..."


def table(lines: Iterable[str]) -> str:
    """Return the first 20 lines as the `why` of an error, and how many more there are."""
    lines = list(lines)
    shown = lines[:20] + [f"... {len(lines) - 20} more"] * (len(lines) > 20)
    return "\n    " + "\n    ".join(shown)


def parse_json(text: bytes) -> dict[str, Any]:
    """Parse a JSON object that a stranger wrote.

    Raises:
        ValueError: it is not JSON, not an object, too deep, or has a key twice.
    """
    try:
        tree = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its JSON cannot be parsed ({type(error).__name__})") from None
    if not isinstance(tree, dict):
        raise ValueError("its JSON is not an object")
    return tree


def read(stream: BinaryIO, *, where: str | os.PathLike) -> dict[str, Info]:
    """Read and check the header of an open file; no tensor is read.

    Args:
        stream: the file, opened for reading in binary.
        where: its name, for the error.

    Returns:
        Name -> place of every tensor, in the order of the data.

    Raises:
        SgqlmError: anything about the header is not as the format asks.
    """
    try:
        return _read(stream)
    except ValueError as error:
        raise fault(
            "the safetensors file cannot be read",
            where,
            why=str(error),
            fix="fetch it again, and compare its size and checksum with those of the source",
        ) from None


def encode(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Info]]:
    """Encode the header of a file to be written.

    Larger element sizes come first, so that every tensor is aligned to its own element size; the
    header is padded to 8 bytes.

    Args:
        tensors: name, dtype code and shape of each.

    Returns:
        The first bytes of the file, and the place of every tensor in it.
    """
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor[1]].itemsize)  # stable
    tree: dict[str, Any] = {METADATA: {"format": "pt"}}
    places, start = {}, 0
    for name, code, shape in ordered:
        stop = start + math.prod(shape) * DTYPES[code].itemsize
        tree[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, stop]}
        places[name] = (code, shape, start, stop)
        start = stop
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    infos = {
        name: Info(DTYPES[code], tuple(shape), base + first, base + last)
        for name, (code, shape, first, last) in places.items()
    }
    return len(text).to_bytes(8, "little") + text, infos


def _read(stream: BinaryIO) -> dict[str, Info]:
    stream.seek(0)
    size, first = os.fstat(stream.fileno()).st_size, stream.read(64)
    length = int.from_bytes(first[:8], "little")
    if first.startswith(_LFS):
        raise ValueError("it is a pointer of git-lfs; `git lfs pull` fetches the weights")
    if len(first) < 8 or length > size - 8:
        raise ValueError(f"it has {size} bytes, and its header alone would take {length + 8}")
    if length > MAX_JSON:
        raise ValueError(f"its header has {length} bytes, more than {MAX_JSON}")
    stream.seek(8)
    text = stream.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header is not a JSON object")
    tree = parse_json(text)
    metadata = tree.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{METADATA} is not text by name")
    base = 8 + length
    infos = {name: _info(name, entry, base) for name, entry in tree.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: item[1][2:]))
    end = base
    for name, info in ordered.items():
        if info.start != end:
            kind = "overlap" if info.start < end else "leave a gap"
            raise ValueError(f"the data {kind} before {show(name)}")
        end = info.stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
    return ordered


def _info(name: str, entry: Any, base: int) -> Info:
    shown = show(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown} does not have dtype, shape and data_offsets alone")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        kind = show(code) if isinstance(code, str) else "that is no text"
        raise ValueError(f"{shown} has a dtype {kind}; known: {', '.join(DTYPES)}")
    for what, values in (("shape", shape), ("offsets", offsets)):
        # bool is an int to isinstance
        if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
            raise ValueError(f"the {what} of {shown} are not whole numbers from 0")
    itemsize = DTYPES[code].itemsize
    # numpy refuses (0, 2**62) as well, though it is empty
    if len(shape) > _MAX_DIMS or math.prod(max(v, 1) for v in shape) * itemsize > _MAX_BYTES:
        raise ValueError(f"{shown} is larger than any tensor can be")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * itemsize:
        raise ValueError(f"the offsets of {shown} do not match its dtype and shape")
    return Info(DTYPES[code], tuple(shape), base + offsets[0], base + offsets[1])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"its JSON has the key {show(counts.most_common(1)[0][0])} twice")
    return tree


def _no_constant(text: str):
    raise ValueError(f"its JSON has {text}")
