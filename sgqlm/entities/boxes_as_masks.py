"""The segmenter without weights: the mask of a box is the box."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.entities import interfaces, sam


class BoxSegmenter:
    """Fill boxes, rounded to whole pixels and at least one pixel wide and high."""

    name = "box"

    def settings(self) -> Mapping[str, Any]:
        """Return the name."""
        return {"model": self.name}

    def segment(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> list[interfaces.Masks]:
        """Return the masks of `Entities.from_boxes`, with scores of 1."""
        out = []
        for image, (codes, scores) in zip(images, self.segment_coded(images, boxes), strict=True):
            masks = np.zeros((len(codes), image.height, image.width), bool)
            for mask, code in zip(masks, codes, strict=True):
                mask[:] = graphs.decode_rle(code)
            out.append(interfaces.Masks(masks, scores))
        return out

    def segment_coded(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> list[sam.Coded]:
        """Return the same as run-length codes."""
        out = []
        for image, prompts in zip(images, boxes, strict=True):
            size = (image.height, image.width)
            made = [graphs.Entities.from_boxes(box, size).masks[0] for box in prompts]
            out.append((made, np.ones(len(made), np.float32)))
        return out
