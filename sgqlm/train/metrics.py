"""Where figures go: a JSONL file always, TensorBoard if it is installed and wanted."""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

FILE = "metrics.jsonl"


class Writer:
    """Writes one line a record; does nothing on other processes than the first.

    A disk that is full is told once, and the run goes on.

    Args:
        workdir: the folder of the run.
        is_active: False on all processes but the first.
        tensorboard: also write TensorBoard events, if tensorboardX is there.
    """

    def __init__(self, workdir: str | os.PathLike, *, is_active: bool, tensorboard: bool):
        self._file, self._board, self._is_warned = None, None, False
        if not is_active:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        is_cut = not _ends_a_line(folder / FILE)
        self._file = (folder / FILE).open("a", buffering=1)
        if is_cut:  # a killed run left half a line
            self._file.write("\n")
        if tensorboard and importlib.util.find_spec("tensorboardX"):
            import tensorboardX  # an optional dependency

            self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

    def write(self, kind: str, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one record.

        Args:
            kind: `train`, `eval`, `checkpoint`, ...
            stage: name of the stage.
            step: steps of the stage done.
            values: figures; a value that is not finite is written as null.
        """
        if self._file is None:
            return
        record = {"kind": kind, "stage": stage, "step": step, "time": round(time.time(), 3)}
        try:
            self._file.write(json.dumps(record | {k: _plain(v) for k, v in values.items()}) + "\n")
            if self._board:
                for name, value in values.items():
                    if isinstance(value, int | float) and math.isfinite(value):
                        self._board.add_scalar(f"{stage}/{kind}_{name}", value, step)
        except OSError as error:  # a run does not end for want of a log; a checkpoint tells
            if not self._is_warned:
                print(f"WARNING: figures cannot be written: {error}", file=sys.stderr, flush=True)
            self._is_warned = True

    def close(self) -> None:
        """Flush and close the files."""
        for stream in (self._file, self._board):
            with contextlib.suppress(OSError):  # `write` has warned of a full disk
                if stream:
                    stream.close()


def read(workdir: str | os.PathLike, kind: str = "train") -> dict[str, dict[int, dict]]:
    """Read the records of one kind back.

    Args:
        workdir: the folder of the run.
        kind: of the records.

    Returns:
        stage -> step -> record. Where a run resumed and did a step twice, the later record.
    """
    found: dict[str, dict[int, dict]] = {}
    for record in records(workdir):
        if record["kind"] == kind:
            found.setdefault(record["stage"], {})[record["step"]] = record
    return found


def records(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Read all records of a run, in the order they were written."""
    file, found = pathlib.Path(workdir) / FILE, []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run
    return found


def _ends_a_line(file: pathlib.Path) -> bool:
    if not file.is_file() or not file.stat().st_size:
        return True
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _plain(value):
    if isinstance(value, int | str | bool | list) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None
