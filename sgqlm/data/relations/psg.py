"""PSG: psg.json, the panoptic masks of COCO as PNG, and the images of COCO.

`data` holds images with `segments_info`, `annotations` (boxes, in the order of the segments) and
`relations` ([subject, object, predicate], numbers into them and into `predicate_classes`). A pixel
of the PNG says its segment: id = R + 256 G + 65536 B. Images of `test_image_ids` are of split test.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.data.relations import assemble, files, types

EXPECTED = '{"data", "thing_classes", "stuff_classes", "predicate_classes", "test_image_ids"}'
_SUFFIXES = ("-merged", "-other", "-stuff")


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the images of PSG with masks, where their PNGs are there."""
    path = files.need_one(context.folder, ("psg.json", "psg*.json"), EXPECTED)
    value = files.load_json(path, EXPECTED)
    try:
        names = [_plain(name) for part in ("thing", "stuff") for name in value[f"{part}_classes"]]
        predicates, data = list(value["predicate_classes"]), value["data"]
    except (KeyError, TypeError) as error:
        raise files.wrong(path, EXPECTED, f"{type(error).__name__}: {error}") from error
    if not isinstance(data, list):
        raise files.wrong(path, EXPECTED, "`data` is no list")
    test = {str(image_id) for image_id in value.get("test_image_ids", ())}
    for done, entry in enumerate(data, 1):
        context.progress("read", done, len(data))
        image_id = str(entry.get("image_id", "")) if isinstance(entry, Mapping) else ""
        if not image_id or not entry.get("file_name"):
            context.report.note("entry without image", str(entry)[:80])
            continue
        split = "test" if image_id in test else "train"
        if not context.wants(split):
            continue
        key = context.locate(_places(str(entry["file_name"])))
        if key is None:
            continue
        raw = _raw(entry, image_id, key, names, predicates, context)
        yield assemble.assemble(raw, key, context.report, split=split, image_id=image_id)


def _places(name: str) -> tuple[str, ...]:
    return name, f"coco/{name}", f"images/{name}", pathlib.PurePosixPath(name).name


def _raw(entry, image_id, key, names, predicates, context) -> assemble.Raw:
    where = f"image {image_id}"
    try:
        size, hint = (int(entry["height"]), int(entry["width"])), ""
    except (KeyError, TypeError, ValueError):
        size, hint = context.size(key), files.OFFICIAL
    raw = assemble.Raw(where, size, hint=hint)
    segments = entry.get("segments_info") or []
    masks = _masks(entry, segments, size, where, context)
    things = entry.get("annotations") or segments
    for index, thing in enumerate(things):
        try:
            name = names[int(thing["category_id"])]
        except (KeyError, TypeError, ValueError, IndexError):
            context.report.note("object of an unknown category", f"{where}: {str(thing)[:80]}")
            continue
        mask = masks.get(index)
        if masks and mask is None:
            context.report.note("segment without pixels", f"{where}, object {index} ({name})")
            continue
        raw.add(index, name, _box(thing, mask), mask=None if mask is None else mask[0])
    for relation in entry.get("relations") or ():
        try:
            subject, target, predicate = map(int, relation)
            word = predicates[predicate] if predicate >= 0 else ""
        except (TypeError, ValueError, IndexError):
            context.report.note("broken relation", f"{where}: {str(relation)[:80]}")
            continue
        raw.relations.append((subject, word, target))
    return raw


def _box(thing: Mapping, mask: Any) -> Sequence[Any]:
    """Return x0, y0, x1, y1; the mask's own box where there is a mask."""
    if mask is not None:
        return mask[1]
    box = thing.get("bbox") or (None,) * 4
    return assemble.corner(*box) if thing.get("bbox_mode", 0) == 1 else box  # 1: x, y, w, h


def _masks(entry, segments, size, where, context) -> dict[int, tuple[graphs.Rle, Sequence[float]]]:
    """Return the mask and box of each segment that has pixels; empty without a PNG."""
    name = str(entry.get("pan_seg_file_name") or "")
    path = _panoptic(context, name) if name else None
    if path is None:
        context.report.note("no panoptic PNG, boxes alone", f"{where}: {name or 'none named'}")
        return {}
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    except Exception as error:  # Pillow raises anything for a damaged file
        context.report.note("damaged panoptic PNG, boxes alone", f"{path.name}: {error}")
        return {}
    if pixels.shape[:2] != tuple(size):
        context.report.note("panoptic PNG of another size, boxes alone", f"{where}: {path.name}")
        return {}
    ids = pixels @ np.array([1, 256, 65536])
    found = {}
    for index, segment in enumerate(segments):
        mask = ids == int(segment.get("id", -1)) if isinstance(segment, Mapping) else ids < 0
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            found[index] = graphs.encode_rle(mask), tuple(map(float, box))
    return found


def _panoptic(context: files.Context, name: str) -> pathlib.Path | None:
    short = name.removeprefix("panoptic_")
    roots = [context.folder, *([context.tree.root] if context.tree else [])]
    for root in roots:
        for place in (name, f"panoptic_{short}", f"annotations/{name}", f"coco/{name}"):
            if ".." not in pathlib.PurePosixPath(place).parts and (root / place).is_file():
                return root / place
    return None


def _plain(name: Any) -> str:
    """Return a category of COCO without the suffixes of its merged kinds."""
    name = str(name)
    for suffix in _SUFFIXES:  # `wall-other-merged` has two, in this order
        name = name.removesuffix(suffix)
    return name.replace("-", " ")
