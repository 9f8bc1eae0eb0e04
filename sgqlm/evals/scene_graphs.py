"""Scene graphs that a model predicts: predicates ranked for the pairs of an image's objects.

PredCls gives the model the annotated boxes and names, SGCls the boxes (it names the objects first),
SGDet nothing: objects and names are those of an entity store. A triplet's score is the product of
the scores of its subject, its object and its predicate; the latter is the softmax over the list.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs, images, records, sources
from sgqlm.data.relations import conversations, types
from sgqlm.decode import score
from sgqlm.evals import answers, ranking
from sgqlm.evals.metrics import scene_graph

TASK = "relations"
PAIRS = ("annotated", "overlapping", "all")
KEPT = max(scene_graph.KS)  # triplets of each ranking that an answer keeps


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
        mode: of `scene_graph.MODES`.
        predicates: the list that is ranked.
        objects: the list that names objects in mode `sgcls`.
        pairs: ordered pairs to ask about: those with an annotated relation, those whose boxes
            overlap, or all.
        max_pairs: of an image; the overlapping and close ones first. 0: any number.
        options: of the ranking.
        style: how questions are worded, as when the data set was built.
    """

    mode: str
    predicates: tuple[str, ...]
    objects: tuple[str, ...] = ()
    pairs: str = "all"
    max_pairs: int = 0
    options: ranking.Options = ranking.Options()
    style: conversations.Settings = dataclasses.field(default_factory=conversations.Settings)

    def __post_init__(self):
        """Check that the parts fit together."""
        for name, known in (("mode", scene_graph.MODES), ("pairs", PAIRS)):
            if getattr(self, name) not in known:
                fix = "give one of " + ", ".join(known)
                what = f"unknown {name} {getattr(self, name)!r}"
                raise errors.SgqlmError(what, where=f"--{name}", fix=fix)
        if self.mode == "sgdet" and self.pairs == "annotated":
            raise errors.SgqlmError(
                "in mode sgdet no pair is annotated, since the objects are not",
                where="--pairs",
                fix="give --pairs=all or --pairs=overlapping",
            )


@dataclasses.dataclass(frozen=True)
class Data:
    """The annotated images of a split, and where their pixels and entities are.

    Attributes:
        folder: of the built data set.
        rows: row of the image store of each image.
        items: its annotation; all have relations.
        style: of the questions that the data set was built with.
    """

    folder: pathlib.Path
    rows: Sequence[int]
    items: Sequence[types.Annotated]
    style: conversations.Settings


class Graph(NamedTuple):
    """What questions are about: objects as one annotated image, how sure they are, masks."""

    item: types.Annotated
    scores: np.ndarray
    masks: Sequence[graphs.Rle]
    cost: score.Cost


def open_data(
    folder: pathlib.Path, items: Sequence[types.Annotated], split: str, *, limit: int = 0
) -> Data:
    """Take the images of a split that have relations.

    Args:
        folder: a built data set.
        items: what `annotations.load` gives of it.
        split: `train`, `val` or `test`; empty for the last of them that has images.
        limit: images at most; 0 for all.

    Raises:
        SgqlmError: the split has no relation.
    """
    named = {item.split for item in items if item.relations}
    split = split or next((name for name in ("test", "val", "train") if name in named), "")
    rows = [r for r, item in enumerate(items) if item.split == split and item.relations]
    if not rows:
        raise errors.SgqlmError(
            f"no image of the split {split!r} has a relation",
            where=str(folder),
            fix="splits with relations: " + (", ".join(sorted(named)) or "none"),
            code=errors.DATA,
        )
    about = records.read_manifest(folder / "conversations")["about"].get("settings", {})
    known = {name: about[name] for name in ("fit", "decimals") if name in about}
    rows = rows[: limit or None]
    return Data(folder, rows, [items[r] for r in rows], conversations.Settings(**known))


def open_entities(folder: pathlib.Path, mode: str, choice: str) -> sources.Joined | None:
    """Open what the graph sees; in mode `sgdet` also the objects.

    Args:
        folder: a built data set.
        mode: of `scene_graph.MODES`.
        choice: a store; empty for that of the data set, whose nodes are the annotated ones, `none`
            for no graph.

    Raises:
        SgqlmError: mode `sgdet` without a store of its own.
    """
    if mode == "sgdet" and choice in ("", "none"):
        raise _no_entities("the mode sgdet needs the entities that an extractor found")
    keys = records.ImageStore(folder / "images").keys()
    return sources.join_entities(choice, folder / "entities", keys)


def run(
    model: model_lib.VisionLanguageModel,
    data: Data,
    settings: Settings,
    out: answers.AnswerFile,
    *,
    entities: sources.Joined | None = None,
    progress: Callable[[int, str], None] = lambda done, note: None,
) -> None:
    """Predict the scene graphs of a data set, image by image, where `out` has none yet.

    An image that cannot be read, or has no entities in mode `sgdet`, gets an answer with `error`.

    Args:
        model: the model.
        data: the images.
        settings: what is asked for.
        out: receives one line an image.
        entities: see `open_entities`.
        progress: told how many images have an answer, and of the last one.
    """
    store = records.ImageStore(data.folder / "images")
    generator = ranking.make_generator(model)

    def ranker(words):
        return ranking.Ranker(model, words, options=settings.options, generator=generator)

    relate = ranker(settings.predicates)
    name = ranker(settings.objects) if settings.mode == "sgcls" else None
    count = sum(item.key in out.done for item in data.items)
    for row, item in zip(data.rows, data.items, strict=True):
        if item.key in out.done:
            continue
        try:
            picture = images.open_image(store[row].data, where=item.key)
            found = entities[row] if entities is not None else None
            shown = ranking.open_picture(model, picture, found)
            graph = _graph(item, found, shown, name, settings)
            answer = _relations(graph, item, shown, relate, settings)
        except errors.SgqlmError as error:
            if error.code not in (errors.USAGE, errors.DATA):  # no fault of the image
                raise
            answer = {"error": error.line}
        out.add({"key": item.key, "row": int(row)} | answer)
        count += 1
        progress(count, item.key)


def label_question(box: Sequence[float], item: types.Annotated, style) -> str:
    """Return the question for the name of an object."""
    text = conversations.format_box(box, item.size, fit=style.fit, decimals=style.decimals)
    return f"What is the object at {text}?{conversations.SHORT}"


def choose_pairs(item: types.Annotated, settings: Settings) -> list[tuple[int, int]]:
    """Return the ordered pairs of objects to ask about.

    Args:
        item: objects, and relations where pairs are `annotated`.
        settings: which and how many.

    Returns:
        Pairs in order. Where there are too many, those stay whose boxes overlap most, then those
        whose centres are closest; a pair and its reverse stay together as far as they can.
    """
    boxes = np.array([thing.box for thing in item.objects], float).reshape(-1, 4)
    overlap = scene_graph.box_overlap(boxes, boxes)
    pairs = [(s, o) for s in range(len(boxes)) for o in range(len(boxes)) if s != o]
    if settings.pairs == "annotated":
        pairs = sorted({(r.subject, r.object) for r in item.relations})
    elif settings.pairs == "overlapping":
        pairs = [(s, o) for s, o in pairs if overlap[s, o] > 0]
    if not settings.max_pairs or len(pairs) <= settings.max_pairs:
        return pairs
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    far = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    pairs.sort(key=lambda p: (-overlap[p], far[p], min(p), max(p), p))
    return sorted(pairs[: settings.max_pairs])


def _graph(item, found: graphs.Entities | None, picture, name, settings: Settings) -> Graph:
    """Return the objects with the names that the mode gives or finds."""
    objects, ones, none = item.objects, np.ones(len(item.objects)), score.Cost(0, 0)
    if settings.mode == "predcls":
        return Graph(item, ones, (), none)
    if settings.mode == "sgcls":
        questions = [label_question(thing.box, item, settings.style) for thing in objects]
        values, spent = name.rank(picture, questions)
        chances = _softmax(values)
        words = [settings.objects[i] for i in chances.argmax(1)]
        objects = [types.Object(word, old.box) for word, old in zip(words, objects, strict=True)]
        named = dataclasses.replace(item, objects=objects)
        return Graph(named, chances.max(1), (), spent)
    if found is None or (len(found) and not any(found.labels)):
        raise _no_entities("the entities have no labels")
    objects = [
        types.Object(types.clean(label), (float(x0), float(y0), float(x1), float(y1)))
        for label, (x0, y0, x1, y1) in zip(found.labels, found.boxes, strict=True)
    ]
    height, width = found.size
    seen = dataclasses.replace(item, size=(height, width), objects=objects, relations=())
    return Graph(seen, found.scores, found.coded_masks(), none)


def _relations(graph: Graph, item, picture, ranker, settings: Settings) -> dict[str, Any]:
    """Rank the predicates of the pairs; return what an answer line says."""
    seen, chances = graph.item, np.zeros((0, len(settings.predicates)))
    pairs, cost = choose_pairs(seen, settings), graph.cost
    if pairs:
        asked = [conversations.ask_predicate(seen, s, o, settings.style) for s, o in pairs]
        values, spent = ranker.rank(picture, asked)
        chances, cost = _softmax(values), cost + spent
    ends = np.array(pairs, int).reshape(-1, 2)
    whole = chances * (graph.scores[ends[:, 0]] * graph.scores[ends[:, 1]])[:, None]
    kept = _kept(whole)
    answer = {
        "pairs": len(pairs),
        "positions": list(cost),
        "triplets": [[*pairs[i], int(p)] for i, p in kept],
        "scores": [_short(chances[i, p]) for i, p in kept],
    }
    if settings.mode != "predcls":
        answer["labels"] = [thing.name for thing in seen.objects]
        answer["label_scores"] = [_short(value) for value in graph.scores]
    if settings.mode == "sgdet":
        answer["size"] = list(map(int, seen.size))
        answer["boxes"] = [[round(side, 2) for side in thing.box] for thing in seen.objects]
        if any(thing.mask is not None for thing in item.objects):
            answer["masks"] = [_text(mask["counts"]) for mask in graph.masks]
    return answer


def _kept(whole: np.ndarray) -> list[tuple[int, int]]:
    """Return (pair, predicate) of all that can be among the first `KEPT`, the best first."""
    if not whole.size:
        return []
    order = np.argsort(-whole, axis=None, kind="stable")
    best = whole.argmax(1)
    first = np.argsort(-whole.max(1), kind="stable")[:KEPT]
    numbers = set(order[:KEPT].tolist()) | set((first * whole.shape[1] + best[first]).tolist())
    ranked = sorted(numbers, key=lambda number: (-whole.flat[number], number))
    return [divmod(number, whole.shape[1]) for number in ranked]


def _softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values.astype(np.float64) - values.max(-1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(-1, keepdims=True)


def _short(value: Any) -> float:
    return float(f"{float(value):.7g}")


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _no_entities(what: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        what,
        where="--entities",
        fix="run `sgqlm entities extract` on the images with an extractor that names what it "
        "finds, and give its store",
        code=errors.DATA,
    )


def header(settings: Settings, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first line of the answers: all that they depend on.

    Args:
        settings: what is asked for; the batch size is left out.
        about: the model, the data and the entities, by name.
    """
    options = settings.options
    return {
        "task": TASK,
        "format": 1,
        "mode": settings.mode,
        "pairs": settings.pairs,
        "max_pairs": settings.max_pairs,
        "is_calibrated": options.is_calibrated,
        "is_per_token": options.is_per_token,
        "predicates": list(settings.predicates),
        "objects": list(settings.objects),
        **about,
    }
