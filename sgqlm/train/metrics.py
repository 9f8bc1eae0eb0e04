"""Where figures go: a JSONL file always, TensorBoard if it is installed and wanted."""

import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

FILE = "metrics.jsonl"


class Writer:
    """Writes one line a record; does nothing on other processes than the first.

    Args:
        workdir: the folder of the run.
        is_active: False on all processes but the first.
        tensorboard: also write TensorBoard events, if tensorboardX is there.
    """

    def __init__(self, workdir: str | os.PathLike, *, is_active: bool, tensorboard: bool):
        self._file, self._board = None, None
        if not is_active:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE).open("a", buffering=1)
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
        record = {"kind": kind, "stage": stage, "step": step}
        self._file.write(json.dumps(record | {k: _plain(v) for k, v in values.items()}) + "\n")
        if self._board:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(f"{stage}/{kind}_{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        for stream in (self._file, self._board):
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
    file = pathlib.Path(workdir) / FILE
    if not file.is_file():
        return found
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        if record["kind"] == kind:
            found.setdefault(record["stage"], {})[record["step"]] = record
    return found


def _plain(value):
    if isinstance(value, int | str | bool | list) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None
