"""VRD: annotations_train.json, annotations_test.json, objects.json, predicates.json.

`{image file: [{"predicate": int, "subject": {"category": int, "bbox": [ymin, ymax, xmin, xmax]},
"object": {...}}]}`, numbers into two lists of names. Some images have no annotation.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sgqlm.data import json_stream
from sgqlm.data.relations import assemble, files, types

EXPECTED = 'images by file name: [{"predicate", "subject": {"category", "bbox"}, "object"}]'
_NAMES = "a list of names"


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the annotated images of every wanted split."""
    folder = context.folder
    paths = files.need(folder, ("annotations_*.json", "annotations.json"), EXPECTED)
    things = files.load_json(files.need_one(folder, ("objects.json",), _NAMES), _NAMES, list)
    words = files.load_json(files.need_one(folder, ("predicates.json",), _NAMES), _NAMES, list)
    for path in paths:
        split = next((s for s in ("test", "val") if s in path.stem.lower()), "train")
        if not context.wants(split, 0):
            continue
        found = files.load_json(path, EXPECTED)
        for done, (name, entries) in enumerate(found.items(), 1):
            context.progress("read", done, len(found))
            if not isinstance(entries, list):
                raise files.wrong(path, EXPECTED, f"{name} is {str(entries)[:80]}")
            if not entries:
                context.report.note("image without annotation", name)
                continue
            key = context.locate((f"sg_{split}_images/{name}", f"images/{name}", name))
            if key is None:
                continue
            raw = assemble.Raw(name, context.size(key), hint=files.OFFICIAL)
            for entry in entries:
                _relation(raw, entry, things, words, context.report)
            image_id = name.rsplit(".", 1)[0]
            yield assemble.assemble(raw, key, context.report, split=split, image_id=image_id)


def _relation(raw, entry: Any, things: Sequence, words: Sequence, report: types.Report) -> None:
    try:
        ends = []
        for end in ("subject", "object"):
            category, (y0, y1, x0, x1) = int(entry[end]["category"]), entry[end]["bbox"]
            # an object has no number: its category and box say which it is
            key = f"{category} {[x0, y0, x1, y1]}"
            ends.append(raw.add(key, _name(things, category), (x0, y0, x1, y1)))
        raw.relations.append((ends[0], _name(words, int(entry["predicate"])), ends[1]))
    except (KeyError, TypeError, ValueError, IndexError):
        kind = json_stream.kind(entry)
        report.note("broken relation", f"{raw.where}: {kind} {str(entry)[:80]}")


def _name(names: Sequence, number: int) -> str:
    if number < 0:
        raise IndexError(number)
    return str(names[number])
