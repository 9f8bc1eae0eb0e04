"""What is left of the boxes and masks of an image: numpy and run-length codes, no torch.

The order is fixed. Of boxes: broken ones and labels nobody asked for, clipping to the image, short
sides, excluded labels, non-maximum suppression over all labels. Of masks: duplicates, too small,
too large, none at all, then the best scores. What a dropped double was called is kept among the
alternatives of the one that stays.
"""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
from pycocotools import mask as coco

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.entities import interfaces

Alternatives = list[tuple[str, float]]
Dropped = collections.Counter[str]  # reason -> boxes or masks


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which boxes and masks become entities.

    Attributes:
        nms_iou: of two boxes that overlap more (IoU) the one with the higher score stays.
        mask_iou: of two masks that overlap more (IoU) the one with the higher score stays.
        min_side: of a box clipped to the image, in pixels.
        min_area: of a mask, in pixels.
        max_area: of a mask, as a share of the image.
        max_entities: of an image, those with the highest scores.
        exclude: labels that never become entities, in lower case.
        largest_component: keep only the largest connected part of a mask.
        fill_holes: fill the holes of a mask.
    """

    nms_iou: float = 0.5
    mask_iou: float = 0.85
    min_side: float = 2.0
    min_area: int = 25
    max_area: float = 0.95
    max_entities: int = 32
    exclude: frozenset[str] = frozenset()
    largest_component: bool = False
    fill_holes: bool = False

    def excludes(self, label: str) -> bool:
        """Return whether a label is on the list, whatever its case."""
        return label.strip().lower() in self.exclude


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Boxes that are worth a mask, best score first.

    Attributes:
        boxes: f32[n, 4], inside the image.
        scores: f32[n].
        labels: n labels.
        alternatives: n lists of the other labels of the same thing, best first.
        index: int[n], which of the detector's boxes each was.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    alternatives: list[Alternatives]
    index: np.ndarray

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)


def select_boxes(
    found: interfaces.Boxes,
    size: tuple[int, int],
    limits: Limits,
    *,
    asked: Collection[str] | None = None,
) -> tuple[Candidates, Dropped]:
    """Return the boxes of a detector that become entities if their masks are good.

    Equal scores are ordered by label and box, so the order of the detector does not matter.

    Args:
        found: boxes of one image; may leave it, and may be broken.
        size: (height, width) of the image.
        limits: what is dropped.
        asked: labels the detector was asked for; others are dropped. None: any.

    Returns:
        The candidates, and how many boxes were dropped for which reason.

    Raises:
        SgqlmError: the detector gave another number of scores or labels than of boxes.
    """
    height, width = size
    boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4)
    scores = np.asarray(found.scores, np.float32).reshape(-1)
    labels = list(found.labels)
    if not len(boxes) == len(scores) == len(labels):
        _unequal({"boxes": boxes, "scores": scores, "labels": labels})
    usable = np.isfinite(boxes).all(1) & np.isfinite(scores)
    boxes = np.where(usable[:, None], boxes, 0)
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    sides = np.minimum(clipped[:, 2] - clipped[:, 0], clipped[:, 3] - clipped[:, 1])
    unknown = [asked is not None and label not in asked for label in labels]
    reasons = {
        "box is broken": ~usable | (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]),
        "label was not asked for": np.array(unknown, bool),
        "box is small or outside": (sides < limits.min_side) | (sides <= 0),
        "label is excluded": np.array([limits.excludes(label) for label in labels], bool),
    }
    keep, dropped = np.ones(len(boxes), bool), Dropped()
    for reason, hit in reasons.items():
        dropped[reason] += int((keep & hit).sum())
        keep &= ~hit
    order = _order(clipped, scores, labels, np.flatnonzero(keep))
    groups = _suppress(clipped[order], limits.nms_iou)
    dropped["box is a double"] += len(order) - len(groups)
    index = order[[group[0] for group in groups]] if groups else np.zeros(0, np.int64)
    candidates = Candidates(
        boxes=clipped[index],
        scores=scores[index],
        labels=[labels[i] for i in index],
        alternatives=[
            _merge([(labels[i], float(scores[i])) for i in order[group]]) for group in groups
        ],
        index=index,
    )
    return candidates, +dropped


def select_masks(
    candidates: Candidates,
    masks: Sequence[graphs.Rle],
    mask_scores: np.ndarray | None,
    size: tuple[int, int],
    limits: Limits,
    *,
    tags: interfaces.Tags,
) -> tuple[graphs.Entities, Dropped]:
    """Return the entities of an image.

    Args:
        candidates: n boxes, best score first.
        masks: n run-length codes.
        mask_scores: f32[n], None where the model has none; what is no number becomes 0.
        size: (height, width) of the image.
        limits: what is dropped.
        tags: of the image, kept as they are.

    Returns:
        The entities, best score first: boxes of the detector clipped to the image (not those of the
        masks), and how many were dropped for which reason.

    Raises:
        SgqlmError: the segmenter gave another number of masks than it had boxes.
    """
    has_scores = mask_scores is not None
    scores = np.asarray(mask_scores if has_scores else candidates.scores, np.float32).reshape(-1)
    if not len(candidates) == len(masks) == len(scores):
        _unequal({"boxes": candidates, "masks": masks, "mask scores": scores})
    areas = np.asarray(coco.area(cast(Any, list(masks))) if len(masks) else [])
    groups = _same_masks(masks, limits.mask_iou)
    first = np.array([group[0] for group in groups], np.int64)
    area, dropped, keep = areas[first], Dropped(), np.ones(len(first), bool)
    dropped["mask is a double"] += len(masks) - len(first)
    reasons = {
        "mask is empty": area == 0,
        "mask is small": area < limits.min_area,
        "mask is nearly the whole image": area > limits.max_area * size[0] * size[1],
    }
    for reason, hit in reasons.items():
        dropped[reason] += int((keep & hit).sum())
        keep &= ~hit
    dropped["more entities than allowed"] += max(int(keep.sum()) - limits.max_entities, 0)
    best = np.flatnonzero(keep)[: limits.max_entities].tolist()
    index = first[best]
    entities = graphs.Entities(
        masks=[_clean(masks[i], limits) for i in index],
        boxes=candidates.boxes[index],
        labels=[candidates.labels[i] for i in index],
        scores=candidates.scores[index],
        size=size,
        alternatives=[_joined(candidates, groups[i]) for i in best],
        mask_scores=np.nan_to_num(scores[index], posinf=0, neginf=0) if has_scores else (),
        tags=list(tags),
    )
    return entities, +dropped


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of f32[4] with each of f32[n, 4]; 0 where both are flat.

    Example:
        (0, 0, 2, 2) and (1, 0, 3, 2) share 2 of 6 pixels: 1/3.
    """
    box, boxes = box.astype(np.float64), boxes.astype(np.float64)
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros(len(boxes)), where=union > 0)


def _order(
    boxes: np.ndarray, scores: np.ndarray, labels: list[str], kept: np.ndarray
) -> np.ndarray:
    """Return `kept` by falling score; ties by label and box."""
    ordered = sorted(kept.tolist(), key=lambda i: (-scores[i], labels[i], *boxes[i].tolist()))
    return np.array(ordered, np.int64)


def _suppress(boxes: np.ndarray, limit: float) -> list[list[int]]:
    """Return groups of rows, best first in each: those a greedy suppression takes for one thing."""
    left, groups = np.arange(len(boxes)), []
    while len(left):
        same = box_iou(boxes[left[0]], boxes[left]) > limit
        same[0] = True
        groups.append(left[same].tolist())
        left = left[~same]
    return groups


def _same_masks(masks: Sequence[graphs.Rle], limit: float) -> list[list[int]]:
    """Return groups of masks as `_suppress` does; pairs are compared as run-length codes."""
    kept: list[list[int]] = []
    for i, mask in enumerate(masks):
        before = [masks[group[0]] for group in kept]
        near = coco.iou(cast(Any, [mask]), cast(Any, before), [0] * len(before)) if before else []
        overlap = np.asarray(near).reshape(-1)
        if (overlap > limit).any():
            kept[int((overlap > limit).argmax())].append(i)
        else:
            kept.append([i])
    return kept


def _merge(named: Sequence[tuple[str, float]]) -> Alternatives:
    """Return the labels other than the first with their best scores, best first."""
    best: dict[str, float] = {}
    for label, score in named:
        best[label] = max(best.get(label, score), score)
    best.pop(named[0][0])
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))


def _joined(candidates: Candidates, group: list[int]) -> Alternatives:
    named: Alternatives = []
    for i in group:
        named.append((candidates.labels[i], float(candidates.scores[i])))
        named += candidates.alternatives[i]
    return _merge(named)


def _clean(mask: graphs.Rle, limits: Limits) -> graphs.Rle:
    if not (limits.largest_component or limits.fill_holes):
        return mask
    from skimage import measure

    dense = graphs.decode_rle(mask)
    if limits.largest_component:
        parts = np.asarray(measure.label(dense, connectivity=2))
        dense = parts == np.bincount(parts[dense]).argmax()
    if limits.fill_holes:
        outside = np.asarray(measure.label(np.pad(~dense, 1, constant_values=True), connectivity=1))
        dense = (outside != outside[0, 0])[1:-1, 1:-1]
    return graphs.encode_rle(dense)


def _unequal(parts: Mapping[str, Sized]) -> None:
    raise errors.SgqlmError(
        "a model gave parts of different lengths",
        why=", ".join(f"{len(part)} {name}" for name, part in parts.items()),
        fix="give one score and label a box, and one mask and score a box",
        code=errors.DATA,
    )
