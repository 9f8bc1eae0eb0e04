"""From raw annotations to a clean scene graph: names, boxes, duplicates, every repair counted."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sgqlm.data.relations import types

SAME_IOU = 0.9  # boxes of one name that overlap more are one object, annotated twice
STRAY = "boxes lie outside of the image: is it a smaller copy?"
_STRAY_SHARE, _STRAY_LEAST = 0.1, 2  # objects beyond an image that tell a smaller copy of it
_MARGIN = 0.02  # share of a side by which official boxes leave their images


@dataclasses.dataclass
class Raw:
    """One image as a file has it; objects by the id that relations use.

    Attributes:
        where: name used in messages.
        size: (height, width) that boxes are measured in.
        objects: by id.
        relations: (id, predicate, id).
        hint: where the annotations do not tell `size`, so that it is that of the file: what would.
    """

    where: str
    size: tuple[int, int]
    objects: dict[Hashable, types.Object] = dataclasses.field(default_factory=dict)
    relations: list[tuple[Hashable, Any, Hashable]] = dataclasses.field(default_factory=list)
    hint: str = ""

    def add(
        self,
        key: Hashable,
        name: Any,
        box: Sequence[Any],
        *,
        attributes: Sequence[Any] = (),
        mask: Any = None,
    ) -> Hashable:
        """Add an object, or what is new about a known one."""
        try:
            x0, y0, x1, y1 = map(float, box)
        except (TypeError, ValueError):
            x0 = y0 = x1 = y1 = float("nan")
        known = self.objects.get(key)
        words = list(known.attributes) if known else []
        words += [word for word in map(types.clean, attributes) if word and word not in words]
        found = types.Object(types.clean(name), (x0, y0, x1, y1), tuple(words), mask)
        if known and known.name and np.isfinite(known.box).all():
            found = dataclasses.replace(known, attributes=tuple(words))
        self.objects[key] = found
        return key


def corner(x: Any, y: Any, w: Any, h: Any) -> tuple[Any, ...]:
    """Return x0, y0, x1, y1 of a box given by its corner and its sides."""
    try:
        return x, y, float(x) + float(w), float(y) + float(h)
    except (TypeError, ValueError):
        return (None,) * 4


def assemble(
    raw: Raw, key: str, report: types.Report, *, split: str, image_id: str, caption: str = ""
) -> types.Annotated:
    """Clean one image's annotations.

    Objects without a name or with an empty, broken or outside box are left out, boxes are cut at
    the border of the image, boxes of one name with an IoU above `SAME_IOU` become one object.
    Relations between left-out objects, of an object with itself, without a predicate, and repeated
    ones are left out. Everything is counted in `report`. Where the size is only that of the file
    and many boxes leave it, the image has a fault: its boxes are those of a larger one.

    Args:
        raw: names, boxes and predicates as the file has them.
        key: path of the image below the image root.
        report: counts.
        split: of the image.
        image_id: how the data set calls the image.
        caption: a sentence about the image.

    Returns:
        The image, possibly without relations.
    """
    kept = {}
    for name, thing in raw.objects.items():
        reason, thing = _clipped(thing, raw.size)
        if reason:
            report.note(reason, f"{raw.where}, object {name} ({raw.objects[name].name})")
        if thing is not None:
            kept[name] = thing
    slot, objects = _merged(kept, report, raw.where)
    relations: dict[types.Relation, None] = {}
    for subject, predicate, target in raw.relations:
        words = types.clean(predicate)
        where = f"{raw.where}: {subject} -> {words or predicate!r} -> {target}"
        if not words:
            report.note("relation without a predicate", where)
        elif subject not in slot or target not in slot:
            report.note("relation with an object that is not there", where)
        elif slot[subject] == slot[target]:
            report.note("relation of an object with itself", where)
        else:
            made = types.Relation(slot[subject], words, slot[target])
            if made in relations:
                report.note("relation given twice", where)
            relations[made] = None
    words = " ".join(caption.split())
    return types.Annotated(
        key, raw.size, objects, tuple(relations), split, str(image_id), words, _stray(raw)
    )


def _stray(raw: Raw) -> str:
    """Return the fault of an image of unknown annotated size that many boxes leave, or nothing."""
    boxes = [box for t in raw.objects.values() if np.isfinite(box := t.box).all()]
    height, width = raw.size
    far = [
        box
        for box in boxes
        if box[2] > width * (1 + _MARGIN) + 1 or box[3] > height * (1 + _MARGIN) + 1
    ]
    if not raw.hint or not all(raw.size) or len(far) < _STRAY_LEAST:
        return ""
    return f"{STRAY} {raw.hint}" if len(far) > _STRAY_SHARE * len(boxes) else ""


def _clipped(thing: types.Object, size: tuple[int, int]) -> tuple[str, types.Object | None]:
    """Return what was wrong with an object (or nothing), and what is left of it."""
    if not thing.name:
        return "object without a name", None
    x0, y0, x1, y1 = thing.box
    if not np.isfinite(thing.box).all():
        return "object without a usable box", None
    if x1 <= x0 or y1 <= y0:
        return "box of no or negative size", None
    height, width = size if all(size) else (float("inf"), float("inf"))
    box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if box[2] <= box[0] or box[3] <= box[1]:
        return "box outside of its image", None
    if box == thing.box:
        return "", thing
    return "box cut at the border of its image", dataclasses.replace(thing, box=box)


def _merged(
    kept: Mapping[Hashable, types.Object], report: types.Report, where: str
) -> tuple[dict[Hashable, int], list[types.Object]]:
    """Return the position of every id, and the objects without duplicates."""
    slot: dict[Hashable, int] = {}
    objects: list[types.Object] = []
    by_name: dict[str, list[int]] = {}
    for key, thing in kept.items():
        same = by_name.setdefault(thing.name, [])
        twin = next((i for i in same if _is_twin(objects[i], thing)), None)
        if twin is None:
            same.append(len(objects))
            slot[key] = len(objects)
            objects.append(thing)
            continue
        report.note("object annotated twice", f"{where}, {thing.name} {key}")
        slot[key] = twin
        words = dict.fromkeys([*objects[twin].attributes, *thing.attributes])
        objects[twin] = dataclasses.replace(objects[twin], attributes=tuple(words))
    return slot, objects


def _is_twin(first: types.Object, second: types.Object) -> bool:
    # masks of one image do not overlap, however alike their boxes are
    return (first.mask is None or second.mask is None) and iou(first.box, second.box) > SAME_IOU


def iou(first: types.Box, second: types.Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inside = max(width, 0.0) * max(height, 0.0)
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (first, second))
    return inside / (areas - inside) if areas > inside else 0.0


def rescaled(item: types.Annotated, size: tuple[int, int]) -> types.Annotated | None:
    """Return an image's annotations in pixels of the image as it lies on disk.

    Args:
        item: boxes in `item.size`.
        size: (height, width) of the image.

    Returns:
        The same with boxes at `size`; None if the image has another shape than was annotated.
    """
    if item.size == tuple(size):
        return item
    (height, width), (new_height, new_width) = item.size, size
    sx, sy = new_width / width if width else 1.0, new_height / height if height else 1.0
    if item.size not in ((0, 0), (1, 1)):
        # a smaller copy of the image has sides rounded by up to a pixel; masks are not scaled
        has_mask = any(thing.mask is not None for thing in item.objects)
        if has_mask or abs(height * sx - new_height) > 2 + 0.01 * new_height:
            return None
    slot, objects = {}, []
    for index, thing in enumerate(item.objects):
        x0, y0, x1, y1 = thing.box
        box = (x0 * sx, y0 * sy, min(x1 * sx, float(new_width)), min(y1 * sy, float(new_height)))
        if box[2] > box[0] and box[3] > box[1]:
            slot[index] = len(objects)
            objects.append(dataclasses.replace(thing, box=box))
    relations = [
        types.Relation(slot[r.subject], r.predicate, slot[r.object])
        for r in item.relations
        if r.subject in slot and r.object in slot
    ]
    return dataclasses.replace(
        item, size=(new_height, new_width), objects=objects, relations=relations
    )
