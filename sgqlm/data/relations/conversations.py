"""Questions about relations, in LLaVA's form; every draw is a function of (seed, image, index).

One relation a sample by default: the graph is activated by the first question alone, and questions
of one scene learned in one sequence were measured to be learned far more slowly than one a sample.
Boxes in texts are shares of the model's square, [x0, y0, x1, y1].
"""

import collections
import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.data.relations import synonyms as synonym_lib
from sgqlm.data.relations import types

Turn = dict[str, str]
TEMPLATES = ("predicate", "object", "verify", "list", "attribute", "count")
DEFAULT = TEMPLATES[:-1]  # counting needs annotations that name every object of a kind
SHORT = "\nAnswer the question using a single word or phrase."
LIST_LIMIT = 10
_SHARES = {"predicate": 0.5, "object": 0.2, "verify": 0.3}  # of the questions about one relation


@dataclasses.dataclass(frozen=True)
class Settings:
    """How relations become conversations.

    Attributes:
        templates: kinds of questions, of `TEMPLATES`.
        rounds: questions in one conversation, at most.
        per_image: questions about one image, at most.
        max_per_predicate: questions about relations of one predicate in a split, at most; 0: any.
        decimals: of boxes in texts.
        fit: how images become square, `pad` or `crop`.
        seed: of all draws.
        synonyms: brings predicates to one form.
    """

    templates: Sequence[str] = DEFAULT
    rounds: int = 1
    per_image: int = 16
    max_per_predicate: int = 5000
    decimals: int = 2
    fit: Literal["pad", "crop"] = "pad"
    seed: int = 0
    synonyms: synonym_lib.Synonyms = dataclasses.field(default_factory=synonym_lib.default)

    def __post_init__(self):
        """Check the values."""
        unknown = [name for name in self.templates if name not in TEMPLATES]
        if unknown or not self.templates:
            raise errors.SgqlmError(
                f"unknown templates: {', '.join(unknown) or 'none given'}",
                where="templates",
                fix="known: " + ", ".join(TEMPLATES),
            )
        least = {"rounds": 1, "per_image": 1, "max_per_predicate": 0, "decimals": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                flag = "--" + name.replace("_", "-")
                raise errors.SgqlmError(f"{flag} is below {limit}", where=flag, fix="raise it")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question with its answer; `kind` is its template, `predicates` what it asks for."""

    kind: str
    ask: str
    answer: str
    predicates: Sequence[str] = ()


def draw(*parts: str | int) -> float:
    """Return a number in 0..1 that is a pure function of `parts`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def format_box(
    box: Sequence[float],
    size: tuple[int, int],
    *,
    fit: Literal["pad", "crop"] = "pad",
    decimals: int = 2,
) -> str:
    """Return a box as text in the model's square.

    The box (0, 0, 4, 2) of a 4 x 2 image (width x height) is `[0.00, 0.25, 1.00, 0.75]` with `pad`.

    Args:
        box: x0, y0, x1, y1 in pixels.
        size: (height, width) of the image.
        fit: see `graphs.window`.
        decimals: of each number.
    """
    x0, y0, x1, y1 = graphs.window(size, fit)
    shares = (
        min(max((side - start) / extent, 0.0), 1.0)
        for side, start, extent in zip(box, (x0, y0) * 2, (x1 - x0, y1 - y0) * 2, strict=True)
    )
    return "[" + ", ".join(f"{share:.{decimals}f}" for share in shares) + "]"


def mention(item: types.Annotated, index: int, settings: Settings) -> str:
    """Return an object as questions name it: `man at [0.10, 0.20, 0.30, 0.40]`."""
    thing = item.objects[index]
    box = format_box(thing.box, item.size, fit=settings.fit, decimals=settings.decimals)
    return f"{thing.name} at {box}"


def ask_predicate(
    item: types.Annotated, subject: int, target: int, settings: Settings | None = None
) -> str:
    """Return the question for the predicate of a pair, as in training; without `<image>`."""
    settings = settings or Settings()
    first, second = (mention(item, index, settings) for index in (subject, target))
    return f"What is the relationship between the {first} and the {second}?{SHORT}"


def ask_object(
    item: types.Annotated, subject: int, predicate: str, settings: Settings | None = None
) -> str:
    """Return the question for the object of a subject and predicate."""
    first = mention(item, subject, settings or Settings())
    return f"What completes this relationship: {first} -> {predicate} -> ?{SHORT}"


def ask_verify(
    item: types.Annotated,
    subject: int,
    predicate: str,
    target: int,
    settings: Settings | None = None,
) -> str:
    """Return the question whether a relation holds."""
    settings = settings or Settings()
    first, second = (mention(item, index, settings) for index in (subject, target))
    return f"Is this relationship in the image: {first} -> {predicate} -> {second}?{SHORT}"


def ask_list(item: types.Annotated, marked: Sequence[int], settings: Settings | None = None) -> str:
    """Return the question for the relations between marked objects."""
    settings = settings or Settings()
    names = "; ".join(mention(item, index, settings) for index in marked)
    return f"List the relationships between the marked objects: {names}."


def questions(
    item: types.Annotated,
    settings: Settings,
    *,
    chosen: Collection[int],
    others: Sequence[str] = (),
) -> list[Question]:
    """Return the questions about one image.

    Args:
        item: an image at the size of its file.
        settings: templates and limits.
        chosen: indices of the relations that may be asked for, see `balance`.
        others: frequent predicates of the data set, for relations that do not hold.

    Returns:
        At most `settings.per_image` questions: about single relations in their order, then the
        list, then attributes and counts.
    """
    maker = _Maker(item, settings, others)
    found = [q for index in sorted(chosen) if (q := maker.about(index))]
    more = maker.attributes() if "attribute" in settings.templates else []
    more += maker.counts() if "count" in settings.templates else []
    # relations are what is to be learned: of the rest only as much as goes beside them
    more = maker.some(more, max(len(found) // 4, 1) if found else settings.per_image)
    if "list" in settings.templates and (listed := maker.listed(sorted(chosen))):
        more.insert(0, listed)
    more = more[: settings.per_image - bool(found)]
    return maker.some(found, settings.per_image - len(more)) + more


def conversations(found: Sequence[Question], rounds: int) -> Iterator[list[Turn]]:
    """Yield the turns of conversations of `rounds` questions; the first turn has the image."""
    for start in range(0, len(found), rounds):
        turns = []
        for question in found[start : start + rounds]:
            ask = question.ask if turns else f"<image>\n{question.ask}"
            turns.append({"from": "human", "value": ask})
            turns.append({"from": "gpt", "value": question.answer})
        yield turns


class _Maker:
    """Makes the questions of one image."""

    def __init__(self, item: types.Annotated, settings: Settings, others: Sequence[str]):
        self.item, self.settings, self.others = item, settings, others
        self.words = [settings.synonyms(r.predicate) for r in item.relations]
        self.by_pair: dict[tuple[int, int], set[str]] = collections.defaultdict(set)
        self.targets: dict[tuple[int, str], set[str]] = collections.defaultdict(set)
        for relation, word in zip(item.relations, self.words, strict=True):
            self.by_pair[relation.subject, relation.object].add(word)
            self.targets[relation.subject, word].add(item.objects[relation.object].name)

    def draw(self, *parts: str | int) -> float:
        """Return a number of (seed, image, parts)."""
        name = self.item.image_id or self.item.key
        return draw(self.settings.seed, name, *parts)

    def some(self, found: Sequence[Question], limit: int) -> list[Question]:
        """Return at most `limit` drawn questions, in their order."""
        order = sorted(range(len(found)), key=lambda i: self.draw("keep", found[i].kind, i))
        return [found[i] for i in sorted(order[:limit])]

    def about(self, index: int) -> Question | None:
        """Return one question about relation `index`, of a template that suits it."""
        relation = self.item.relations[index]
        word, pair = self.words[index], (relation.subject, relation.object)
        makers = {}
        if len(self.by_pair[pair]) == 1:  # else no single predicate is the answer
            makers["predicate"] = lambda: self._predicate(pair, word)
        if len(self.targets[relation.subject, word]) == 1:
            makers["object"] = lambda: self._object(pair, word)
        if word not in synonym_lib.SYMMETRIC or word not in synonym_lib.WEAK:
            makers["verify"] = lambda: self._verify(index, pair, word)
        for name in self._order(index, [n for n in makers if n in self.settings.templates]):
            if question := makers[name]():
                return question
        return None

    def _order(self, index: int, names: Sequence[str]) -> list[str]:
        """Return templates in drawn order; each is the first with its share."""
        left, order = list(names), []
        while left:
            mark = self.draw("template", index, len(order)) * sum(_SHARES[n] for n in left)
            for name in left:
                mark -= _SHARES[name]
                if mark < 0 or name == left[-1]:
                    order.append(name)
                    left.remove(name)
                    break
        return order

    def _predicate(self, pair: tuple[int, int], word: str) -> Question:
        return Question("predicate", ask_predicate(self.item, *pair, self.settings), word, (word,))

    def _object(self, pair: tuple[int, int], word: str) -> Question:
        ask = ask_object(self.item, pair[0], word, self.settings)
        return Question("object", ask, self.item.objects[pair[1]].name, (word,))

    def _verify(self, index: int, pair: tuple[int, int], word: str) -> Question | None:
        """Return a true relation, or one of this pair that does not hold, evenly drawn."""
        if self.draw("verify", index) < 0.5:
            ask = ask_verify(self.item, pair[0], word, pair[1], self.settings)
            return Question("verify", ask, "Yes", (word,))
        back = pair[1], pair[0]
        is_known = word in synonym_lib.SYMMETRIC or word in self.by_pair.get(back, ())
        if not is_known and self._differ(*pair):
            ask = ask_verify(self.item, pair[1], word, pair[0], self.settings)
            return Question("verify", ask, "No", (word,))
        wrong = self._wrong(index, pair, word)
        if not wrong:
            return None
        return Question(
            "verify", ask_verify(self.item, pair[0], wrong, pair[1], self.settings), "No", (wrong,)
        )

    def _differ(self, first: int, second: int) -> bool:
        """Return whether two objects are told apart by their texts."""
        return mention(self.item, first, self.settings) != mention(self.item, second, self.settings)

    def _wrong(self, index: int, pair: tuple[int, int], word: str) -> str:
        """Return a predicate that the pair is not annotated with and that no true one implies."""
        true = self.by_pair[pair]
        if (other := synonym_lib.opposite(word)) and other not in true:
            return other
        known = [p for p in self.others if p not in true and not _implied(p, true)]
        return known[int(self.draw("wrong", index) * len(known))] if known else ""

    def listed(self, chosen: Sequence[int]) -> Question | None:
        """Return the question for up to ten of the relations, those of large objects first."""
        item = self.item
        areas = [(t.box[2] - t.box[0]) * (t.box[3] - t.box[1]) for t in item.objects]

        def size(index: int) -> tuple[float, int]:
            relation = item.relations[index]
            return -(areas[relation.subject] + areas[relation.object]), index

        kept = sorted(chosen, key=size)[:LIST_LIMIT]
        if len(kept) < 2:
            return None
        parts, marked = {}, {}
        for index in kept:
            relation = item.relations[index]
            first, second = (item.objects[end].name for end in (relation.subject, relation.object))
            parts[f"{first} -> {self.words[index]} -> {second}"] = None
            marked |= dict.fromkeys((relation.subject, relation.object))
        # in an order that says nothing about who is subject and who object
        order = sorted(marked, key=lambda i: (-areas[i], item.objects[i].box))
        words = tuple(self.words[index] for index in kept)
        return Question("list", ask_list(item, order, self.settings), "; ".join(parts), words)

    def attributes(self) -> list[Question]:
        """Return a question for the attributes of each object that has some."""
        return [
            Question(
                "attribute",
                f"What is the {mention(self.item, index, self.settings)} like?{SHORT}",
                ", ".join(thing.attributes),
            )
            for index, thing in enumerate(self.item.objects)
            if thing.attributes
        ]

    def counts(self) -> list[Question]:
        """Return a question for the number of objects of each name there are several of."""
        counted = collections.Counter(thing.name for thing in self.item.objects)
        return [
            Question("count", f"How many objects are there of the kind {name}?{SHORT}", str(number))
            for name, number in counted.items()
            if 2 <= number <= 10
        ]


def _implied(predicate: str, true: Collection[str]) -> bool:
    """Return whether a predicate may well hold where those of `true` do."""
    if predicate in synonym_lib.WEAK:
        return True
    words = set(predicate.split())
    # `sitting on` and `on` go together, `standing on` and `sitting on` do not
    return any(words <= set(known.split()) or set(known.split()) <= words for known in true)


def frequent(counts: Mapping[str, int], *, limit: int = 50) -> list[str]:
    """Return the most frequent predicates that can be denied, for wrong statements."""
    order = sorted(counts, key=lambda p: (-counts[p], p))
    return [p for p in order if p not in synonym_lib.WEAK][:limit]
