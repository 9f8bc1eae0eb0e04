"""Questions about a scene with their answers, and conversations to learn from.

Balance: what is asked for is drawn evenly before the object is, yes and no come equally often for
every phrase, and counts are thinned to equal shares, so that no question betrays its answer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.scenes import grammar, world

Turn = dict[str, str]

TASKS = ("caption", "facts", "lookup", "relations", "chat", "text")

is_well_formed = grammar.is_well_formed
parse = grammar.parse

# references of one or two attributes; size or texture alone would seldom be unique
_REFERENCES = (
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("size", "shape"),
    ("texture", "shape"),
    ("size", "colour"),
    ("colour", "texture"),
)
_MIN_VALUES = 4  # different answers among the other objects of a one-hop question
# how often zero to three are tried for: the rarer a scene has them, the oftener
_COUNT_TRIES = {"colour": (0.11, 0.10, 0.17, 0.62), "shape": (0.09, 0.10, 0.15, 0.66)}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of the test.

    Attributes:
        family: attribute, one_hop, exist, count or left_right.
        argument: the asked attribute, or the phrase looked for or counted; empty for left_right.
        text: the question.
        answer: one word.
        grounding: indices of the objects it speaks of, the one that is asked about last.
    """

    family: str
    argument: str
    text: str
    answer: str
    grounding: tuple[int, ...]


def ask_all(scene: world.Scene, *, seed: int) -> list[Question]:
    """Return the test questions of a scene: 3 attribute, 2 one-hop and 1 of each other family.

    A family is left out where the scene offers no balanced question of it. No text comes twice.

    Args:
        scene: the scene.
        seed: of the choice; the scene's own split and index are mixed in.
    """
    rng = world.generator("ask", scene.split, scene.index, seed)
    plan = ["attribute"] * 3 + ["one_hop"] * 2 + ["exist", "count", "left_right"]
    return _ask(scene, rng, plan)


def conversation(scene: world.Scene, task: str, *, seed: int) -> list[Turn]:
    """Return a conversation about a scene in LLaVA's form.

    Args:
        scene: the scene.
        task: `caption` (objects and relations in one answer), `facts` (one answer of many facts
            whose words after `is` are look-ups), `lookup` (many short turns, each answer all
            look-up), `relations` (partner, predicate, yes or no with hard negatives, list), `chat`
            (4 to 6 test questions), `text` (the caption as text, then questions; no image).
        seed: of the choice.

    Returns:
        Turns `{"from": "human" | "gpt", "value": ...}`; `<image>` opens all but `text`.

    Raises:
        SgqlmError: the task is unknown.
    """
    if task not in TASKS:
        raise errors.SgqlmError(
            f"unknown scene task {task!r}", where="source.tasks", fix="give " + ", ".join(TASKS)
        )
    rng = world.generator("talk " + task, scene.split, scene.index, seed)
    pairs = {
        "caption": _caption_turns,
        "facts": _fact_turns,
        "lookup": _lookup_turns,
        "relations": _relation_turns,
        "chat": _chat_turns,
        "text": _text_turns,
    }[task](scene, rng)
    opening = f"{caption(scene)}\n" if task == "text" else "<image>\n"
    turns = []
    for i, (question, reply) in enumerate(pairs):
        turns.append({"from": "human", "value": question if i else opening + question})
        turns.append({"from": "gpt", "value": reply})
    return turns


def caption(scene: world.Scene) -> str:
    """Return all objects from left to right and all relations, as one line of text."""
    order = sorted(range(len(scene.objects)), key=lambda k: scene.objects[k].x)
    objects = ", ".join(str(grammar.name(scene.objects[k])) for k in order)
    clauses = [grammar.fact(scene, r) for r in scene.relations]
    return ". ".join([objects, *clauses]) + "."


def references(scene: world.Scene, k: int, *, without: Sequence[str] = ()) -> list[grammar.Noun]:
    """Return the phrases of one or two attributes that only object `k` fits.

    Args:
        scene: the scene.
        k: index of the object.
        without: attributes that may not be said.
    """
    columns = {
        key: [getattr(item, key) for item in scene.objects]
        for key in world.ATTRIBUTES
        if key not in without
    }
    nouns = []
    for keys in _REFERENCES:
        if all(key in columns for key in keys):
            said = list(zip(*(columns[key] for key in keys), strict=True))
            if said.count(said[k]) == 1:
                nouns.append(grammar.name(scene.objects[k], *keys))
    return nouns


def _ask(scene: world.Scene, rng: np.random.Generator, families: Sequence[str]) -> list[Question]:
    makers: dict[str, Callable[..., Question | None]] = {
        "attribute": _attribute,
        "one_hop": _one_hop,
        "exist": _exist,
        "count": _count,
        "left_right": _left_right,
    }
    asked: dict[tuple[Any, ...], Question] = {}
    for family in families:
        for _ in range(4):
            question = makers[family](scene, rng)
            if question is None:
                break  # thinned for balance: another try would undo that
            key = question.family, question.argument, question.grounding
            if key not in asked:
                asked[key] = question
                break
    return list(asked.values())


def _attribute(scene, rng) -> Question | None:
    attribute = grammar.ARGUMENTS[int(rng.choice(4, p=(0.4, 0.4, 0.1, 0.1)))]
    for k in rng.permutation(len(scene.objects)).tolist():
        if nouns := references(scene, k, without=(attribute,)):
            text = grammar.write(
                "attribute", _style(rng), attribute=attribute, first=_pick(rng, nouns)
            )
            return Question(
                "attribute", attribute, text, getattr(scene.objects[k], attribute), (k,)
            )
    return None


def _one_hop(scene, rng) -> Question | None:
    attribute = ("colour", "shape")[int(rng.integers(2))]
    ends = [end for r in scene.relations for end in (r.subject, r.object)]
    hops = [(r, is_back) for r in scene.relations for is_back in (False, True)]
    # first where the named object has other partners too, so that the predicate must be read
    order = [hops[i] for i in rng.permutation(len(hops))]
    order.sort(key=lambda hop: ends.count(hop[0].object if hop[1] else hop[0].subject) < 2)
    if rng.random() < 0.1:
        order.reverse()
    for relation, is_back in order:
        named, asked = relation.subject, relation.object
        if is_back:
            named, asked = asked, named
        values = {getattr(o, attribute) for k, o in enumerate(scene.objects) if k != named}
        nouns = references(scene, named)
        if nouns and len(values) >= _MIN_VALUES:
            text = grammar.write(
                "one_hop_back" if is_back else "one_hop",
                _style(rng),
                attribute=attribute,
                first=_pick(rng, nouns),
                predicate=relation.predicate,
            )
            answer = getattr(scene.objects[asked], attribute)
            return Question("one_hop", attribute, text, answer, (named, asked))
    return None


def _exist(scene, rng) -> Question | None:
    keys = (("shape",), ("colour",), ("colour", "shape"), ("colour", "shape"))[int(rng.integers(4))]
    is_there = bool(rng.integers(2))
    present = {grammar.name(item, *keys) for item in scene.objects}
    if is_there:
        pool = present
    else:  # both words of a negative pair are in the scene, only not together
        values = [
            sorted({getattr(o, key) for o in scene.objects})
            if len(keys) > 1
            else world.ATTRIBUTES[key]
            for key in keys
        ]
        pool = {
            grammar.Noun(**dict(zip(keys, pair, strict=True))) for pair in _product(values)
        } - present
    if not pool:
        return None
    noun = _pick(rng, sorted(pool, key=str))
    grounding = tuple(noun.find(scene))
    text = grammar.write("exist", _style(rng), first=noun)
    return Question("exist", str(noun), text, "yes" if is_there else "no", grounding)


def _count(scene, rng) -> Question | None:
    key = ("colour", "shape")[int(rng.integers(2))]
    wanted = int(rng.choice(4, p=_COUNT_TRIES[key]))
    have = [getattr(item, key) for item in scene.objects]
    pool = [value for value in world.ATTRIBUTES[key] if have.count(value) == wanted]
    if not pool:
        return None
    noun = grammar.Noun(**{key: _pick(rng, pool)})
    text = grammar.write("count", _style(rng), first=noun)
    return Question("count", str(noun), text, grammar.NUMBERS[wanted], tuple(noun.find(scene)))


def _left_right(scene, rng) -> Question | None:
    num = len(scene.objects)
    for pair in rng.permutation(num * num).tolist():
        a, b = divmod(pair, num)
        sides = [s for s in world.spatial(scene, a, b) if s in ("left of", "right of")]
        if a == b or not sides:
            continue
        first, second = references(scene, a), references(scene, b)
        if first and second:
            text = grammar.write(
                "left_right", _style(rng), first=_pick(rng, first), second=_pick(rng, second)
            )
            return Question("left_right", "", text, sides[0].split()[0], (a, b))
    return None


def _caption_turns(scene, rng):
    return [(grammar.write("caption", _style(rng)), caption(scene))]


def _fact_turns(scene, rng):
    clauses = [grammar.fact(scene, r) for r in scene.relations]
    for k in range(len(scene.objects)):
        if nouns := references(scene, k):
            noun = _pick(rng, nouns)
            clauses.append(f"the {noun} is {_rest(scene.objects[k], noun)}")
    return [(grammar.write("facts", 0), ". ".join(_shuffled(rng, clauses)) + ".")]


def _lookup_turns(scene, rng):
    """Ask for the rest of objects, some by two of their names, and for one partner."""
    hops = [pair for r in _shuffled(rng, scene.relations) if (pair := _hop(scene, rng, r))]
    return _shuffled(rng, _descriptions(scene, rng)[:9] + hops[:1])


def _descriptions(scene, rng):
    firsts, seconds = [], []
    for k in rng.permutation(len(scene.objects)).tolist():
        item = scene.objects[k]
        nouns = _shuffled(rng, references(scene, k))[:2]
        for noun, pairs in zip(nouns, (firsts, seconds), strict=False):
            pairs.append((grammar.write("describe", 0, first=noun), _rest(item, noun)))
    return firsts + seconds


def _hop(scene, rng, relation, kind="describe_hop"):
    """Ask for all of the partner, from a randomly chosen end; None if that has no short name."""
    is_back = bool(rng.integers(2))
    named, asked = relation.subject, relation.object
    if is_back:
        named, asked = asked, named
    nouns = references(scene, named)
    if not nouns:
        return None
    family = kind + "_back" if is_back else kind
    text = grammar.write(family, 0, first=_pick(rng, nouns), predicate=relation.predicate)
    keys = () if kind == "describe_hop" else ("colour", "shape")
    return text, str(grammar.name(scene.objects[asked], *keys))


def _relation_turns(scene, rng):
    pairs = []
    for relation in scene.relations:
        pairs.append(_hop(scene, rng, relation, "partner"))
        first, second = references(scene, relation.subject), references(scene, relation.object)
        if first and second:
            ends = {"first": _pick(rng, first), "second": _pick(rng, second)}
            pairs.append((grammar.write("predicate", 0, **ends), relation.predicate))
        pairs.append(_verify(scene, rng, relation))
    pairs = _shuffled(rng, [pair for pair in pairs if pair])[:7]
    if rng.random() < 0.3:
        clauses = [grammar.fact(scene, r) for r in scene.relations]
        pairs.append((grammar.write("relations", 0), ". ".join(clauses) + "."))
    return pairs


def _verify(scene, rng, relation):
    """Ask whether a relation holds; a false one differs in predicate, direction or partner."""
    subject, predicate, target = relation.subject, relation.predicate, relation.object
    is_true = bool(rng.integers(2))
    if not is_true:
        change = int(rng.integers(3))
        if change == 0:
            predicate = _pick(rng, [p for p in world.PREDICATES if p != predicate])
        elif change == 1:
            subject, target = target, subject
        else:
            others = [k for k in range(len(scene.objects)) if k not in (subject, target)]
            target = _pick(rng, others) if others else target
    is_true = target in grammar.partners(scene, subject, predicate)
    first, second = references(scene, subject), references(scene, target)
    if not first or not second:
        return None
    ends = {"first": _pick(rng, first), "second": _pick(rng, second)}
    return grammar.write("verify", 0, predicate=predicate, **ends), "yes" if is_true else "no"


def _chat_turns(scene, rng):
    """Ask 4 to 6 questions; of nine, three are attribute and three one-hop."""
    families = ("attribute",) * 3 + ("one_hop",) * 3 + ("exist", "count", "left_right")
    plan = [families[i] for i in rng.permutation(len(families))[: int(rng.integers(4, 7))]]
    asked = _ask(scene, rng, [*plan, "attribute", "one_hop"])[: len(plan)]
    return [(question.text, question.answer) for question in asked]


def _text_turns(scene, rng):
    """Ask 6 to 10 questions about a text, more of them short look-ups than in a chat."""
    plan = ["attribute"] * 3 + ["one_hop"] * 3 + ["exist", "count", "left_right"]
    pairs = [(q.text, q.answer) for q in _ask(scene, rng, plan)]
    pairs += _shuffled(rng, _lookup_turns(scene, rng))[:4]
    return _shuffled(rng, pairs)[: int(rng.integers(6, 11))]


def _rest(item: world.SceneObject, said: grammar.Noun) -> str:
    """Return the words of an object that a phrase leaves open, the shape first.

    Whatever follows a word is then found by that word; were the shape last, as in a noun phrase,
    nothing would ever be found by a shape.
    """
    left = [w for w, known in zip(item.words, said.words, strict=True) if not known]
    return " ".join(left if said.shape else [item.shape, *left[:-1]])


def _product(values: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    pairs: list[tuple[str, ...]] = [()]
    for options in values:
        pairs = [(*pair, value) for pair in pairs for value in options]
    return pairs


def _pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _shuffled(rng: np.random.Generator, values: Sequence[Any]) -> list[Any]:
    return [values[i] for i in rng.permutation(len(values))]


def _style(rng: np.random.Generator) -> int:
    return int(rng.integers(6))
