"""Decoding many images to find those that cannot be decoded."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent import futures

from sgqlm import errors
from sgqlm.data import images

_FEW = 256  # images for which starting processes takes longer than decoding
_BATCH = 32


def problems(
    files: Sequence[str | os.PathLike],
    *,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[int, str]:
    """Decode every image as training does.

    Args:
        files: the images.
        workers: processes; few images are decoded in this one.
        progress: called with ("images", done, altogether).

    Returns:
        Position and problem of each image that cannot be decoded.
    """
    found: dict[int, str] = {}
    names = [os.fspath(file) for file in files]
    batches = [names[at : at + _BATCH] for at in range(0, len(names), _BATCH)]
    if workers <= 1 or len(names) < _FEW:
        _collect(map(_decode, batches), found, len(names), progress)
        return found
    context = multiprocessing.get_context("spawn")  # a forked process inherits locked locks
    with futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            _collect(pool.map(_decode, batches), found, len(names), progress)
        except futures.BrokenExecutor as error:
            raise errors.SgqlmError(
                "a process that decodes images died",
                why="it was killed, most likely for its memory",
                fix="give fewer --workers",
                code=errors.RESOURCES,
            ) from error
    return found


def _collect(results, found: dict[int, str], total: int, progress) -> None:
    done = 0
    for result in results:
        found.update({done + at: text for at, text in enumerate(result) if text})
        done += len(result)
        if progress:
            progress("images", done, total)


def _decode(names: Sequence[str]) -> list[str]:
    """Return what is wrong with each image, empty where nothing is."""
    return [_problem(name) for name in names]


def _problem(name: str) -> str:
    try:
        images.open_image(name)
    except errors.SgqlmError as error:
        return f"{os.path.basename(name)}: {error.what}" + (f" ({error.why})" if error.why else "")
    return ""
