"""What devices send each other in a compiled program, read from its HLO text.

Elements are counted, not bytes: on a CPU XLA turns bfloat16 products, and the weights gathered for
them, into float32.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPERATION = re.compile(
    r"= (?P<shape>.*?) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(", re.ASCII
)
_ARRAY = re.compile(r"\w+\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_CALLED = re.compile(
    r"(?P<how>body|condition|calls|to_apply|true_computation|false_computation)=%?(?P<name>[\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}|replica_groups=\[\d+,(\d+)\]")


class Total(NamedTuple):
    """One kind of collective.

    Attributes:
        count: executions, loops included.
        elements: of the whole arrays: what an all-gather gives, a reduce-scatter takes, and an
            all-reduce takes and gives (on the wire that is twice a reduce-scatter).
    """

    count: int
    elements: int


class _Called(NamedTuple):
    name: str
    trips: int


def count(hlo: str, *, trips: Mapping[str, int] | None = None) -> dict[str, Total]:
    """Count the collectives of a program.

    Args:
        hlo: text of a compiled module, as `compiled.as_text()` gives it.
        trips: part of a loop's name -> how often its body runs, for loops whose count the compiler
            does not write down (TPU). The name is jax's path, such as `jit(train_step)/llm/while`.

    Returns:
        Kind -> total, kinds that do not occur left out.

    Raises:
        ValueError: a loop with collectives has no known count.
    """
    bodies, entry = _computations(hlo)
    found: dict[str, Total] = {}
    _walk(entry, 1, bodies, dict(trips or {}), found)
    return found


def elements(found: Mapping[str, Total]) -> int:
    """Return the elements of all kinds together."""
    return sum(total.elements for total in found.values())


def _walk(name, times: int, bodies, trips, found):
    for line in bodies.get(name, ()):
        kind, size = _collective(line)
        if kind:
            old = found.get(kind, Total(0, 0))
            found[kind] = Total(old.count + times, old.elements + times * size)
        for called in _calls(line, trips):
            below: dict[str, Total] = {}
            _walk(called.name, 1, bodies, trips, below)
            if below and called.trips == 0:
                raise ValueError(f"how often does this loop run? {line.strip()[:300]}")
            for key, total in below.items():
                old, factor = found.get(key, Total(0, 0)), times * called.trips
                found[key] = Total(
                    old.count + factor * total.count, old.elements + factor * total.elements
                )


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, lines = "", None
    for line in hlo.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            header = _HEADER.match(line)
            if header:
                lines = bodies.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return bodies, entry


def _collective(line: str) -> tuple[str, int]:
    match = _OPERATION.search(line)
    if not match:
        return "", 0
    shapes = [math.prod(map(int, dims.split(","))) if dims else 1 for dims in _arrays(match)]
    if match["start"] and match["kind"] in ("all-gather", "collective-permute"):
        shapes = shapes[len(shapes) // 2 :]  # (operands, results); what follows is small
    size = sum(shapes)
    if match["kind"] == "reduce-scatter":
        size *= _group_size(line)
    return match["kind"], size


def _arrays(match) -> list[str]:
    return _ARRAY.findall(match["shape"])


def _group_size(line: str) -> int:
    match = _GROUPS.search(line)
    if not match:
        return 1
    return int(match[2]) if match[2] else len(match[1].split(","))


def _calls(line: str, trips) -> list[_Called]:
    is_loop = re.search(r"\bwhile\(", line) is not None
    times = _loop_trips(line, trips) if is_loop else 1
    found = [
        _Called(match["name"], times if match["how"] == "body" else 1)
        for match in _CALLED.finditer(line)
    ]
    if branches := _BRANCHES.search(line):
        names = [name.strip().lstrip("%") for name in branches[1].split(",")]
        found += [_Called(name, 1) for name in names]
    return found


def _loop_trips(line: str, trips: Mapping[str, int]) -> int:
    """Return how often a loop runs; 0 where nobody knows."""
    if known := _TRIPS.search(line):
        return int(known[1])
    name = _OP_NAME.search(line)
    hits = [times for part, times in trips.items() if name and part in name[1]]
    return hits[0] if hits else 0
