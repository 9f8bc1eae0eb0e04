"""The folder of a run: may it be written, is there room, and is no other process in it."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from flax import traverse_util

from sgqlm import config, errors, types
from sgqlm.data import lock
from sgqlm.models import lora
from sgqlm.train import checkpoint, writing

LOCK = ".lock"


def local(path: str | os.PathLike) -> pathlib.Path:
    """Return the path of a work directory, which must be a folder and no address of a bucket.

    Raises:
        SgqlmError: it is an address such as `gs://bucket/run`.
    """
    address = re.match(r"(\w+):/", os.fspath(path))
    if address:
        raise errors.SgqlmError(
            f"an address ({address[1]}://) is not a folder that can be a work directory",
            where="config.train.workdir",
            why="a checkpoint gets its name by renaming a folder once it is complete",
            fix="mount the bucket (gcsfuse) and give the folder; docs/laptop_to_slice.md shows how",
        )
    return pathlib.Path(path)


@contextlib.contextmanager
def claim(folder: pathlib.Path, *, watch_seconds: float = lock.WATCH_SECONDS) -> Iterator[None]:
    """Make the folder and keep other processes out of it while the context lasts.

    See `sgqlm.data.lock` for how a dead process is told from a living one.

    Args:
        folder: of the run.
        watch_seconds: how long to look for a sign of life of another host.

    Raises:
        SgqlmError: the folder cannot be written, or another process is in it.
    """
    try:
        (folder / checkpoint.FOLDER).mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / checkpoint.FOLDER):
            probe = place / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        (folder / LOCK).open("a").close()
    except OSError as error:
        raise errors.SgqlmError(
            "the work directory cannot be written",
            where=str(folder),
            why=str(error),
            fix="give another config.train.workdir",
        ) from error
    fix = "give another config.train.workdir"
    with lock.hold(folder / LOCK, "the work directory", fix, watch_seconds=watch_seconds):
        yield


def check_room(folder: pathlib.Path, needed: int, what: str) -> None:
    """Refuse to begin what would fill the disk.

    Args:
        folder: where it will be written; need not exist. Its checkpoints count as room, since new
            ones replace them.
        needed: bytes.
        what: for the message.

    Raises:
        SgqlmError: there is too little room (code `RESOURCES`).
    """
    free = shutil.disk_usage(writing.existing(folder)).free
    files = (folder / checkpoint.FOLDER).rglob("*")
    held = sum(file.stat().st_size for file in files if file.is_file())
    if free + held < needed:
        raise errors.SgqlmError(
            f"the disk has too little room for {what}",
            where=str(folder),
            why=f"{writing.megabytes(needed)} are needed and {writing.megabytes(free)} are free",
            fix="free some room, lower config.train.keep, or give another config.train.workdir",
            code=errors.RESOURCES,
        )


def checkpoint_bytes(
    shapes: types.Params, rows: Sequence[config.StageConfig], *, has_base: bool
) -> int:
    """Estimate the size of the largest checkpoint: what differs from the base, and the optimizer.

    Args:
        shapes: of all parameters.
        rows: the stages. Parameters of parts that train are float32, Adam keeps two moments.
        has_base: what does not train lies in the base.

    Returns:
        Bytes, before compression.
    """
    sizes: dict[str, int] = {}
    flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
    for path, leaf in flat.items():
        part = lora.part_of(path)
        sizes[part] = sizes.get(part, 0) + 4 * leaf.size
    trained = {part for row in rows for part in row.learning_rates}
    params = sum(size for part, size in sizes.items() if part in trained or not has_base)
    moments = (sum(2 * sizes.get(part, 0) for part in row.learning_rates) for row in rows)
    return params + max(moments, default=0)
