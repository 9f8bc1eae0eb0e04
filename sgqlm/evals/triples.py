"""Scene graphs as text: `man -> holding -> racket; racket -> near -> net`."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sgqlm.data.relations import types
from sgqlm.evals.metrics import scene_graph

Triple = tuple[str, str, str]
_ARROW = re.compile(r"\s*(?:-+>|=+>|\u2192|\|)\s*")
_BRACKETS = {"(": ")", "<": ">", "[": "]"}
_MARK = re.compile(r"^(?:[-*\u2022]\s+|\d+[.)]\s+)")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")


class Parsed(NamedTuple):
    """What a text says, in its order, and how many of its pieces say nothing that can be read."""

    triples: list[Triple]
    num_failed: int


def parse(text: str) -> Parsed:
    """Read triples from a text of a model.

    Pieces stand between semicolons or on lines of their own. A piece is `a -> b -> c` (also with
    `=>`, an arrow character or `|`) or `(a, b, c)`. Bullets, numbers and brackets in front are
    dropped, as are articles; names come in lower case.

    Example: `1. The man -> holding -> a racket; tall` gives one triple and one failure.

    Args:
        text: the answer.
    """
    found, failed = [], 0
    for piece in re.split(r"[;\n]", text):
        piece = _MARK.sub("", piece.strip()).strip().rstrip(".,")
        if not piece:
            continue
        closing = _BRACKETS.get(piece[0])
        is_bracketed = closing is not None and piece.endswith(closing)
        piece = piece[1:-1] if is_bracketed else piece
        parts = _ARROW.split(piece)
        if len(parts) == 1 and is_bracketed:
            parts = piece.split(",")
        names = [_ARTICLE.sub("", types.clean(part)) for part in parts]
        if len(names) == 3 and all(names):
            found.append((names[0], names[1], names[2]))
        else:
            failed += 1
    return Parsed(found, failed)


def predicted(
    found: Sequence[Triple],
    predicates: Sequence[str],
    *,
    name: Callable[[str], str] = str,
    predicate: Callable[[str], str] = str,
) -> scene_graph.Predicted:
    """Return triples of names as a prediction; the first is the surest.

    All objects have one region, so that names alone decide; see `named_truth`.

    Args:
        found: the triples.
        predicates: by number; one that is not among them can hit nothing and takes a rank.
        name: brings names of objects to their common form.
        predicate: brings predicates to their common form.
    """
    labels, triplets = _numbered(
        [(name(s), predicate(p), name(o)) for s, p, o in found], predicates
    )
    scores = -np.arange(len(triplets), dtype=float)
    return scene_graph.Predicted(labels, triplets, scores, _one_region(len(labels)))


def named_truth(
    found: Sequence[Triple],
    predicates: Sequence[str],
    *,
    name: Callable[[str], str] = str,
    key: str = "",
) -> scene_graph.Truth:
    """Return annotated triples of names as a truth; objects of one name are one object."""
    named = [(name(s), p, name(o)) for s, p, o in found]
    labels, triplets = _numbered(named, predicates)
    return scene_graph.Truth(labels, triplets, _one_region(len(labels)), key=key)


def _numbered(found: Sequence[Triple], predicates: Sequence[str]) -> tuple[list[str], np.ndarray]:
    numbers = {word: number for number, word in enumerate(predicates)}
    labels = list(dict.fromkeys(end for s, _, o in found for end in (s, o)))
    slot = {label: index for index, label in enumerate(labels)}
    rows = [(slot[s], slot[o], numbers.get(p, len(predicates))) for s, p, o in found]
    return labels, np.array(rows, int).reshape(-1, 3)


def _one_region(count: int) -> np.ndarray:
    return np.tile(np.array([0.0, 0.0, 1.0, 1.0]), (count, 1))
