"""Crash bundles: all that is needed to take the steps again that ended a run.

A bundle is a folder `<workdir>/crash/<stage>-<step>` with `bundle.json`, the batches of the steps
(`step-<index>.<process>.npz`), the checkpoint from before them and a manifest of all files.
"""

import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from sgqlm import errors, types
from sgqlm.convert import manifest
from sgqlm.parallel import distributed
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import stage_loop, writing

FOLDER = "crash"  # inside a work directory
ABOUT = "bundle.json"
_MANIFEST, _CHECKPOINT = "manifest.json", "checkpoint"


class Bundle(NamedTuple):
    """A crash bundle that was read."""

    folder: pathlib.Path
    about: dict[str, Any]  # as it was given to `write`, with `first`, `reports` and `bad_rows`
    checkpoint: pathlib.Path


def write(
    workdir: pathlib.Path,
    job: stage_loop.Job,
    crash: stage_loop.Crash,
    *,
    about: dict[str, Any],
    state: pathlib.Path,
    mesh: Any,
) -> pathlib.Path:
    """Write a bundle; all processes call it, and each writes its rows of the batches.

    Args:
        workdir: of the run.
        job: the stage.
        crash: the steps.
        about: what else is needed: configuration, data, versions; plain JSON.
        state: the checkpoint from before the steps; its files are linked, not copied.
        mesh: of the run.

    Returns:
        The bundle. One of the same steps is replaced.
    """
    folder = workdir / FOLDER / f"{job.stage.name}-{crash.first:07d}"
    aside = folder.with_name(writing.ASIDE + folder.name)

    def begin():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def finish():
        names = [job.records(crash.first + i) if job.records else [] for i in range(num)]
        fields = {"first": crash.first, "reports": crash.reports, "bad_rows": crash.bad_rows}
        text = json.dumps({**about, **fields, "records": names}, indent=1)
        (aside / ABOUT).write_text(text + "\n")
        shutil.copytree(state, aside / _CHECKPOINT, copy_function=_link)
        listed = {"files": manifest.listing(aside, manifest=_MANIFEST)}
        (aside / _MANIFEST).write_text(json.dumps(listed, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)

    num = len(crash.reports)
    distributed.on_main(begin, "write a crash bundle")
    rows = mesh_lib.local_rows(mesh, job.stage.batch_size)
    for index, (batch, cached) in enumerate(crash.batches, crash.first):
        file = aside / f"step-{index:07d}.{jax.process_index()}.npz"
        arrays: Any = {"rows": rows, **_packed(batch, cached)}
        np.savez(file, **arrays)
    distributed.on_main(lambda: None, "write a crash bundle")  # all have written
    distributed.on_main(finish, "write a crash bundle")
    return folder


def read(path: str | os.PathLike) -> Bundle:
    """Read a bundle.

    Args:
        path: a bundle, or a work directory, whose newest bundle is taken.

    Raises:
        SgqlmError: there is none, or it is damaged.
    """
    path = pathlib.Path(path)
    found = [path] if (path / ABOUT).is_file() else list((path / FOLDER).glob(f"*/{ABOUT}"))
    folders = [p if p.is_dir() else p.parent for p in found]
    if not folders:
        raise errors.SgqlmError(
            "there is no crash bundle",
            where=str(path),
            fix="give a work directory whose run ended with exit code 5, or a folder below `crash`",
            code=errors.CHECKPOINT,
        )
    folder = max(folders, key=lambda p: p.stat().st_mtime)
    if faults := manifest.faults(folder, manifest=_MANIFEST):
        raise errors.SgqlmError(
            "the crash bundle is damaged",
            where=str(folder),
            why="; ".join(faults[:3]),
            fix="copy it again from where it was written",
            code=errors.CHECKPOINT,
        )
    about = json.loads((folder / ABOUT).read_text())
    return Bundle(folder, about, folder / _CHECKPOINT)


def batch(bundle: Bundle, index: int) -> tuple[types.Batch, np.ndarray | None]:
    """Return the whole batch of a step, and its cached features if it had any.

    Args:
        bundle: the bundle.
        index: global step, from `first` on.
    """
    files = sorted(bundle.folder.glob(f"step-{index:07d}.*.npz"))
    parts = [dict(np.load(file)) for file in files]
    order = np.concatenate([part.pop("rows") for part in parts])
    _, first = np.unique(order, return_index=True)  # processes may hold the same rows
    joined = {name: np.concatenate([part[name] for part in parts])[first] for name in parts[0]}
    return _unpacked(joined)


def _packed(batch: types.Batch, cached: np.ndarray | None) -> dict[str, np.ndarray]:
    graph = batch.graph._asdict() if batch.graph else {}
    values = {
        f"batch.{name}": value for name, value in batch._replace(graph=None)._asdict().items()
    }
    values |= {f"graph.{name}": value for name, value in graph.items()}
    values["features"] = cached
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def _unpacked(values: dict[str, np.ndarray]) -> tuple[types.Batch, np.ndarray | None]:
    def fields(group: str) -> dict[str, Any]:
        return {n.removeprefix(group): v for n, v in values.items() if n.startswith(group)}

    graph = fields("graph.")
    found = fields("batch.") | {"graph": types.GraphBatch(**graph) if graph else None}
    return types.Batch(**found), values.get("features")


def _link(source: str, target: str):
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
