"""Recall of scene graphs: R@K, mR@K, ng-R@K, zR@K and F@K of PredCls, SGCls and SGDet.

An image has a set of true triplets (subject, predicate, object); a model ranks triplets of its own.
R@K is the share of the true ones among the first K, averaged over the images that have any.

Two programs are in use and differ in how a predicted triplet finds a true one; `MATCHING` has both:

- `instances`, as `sgbench` 1.0 (Lorenz et al., A Fair Ranking and New Model for Panoptic Scene
  Graph Generation, 2024): each predicted object stands for the true object of its label that it
  overlaps most; equal true triplets count once.
- `triplets`, as Neural-Motifs and Scene-Graph-Benchmark.pytorch (Zellers et al. 2018, Tang et al.
  2020): a triplet hits every true one whose three labels it has and whose two regions it overlaps;
  equal true triplets count each.

Mean recall has one definition in both: the recall of a predicate is the mean over the images that
show it of hits / count, and mR@K is the mean over predicates. `pooled-mR@K` is the other reading of
"recall of a predicate over the data set": all its hits / all its triplets.
"""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sgqlm import errors
from sgqlm.data import graphs

MODES = ("predcls", "sgcls", "sgdet")
MATCHING = ("instances", "triplets")
KS = (20, 50, 100)
Array = np.ndarray | Sequence[Any]  # what numpy makes an array of


@dataclasses.dataclass(frozen=True)
class Truth:
    """The annotated graph of one image.

    Attributes:
        labels: n names (or numbers) of objects.
        triplets: int[m, 3], (subject, object, predicate): two indices of objects and one number.
        boxes: float[n, 4], x0, y0, x1, y1; None where masks are given.
        masks: bool[n, h, w] or n COCO run-length codes; where given, masks are compared.
        key: name of the image, for messages.
    """

    labels: Array
    triplets: Array
    boxes: Array | None = None
    masks: Array | None = None
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What a model says about one image.

    Triplets are ranked by score * label score of the subject * label score of the object; equal
    ones keep their order.

    Attributes:
        labels: n names (or numbers) of objects.
        triplets: int[m, 3], (subject, object, predicate). A pair may stand in several; with the
            graph constraint its best one counts.
        scores: float[m], the higher the surer; of the predicates alone where `label_scores` is set.
        boxes: float[n, 4], as in `Truth`.
        masks: as in `Truth`.
        label_scores: float[n]; None for ones.
    """

    labels: Array
    triplets: Array
    scores: Array
    boxes: Array | None = None
    masks: Array | None = None
    label_scores: Array | None = None

    @classmethod
    def nothing(cls) -> "Predicted":
        """Return the prediction of no object and no triplet."""
        return cls([], np.zeros((0, 3), int), np.zeros(0), np.zeros((0, 4)), [])


@dataclasses.dataclass
class _Tally:
    """Hits and counts of one ranking, gathered image by image."""

    recalls: dict[int, list[float]]
    shares: Mapping[int, dict[int, list[float]]]  # k -> predicate -> hits / count of each image
    hits: Mapping[int, collections.Counter]


def evaluate(
    predicted: Sequence[Predicted],
    truth: Sequence[Truth],
    *,
    mode: str,
    ks: Sequence[int] = KS,
    zero_shot: Collection[tuple[Any, Any, Any]] | None = None,
    iou: float = 0.5,
    predicates: Sequence[str] = (),
    matching: str = "instances",
) -> dict:
    """Measure predicted scene graphs.

    Args:
        predicted: one an image.
        truth: one an image, in the same order; images without a triplet are left out.
        mode: `predcls` (regions and labels were given), `sgcls` (regions were given) or `sgdet`.
            Given regions must be those of the truth, in its order, and are not compared again.
        ks: lengths of the ranking.
        zero_shot: (subject label, predicate, object label) of the training set, the predicate as
            name or number; zR@K is the recall of the triplets that are not among them.
        iou: overlap that makes two regions the same.
        predicates: names by number, for the table and for `zero_shot`.
        matching: see the top of this file.

    Returns:
        `mode`, `matching`, `images` and `relations` (what was measured), `zero_shot_images` and
        `zero_shot_relations`; for each K `R@K`, `mR@K`, `F@K` (harmonic mean of both), `ng-R@K`,
        `ng-mR@K` (without the graph constraint, that is several predicates a pair), `zR@K` and
        `pooled-mR@K`, in 0..1 and None where there is nothing to measure; `by_predicate`, the
        frequent first, each with `images`, `relations`, `R@K` and `ng-R@K`; `by_image`, key (its
        position where it has none) -> `R@K`, whose mean over the images is `R@K`.

    Raises:
        SgqlmError: the parts of an image do not fit together, or given regions were changed.
    """
    _check_call(predicted, truth, mode, matching, ks)
    numbers = {name: number for number, name in enumerate(predicates)}
    seen = None if zero_shot is None else {(s, numbers.get(p, p), o) for s, p, o in zero_shot}
    tallies, unseen = {"": _tally(ks), "ng-": _tally(ks)}, _tally(ks)
    counts, images, num_unseen, keys = collections.Counter(), collections.Counter(), 0, []
    for index, (found, true) in enumerate(zip(predicted, truth, strict=True)):
        where = true.key or f"image {index}"
        triplets = _true_triplets(true, matching, where)
        if not len(triplets):
            continue
        keys.append(true.key or str(index))
        counts.update(triplets[:, 2].tolist())
        images.update(set(triplets[:, 2].tolist()))
        same = _same_objects(found, true, mode, iou, matching, where)
        for tally, ranked in zip(tallies.values(), _rank(found, max(ks), where), strict=True):
            _add(tally, ranks := _first_hits(ranked, triplets, same), triplets)
            if seen is not None and tally is tallies[""]:
                new = _unseen(true, triplets, seen)
                num_unseen += int(new.sum())
                _add(unseen, ranks[new], triplets[new])
    measured = {"images": len(keys), "relations": sum(counts.values())}
    measured |= {"zero_shot_images": len(unseen.recalls[ks[0]]), "zero_shot_relations": num_unseen}
    summary = _summary(tallies, unseen.recalls, counts, images, predicates, keys)
    return {"mode": mode, "matching": matching} | measured | summary


def box_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return float[n, m], intersection over union of boxes float[n, 4] and float[m, 4]."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def mask_overlap(first: Any, second: Any) -> np.ndarray:
    """Return float[n, m], intersection over union of masks (bool[n, h, w] or COCO codes)."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    first, second = ([_code(mask) for mask in masks] for masks in (first, second))
    sizes = {tuple(code["size"]) for code in (*first, *second)}
    if len(sizes) > 1:
        raise ValueError(f"masks of different images, their sizes are {sorted(sizes)}")
    return np.asarray(coco_mask.iou(first, second, [0] * len(second)))


def lines(result: Mapping, *, num_predicates: int = 10) -> list[str]:
    """Return what `evaluate` found as lines of text.

    Args:
        result: of `evaluate`.
        num_predicates: rows of the table of predicates at most.
    """
    ks = [int(name[2:]) for name in result if name.startswith("R@")]
    out = [f"{result['mode']:12}" + "".join(f"{f'@{k}':>8}" for k in ks)]
    for name in ("R", "mR", "F", "ng-R", "ng-mR", "zR"):
        cells = [result[f"{name}@{k}"] for k in ks]
        if name != "zR" or any(cell is not None for cell in cells):
            out.append(f"{name:12}" + "".join(f"{_percent(cell):>8}" for cell in cells))
    out.append(f"percent; {result['relations']} relations in {result['images']} images")
    rows = list(result["by_predicate"].items())
    for name, row in rows[:num_predicates]:
        cells = "".join(f"{_percent(row[f'R@{k}']):>8}" for k in ks)
        out.append(f"  {name[:20]:20}{row['relations']:>7}{cells}")
    if len(rows) > num_predicates:
        out.append(f"  and {len(rows) - num_predicates} more predicates")
    return out


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _tally(ks: Sequence[int]) -> _Tally:
    shares = {k: collections.defaultdict(list) for k in ks}
    return _Tally({k: [] for k in ks}, shares, {k: collections.Counter() for k in ks})


def _rank(found: Predicted, count: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` triplets with and without the graph constraint."""
    n, triplets = len(found.labels), _triplets(found.triplets, len(found.labels), where)
    scores = np.asarray(found.scores, float).reshape(-1)
    given = found.label_scores
    own = np.ones(n) if given is None else np.asarray(given, float).reshape(-1)
    is_finite = np.isfinite(scores).all() and np.isfinite(own).all()
    if len(scores) != len(triplets) or len(own) != n or not is_finite:
        why = f"{len(triplets)} triplets, {len(scores)} scores, {n} labels, {len(own)} label scores"
        raise _problem("a prediction needs a finite score of every triplet and label", where, why)
    scores = scores * own[triplets[:, 0]] * own[triplets[:, 1]]
    triplets = triplets[np.argsort(-scores, kind="stable")]
    best, different = (
        np.sort(np.unique(part, axis=0, return_index=True)[1])[:count]
        for part in (triplets[:, :2], triplets)
    )
    return triplets[best], triplets[different]


def _first_hits(ranked: np.ndarray, triplets: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return float[m], at which rank (from 0) each true triplet is found; inf for never."""
    if not len(ranked):
        return np.full(len(triplets), np.inf)
    hit = same[np.ix_(ranked[:, 0], triplets[:, 0])] & same[np.ix_(ranked[:, 1], triplets[:, 1])]
    hit &= ranked[:, None, 2] == triplets[None, :, 2]
    return np.where(hit.any(0), hit.argmax(0), np.inf)


def _add(tally: _Tally, ranks: np.ndarray, triplets: np.ndarray) -> None:
    if not len(ranks):
        return
    for k, recalls in tally.recalls.items():
        found = ranks < k
        recalls.append(float(found.mean()))
        for predicate in set(triplets[:, 2].tolist()):
            own = found[triplets[:, 2] == predicate]
            tally.shares[k][predicate].append(float(own.mean()))
            tally.hits[k][predicate] += int(own.sum())


def _same_objects(found, true, mode: str, iou: float, matching: str, where: str) -> np.ndarray:
    """Return bool[n, g], which predicted object stands for which true one."""
    if not len(found.labels):
        return np.zeros((0, len(true.labels)), bool)
    overlap = _overlap(found, true, where)
    if mode != "sgdet":
        if overlap.shape[0] != overlap.shape[1]:
            why = f"{overlap.shape[0]} predicted objects, {overlap.shape[1]} true ones"
            raise _problem(f"the regions are given in mode {mode}", where, why)
        np.fill_diagonal(overlap, 2.0)  # the same region, also where two objects share it
    alike = np.asarray(found.labels)[:, None] == np.asarray(true.labels)[None]
    if mode == "predcls" and not alike.diagonal().all():
        why = "in mode predcls the labels are given, and these differ from the truth"
        raise _problem("a prediction changes labels", where, why)
    overlap = np.where(alike, overlap, 0.0)
    if matching == "triplets":
        return overlap >= iou
    best = overlap.argmax(1)[:, None] == np.arange(overlap.shape[1])
    return best & (overlap >= iou)


def _overlap(found: Predicted, true: Truth, where: str) -> np.ndarray:
    kind = "boxes" if true.masks is None else "masks"
    regions = [getattr(found, kind), getattr(true, kind)]
    for name, part, labels in zip(
        ("prediction", "truth"), regions, (found.labels, true.labels), strict=True
    ):
        if part is None or len(part) != len(labels):
            have = "none" if part is None else str(len(part))
            raise _problem(f"a {name} needs {kind}", where, f"{len(labels)} labels, {have} {kind}")
    try:
        return (box_overlap if true.masks is None else mask_overlap)(*regions)
    except (ValueError, IndexError, TypeError) as error:
        raise _problem(f"the {kind} cannot be compared", where, str(error)) from error


def _true_triplets(true: Truth, matching: str, where: str) -> np.ndarray:
    triplets = _triplets(true.triplets, len(true.labels), where)
    return np.unique(triplets, axis=0) if matching == "instances" else triplets


def _triplets(given: Array, count: int, where: str) -> np.ndarray:
    triplets = np.asarray(given)
    triplets = triplets.reshape(0, 3).astype(int) if not triplets.size else triplets
    if triplets.ndim != 2 or triplets.shape[1] != 3 or triplets.dtype.kind not in "iu":
        why = f"{triplets.dtype}{list(triplets.shape)}"
        raise _problem("triplets are int[m, 3]: subject, object, predicate", where, why)
    if len(triplets) and (triplets.min() < 0 or triplets[:, :2].max() >= count):
        why = f"numbers up to {triplets[:, :2].max()}, {count} objects"
        raise _problem("a triplet names an object that is not there", where, why)
    return triplets


def _unseen(true: Truth, triplets: np.ndarray, seen: Collection[tuple]) -> np.ndarray:
    labels = [x.item() if isinstance(x, np.generic) else x for x in true.labels]
    return np.array([(labels[s], p, labels[o]) not in seen for s, o, p in triplets.tolist()])


def _summary(tallies, unseen, counts, images, predicates, keys) -> dict:
    result = {}
    for k, values in unseen.items():
        for prefix, tally in tallies.items():
            shares = [float(np.mean(tally.shares[k][p])) for p in counts]
            result[f"{prefix}R@{k}"] = _mean(tally.recalls[k])
            result[f"{prefix}mR@{k}"] = _mean(shares)
        both = result[f"R@{k}"], result[f"mR@{k}"]
        result[f"F@{k}"] = None if None in both else _harmonic(*both)
        result[f"zR@{k}"] = _mean(values)
        result[f"pooled-mR@{k}"] = _mean([tallies[""].hits[k][p] / n for p, n in counts.items()])
    table = {}
    for predicate, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        name = predicates[predicate] if predicate < len(predicates) else str(predicate)
        table[name] = {"images": images[predicate], "relations": count}
        for k in unseen:
            for prefix, tally in tallies.items():
                table[name][f"{prefix}R@{k}"] = float(np.mean(tally.shares[k][predicate]))
    return result | {"by_predicate": table, "by_image": _by_image(keys, tallies[""])}


def _by_image(keys: Sequence[str], tally: _Tally) -> dict[str, dict[str, float]]:
    shown = [{f"R@{k}": part[at] for k, part in tally.recalls.items()} for at in range(len(keys))]
    return dict(zip(keys, shown, strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


def _code(mask: Any) -> Any:
    if not isinstance(mask, Mapping):
        return graphs.encode_rle(np.asarray(mask, bool))
    if isinstance(mask["counts"], bytes | str):
        return dict(mask)
    return graphs.encode_rle(graphs.decode_rle(mask))


def _check_call(predicted, truth, mode, matching, ks) -> None:
    for name, value, known in (("mode", mode, MODES), ("matching", matching, MATCHING)):
        if value not in known:
            fix = "give one of " + ", ".join(known)
            raise errors.SgqlmError(f"unknown {name} {value!r}", where=name, fix=fix)
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise errors.SgqlmError(f"ks are different positive numbers, not {list(ks)}", where="ks")
    if len(predicted) != len(truth):
        why = f"{len(predicted)} predictions, {len(truth)} images"
        raise _problem("there must be one prediction an image", "", why)


def _problem(what: str, where: str, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(what, where=where, why=why, code=errors.DATA)
