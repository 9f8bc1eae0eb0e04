"""Checkpoints on their way to the disk: aside, in the background, renamed when complete."""

import contextlib
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from sgqlm import errors

ASIDE = ".writing-"


class Writer:
    """Writes one checkpoint at a time, beside the steps that follow if `is_async`; a context.

    `start` returns once all arrays are in host memory, so the caller may donate them to the next
    step. A thread then waits for the disk and commits. It never enters a collective, which would
    meet those of the steps: orbax's own barrier over the coordination service tells process 0 that
    every process has written its part.

    Args:
        is_async: False waits for every checkpoint.
    """

    def __init__(self, *, is_async: bool = False):
        self._is_async, self._count = is_async, 0
        self._thread: threading.Thread | None = None
        self._target, self._bytes = pathlib.Path(), 0
        self._error: BaseException | None = None

    def __enter__(self):
        """Do nothing."""
        return self

    def __exit__(self, kind, *exc_info):
        """Wait for the disk; an error that ends the block is not replaced by one of the disk."""
        if kind is None:
            self.wait()
            return
        self._join()
        if self._error is not None:
            print(f"{self._failure()}", file=sys.stderr, flush=True)

    def start(
        self, target: pathlib.Path, trees: Mapping[str, Any], commit: Callable[[pathlib.Path], None]
    ) -> None:
        """Write trees of arrays aside, then let process 0 commit; all processes call it.

        Args:
            target: what the commit will name the folder; it is written beside it.
            trees: folder name -> tree of arrays.
            commit: called in process 0 with the written folder; renames it.

        Raises:
            SgqlmError: this or the earlier checkpoint could not be written (code `RESOURCES`).
        """
        self.wait()
        self._target, self._count = target, self._count + 1
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(trees)))
        aside = target.with_name(ASIDE + target.name)
        savers = []
        try:
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            _barrier(f"{target.name}-{self._count}")
            for name, tree in trees.items():
                savers.append(self._saver(name))
                savers[-1].save(aside / name, tree)
        except OSError as error:
            _close(savers)
            shutil.rmtree(aside, ignore_errors=True)
            self._error = error
            raise self._failure() from error
        work = (savers, aside, commit)
        self._thread = threading.Thread(target=self._finish, args=work, name="checkpoint")
        self._thread.start()
        if not self._is_async:
            self.wait()

    def check(self) -> None:
        """Raise what went wrong with a checkpoint that is done; does not wait.

        Processes of a larger run learn it together, in `wait`: one that left alone would leave the
        others in a collective.

        Raises:
            SgqlmError: it could not be written.
        """
        if jax.process_count() == 1 and self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint has its name; all processes call it.

        Raises:
            SgqlmError: it could not be written.
        """
        if self._thread is None:
            return
        self._join()
        is_bad = self._error is not None
        if jax.process_count() > 1:
            is_bad = bool(multihost_utils.process_allgather(np.asarray(is_bad)).any())
        if is_bad:
            raise self._failure() from self._error

    def _join(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _saver(self, name: str) -> ocp.StandardCheckpointer:
        # barriers are named by folder and prefix, and a name may be used once
        prefix = f"{self._target.name}-{self._count}-{name}"
        options = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=prefix)
        return ocp.StandardCheckpointer(multiprocessing_options=options)

    def _finish(self, savers, aside: pathlib.Path, commit: Callable[[pathlib.Path], None]):
        try:
            _close(savers)
            if jax.process_index() == 0:
                commit(aside)
        except Exception as error:  # raised where the checkpoint is waited for
            self._error = error
            if jax.process_index() == 0:
                shutil.rmtree(aside, ignore_errors=True)

    def _failure(self) -> errors.SgqlmError:
        error, self._error = self._error, None
        room = shutil.disk_usage(existing(self._target)).free
        why = str(error).splitlines()[0] if error else "another process could not write its part"
        return errors.SgqlmError(
            f"the checkpoint {self._target.name} could not be written",
            where=str(self._target.parent),
            why=f"{why}; it has {megabytes(self._bytes)} and {megabytes(room)} are free",
            fix="free some room, or lower config.train.keep; older checkpoints are untouched",
            code=errors.RESOURCES,
        )


def existing(path: pathlib.Path) -> pathlib.Path:
    """Return the nearest folder above `path`, or itself, that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.is_dir())


def megabytes(size: int | float) -> str:
    """Return a number of bytes as text. Example: 1500000 gives `1.5 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _close(savers: list[ocp.StandardCheckpointer]):
    with contextlib.ExitStack() as stack:  # all are waited for, even if one fails
        for saver in savers:
            stack.callback(saver.close)


def _barrier(name: str):
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
