"""Accelerators: peak speed, memory, slices and what an hour costs."""

import difflib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from sgqlm import errors

GIB = 2**30
_PRICES = pathlib.Path(__file__).with_name("prices.json")


class Chip(NamedTuple):
    """One accelerator, as jax counts devices.

    Attributes:
        name: as `--chip` takes it.
        peak: FLOP/s of bfloat16 matrix products, dense.
        memory: bytes of its own memory that a program can see.
        platform: jax's name, `tpu` or `gpu`.
    """

    name: str
    peak: float
    memory: int
    platform: str


# Sources: Google's system architecture pages of Cloud TPU v4, v5e, v5p and v6e; NVIDIA's data
# sheets of A100, H100 SXM and H200 SXM (without sparsity). Memory of the GPUs is what the driver
# shows, a little less than the data sheet's.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, "tpu"),
        Chip("v5e", 197e12, 16 * GIB, "tpu"),
        Chip("v5p", 459e12, 95 * GIB, "tpu"),
        Chip("v6e", 918e12, 32 * GIB, "tpu"),
        Chip("a100-40", 312e12, 39 * GIB, "gpu"),
        Chip("a100-80", 312e12, 79 * GIB, "gpu"),
        Chip("h100", 989e12, 79 * GIB, "gpu"),
        Chip("h200", 989e12, 139 * GIB, "gpu"),
    )
}

# part of a device's kind -> chip; the first that occurs counts
_KINDS = (
    ("v6 lite", "v6e"),
    ("v6e", "v6e"),
    ("v5 lite", "v5e"),
    ("v5e", "v5e"),
    ("tpu v5", "v5p"),
    ("tpu v4", "v4"),
    ("h200", "h200"),
    ("h100", "h100"),
    ("a100-pcie-40", "a100-40"),
    ("a100-sxm4-40", "a100-40"),
    ("a100", "a100-80"),
)

# chip -> dimensions of a slice, cores that its accelerator type counts a chip, prefix of the type
_SLICES = {
    "v4": (3, 2, "v4"),
    "v5e": (2, 1, "v5litepod"),
    "v5p": (3, 2, "v5p"),
    "v6e": (2, 1, "v6e"),
}


class Topology(NamedTuple):
    """A TPU slice.

    Attributes:
        name: as jax names it, for example `v5e:4x4`.
        chip: its chips.
        num_chips: how many.
        accelerator_type: Google's name, for example `v5litepod-16`.
    """

    name: str
    chip: Chip
    num_chips: int
    accelerator_type: str


class Price(NamedTuple):
    """US dollars a chip and hour."""

    on_demand: float
    spot: float
    source: str


class Prices(NamedTuple):
    """A dated table of prices."""

    date: str
    note: str
    chips: dict[str, Price]


def get(name: str) -> Chip:
    """Return the chip called `name`.

    Raises:
        SgqlmError: there is none; the nearest name is told.
    """
    if name not in CHIPS:
        raise errors.SgqlmError(
            f"unknown chip {name!r}", where="--chip", fix=nearest(name, CHIPS, "--chip ")
        )
    return CHIPS[name]


def of_device(kind: str) -> Chip | None:
    """Return the chip of a device, by what jax calls its kind; None if it is not in the table.

    Example: `TPU v5 lite` is v5e, `NVIDIA H100 80GB HBM3` is h100.
    """
    words = kind.lower()
    return next((CHIPS[name] for part, name in _KINDS if part in words), None)


def topology(text: str) -> Topology:
    """Read a slice such as `v5e:4x4` or `v4:2x2x1`.

    Raises:
        SgqlmError: the chip is unknown, or its slices have another number of sides.
    """
    name, _, shape = text.partition(":")
    if name not in _SLICES:
        fix = nearest(name, _SLICES, "--topology ")
        raise errors.SgqlmError(f"unknown TPU {name!r}", where=f"--topology {text}", fix=fix)
    sides, cores, prefix = _SLICES[name]
    pattern = "x".join([r"([1-9]\d*)"] * sides)
    found = re.fullmatch(pattern, shape)
    if not found:
        example = "4x4" if sides == 2 else "2x2x2"
        raise errors.SgqlmError(
            f"{text!r} is no slice of {name}",
            where=f"--topology {text}",
            fix=f"give {sides} sides, for example {name}:{example}",
        )
    chips = math.prod(int(side) for side in found.groups())
    return Topology(text, CHIPS[name], chips, f"{prefix}-{chips * cores}")


def compile_environment(slice_: Topology, library: str) -> dict[str, str]:
    """Return the variables under which libtpu compiles for a slice that is not there.

    Args:
        slice_: from `topology`.
        library: the file libtpu.so.
    """
    return {
        "TPU_LIBRARY_PATH": library,
        "TPU_SKIP_MDS_QUERY": "1",  # else it asks the metadata server of a cloud machine
        "TPU_ACCELERATOR_TYPE": slice_.accelerator_type,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken, so several may compile at once
    }


def read_prices(file: str | os.PathLike | None = None) -> Prices:
    """Read the price table.

    Args:
        file: a JSON file in the form of `sgqlm/parallel/prices.json`, which is the default.

    Raises:
        SgqlmError: the file cannot be read, is not of that form or names an unknown chip.
    """
    path = pathlib.Path(file or _PRICES)
    try:
        table: dict[str, Any] = json.loads(path.read_text())
        rows = {name: _price(row) for name, row in table["chips"].items()}
        found = Prices(str(table["date"]), str(table.get("note", "")), rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.SgqlmError(
            "the price table cannot be used",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            fix="copy sgqlm/parallel/prices.json and change its numbers",
        ) from error
    for name in found.chips:
        get(name)
    return found


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the hint of an error: the nearest known word, else all of them."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {prefix}{near[0]}?" if near else "known: " + ", ".join(known)


def _price(row: dict[str, Any]) -> Price:
    price = Price(float(row["on_demand"]), float(row["spot"]), str(row.get("source", "")))
    if not (math.isfinite(price.on_demand) and price.on_demand >= 0 <= price.spot):
        raise ValueError(f"a price must be a number of at least 0, not {row}")
    return price
