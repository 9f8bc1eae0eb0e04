"""The language of scenes: one table of sentences, used to write, to parse and to answer.

what colour is the thing the red star is pointing at?
^ template of `one_hop`       ^ noun phrase  ^ predicate
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from sgqlm.scenes import world

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ARGUMENTS = ("colour", "shape", "size", "texture")

# family -> sentences. The families up to `left_right` are the test's; the others train look-ups.
TEMPLATES = {
    "attribute": (
        "what {attribute} is {first}?",
        "what is the {attribute} of {first}?",
        "tell me the {attribute} of {first}.",
    ),
    "one_hop": (
        "what {attribute} is the thing {first} is {predicate}?",
        "what is the {attribute} of the thing {first} is {predicate}?",
        "tell me the {attribute} of the thing {first} is {predicate}.",
    ),
    "one_hop_back": (
        "what {attribute} is the thing {predicate} {first}?",
        "what is the {attribute} of the thing {predicate} {first}?",
        "tell me the {attribute} of the thing {predicate} {first}.",
    ),
    "exist": ("is there {some}?", "can you see {some}?", "does the image show {some}?"),
    "count": (
        "how many {plural} are there?",
        "how many {plural} can you see?",
        "count the {plural}.",
    ),
    "left_right": (
        "is {first} left or right of {second}?",
        "is {first} to the left or to the right of {second}?",
    ),
    "describe": ("describe {first}.",),
    "describe_hop": ("describe the thing {first} is {predicate}.",),
    "describe_hop_back": ("describe the thing {predicate} {first}.",),
    "partner": ("what is {first} {predicate}?",),
    "partner_back": ("what is {predicate} {first}?",),
    "predicate": ("what is {first} doing to {second}?",),
    "verify": ("is {first} {predicate} {second}?",),
    "caption": ("describe the image.", "what is in the image?"),
    "facts": ("list the facts.",),
    "relations": ("list the relations.",),
}
TESTED = ("attribute", "one_hop", "exist", "count", "left_right")


@dataclasses.dataclass(frozen=True)
class Noun:
    """A description; what is empty is not said. `the large red thing` has size and colour."""

    size: str = ""
    colour: str = ""
    texture: str = ""
    shape: str = ""

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Size, colour, texture, shape."""
        return self.size, self.colour, self.texture, self.shape

    def __str__(self) -> str:
        """Return the phrase without an article: `large red thing`."""
        return " ".join([w for w in self.words[:3] if w] + [self.shape or "thing"])

    @property
    def plural(self) -> str:
        """Return the phrase in the plural: `red stars`, `large red things`."""
        return f"{self}es" if self.shape == "cross" else f"{self}s"

    @property
    def some(self) -> str:
        """Return the phrase with its indefinite article: `an orange star`."""
        return f"{'an' if str(self)[0] in 'aeiou' else 'a'} {self}"

    def fits(self, item: world.SceneObject) -> bool:
        """Tell whether an object is what the phrase says."""
        return all(w in ("", have) for w, have in zip(self.words, item.words, strict=True))

    def find(self, scene: world.Scene) -> list[int]:
        """Return the objects of a scene that fit."""
        return [k for k, item in enumerate(scene.objects) if self.fits(item)]


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What a sentence asks.

    Attributes:
        family: a family of `TEMPLATES`; both directions of a relation are `one_hop`.
        argument: the asked attribute (attribute, one_hop), the phrase looked for (exist, count),
            the predicate (partner, verify), else empty.
        nouns: the objects spoken of, which must be there.
        kind: what exist and count look for, which need not be there.
        predicate: the relation spoken of, or empty.
        is_back: the relation leads from the asked thing to the named one.
    """

    family: str
    argument: str = ""
    nouns: tuple[Noun, ...] = ()
    kind: Noun | None = None
    predicate: str = ""
    is_back: bool = False


def write(
    family: str,
    style: int,
    *,
    attribute: str = "",
    first: Noun | None = None,
    second: Noun | None = None,
    predicate: str = "",
) -> str:
    """Write a sentence.

    Args:
        family: a key of `TEMPLATES`.
        style: which paraphrase, modulo their number.
        attribute: a word of `ARGUMENTS`.
        first: the object spoken of, or the kind looked for or counted.
        second: the other object.
        predicate: a word of `world.PREDICATES`.

    Returns:
        The sentence, lower case.
    """
    texts = TEMPLATES[family]
    return texts[style % len(texts)].format(
        attribute=attribute,
        first=f"the {first}",
        second=f"the {second}",
        predicate=predicate,
        some=first.some if first else "",
        plural=first.plural if first else "",
    )


def parse(text: str) -> Parsed | None:
    """Return what a sentence asks, or None where the grammar does not know it.

    Case, the spacing and an `<image>` placeholder do not matter; every word and the closing mark
    do. `the thing` alone names nothing and is refused.
    """
    clean = " ".join(text.replace("<image>", " ").lower().split())
    clean = re.sub(r" ([?.])$", r"\1", clean)
    for family, pattern in _patterns():
        if match := pattern.fullmatch(clean):
            return _read(family, match.groupdict())
    return None


def is_well_formed(text: str, scene: world.Scene) -> bool:
    """Tell whether the grammar parses a sentence and every object it speaks of is in the scene.

    Neither uniqueness nor the truth of a named relation is asked for: see `answer` for those.
    """
    parsed = parse(text)
    return parsed is not None and all(noun.find(scene) for noun in parsed.nouns)


def answer(text: str, scene: world.Scene) -> str | None:
    """Answer a question of the test's families from the scene.

    Returns:
        The one-word answer; None where the text is no such question, or a phrase in it does not
        name exactly one object, or the relation or the side is not defined.
    """
    parsed = parse(text)
    if parsed is None or parsed.family not in TESTED:
        return None
    if parsed.kind is not None:
        found = len(parsed.kind.find(scene))
        return ("yes" if found else "no") if parsed.family == "exist" else NUMBERS[found]
    named = [noun.find(scene) for noun in parsed.nouns]
    if any(len(found) != 1 for found in named):
        return None
    if parsed.family == "left_right":
        sides = world.spatial(scene, named[0][0], named[1][0])
        return next((side.split()[0] for side in sides if side in ("left of", "right of")), None)
    targets = named[0]
    if parsed.family == "one_hop":
        targets = partners(scene, targets[0], parsed.predicate, is_back=parsed.is_back)
    return getattr(scene.objects[targets[0]], parsed.argument) if len(targets) == 1 else None


def partners(scene: world.Scene, k: int, predicate: str, *, is_back: bool = False) -> list[int]:
    """Return what object `k` is `predicate` (or, back, what is `predicate` object `k`)."""
    ends = [
        (r.object, r.subject) if is_back else (r.subject, r.object)
        for r in scene.relations
        if r.predicate == predicate
    ]
    return [other for end, other in ends if end == k]


def fact(scene: world.Scene, relation: world.Relation) -> str:
    """Return a relation as a clause: `the red star is pointing at the blue circle`."""
    first, second = (
        name(scene.objects[k], "colour", "shape") for k in (relation.subject, relation.object)
    )
    return f"the {first} is {relation.predicate} the {second}"


def name(item: world.SceneObject, *attributes: str) -> Noun:
    """Return the phrase that says just these attributes of an object; all if none is given."""
    return Noun(**{key: getattr(item, key) for key in attributes or world.ATTRIBUTES})


def words() -> list[str]:
    """Return every word the scene language uses, sorted."""
    texts = [text for texts in TEMPLATES.values() for text in texts]
    texts = [re.sub(r"\{\w+\}", " ", text) for text in texts]
    texts += [*ARGUMENTS, *world.PREDICATES, *NUMBERS[:4], "yes no a an left right thing things"]
    texts += [word for values in world.ATTRIBUTES.values() for word in values]
    texts += [Noun(shape=shape).plural for shape in world.SHAPES]
    return sorted(set(re.findall("[a-z]+", " ".join(texts))))


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((f, re.compile(p)) for f, p in _pattern_texts())


def _pattern_texts() -> Iterator[tuple[str, str]]:
    slots = {
        "attribute": f"(?P<attribute>{'|'.join(ARGUMENTS)})",
        "predicate": f"(?P<predicate>{'|'.join(world.PREDICATES)})",
        "first": f"the {_noun('first')}",
        "second": f"the {_noun('second')}",
        "some": f"(?P<article>an?) {_noun('first')}",
        "plural": _noun("first", is_plural=True),
    }
    for family, texts in TEMPLATES.items():
        for text in texts:
            parts = re.split(r"\{(\w+)\}", text)
            yield (
                family,
                "".join(slots[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)),
            )


def _noun(group: str, *, is_plural: bool = False) -> str:
    before = "".join(
        f"(?:(?P<{group}_{key}>{'|'.join(world.ATTRIBUTES[key])}) )?"
        for key in ("size", "colour", "texture")
    )
    heads = (
        [Noun(shape=shape).plural for shape in ("", *world.SHAPES)]
        if is_plural
        else ["thing", *world.SHAPES]
    )
    return f"{before}(?P<{group}_shape>{'|'.join(heads)})"


def _read(family: str, groups: dict[str, str | None]) -> Parsed | None:
    nouns = []
    for slot in ("first", "second"):
        if head := groups.get(f"{slot}_shape"):
            shape = {Noun(shape=s).plural: s for s in world.SHAPES}.get(head, head)
            rest = {k: groups[f"{slot}_{k}"] or "" for k in ("size", "colour", "texture")}
            nouns.append(Noun(**rest, shape="" if shape in ("thing", "things") else shape))
    if Noun() in nouns:
        return None
    attribute, predicate = groups.get("attribute") or "", groups.get("predicate") or ""
    if family in ("exist", "count"):
        kind = nouns[0]
        right_article = family == "count" or f"{groups['article']} {kind}" == kind.some
        return Parsed(family, str(kind), kind=kind) if right_article else None
    is_back = family.endswith("_back")
    return Parsed(
        family.removesuffix("_back"),
        attribute or predicate,
        tuple(nouns),
        predicate=predicate,
        is_back=is_back,
    )
