"""Predicates that mean the same, brought to one form for questions and answers."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from sgqlm import errors
from sgqlm.data.relations import types

# canonical form: other ways to say it. Meanings are kept apart where an answer would differ
# (`on` and `sitting on`); VG150 counts some of these as predicates of their own.
_TABLE = {
    "wearing": "wears, wear, worn by man, has on, wearing a, dressed in, is wearing, are wearing",
    "holding": "holds, hold, holding a, holding onto, holding on to, is holding, grasping",
    "carrying": "carries, carry",
    "riding": "rides, ride, riding a, riding on",
    "eating": "eats, eat",
    "drinking": "drinks, drink",
    "using": "uses, use",
    "playing": "plays, play",
    "reading": "reads, read",
    "watching": "watches, watch",
    "pulling": "pulls, pull",
    "hitting": "hits, hit",
    "kicking": "kicks, kick",
    "throwing": "throws, throw",
    "touching": "touches, touch",
    "covering": "covers, cover",
    "containing": "contains, contain",
    "looking at": "looks at, look at, looking at a, staring at, gazing at",
    "lying on": "laying on, lies on, lays on, laying in, lying down on, laid on",
    "sitting on": "sits on, sit on, sat on, seated on, sitting on a, sitting on top of",
    "sitting in": "sits in, sit in, seated in, sitting inside",
    "sitting at": "sits at, seated at",
    "standing on": "stands on, stand on, standing on a",
    "standing in": "stands in, stand in",
    "walking on": "walks on, walk on, walking down, walking along",
    "hanging from": "hangs from, hanging off, hung from",
    "hanging on": "hangs on, hung on, hang on",
    "growing on": "grows on, growing from",
    "parked on": "parked on a, parked along, parked on side of",
    "has": "have, having, has a, has an, with a, possesses",
    "with": "along with",
    "on": "on a, on the, upon, onto, on top of, atop, on the top of, placed on, are on",
    "in": "in a, in the, inside, inside of, within, contained in, into",
    "next to": "beside, besides, adjacent to, alongside, on side of, to the side of",
    "near": "close to, nearby, near to, by",
    "in front of": "in front, front of, before",
    "behind": "in back of, in the back of",
    "above": "over, over the",
    "under": "below, beneath, underneath, under a",
    "left of": "to the left of, on the left of, on left of, on the left side of",
    "right of": "to the right of, on the right of, on right of, on the right side of",
    "part of": "is part of, a part of",
    "made of": "made out of, made from",
    "attached to": "attached, connected to, is attached to, affixed to",
    "covered in": "covered with, covered by",
    "belonging to": "belongs to, belong to, belonging",
    "leaning against": "leaning on, leans on, leans against",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split(", "))


# a relation that holds in both directions, so that swapping its roles proves nothing
SYMMETRIC = _words(
    "next to, near, and, with, at, touching, facing, between, adjacent, around, along, holding "
    "hands, holding hands with, hugging, kissing, talking to, talking with, interacting with, "
    "interacts with, playing with, attached to, against, same as, similar to, handshake, hug, "
    "kiss, high five, dance, parallel to, connected, together with"
)
# true of nearly any pair of close things: never said to be false
WEAK = _words("next to, near, and, with, at, of, to, for, has, along, from, on, in")
_OPPOSITES = {
    "above": "under", "in front of": "behind", "left of": "right of", "in": "outside of",
    "pushing": "pulling", "covering": "covered in", "entering": "leaving",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Synonyms:
    """Maps predicates to one form.

    Attributes:
        table: predicate -> canonical predicate, for those that change.
    """

    table: Mapping[str, str]

    def __call__(self, predicate: str) -> str:
        """Return the canonical form of a predicate.

        A leading `is` or `are` and a final article are dropped before and after the table is asked.
        """
        words = types.clean(predicate)
        if words in self.table:
            return self.table[words]
        parts = words.split()
        if len(parts) > 1 and parts[0] in ("is", "are", "was", "were"):
            parts = parts[1:]
        if len(parts) > 1 and parts[-1] in ("a", "an", "the"):
            parts = parts[:-1]
        words = " ".join(parts)
        return self.table.get(words, words)


def default() -> Synonyms:
    """Return the table of this module."""
    return Synonyms({alias: kept for kept, line in _TABLE.items() for alias in line.split(", ")})


def load(path: str | os.PathLike | None) -> Synonyms:
    """Return the table of this module with a user's lines before it.

    Args:
        path: a text file with a line a predicate: the form to use, then the other ways to say it,
            separated by commas (the form of Visual Genome's relationship_alias.txt); None for none.

    Raises:
        SgqlmError: the file cannot be read.
    """
    if path is None:
        return default()
    given: dict[str, str] = {}
    for words in read_lines(path, "the table of synonyms"):
        for alias in words:
            given.setdefault(alias, words[0])  # of two lines with one alias the first counts
    table = dict(default().table)
    table = {alias: given.get(kept, kept) for alias, kept in table.items()} | given
    return Synonyms({alias: kept for alias, kept in table.items() if alias != kept})


def read_lines(path: str | os.PathLike, what: str) -> list[list[str]]:
    """Return the cleaned words of every line of a table, `canonical,alias,alias` a line.

    Args:
        path: the file.
        what: it is, for messages.

    Raises:
        SgqlmError: the file cannot be read.
    """
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a text file: `canonical,alias,alias` a line"
        raise errors.SgqlmError(
            f"{what} cannot be read", where=str(path), why=str(error), fix=fix
        ) from error
    return [[word for word in map(types.clean, line.split(",")) if word] for line in lines]


def opposite(predicate: str) -> str:
    """Return the canonical predicate that contradicts a canonical one; empty if none is known."""
    both = _OPPOSITES | {right: left for left, right in _OPPOSITES.items()}
    return both.get(predicate, "")
