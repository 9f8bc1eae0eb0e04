"""Figures of predicted scene graphs: answer files against the annotations of a data set."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.data.relations import synonyms, types
from sgqlm.evals import answers, joining, ranking, scene_graphs, scored, triples
from sgqlm.evals.metrics import scene_graph

_KEYS = ("key", "image", "question_id", "id")  # what names the image in answers of other programs
_TEXTS = ("text", "answer", "prediction", "output")
SHOWN = 5
HEADLINE = "R@50"
CHARTED = 30  # the most frequent predicates, in the report beside other tasks


@dataclasses.dataclass(frozen=True)
class Words:
    """The predicates that count, and how others are brought to them.

    Attributes:
        predicates: the list, by number.
        merge: predicate -> its form.
        name: name of an object -> its form.
    """

    predicates: tuple[str, ...]
    merge: Callable[[str], str] = str
    name: Callable[[str], str] = str

    def number(self, predicate: str) -> int:
        """Return the number of an annotated predicate, -1 if it is not in the list."""
        return self._numbers.get(self.merge(predicate), -1)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.predicates)}


def make_words(
    items: Sequence[types.Annotated],
    *,
    file: str | os.PathLike | None = None,
    merge: str = "",
    aliases: str | os.PathLike | None = None,
) -> Words:
    """Return the predicates of an evaluation.

    Args:
        items: annotated images.
        file: a list of predicates, see `ranking.read_words`; None: all that are annotated, the
            frequent first.
        merge: `default` (the synonyms that training merges), a file of synonyms, or `none`; empty
            for `default` without a list and `none` with one, whose words are taken as they are.
        aliases: a file with names of objects that mean the same, in the form of synonyms.
    """
    merge = merge or ("none" if file else "default")
    form = str if merge == "none" else synonyms.load(None if merge == "default" else merge)
    if file:
        listed = [form(word) for word in ranking.read_words(file, "predicates")]
    else:
        counts = collections.Counter(form(r.predicate) for item in items for r in item.relations)
        listed = sorted(counts, key=lambda word: (-counts[word], word))
    name = _alias(aliases) if aliases else str
    return Words(tuple(dict.fromkeys(listed)), form, name)


def object_names(items: Sequence[types.Annotated]) -> list[str]:
    """Return all annotated names, the frequent first."""
    counts = collections.Counter(thing.name for item in items for thing in item.objects)
    return sorted(counts, key=lambda word: (-counts[word], word))


def train_triples(items: Sequence[types.Annotated], words: Words) -> set[tuple[str, str, str]]:
    """Return (subject, predicate, object) of the split `train`, for zero-shot recall."""
    return {
        (words.name(item.objects[r.subject].name), words.merge(r.predicate), words.name(o.name))
        for item in items
        if item.split == "train"
        for r in item.relations
        for o in [item.objects[r.object]]
    }


def truth(item: types.Annotated, words: Words, *, use_masks: bool = True) -> scene_graph.Truth:
    """Return an annotated image for the metrics; predicates that do not count are left out.

    Args:
        item: the image.
        words: the predicates.
        use_masks: compare masks where every object has one.
    """
    numbers = [(r.subject, r.object, words.number(r.predicate)) for r in item.relations]
    kept = np.array([row for row in numbers if row[2] >= 0], int).reshape(-1, 3)
    masks = None
    if use_masks and item.objects and all(thing.mask is not None for thing in item.objects):
        masks = [thing.mask for thing in item.objects]
    boxes = np.array([thing.box for thing in item.objects], float).reshape(-1, 4)
    names = [words.name(thing.name) for thing in item.objects]
    return scene_graph.Truth(names, kept, boxes, masks, item.key)


def score(
    path: pathlib.Path,
    data: scene_graphs.Data,
    words: Words,
    *,
    zero_shot: set[tuple[str, str, str]] | None = None,
    matching: str = "instances",
    use_masks: bool = True,
) -> dict[str, Any]:
    """Measure the answers that `sgqlm eval --tasks=relations` wrote.

    Args:
        path: the answers.
        data: the annotated images; those without an answer are not measured, but counted.
        words: as they were when the answers were made.
        zero_shot: see `scene_graph.evaluate`.
        matching: see `scene_graph.evaluate`.
        use_masks: see `truth`.

    Returns:
        What `scene_graph.evaluate` returns, with `answered`, `unanswered`, `failed` (a list of
        keys and reasons), `left_out` (annotated relations whose predicate does not count),
        `positions` (run by the language model, and needed without a cache), and `score`, the
        figures in the form of the benchmarks.

    Raises:
        SgqlmError: the answers are about other images or predicates.
    """
    head, lines = answers.read(path)
    if head["predicates"] != list(words.predicates):
        raise errors.SgqlmError(
            "the answers rank other predicates",
            where=str(path),
            why=f"{len(head['predicates'])} there, {len(words.predicates)} here",
            fix="give --predicates and --synonyms as when the answers were made",
            code=errors.DATA,
        )
    by_key = {line["key"]: line for line in lines}
    items = [item for item in data.items if item.key in by_key]
    if not items:
        raise _other_images(path, by_key)
    lines = [by_key[item.key] for item in items]
    failed = [[line["key"], line["error"]] for line in lines if "error" in line]
    truths = [truth(item, words, use_masks=use_masks) for item in items]
    found = [_predicted(*pair, words) for pair in zip(lines, truths, strict=True)]
    result = scene_graph.evaluate(
        found,
        truths,
        mode=head["mode"],
        zero_shot=zero_shot,
        predicates=words.predicates,
        matching=matching,
    )
    spent = np.array([line.get("positions", (0, 0)) for line in lines], int)
    result |= {
        "pairs": head["pairs"],
        "max_pairs": head["max_pairs"],
        "positions": dict(zip(("run", "plain"), spent.sum(0).tolist(), strict=True)),
    }
    return _whole(result | _counts(data, items, failed, words), data, items)


def score_texts(
    path: pathlib.Path,
    data: scene_graphs.Data,
    words: Words,
    *,
    zero_shot: set[tuple[str, str, str]] | None = None,
) -> dict[str, Any]:
    """Measure scene graphs that a model wrote as text, by names alone.

    Args:
        path: json lines with the image (`key`, `image`, `question_id` or `id`: the key, the name
            of its file or the id of the data set) and the text (`text`, `answer`, `prediction` or
            `output`), see `triples.parse`. Several lines of an image are read one after another.
        data: the annotated images.
        words: the predicates; a predicted one that is not among them is brought to its form.
        zero_shot: see `scene_graph.evaluate`.

    Returns:
        What `scene_graph.evaluate` returns in mode `text`, with counts as in `score`, and
        `pieces`, `unread` and `parse_failure_rate` of the texts.

    Raises:
        SgqlmError: a line lacks the image or the text, or they are about other images.
    """
    texts = collections.defaultdict(list)
    for line in answers.iterate(path):
        texts[_field(line, _KEYS, path)].append(_field(line, _TEXTS, path))
    names = _image_names(data.items)
    by_key = {names[name]: "\n".join(lines) for name, lines in texts.items() if name in names}
    items = [item for item in data.items if item.key in by_key]
    if not items:
        raise _other_images(path, texts)
    form = _lenient(words)
    parsed = [triples.parse(by_key[item.key]) for item in items]
    found = [
        triples.predicted(part.triples, words.predicates, name=words.name, predicate=form)
        for part in parsed
    ]
    truths = [_named_truth(item, words) for item in items]
    result = scene_graph.evaluate(
        found, truths, mode="sgdet", zero_shot=zero_shot, predicates=words.predicates
    )
    unread = sum(part.num_failed for part in parsed)
    pieces = unread + sum(len(part.triples) for part in parsed)
    rate = unread / pieces if pieces else 0.0
    told = {"mode": "text", "pieces": pieces, "unread": unread, "parse_failure_rate": rate}
    told |= {"unknown_images": len(texts) - len(by_key)}
    return _whole(result | told | _counts(data, items, [], words), data, items)


def _whole(
    result: dict[str, Any], data: scene_graphs.Data, items: Sequence[types.Annotated]
) -> dict[str, Any]:
    """Return the figures with `score`: in the form of the benchmarks, one item an image."""
    names = [name for name in result if "@" in name]
    rows = [(name, result[name], None) for name in names]
    groups = {name: name.partition("@")[0] + "@K" for name in names}
    for word, part in list(result["by_predicate"].items())[:CHARTED]:
        rows.append((f"predicate {word}", part[HEADLINE], part["relations"]))
        groups[f"predicate {word}"] = "predicate"
    rows.sort(key=lambda row: row[0] != HEADLINE)
    answered, failed = {item.key for item in items}, [key for key, _ in result["failed"]]
    by_key = result.pop("by_image")
    done = scored.Scored(
        task=scene_graphs.TASK,
        score=result[HEADLINE],
        metric=f"{HEADLINE}, {result['mode']}",
        rows=rows,
        items={key: part[HEADLINE] for key, part in by_key.items()},
        faults=joining.Faults(
            missing=[item.key for item in data.items if item.key not in answered], empty=failed
        ),
        notes=_notes(result),
        groups=groups,
        details=_details(by_key, items),
    )
    return result | {"score": done.report()}


def _details(by_key: Mapping[str, Any], items: Sequence[types.Annotated]) -> dict[str, dict]:
    """Return what is annotated in each image."""
    return {
        item.key: {
            "wanted": "; ".join(
                f"{item.objects[r.subject].name} {r.predicate} {item.objects[r.object].name}"
                for r in item.relations
            ),
            "image": item.key,
        }
        for item in items
        if item.key in by_key
    }


def _notes(result: Mapping[str, Any]) -> list[str]:
    """Return what has to be known to compare the figures with others."""
    out = [f"{result['relations']} relations in {result['images']} images"]
    if result.get("pairs") not in (None, "all") or result.get("max_pairs"):
        limit = f", at most {result['max_pairs']} an image" if result["max_pairs"] else ""
        out.append(f"pairs asked about: {result['pairs']}{limit}; not comparable with all pairs")
    return out


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return figures as lines of text."""
    out = scene_graph.lines(result)
    if result["unanswered"]:
        out.append(f"{result['unanswered']} images have no answer and are not measured")
    if result["left_out"]:
        out.append(f"{result['left_out']} relations have a predicate that is not in the list")
    if "parse_failure_rate" in result:
        rate, pieces = result["parse_failure_rate"], result["pieces"]
        out.append(f"{100 * rate:.1f}% of {pieces} pieces of text cannot be read")
    elif result["positions"]["run"]:
        run, plain = result["positions"]["run"], result["positions"]["plain"]
        out.append(f"{run} positions were run, {plain / run:.1f} times as many without the cache")
    out += _notes(result)[1:]
    if result["failed"]:
        out.append(f"{len(result['failed'])} images have no prediction:")
        out.extend(f"  {key}: {reason}" for key, reason in result["failed"][:SHOWN])
    return out


def _predicted(line: Mapping, true: scene_graph.Truth, words: Words) -> scene_graph.Predicted:
    """Return the prediction of an answer line; given regions are those of the truth."""
    if "error" in line:
        return scene_graph.Predicted.nothing()
    triplets = np.array(line["triplets"], int).reshape(-1, 3)
    scores = np.array(line["scores"], float)
    if "labels" not in line:
        return scene_graph.Predicted(true.labels, triplets, scores, true.boxes, true.masks)
    names = [words.name(name) for name in line["labels"]]
    if "boxes" not in line:
        regions = true.boxes, true.masks
    else:
        codes = line.get("masks")
        masks = codes and [{"size": line["size"], "counts": code} for code in codes]
        regions = np.array(line["boxes"], float).reshape(-1, 4), masks
    return scene_graph.Predicted(names, triplets, scores, *regions, line["label_scores"])


def _image_names(items: Sequence[types.Annotated]) -> dict[str, str]:
    """Map what other programs may call an image to its key."""
    names = {
        name: item.key
        for item in reversed(items)
        for name in (pathlib.PurePath(item.key).name, pathlib.PurePath(item.key).stem)
    }
    names |= {item.image_id: item.key for item in items if item.image_id}
    return names | {item.key: item.key for item in items}


def _lenient(words: Words) -> Callable[[str], str]:
    """Return what brings a predicate in anybody's words to one of the list, if it means one."""
    merge = synonyms.default()
    forms = {merge(word): word for word in reversed(words.predicates)}
    forms |= {word: word for word in words.predicates}

    def form(predicate: str) -> str:
        own = words.merge(predicate)
        return forms.get(own, forms.get(merge(own), own))

    return form


def _named_truth(item: types.Annotated, words: Words) -> scene_graph.Truth:
    found = [
        (item.objects[r.subject].name, words.merge(r.predicate), item.objects[r.object].name)
        for r in item.relations
        if words.number(r.predicate) >= 0
    ]
    return triples.named_truth(found, words.predicates, name=words.name, key=item.key)


def _counts(data: scene_graphs.Data, items, failed, words: Words) -> dict[str, Any]:
    left = sum(words.number(r.predicate) < 0 for item in items for r in item.relations)
    missing = len(data.items) - len(items)
    counts = {"answered": len(items), "unanswered": missing, "left_out": left}
    return counts | {"failed": failed}


def _field(line: Mapping, names: Sequence[str], path: pathlib.Path) -> str:
    for name in names:
        if isinstance(line.get(name), str | int):
            return str(line[name])
    raise errors.SgqlmError(
        "an answer lacks " + " or ".join(names),
        where=str(path),
        why="it has " + (", ".join(line) or "nothing"),
        fix="give the image and the text of every answer",
        code=errors.DATA,
    )


def _alias(path: str | os.PathLike) -> Callable[[str], str]:
    """Return a map of names; unlike predicates, names are changed by the file alone."""
    table: dict[str, str] = {}
    for words in synonyms.read_lines(path, "the table of aliases"):
        for word in words:
            table.setdefault(word, words[0])
    return lambda name: table.get(name, name)


def _other_images(path: pathlib.Path, keys) -> errors.SgqlmError:
    return errors.SgqlmError(
        "the answers are about other images",
        where=str(path),
        why="for instance " + str(next(iter(keys), "none at all")),
        fix="give the data set and the split that were asked about",
        code=errors.DATA,
    )
