"""Official annotations by id: what is damaged or stands twice is told with its file and record."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import joining, tables

# what the use of a record of another kind raises
_FAULTS = (LookupError, ValueError, TypeError, AttributeError)


@contextlib.contextmanager
def blamed(path: str | os.PathLike, record: str = "its records") -> Iterator[None]:
    """Turn what a damaged record raises into the error for the annotations, not for the answers.

    Args:
        path: the annotations.
        record: which one is used in the block.

    Raises:
        SgqlmError: the block met a record of another kind.
    """
    try:
        yield
    except _FAULTS as error:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"
        raise tables.damaged(path, f"{record}: {why}") from error


def by_id(
    files: Sequence[pathlib.Path],
    read: Callable[[pathlib.Path], Iterable[tuple[str, Any]]],
    notes: list[str],
    probe: Callable[[Any], object] = lambda record: None,
) -> dict[str, Any]:
    """Read annotations that together are one set.

    Args:
        files: the annotations.
        read: file -> pairs of id and record.
        notes: gets a line where ids stand twice with the same record.
        probe: uses one record as the score does, and fails where that would.

    Returns:
        Id -> record, in the order of the files.

    Raises:
        SgqlmError: an id has two different records, or a record is damaged.
    """
    out: dict[str, Any] = {}
    same, other = [], []
    for file in files:
        with blamed(file):
            pairs = list(read(file))
        for number, (key, record) in enumerate(pairs, 1):
            if key in out:
                (same if out[key] == record else other).append(key)
                continue
            with blamed(file, f"record {number} ({key})"):
                probe(record)
            out[key] = record
    if other:
        raise errors.SgqlmError(
            f"{len(other)} ids are annotated twice, each time otherwise",
            where=", ".join(map(str, files)),
            why=joining.shown(other),
            fix="give the official file, with one annotation for each id",
            code=errors.DATA,
        )
    if same:
        notes.append(f"{len(same)} ids are annotated twice and alike: {joining.shown(same)}")
    return out


def items(*fields: str, key: str = "question_id") -> Callable[[pathlib.Path], Iterable]:
    """Return what reads the pairs of a file whose records have `key` and these fields."""

    def read(path: pathlib.Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
        return [(str(item[key]), item) for item in tables.items(path, (key, *fields))]

    return read
