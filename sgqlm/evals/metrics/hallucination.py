"""Objects that are said and not there, as CHAIR measures them (Rohrbach et al. 2018).

CHAIR_i is the share of mentions whose object is not there, CHAIR_s the share of texts with such a
mention. Any pair of (objects said, objects there) will do; `mentions` finds the objects of a text.
"""

import dataclasses
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

from sgqlm import errors

# Plurals that no rule makes, as pattern.en has them, which the CHAIR program uses.
_PLURALS = {
    "axes": "axe", "brethren": "brother", "cacti": "cactus", "dice": "die",
    "feet": "foot", "fungi": "fungus", "geese": "goose", "lice": "louse", "mice": "mouse",
    "octopi": "octopus", "oxen": "ox", "people": "person", "teeth": "tooth",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scores:
    """Hallucination over a set of texts; None where nothing is said, or nothing is there.

    Attributes:
        chair_i: hallucinated mentions / mentions.
        chair_s: texts with a hallucinated mention / texts.
        recall: objects there that are said / objects there.
        mentions: mentions in all.
        texts: texts in all.
        hallucinated: id -> mentions that are not there, for those with any.
    """

    chair_i: float | None
    chair_s: float | None
    recall: float | None
    mentions: int
    texts: int
    hallucinated: dict[Hashable, list[str]]


def mentions(text: str, names: Mapping[str, str] | Iterable[str]) -> list[str]:
    """Return the objects a text mentions, in order, as often as it does.

    The longest name counts (`hot dog` is no `dog`); a plural stands for its singular, also an
    irregular one (`policemen`, `mice`).

    Args:
        text: a caption or an answer.
        names: name or synonym -> object; or the names alone.

    Returns:
        Objects.
    """
    table = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    phrases = {tuple(_words(name)): what for name, what in table.items()}
    longest = max(map(len, phrases), default=0)
    words, found, at = _words(text), [], 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            *head, last = words[at : at + size]
            hits = [phrases[p] for end in _singular(last) if (p := (*head, end)) in phrases]
            if hits:
                found.append(hits[0])
                at += size - 1
                break
        at += 1
    return found


def score(
    said: Mapping[Hashable, Sequence[str]], there: Mapping[Hashable, Collection[str]]
) -> Scores:
    """Measure hallucination, joined by id; ids of one alone are in no score.

    Args:
        said: id -> objects a text mentions, each as often as it does.
        there: id -> objects that are there.

    Raises:
        SgqlmError: no id is in both.

    Example:
        said {1: [dog, dog, cat]}, there {1: {dog, tree}}: chair_i 1/3, chair_s 1, recall 1/2.
    """
    shared = [key for key in said if key in there]
    if not shared:
        raise errors.SgqlmError(
            "no text has a list of objects",
            where=f"{len(said)} texts, {len(there)} lists",
            fix="give texts and objects of the same images",
            code=errors.DATA,
        )
    wrong = {key: [name for name in said[key] if name not in there[key]] for key in shared}
    wrong = {key: names for key, names in wrong.items() if names}
    total = sum(len(said[key]) for key in shared)
    objects = sum(len(set(there[key])) for key in shared)
    hits = sum(len(set(said[key]) & set(there[key])) for key in shared)
    return Scores(
        sum(map(len, wrong.values())) / total if total else None,
        len(wrong) / len(shared),
        hits / objects if objects else None,
        total,
        len(shared),
        wrong,
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _singular(word: str) -> list[str]:
    """Return a word and what it may be the plural of."""
    found = [word]
    if word.endswith("men"):
        found.append(word[:-3] + "man")
    if word.endswith("children"):  # grandchildren
        found.append(word[:-3])
    if word in _PLURALS:
        found.append(_PLURALS[word])
    if word.endswith("ies"):
        found.append(word[:-3] + "y")
    if word.endswith("ves"):
        found += [word[:-3] + "f", word[:-3] + "fe"]
    if word.endswith("es"):
        found.append(word[:-2])
    if word.endswith("s"):
        found.append(word[:-1])
    return found
