"""Entities without weights: segmentation, then merging of neighbouring regions.

The image is cut into a few hundred small segments (Felzenszwalb and Huttenlocher, 2004), which are
merged two by two, the most alike neighbours first, as in selective search (Uijlings et al., 2013).
The partition at `num_parts` regions and the larger groups that later merges form are the entities.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from PIL import Image
from pycocotools import mask as coco
from skimage import color, segmentation

from sgqlm.data import graphs

_SMALL = 0.005  # share of the image at which size halves the score


@dataclasses.dataclass(frozen=True)
class RegionsConfig:
    """Settings of the `regions` extractor."""

    max_entities: int = 32
    num_parts: int = 20  # the finest partition has at most so many regions
    min_cost: float = 80.0  # neighbours cheaper to merge than this are never told apart
    num_groups: int = 6  # merging goes on until this many regions are left
    side: int = 320  # the longer side of the image that is segmented, in pixels
    scale: float = 60.0  # of felzenszwalb: larger makes larger first segments
    min_segment: int = 40  # pixels of the segmented image
    min_share: float = 0.002  # of the image; smaller regions are dropped
    max_share: float = 0.95
    max_overlap: float = 0.85  # IoU above which a group says nothing new


class RegionsExtractor:
    """Segment an image into regions and nested groups of regions; no labels."""

    name = "regions"

    def __init__(self, config: RegionsConfig = RegionsConfig()):
        """Take the settings; the defaults suit photographs."""
        self.config = config
        self.seconds = {"segment": 0.0}

    def settings(self) -> Mapping[str, Any]:
        """Return the settings as json types."""
        return dataclasses.asdict(self.config)

    def extract(self, image: Image.Image) -> graphs.Entities:
        """Return at most `max_entities` regions, best score first.

        Args:
            image: upright RGB image of any size.

        Returns:
            Entities with run-length masks at the size of `image`, boxes of the mask extents in its
            pixels, no labels, scores in (0, 1): contrast at the outline against the variation
            inside, and less for what is small.
        """
        size, start = (image.height, image.width), time.perf_counter()
        small = _shrink(image, self.config.side)
        regions = _select(_merge(np.asarray(small), self.config), self.config)
        self.seconds["segment"] += time.perf_counter() - start
        if not regions:
            return graphs.Entities.empty(size)
        masks = [scale_to_rle(region.mask, size) for region in regions]
        boxes = coco.toBbox(cast(Any, masks)).reshape(-1, 4).astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([region.score for region in regions], np.float32)
        return graphs.Entities(masks=masks, boxes=boxes, labels=[], scores=scores, size=size)

    def extract_batch(self, images: Sequence[Image.Image]) -> list[graphs.Entities]:
        """Return the regions of each image."""
        return [self.extract(image) for image in images]


def scale_to_rle(mask: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Scale a mask to another size (nearest pixel) and encode it, without making it.

    Args:
        mask: bool[h, w].
        size: height and width of the encoded mask.

    Returns:
        The COCO run-length encoding, `size` and compressed `counts`.

    Example:
        `[[0, 1]]` at size (2, 4) covers the two right columns: counts 4 off, 4 on.
    """
    height, width = size
    columns = mask[:, np.arange(width) * mask.shape[1] // width].T
    edges = np.diff(np.pad(columns.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    first = -(-np.arange(mask.shape[0] + 1) * height // mask.shape[0])
    start_column, start = np.nonzero(edges == 1)
    end_column, end = np.nonzero(edges == -1)
    starts = start_column * height + first[start]
    ends = end_column * height + first[end]
    starts, ends = starts[starts < ends], ends[starts < ends]
    split = starts[1:] != ends[:-1]
    runs = (
        np.stack([starts[np.r_[True, split]], ends[np.r_[split, True]]], 1) if len(starts) else []
    )
    marks = np.concatenate([[0], np.ravel(runs), [height * width]]).astype(np.int64)
    counts = np.diff(marks)
    counts = counts[:-1] if counts[-1] == 0 else counts
    plain: Any = {"size": [height, width], "counts": counts.tolist()}
    return coco.frPyObjects(plain, height, width)


@dataclasses.dataclass(frozen=True)
class _Region:
    mask: np.ndarray  # bool[h, w] of the segmented image
    score: float
    is_group: bool

    @property
    def share(self) -> float:
        return float(self.mask.mean())


def _shrink(image: Image.Image, side: int) -> Image.Image:
    factor = side / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(length * factor)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


class _Merger:
    """Greedy merging of neighbouring segments; all state is in dense arrays over segments."""

    def __init__(self, lab: np.ndarray, segments: np.ndarray):
        features = np.concatenate([lab * [0.7, 1.3, 1.3], _gradients(lab[..., 0])], -1)
        count = int(segments.max()) + 1
        flat = segments.ravel()
        table = features.reshape(-1, features.shape[-1]).T
        self.size = np.bincount(flat, minlength=count).astype(float)
        self.sums = np.stack([np.bincount(flat, row, count) for row in table], 1)
        self.squares = np.bincount(flat, (table**2).sum(0), count)
        self.length, self.contrast = _borders(lab, segments, count)
        self.members = {i: {i} for i in range(count)}
        self.cost = np.stack([self._costs(i) for i in range(count)])

    def _costs(self, i: int) -> np.ndarray:
        mean = self.sums / self.size[:, None]
        apart = np.linalg.norm(mean - mean[i], axis=1)
        length = np.maximum(self.length[i], 1)
        small = np.minimum(self.size, self.size[i])
        joint = (self.size * self.size[i] / (self.size + self.size[i])) ** 0.4
        cost = joint * (apart + 0.5 * self.contrast[i] / length) / (length / small**0.5) ** 0.25
        return np.where(self.length[i] > 0, cost, np.inf)

    @property
    def cheapest(self) -> float:
        """Cost of the next merge; infinite when one region is left."""
        return float(self.cost.min())

    def step(self) -> int:
        """Merge the two most alike neighbours; return the one that grew."""
        i, j = divmod(int(np.argmin(self.cost)), len(self.cost))
        self.members[i] |= self.members.pop(j)
        for table in (self.size, self.sums, self.squares):
            table[i] += table[j]
        for table in (self.length, self.contrast):
            table[i] += table[j]
            table[j] = table[:, j] = 0
            table[i, i] = 0
            table[:, i] = table[i]
        self.cost[j] = self.cost[:, j] = np.inf
        self.cost[i] = self.cost[:, i] = self._costs(i)
        return i

    def region(self, i: int, segments: np.ndarray, *, is_group: bool) -> _Region:
        """Return region `i` with its score."""
        variance = self.squares[i] / self.size[i] - np.sum((self.sums[i] / self.size[i]) ** 2)
        contrast = self.contrast[i].sum() / max(self.length[i].sum(), 1)
        outlined = contrast / (contrast + np.sqrt(max(variance, 0)) + 1)
        share = self.size[i] / segments.size
        mask = np.isin(segments, sorted(self.members[i]))
        return _Region(mask, float(outlined * share / (share + _SMALL)), is_group)


def _gradients(plane: np.ndarray) -> np.ndarray:
    steps = [np.abs(np.diff(plane, axis=a, append=plane.take([-1], a))) for a in (0, 1)]
    return np.stack(steps, -1)


def _borders(lab: np.ndarray, segments: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    length, contrast = np.zeros((2, count * count))
    for here, there in (((slice(1, None),), (slice(-1),)), (np.s_[:, 1:], np.s_[:, :-1])):
        cut = segments[here] != segments[there]
        pair = segments[here][cut] * count + segments[there][cut]
        step = np.linalg.norm(lab[here][cut] - lab[there][cut], axis=-1)
        length += np.bincount(pair, minlength=count * count)
        contrast += np.bincount(pair, step, count * count)
    length, contrast = length.reshape(count, count), contrast.reshape(count, count)
    return length + length.T, contrast + contrast.T


def _merge(pixels: np.ndarray, config: RegionsConfig) -> list[_Region]:
    """Return the parts, then the groups in the order in which they are formed."""
    segments = segmentation.felzenszwalb(
        pixels, scale=config.scale, sigma=0.8, min_size=config.min_segment
    )
    merger = _Merger(color.rgb2lab(pixels), segments)
    left = merger.members
    while len(left) > 1 and (len(left) > config.num_parts or merger.cheapest < config.min_cost):
        merger.step()
    regions = [merger.region(i, segments, is_group=False) for i in sorted(left)]
    while len(left) > max(config.num_groups, 1):
        regions.append(merger.region(merger.step(), segments, is_group=True))
    return regions


def _select(regions: list[_Region], config: RegionsConfig) -> list[_Region]:
    """Drop tiny, image-filling and repeated regions; keep the best scores, parts before groups."""
    kept: list[_Region] = []
    for region in regions:
        if not config.min_share <= region.share <= config.max_share:
            continue
        if region.is_group and any(_iou(region.mask, k.mask) > config.max_overlap for k in kept):
            continue
        kept.append(region)
    kept.sort(key=lambda region: (region.is_group, -region.score))
    return sorted(kept[: config.max_entities], key=lambda region: -region.score)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a & b) / np.sum(a | b))
