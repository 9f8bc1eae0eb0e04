"""`annotations.jsonl` of a built data set: what is annotated, one line an image, in row order."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from sgqlm import errors
from sgqlm.data.relations import types

FILE = "annotations.jsonl"


def encode(item: types.Annotated) -> str:
    """Return an image's line, without its end."""
    objects = []
    for thing in item.objects:
        value: dict[str, Any] = {"name": thing.name, "box": [round(side, 3) for side in thing.box]}
        if thing.attributes:
            value["attributes"] = list(thing.attributes)
        if thing.mask is not None:
            counts = thing.mask["counts"]
            counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
            value["mask"] = {"size": list(thing.mask["size"]), "counts": counts}
        objects.append(value)
    value = {
        "key": item.key,
        "size": list(item.size),
        "objects": objects,
        "relations": [[r.subject, r.predicate, r.object] for r in item.relations],
        "split": item.split,
        "image_id": item.image_id,
    }
    if item.caption:
        value["caption"] = item.caption
    return json.dumps(value, ensure_ascii=False)


def decode(line: str) -> types.Annotated:
    """Return the image of a line."""
    value = json.loads(line)
    objects = []
    for thing in value["objects"]:
        x0, y0, x1, y1 = map(float, thing["box"])
        attributes = tuple(thing.get("attributes", ()))
        objects.append(types.Object(thing["name"], (x0, y0, x1, y1), attributes, thing.get("mask")))
    relations = [types.Relation(*relation) for relation in value["relations"]]
    height, width = value["size"]
    return types.Annotated(
        value["key"],
        (height, width),
        objects,
        relations,
        value["split"],
        value["image_id"],
        value.get("caption", ""),
    )


def iterate(folder: str | os.PathLike) -> Iterator[types.Annotated]:
    """Yield the annotated images of a built data set, row by row of its image store.

    Raises:
        SgqlmError: there are none, or a line is damaged.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        raise errors.SgqlmError(
            "this data set holds no annotated relations",
            where=str(path),
            fix="build it from a relation data set: `sgqlm data build FOLDER --card=NAME`",
            code=errors.DATA,
        )
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield decode(line)
            except (ValueError, KeyError, TypeError) as error:
                raise errors.SgqlmError(
                    "a line of the annotations is damaged",
                    where=f"{path}:{number}",
                    why=f"{type(error).__name__}: {error}",
                    fix="build the data set again",
                    code=errors.DATA,
                ) from error


def load(folder: str | os.PathLike) -> list[types.Annotated]:
    """Return the annotated images of a built data set; item i belongs to row i of its images.

    Raises:
        SgqlmError: there are none, or a line is damaged.
    """
    return list(iterate(folder))
