"""Extractors put together: a tagger, then a detector and a segmenter, then the filters."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.entities import filters, interfaces

# boxes of an image, their masks as run-length codes, and f32[n] scores of the masks or None
Found = tuple[filters.Candidates, Sequence[graphs.Rle], np.ndarray | None]


class TaggedExtractor:
    """Find what a tagger names; how boxes and masks are found is for the classes below.

    Attributes:
        name: for messages and manifests.
        seconds: wall seconds spent so far in each stage; work on a GPU is waited for.
        dropped: how many boxes and masks were dropped so far, by reason.
    """

    def __init__(
        self,
        tagger: interfaces.Tagger | None,
        limits: filters.Limits = filters.Limits(),
        *,
        vocabulary: Sequence[str] = (),
        views: Sequence[str] = (),
        name: str = "custom",
    ):
        """Take the parts.

        Args:
            tagger: names what is in an image; None to look for the vocabulary in every image.
            limits: which boxes and masks become entities.
            vocabulary: labels where there is no tagger.
            views: names of patch grids whose coverage is stored, see `graphs.view`.
            name: for messages and manifests.

        Raises:
            SgqlmError: a view has no such name.
        """
        self.name, self.limits = name, limits
        self._tagger, self._vocabulary = tagger, tuple(vocabulary)
        self._views = tuple(views)
        for view in self._views:
            graphs.parse_view(view)
        stages = ("tag", "detect", "segment", "filter")
        self.seconds: dict[str, float] = dict.fromkeys(stages, 0.0)
        self.dropped = filters.Dropped()

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result, as json types."""
        tagger = self._tagger
        limits = dataclasses.asdict(self.limits) | {"exclude": sorted(self.limits.exclude)}
        named = {"vocabulary": list(self._vocabulary)} if tagger is None else tagger.settings()
        return {"tagger": dict(named), "limits": limits, "views": list(self._views)}

    def extract(self, image: Image.Image) -> graphs.Entities:
        """Return the entities of an upright RGB image, in pixels of that image, best first."""
        return self.extract_batch([image])[0]

    def extract_batch(self, images: Sequence[Image.Image]) -> list[graphs.Entities]:
        """Return the entities of each of several images.

        An image without tags, boxes or good masks has no entities. The boxes are those of the
        detector, clipped to the image; scores are the detector's.

        Raises:
            SgqlmError: a part of the extractor gave a result of the wrong length.
        """
        images = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        tags: list[interfaces.Tags] = [[] for _ in images]
        if self._tagger is not None:
            with self._stage("tag"):
                tags = _one_each("tagger", self._tagger.tag(images), images)
        found = self._find(images, [self._labels(some) for some in tags])
        with self._stage("filter"):
            return [self._finish(*parts) for parts in zip(images, found, tags, strict=True)]

    def _labels(self, tags: interfaces.Tags) -> list[str]:
        named = [tag for tag, _ in tags] if self._tagger is not None else self._vocabulary
        return [label for label in dict.fromkeys(named) if not self.limits.excludes(label)]

    def _find(
        self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> Sequence[Found]:
        raise TypeError(f"{type(self).__name__} does not say how entities are found")

    def _select(
        self, found: interfaces.Boxes, image: Image.Image, labels: Sequence[str]
    ) -> filters.Candidates:
        size = (image.height, image.width)
        kept, dropped = filters.select_boxes(found, size, self.limits, asked=frozenset(labels))
        self.dropped.update(dropped)
        return kept

    def _finish(self, image: Image.Image, found: Found, tags: interfaces.Tags) -> graphs.Entities:
        size = (image.height, image.width)
        entities, dropped = filters.select_masks(*found, size, self.limits, tags=tags)
        self.dropped.update(dropped)
        return add_coverage(entities, self._views)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        _synchronise()
        start = time.perf_counter()
        yield
        _synchronise()
        self.seconds[name] += time.perf_counter() - start


class CompositeExtractor(TaggedExtractor):
    """Tag, detect the tags, segment the boxes, filter."""

    def __init__(
        self,
        tagger: interfaces.Tagger | None,
        detector: interfaces.Detector,
        segmenter: interfaces.Segmenter,
        limits: filters.Limits = filters.Limits(),
        *,
        vocabulary: Sequence[str] = (),
        views: Sequence[str] = (),
        name: str = "custom",
    ):
        """Take the parts; see `TaggedExtractor`."""
        super().__init__(tagger, limits, vocabulary=vocabulary, views=views, name=name)
        self._detector, self._segmenter = detector, segmenter

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result, as json types."""
        parts = {"detector": self._detector, "segmenter": self._segmenter}
        return {
            **super().settings(),
            **{key: dict(part.settings()) for key, part in parts.items()},
        }

    def _find(
        self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> Sequence[Found]:
        with self._stage("detect"):
            boxes = _one_each("detector", self._detector.detect(images, labels), images)
        with self._stage("filter"):
            parts = zip(boxes, images, labels, strict=True)
            kept = [self._select(*part) for part in parts]
        with self._stage("segment"):
            coded = self._segment(images, [candidates.boxes for candidates in kept])
        return [(some, *masks) for some, masks in zip(kept, coded, strict=True)]

    def _segment(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> Sequence[tuple[Sequence[graphs.Rle], np.ndarray]]:
        # ours code masks as they are made; any other segmenter hands over all masks of a batch
        code = getattr(self._segmenter, "segment_coded", None)
        if code is not None:
            return _one_each("segmenter", code(images, boxes), images)
        made = _one_each("segmenter", self._segmenter.segment(images, boxes), images)
        return [([graphs.encode_rle(m) for m in one.masks], one.scores) for one in made]


class WithCoverage:
    """Another extractor, whose entities also get the coverage of some views."""

    def __init__(self, extractor: interfaces.EntityExtractor, views: Sequence[str]):
        """Take an extractor and names of views."""
        self._extractor, self._views = extractor, tuple(views)
        self.name, self.seconds = extractor.name, extractor.seconds

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of the extractor, and the views."""
        return {**self._extractor.settings(), "views": list(self._views)}

    def extract(self, image: Image.Image) -> graphs.Entities:
        """Return the entities of an image."""
        return add_coverage(self._extractor.extract(image), self._views)

    def extract_batch(self, images: Sequence[Image.Image]) -> list[graphs.Entities]:
        """Return the entities of each image."""
        found = self._extractor.extract_batch(images)
        return [add_coverage(entities, self._views) for entities in found]


def add_coverage(entities: graphs.Entities, views: Sequence[str]) -> graphs.Entities:
    """Return entities with the coverage of each named view, see `graphs.coverage`."""
    for view in views:
        grid, fit, image_size = graphs.parse_view(view)
        entities = entities.with_coverage(grid, fit, image_size=image_size)
    return entities


def _one_each(part: str, results: Any, images: Sized) -> Any:
    if len(results) != len(images):
        raise errors.SgqlmError(
            f"the {part} gave {len(results)} results for {len(images)} images",
            fix="return one result an image, in their order", code=errors.DATA,
        )  # fmt: skip
    return results


def _synchronise() -> None:
    torch = sys.modules.get("torch")  # who has not imported it has no work on a GPU
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
