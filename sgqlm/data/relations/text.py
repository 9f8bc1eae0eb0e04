"""Captions to relations by rule: what stands between two phrases of a caption, if it is short.

In `a man riding a brown horse` the phrases `a man` and `a brown horse` have boxes; `riding` between
them is the predicate. A closed list of prepositions and verbs decides; commas, `and` and longer
texts give nothing, so that what is found is mostly right.
"""

import re
from collections.abc import Sequence

Triple = tuple[int, str, int]  # index of the subject's phrase, predicate, index of the object's
Spans = Sequence[tuple[int, int]]  # start and end of each phrase in the caption, in order

MAX_WORDS = 4


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those his her its their my your our some any each every"
)
_AUXILIARIES = _words("is are was were be being been who which that has have")
_PREPOSITIONS = _words(
    "on in at of with without under over above below behind beside near by along across through "
    "around against between inside outside into onto from for to upon beneath underneath towards "
    "toward past atop among amongst within off up down"
)
# words that only stand in longer prepositions: in front of, next to, on top of
_JOINED = _words("front next top side back close middle left right bottom edge end out away")
_VERBS = _words(
    "has have holds hold wears wear rides ride eats eat drinks drink carries carry uses use "
    "plays play watches watch pulls pull pushes push hits hit kicks kick throws throw catches "
    "catch touches touch faces face covers cover contains contain hugs hug kisses kiss feeds feed "
    "reads read drives drive leads lead chases chase surrounds surround supports support says "
    "sits sit stands stand lies lie lays lay walks walk runs run hangs hang leans lean looks look "
    "rests rest flies fly swims swim jumps jump sleeps sleep grows grow "
    "covered filled surrounded parked made attached mounted seated located decorated dressed "
    "placed tied connected topped painted printed written hung held worn pulled driven used "
    "lined stacked perched"
)
_NOT_VERBS = _words("during including according regarding considering following")
_WORD = re.compile(r"[a-z][a-z'-]*")


class RuleBased:
    """Finds relations between neighbouring phrases of a caption; deterministic, offline."""

    name = "rules"

    def __call__(self, caption: str, spans: Spans) -> list[Triple]:
        """Return the relations of a caption.

        Args:
            caption: the text.
            spans: where each phrase stands, sorted.

        Returns:
            Triples of positions in `spans`, at most one per pair of neighbours.
        """
        found = []
        for index in range(len(spans) - 1):
            end, start = spans[index][1], spans[index + 1][0]
            if predicate := between(caption[end:start]):
                found.append((index, predicate, index + 1))
        return found


def between(text: str) -> str:
    """Return the predicate that the text between two phrases is, or nothing.

    Examples: ` is riding on the ` gives `riding on`; `, and ` and ` while the sun ` give nothing.
    """
    text = text.strip().lower()
    words = text.split()
    if not words or not all(_WORD.fullmatch(word) for word in words):
        return ""
    while words and words[-1] in _DETERMINERS:
        words.pop()
    while len(words) > 1 and words[0] in _AUXILIARIES:
        words.pop(0)
    if not 1 <= len(words) <= MAX_WORDS:
        return ""
    kinds = [_kind(word) for word in words]
    # a verb stands first; prepositions follow; a joined word never stands alone
    if "" in kinds or "verb" in kinds[1:] or set(kinds) == {"joined"}:
        return ""
    return " ".join(word for word in words if word not in _DETERMINERS)


def _kind(word: str) -> str:
    if word in _PREPOSITIONS:
        return "preposition"
    if word in _JOINED:
        return "joined"
    if word in _DETERMINERS:
        return "determiner"  # `in the middle of`
    is_verb = word.endswith("ing") and len(word) > 4 and word not in _NOT_VERBS
    return "verb" if is_verb or word in _VERBS else ""


def head(phrase: str) -> str:
    """Return a phrase without its determiner. Example: `a brown horse` gives `brown horse`."""
    words = phrase.split()
    while len(words) > 1 and words[0].lower() in _DETERMINERS:
        words.pop(0)
    return " ".join(words)
