"""Visual Genome: relationships.json with objects.json, attributes.json and image_data.json.

All four are lists with one entry an image. Objects of `relationships.json` have `name` or, where
annotators were merged, `names`; the other files have `names`. Version 1.0 says `id` for `image_id`
and `object_id`. Images lie in VG_100K and VG_100K_2. All images are of split `train`, unless a
vg_splits.json ({"train": [image ids], "val": ..., "test": ...}) lies beside.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from sgqlm.data.relations import assemble, files, types

EXPECTED = 'a list of {"image_id", "relationships": [{"predicate", "subject", "object"}]}'
FOLDERS = ("VG_100K", "VG_100K_2")


@dataclasses.dataclass(frozen=True)
class Picture:
    """What image_data.json says of an image: (height, width) and its path by its address."""

    size: tuple[int, int]
    path: str


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the images of Visual Genome."""
    path = files.need_one(context.folder, ("relationships.json", "relationships_v*.json"), EXPECTED)
    pictures = image_data(context)
    splits = _splits(context)
    objects, attributes = _beside(context, "objects"), _beside(context, "attributes")
    for image_id, entry in _entries(path, "relationships", context):
        split = splits.get(image_id, "train")
        wanted = context.wants(split)
        names = image_paths(image_id, pictures.get(image_id))
        key = context.locate(names) if wanted else None
        extra = objects.get(image_id, []), attributes.get(image_id, [])
        if key is None:
            continue
        known = pictures.get(image_id)
        raw = assemble.Raw(f"image {image_id}", known.size if known else context.size(key))
        raw.hint = "" if known else "image_data.json tells the sizes"
        for item in entry:
            _relation(raw, item, context.report)
        aliases = _aliases(entry)
        for item in [thing for part in extra for thing in part]:
            _object(raw, item, aliases)
        yield assemble.assemble(raw, key, context.report, split=split, image_id=image_id)


def image_data(context: files.Context) -> dict[str, Picture]:
    """Return what image_data.json says, by image id in the order of the file; may be missing."""
    found = files.find(context.folder, ("image_data.json",))
    pictures = {}
    for entry in files.load_json(found[0], "a list of image data", list) if found else []:
        try:
            image_id, size = _id(entry), (int(entry["height"]), int(entry["width"]))
        except (KeyError, TypeError, ValueError):
            context.report.note("image data without id or size", str(entry)[:80])
            continue
        parts = pathlib.PurePosixPath(str(entry.get("url", ""))).parts[-2:]
        # the address tells the folder; the file is always called by the image id
        path = f"{parts[0]}/{image_id}.jpg" if parts and parts[0] in FOLDERS else ""
        pictures[image_id] = Picture(size, path)
    return pictures


def image_paths(image_id: str, picture: Picture | None) -> list[str]:
    """Return the usual places of an image, the likeliest first."""
    name = f"{image_id}.jpg"
    likely = [picture.path] if picture and picture.path else []
    places = [*likely, *(f"{folder}/{name}" for folder in FOLDERS), f"images/{name}", name]
    return list(dict.fromkeys(places))


def _entries(
    path: pathlib.Path, part: str, context: files.Context, *, main: bool = True
) -> Iterator[tuple[str, list]]:
    def progress(done: int, total: int) -> None:
        if main:
            context.progress("read", done, total)

    for _, entry in files.stream_json(path, EXPECTED, progress):
        if not isinstance(entry, Mapping) or not isinstance(entry.get(part), list):
            if main and (not isinstance(entry, Mapping) or part not in entry):
                raise files.wrong(path, EXPECTED, f"an entry is {str(entry)[:80]}")
            context.report.note(f"entry without {part}", f"{path.name}: {str(entry)[:80]}")
            continue
        if not (image_id := _id(entry)):
            context.report.note("entry without image id", f"{path.name}: {str(entry)[:80]}")
            continue
        yield image_id, entry[part]


def _splits(context: files.Context) -> dict[str, str]:
    expected = '{"train": [image ids], "val": ..., "test": ...}'
    found = files.find(context.folder, ("vg_splits.json",))
    table = files.load_json(found[0], expected) if found else {}
    return {str(image_id): split for split, ids in table.items() for image_id in ids}


def _beside(context: files.Context, part: str) -> files.Lookup:
    found = files.find(context.folder, (f"{part}.json",))
    return files.Lookup(_entries(found[0], part, context, main=False) if found else ())


def _id(entry: Mapping[str, Any]) -> str:
    found = entry.get("image_id", entry.get("id"))
    return "" if found is None else str(found)


def _relation(raw: assemble.Raw, item: Any, report: types.Report) -> None:
    ends = [item.get(end) for end in ("subject", "object")] if isinstance(item, Mapping) else []
    if len(ends) != 2 or not all(isinstance(end, Mapping) for end in ends):
        report.note("relation without subject and object", f"{raw.where}: {str(item)[:80]}")
        return
    subject, target = (_object(raw, end, {}) for end in ends)
    raw.relations.append((subject, item.get("predicate"), target))


def _object(raw: assemble.Raw, item: Any, aliases: Mapping[Any, Any]) -> Any:
    if not isinstance(item, Mapping):
        return None
    key = item.get("object_id", item.get("id"))
    if key is None:  # without an id, its box and name tell which object it is
        key = str([item.get(part) for part in ("x", "y", "w", "h", "name", "names")])
    key = aliases.get(key, key)
    names = item.get("names") or [item.get("name")]
    name = names[0] if isinstance(names, list) else names
    box = assemble.corner(*(item.get(part) for part in ("x", "y", "w", "h")))
    words = item.get("attributes") or []
    return raw.add(key, name, box, attributes=words if isinstance(words, list) else [words])


def _aliases(entry: list) -> dict[Any, Any]:
    """Return the object that stands for each object that was merged into it."""
    found = {}
    for item in entry:
        for end in ("subject", "object"):
            thing = item.get(end) if isinstance(item, Mapping) else None
            if isinstance(thing, Mapping):
                for merged in thing.get("merged_object_ids") or []:
                    found.setdefault(merged, thing.get("object_id"))
    used = {
        item[end].get("object_id")
        for item in entry
        if isinstance(item, Mapping)
        for end in ("subject", "object")
        if isinstance(item.get(end), Mapping)
    }
    return {merged: kept for merged, kept in found.items() if merged not in used}
