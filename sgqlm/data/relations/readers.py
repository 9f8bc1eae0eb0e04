"""The readers by name, and the one call that opens a data set."""

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data.relations import (
    files,
    gqa,
    grit,
    open_images,
    psg,
    types,
    vg150,
    visual_genome,
    vrd,
)

READERS: Mapping[str, Callable[[files.Context], Iterator[types.Annotated]]] = {
    "visual_genome": visual_genome.read,
    "vg150": vg150.read,
    "open_images_vrd": open_images.read,
    "psg": psg.read,
    "gqa_scene_graphs": gqa.read,
    "vrd": vrd.read,
    "grit": grit.read,
}


def read(
    name: str,
    folder: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    report: types.Report | None = None,
    splits: Sequence[str] = (),
    text: Callable[..., Any] | None = None,
    progress: types.Progress = lambda what, done, total: None,
    keep_missing: bool = False,
) -> Iterator[types.Annotated]:
    """Read a relation data set from its official files, image by image.

    Args:
        name: one of `READERS`.
        folder: holds the files, directly or in sub-folders.
        images: root of the images; then images that are not there are counted and left out, and
            keys are paths below it. None: annotations alone.
        report: receives the counts of what is odd.
        splits: `train`, `val`, `test`; empty for all.
        text: caption and phrases to relations (`text.RuleBased`, `endpoint.Endpoint`); only for
            data sets of captions.
        progress: called with ("read", done, altogether).
        keep_missing: count images that are not there and give their annotations all the same, as
            `build.check` takes them; not where captions would have to be read for them.

    Returns:
        An iterator over the annotated images, in the order of the files.

    Raises:
        SgqlmError: there is no such reader or folder, a file is missing or a different one, or no
            image is of the splits.
    """
    if name not in READERS:
        fix = "known: " + ", ".join(READERS)
        raise errors.SgqlmError(f"there is no reader {name!r}", where="reader", fix=fix)
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise errors.SgqlmError(
            "there is no such folder", where=str(folder), fix="correct the path", code=errors.DATA
        )
    tree = files.ImageTree(images) if images is not None else None
    report = report or types.Report()
    context = files.Context(folder, tree, report, tuple(splits), text, progress, keep_missing)
    return _of_splits(READERS[name](context), context)


def _of_splits(
    found: Iterator[types.Annotated], context: files.Context
) -> Iterator[types.Annotated]:
    """Pass images on; at their end, refuse a choice of splits of which there is none."""
    yield from found
    there = context.report.splits
    if not there or there.keys() & set(context.splits) or not context.splits:
        return
    names = ", ".join(f"{name} ({count})" if count else name for name, count in there.items())
    raise errors.SgqlmError(
        f"there is no image of split {' or '.join(context.splits)}",
        where=str(context.folder),
        why=f"there are: {names}",
        fix="name another with --split, or all",
        code=errors.DATA,
    )
