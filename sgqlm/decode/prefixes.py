"""Beginnings that rows of a batch share: system text, image, and graph tokens if they are alike.

Several questions about one image differ only behind it: with LLaVA's 576 image tokens they share
over 600 of some 650. The language model runs such a beginning once, and each row attends to it.
"""

from typing import NamedTuple

import jax
import numpy as np

from sgqlm import types


class Groups(NamedTuple):
    """Which rows of a batch begin alike; B rows, G groups.

    Attributes:
        first: int32[G], a row of each group; filled up with the last one to a power of two.
        group: int32[B], the group of each row.
        lengths: int32[G], positions at the front that are the same in all rows of a group; each
            row has at least one more. Rows that are alone or alike give as many as others share.
    """

    first: np.ndarray
    group: np.ndarray
    lengths: np.ndarray


def find(batch: types.Batch) -> Groups:
    """Group the rows of a batch by their image.

    Args:
        batch: numpy arrays.

    Returns:
        The groups, in the order of their first rows; all rows without an image are one.
    """
    numbers: dict[bytes, int] = {}
    images, valid = np.asarray(batch.images), np.asarray(batch.image_valid)
    keys = [image.tobytes() if there else b"" for image, there in zip(images, valid, strict=True)]
    group = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int32)
    members = [np.flatnonzero(group == number) for number in range(len(numbers))]
    lengths = [shared_length(jax.tree.map(lambda x, at=at: x[at], batch)) for at in members]
    most = [len({batch.tokens[at].tobytes() for at in rows}) for rows in members]  # texts of each
    if max(most) == 1:
        most = list(map(len, members))
    useful = [length for length, count in zip(lengths, most, strict=True) if count > 1]
    lengths = np.minimum(lengths, max(useful, default=0))
    fill = (0, (1 << (len(members) - 1).bit_length()) - len(members))
    first = np.array([rows[0] for rows in members], np.int32)
    return Groups(
        np.pad(first, fill, mode="edge"),
        group,
        np.pad(lengths.astype(np.int32), fill, mode="edge"),
    )


def shared_length(batch: types.Batch) -> int:
    """Return how many positions at the front are the same in all rows, pictures included.

    At least one position of every row is left over, from which its first new token is predicted.

    Args:
        batch: numpy arrays.
    """
    limit = int(np.min(batch.lengths)) - 1
    tokens = np.asarray(batch.tokens)[:, :limit]
    same = np.asarray(tokens == tokens[:1]).all(0)
    if not is_same(batch.images) or not is_same(batch.image_valid):
        same &= tokens[0] != types.IMAGE_TOKEN_ID
    if batch.graph is not None:
        same &= ~_differs(batch.graph, tokens[0] == types.GRAPH_TOKEN_ID)
    return limit if same.all() else int(same.argmin())


def is_same(rows: types.Array) -> bool:
    """Tell whether all rows of an array are alike."""
    rows = np.asarray(rows)
    return bool((rows == rows[:1]).all())


def _differs(graph: types.GraphBatch, is_graph: np.ndarray) -> np.ndarray:
    """Return at which graph tokens the rows differ: in their nodes, or in what a run has heard."""
    first = is_graph & ~np.concatenate([[False], is_graph[:-1]])
    run = np.maximum(np.cumsum(first) - 1, 0)
    same_nodes = all(
        part is None or is_same(part)
        for part in (
            graph.coverage,
            graph.boxes,
            graph.label_ids,
            graph.valid,
            graph.predicate_ids,
        )
    )
    heard = [
        not (is_same(graph.prompt_ids[:, r]) and is_same(graph.prompt_valid[:, r]))
        for r in range(graph.prompt_ids.shape[1])
    ]
    return is_graph & (np.array(heard)[run] | (not same_nodes))
