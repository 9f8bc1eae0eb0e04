"""Where the time of a run went, over all its attempts."""

from collections.abc import Sequence
from typing import Any

from sgqlm.train import progress

# kind of a record -> field with seconds -> what they were spent on
_SPENT = {
    "start": {"seconds": "start_up"},
    "set_up": {"seconds": "start_up"},
    "train": {
        "compile_seconds": "compile",
        "data_wait_seconds": "data_wait",
        "step_seconds": "step",
    },
    "eval": {"seconds": "evaluation"},
    "sample": {"seconds": "evaluation"},
    "checkpoint": {"seconds": "checkpoint"},
}
KINDS = ("start_up", "compile", "data_wait", "step", "evaluation", "checkpoint", "lost")


def account(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sum up the seconds of a run.

    An attempt begins with a record `start`, which names the checkpoint it goes on from. What the
    attempts before it did after that checkpoint was written is done again, and so was lost. The
    time between the last record of a killed attempt and its end is not known, nor are pauses
    between attempts part of the run.

    Args:
        records: all of `metrics.jsonl`, in order.

    Returns:
        `<kind>_seconds` of each of `KINDS`, and `goodput`: the share of `step` in their sum.
    """
    lost = _lost(records)
    found: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for index, record in enumerate(records):
        for field, kind in _SPENT.get(record["kind"], {}).items():
            found["lost" if index in lost else kind] += record.get(field) or 0.0
    total = sum(found.values())
    seconds = {f"{kind}_seconds": value for kind, value in found.items()}
    return seconds | {"goodput": found["step"] / total if total else 0.0}


def line(found: dict[str, float]) -> str:
    """Return one line for the user: the share, then what the time was spent on."""
    spans = ((kind.replace("_", " "), found[f"{kind}_seconds"]) for kind in KINDS)
    parts = ", ".join(f"{name} {progress.duration(seconds)}" for name, seconds in spans)
    return f"goodput {found['goodput']:.0%}: {parts}"


def _lost(records: Sequence[dict[str, Any]]) -> set[int]:
    """Return the records whose work a later attempt did again."""
    lost: set[int] = set()
    written: dict[tuple, int] = {}
    for index, record in enumerate(records):
        place = (record["stage"], record["step"])
        if record["kind"] == "checkpoint":
            written[place] = index
        elif record["kind"] == "start":
            lost |= set(range(written.get(place, -1) + 1, index))
    return lost
