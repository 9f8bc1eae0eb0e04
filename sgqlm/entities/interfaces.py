"""What taggers, detectors, segmenters and whole entity extractors offer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from sgqlm.data import graphs

Tags = list[tuple[str, float]]  # tag and score of one image, best first


@dataclasses.dataclass(frozen=True)
class Boxes:
    """What a detector found in one image.

    Attributes:
        boxes: f32[n, 4], x0, y0, x1, y1 in pixels of the image; may leave it, see `filters`.
        scores: f32[n] in 0..1.
        labels: n labels, each one of those that were asked for.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: Sequence[str]

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)

    @classmethod
    def empty(cls) -> "Boxes":
        """Return no boxes."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [])


@dataclasses.dataclass(frozen=True)
class Masks:
    """What a segmenter made of boxes: bool[n, h, w], and f32[n], its own estimate of their IoU."""

    masks: np.ndarray
    scores: np.ndarray


@runtime_checkable
class Tagger(Protocol):
    """Name what is in images."""

    name: str

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result (json types), the identity of the weights too."""
        ...

    def tag(self, images: Sequence[Image.Image]) -> list[Tags]:
        """Return the tags of each upright RGB image, which may be none."""
        ...


@runtime_checkable
class Detector(Protocol):
    """Find boxes of the things that labels name."""

    name: str

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result (json types), the identity of the weights too."""
        ...

    def detect(self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[Boxes]:
        """Return the boxes of each image for the labels of that image (none: no boxes)."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Turn boxes into masks."""

    name: str

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result (json types), the identity of the weights too."""
        ...

    def segment(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[Masks]:
        """Return one mask per box, f32[n, 4] in pixels of each image; n may be 0."""
        ...


@runtime_checkable
class EntityExtractor(Protocol):
    """Find the entities of images.

    An extractor is deterministic: the same image and settings give the same entities, also in
    another batch.

    Attributes:
        name: for messages and manifests.
        seconds: wall seconds spent so far in each stage, as `{"tag": 1.5, "detect": ...}`.
    """

    name: str
    seconds: dict[str, float]

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result (json types); its hash names a finished run."""
        ...

    def extract(self, image: Image.Image) -> graphs.Entities:
        """Return the entities of an upright RGB image, in pixels of that image."""
        ...

    def extract_batch(self, images: Sequence[Image.Image]) -> list[graphs.Entities]:
        """Return the entities of each of several images."""
        ...
