"""GQA scene graphs: train_sceneGraphs.json and val_sceneGraphs.json.

A dictionary by image id (or a list of images with one); objects are a dictionary by object id or a
list, relations a list or, as in the example of the documentation, a dictionary. Relations name
their target by its id, as text. The images are those of Visual Genome. Only the train split is for
training: GQA is an evaluation.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sgqlm.data.relations import assemble, files, types

EXPECTED = 'scene graphs by image id: {"width", "height", "objects": {id: {"name", "x", ...}}}'
_IDS = ("image_id", "imageId", "id")
_OBJECT_IDS = ("object_id", "objectId", "id")


def read(context: files.Context) -> Iterator[types.Annotated]:
    """Yield the images of every scene graph file that a wanted split has."""
    found = files.need(
        context.folder, ("*sceneGraphs*.json", "*scene_graphs*.json", "*sceneGraph*.json"), EXPECTED
    )
    for path in found:
        split = next((s for s in ("val", "test") if s in path.stem.lower()), "train")
        if not context.wants(split, 0):
            continue
        told = lambda done, total: context.progress("read", done, total)  # noqa: E731
        for image_id, graph in files.stream_json(path, EXPECTED, told):
            if not isinstance(graph, Mapping) or "objects" not in graph:
                raise files.wrong(path, EXPECTED, f"image {image_id!r} is {str(graph)[:80]}")
            image_id = image_id or _first(graph, _IDS)
            name = f"{image_id}.jpg"
            places = (f"images/{name}", name, f"VG_100K/{name}", f"VG_100K_2/{name}")
            key = context.locate(places)
            if key is not None:
                raw = _raw(image_id, graph, key, context)
                yield assemble.assemble(raw, key, context.report, split=split, image_id=image_id)


def _raw(image_id: str, graph: Mapping, key: str, context: files.Context) -> assemble.Raw:
    try:
        size, hint = (int(graph["height"]), int(graph["width"])), ""
    except (KeyError, TypeError, ValueError):
        size, hint = context.size(key), files.OFFICIAL
    raw = assemble.Raw(f"image {image_id}", size, hint=hint)
    objects = graph["objects"]
    if isinstance(objects, list):
        objects = {_first(item, _OBJECT_IDS, i): item for i, item in enumerate(objects)}
    for name, item in objects.items() if isinstance(objects, Mapping) else ():
        if not isinstance(item, Mapping):
            context.report.note("object that is no table", f"{raw.where}, object {name}")
            continue
        box = assemble.corner(*(item.get(part) for part in ("x", "y", "w", "h")))
        raw.add(name, item.get("name"), box, attributes=item.get("attributes") or ())
        relations = item.get("relations") or ()
        for relation in relations.values() if isinstance(relations, Mapping) else relations:
            if not isinstance(relation, Mapping) or "object" not in relation:
                context.report.note("relation without object", f"{raw.where}, object {name}")
                continue
            predicate = relation.get("name", relation.get("predicate"))
            raw.relations.append((name, predicate, str(relation["object"])))
    return raw


def _first(entry: Any, names: tuple[str, ...], default: Any = "") -> str:
    if isinstance(entry, Mapping):
        for name in names:
            if entry.get(name) not in (None, ""):
                return str(entry[name])
    return str(default)
