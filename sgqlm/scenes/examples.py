"""A scene as one flat record: arrays, bytes and text, and back to the very same scene."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sgqlm import config
from sgqlm.data import graphs
from sgqlm.scenes import render, world

Record = dict[str, Any]


class Example(NamedTuple):
    """What a record holds.

    Attributes:
        image: the picture as PNG.
        scene: the truth.
        entities: what a detector sees of it; no labels.
        truth: int32[n], the object behind each entity, -1 where there is none.
        masks: the modal mask of every object as COCO run-length codes.
    """

    image: bytes
    scene: world.Scene
    entities: graphs.Entities
    truth: np.ndarray
    masks: list[dict[str, Any]]

    def open_image(self) -> Image.Image:
        """Decode the picture to RGB."""
        return Image.open(io.BytesIO(self.image)).convert("RGB")


def make_example(cfg: config.SceneConfig, split: str, index: int) -> Example:
    """Draw scene `index` of a split, its picture and its noisy entities."""
    scene = world.make_scene(cfg, split, index)
    image, ids = render.draw(scene)
    entities, truth = world.detect(scene, ids, cfg)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=2)
    masks = [graphs.encode_rle(ids == k + 1) for k in range(len(scene.objects))]
    return Example(file.getvalue(), scene, entities, truth, masks)


def make_records(cfg: config.SceneConfig, split: str, start: int, stop: int) -> list[Record]:
    """Return the records `start` to `stop` of a split: the work unit of a builder process."""
    return [to_record(make_example(cfg, split, index)) for index in range(start, stop)]


def to_record(example: Example) -> Record:
    """Return the flat form.

    Tensors: `object_words` int32[n, 4] (indices of size, colour, texture, shape), `object_place`
    f32[n, 4] (x, y, radius, angle), `object_boxes` f32[n, 4], `relations` int32[r, 3] (subject,
    predicate, object), `entity_boxes` f32[m, 4], `entity_scores` f32[m], `entity_truth` int32[m].
    Masks are COCO counts joined by newlines, which counts never contain.
    """
    scene, entities = example.scene, example.entities
    words = [
        [
            values.index(word)
            for values, word in zip(world.ATTRIBUTES.values(), o.words, strict=True)
        ]
        for o in scene.objects
    ]
    relations = [
        (r.subject, world.PREDICATES.index(r.predicate), r.object) for r in scene.relations
    ]
    return {
        "image": example.image,
        "split": scene.split,
        "index": scene.index,
        "image_size": scene.image_size,
        "object_words": np.array(words, np.int32).reshape(-1, 4),
        "object_place": np.array(
            [(o.x, o.y, o.radius, o.angle) for o in scene.objects], np.float32
        ).reshape(-1, 4),
        "object_boxes": _boxes(example.masks),
        "object_masks": _join(example.masks),
        "relations": np.array(relations, np.int32).reshape(-1, 3),
        "entity_boxes": entities.boxes,
        "entity_scores": entities.scores,
        "entity_truth": example.truth,
        "entity_masks": _join(entities.coded_masks()),
    }


def from_record(record: Mapping[str, Any]) -> Example:
    """Return the example a record was made from; masks stay run-length codes."""
    side = int(record["image_size"])
    objects = tuple(
        world.SceneObject(
            **{
                k: values[i] for (k, values), i in zip(world.ATTRIBUTES.items(), words, strict=True)
            },
            x=float(x),
            y=float(y),
            radius=float(radius),
            angle=int(angle),
        )
        for words, (x, y, radius, angle) in zip(
            record["object_words"], record["object_place"], strict=True
        )
    )
    relations = tuple(
        world.Relation(int(s), world.PREDICATES[p], int(o)) for s, p, o in record["relations"]
    )
    split = record["split"]
    split = split.decode() if isinstance(split, bytes) else split
    entities = graphs.Entities(
        masks=_part(record["entity_masks"], side),
        boxes=record["entity_boxes"],
        labels=[],
        scores=record["entity_scores"],
        size=(side, side),
    )
    return Example(
        record["image"],
        world.Scene(split, int(record["index"]), side, objects, relations),
        entities,
        np.asarray(record["entity_truth"]),
        _part(record["object_masks"], side),
    )


def _boxes(masks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    codes: Any = list(masks)
    boxes = np.array(coco_mask.toBbox(codes), np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _join(masks: Sequence[Mapping[str, Any]]) -> bytes:
    return b"\n".join(mask["counts"] for mask in masks)


def _part(joined: bytes, side: int) -> list[dict[str, Any]]:
    return [{"size": [side, side], "counts": counts} for counts in joined.split(b"\n") if counts]
