"""Masks for boxes with SAM2 (Ravi et al., 2024) of transformers.

The image processor of transformers for SAM2 needs torchvision; `pixels.Frame` stands in for it:
the image is stretched to the square, and logits are scaled from the square to the image at once.
"""

from collections.abc import Mapping
from typing import Any

from sgqlm.entities import sam


class Sam2Segmenter(sam.SamSegmenter):
    """Segment boxes with SAM2 or SAM2.1."""

    name = "sam2"
    keeps_ratio = False

    def _classes(self) -> Mapping[str, str]:
        # published folders are those of the video model, which holds the image model
        return {"sam2": "Sam2Model", "sam2_video": "Sam2Model"}

    def _embeddings(self, stacked: Any) -> list[sam.Embedding]:
        levels = self._model.get_image_embeddings(stacked)
        return [
            {"image_embeddings": [level[i : i + 1].float() for level in levels]}
            for i in range(len(stacked))
        ]
