"""A small relation data set of drawn pictures, built as the command builds it."""

import pathlib

import numpy as np
from PIL import Image, ImageDraw

from sgqlm.data import graphs, records
from sgqlm.data.relations import build, types

SIZE = (48, 64)  # height, width
NAMES = ("man", "horse", "hat", "tree")
PREDICATES = ["riding", "wearing", "near", "behind"]
RELATIONS = (
    (("riding", 0, 1), ("wearing", 0, 2)),
    (("near", 1, 3), ("riding", 0, 1), ("behind", 3, 0)),
    (("wearing", 0, 2),),
)


def items() -> list[types.Annotated]:
    """Return three test images and one for training, which has `man riding horse`."""
    rng, found = np.random.default_rng(0), []
    for index, rows in enumerate((*RELATIONS, RELATIONS[0][:1])):
        objects = []
        for name in NAMES:
            x, y = rng.uniform(0, 34), rng.uniform(0, 22)
            box = (x, y, x + rng.uniform(10, 28), y + rng.uniform(10, 24))
            objects.append(types.Object(name, tuple(map(float, box))))
        relations = [types.Relation(s, word, o) for word, s, o in rows]
        split = "train" if index == 3 else "test"
        key = f"pictures/{index}.png"
        found.append(types.Annotated(key, SIZE, objects, relations, split, str(100 + index)))
    return found


def draw(folder: pathlib.Path) -> pathlib.Path:
    """Draw the pictures; return the image root."""
    (folder / "pictures").mkdir(parents=True)
    for index, item in enumerate(items()):
        image = Image.new("RGB", SIZE[::-1], (200, 210, 220))
        pen = ImageDraw.Draw(image)
        for number, thing in enumerate(item.objects):
            pen.rectangle(thing.box, fill=(60 * number, 30 * index, 90), outline=(0, 0, 0))
        image.save(folder / item.key)
    return folder


def make(folder: pathlib.Path) -> pathlib.Path:
    """Build the data set; return its folder."""
    root = draw(folder / "images")
    build.build(items(), root, folder / "built")
    return folder / "built"


def extracted(folder: pathlib.Path, *, labels: bool = True) -> pathlib.Path:
    """Write an entity store as an extractor would: the annotated boxes, one of them not found."""
    rows = []
    for item in items():
        boxes = np.array([thing.box for thing in item.objects[:3]])
        names = [thing.name for thing in item.objects[:3]] if labels else []
        scores = np.array([0.9, 0.8, 0.7], np.float32)
        rows.append(
            (item.key, graphs.Entities.from_boxes(boxes, SIZE, labels=names, scores=scores))
        )
    records.write_entities(folder, rows)
    return folder
