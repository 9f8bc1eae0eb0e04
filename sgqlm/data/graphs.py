"""Entities of an image (masks, boxes, labels) and the arrays a scene graph is built from."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from sgqlm import config, errors, types

Rle = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Entities:
    """What a detector or a user says about one image, in pixels of the original image.

    Attributes:
        masks: bool[n, h, w], or n COCO run-length codes `{"size": [h, w], "counts": bytes}`.
        boxes: f32[n, 4], x0, y0, x1, y1.
        labels: n predicted tags, or an empty list where nothing was tagged.
        scores: f32[n], the higher the surer.
        size: (height, width) of the original image.
        alternatives: n lists of (label, score), what else each entity may be; or empty.
        mask_scores: f32[n], how good the segmenter takes each mask to be; or empty.
        tags: (tag, score) of the whole image, as the tagger gave them.
        coverage: name of a view (see `view`) -> uint8[n, P], made beforehand by `coverage`.
    """

    masks: np.ndarray | Sequence[Rle]
    boxes: np.ndarray
    labels: Sequence[str]
    scores: np.ndarray
    size: tuple[int, int]
    alternatives: Sequence[Sequence[tuple[str, float]]] = ()
    mask_scores: np.ndarray | Sequence[float] = ()
    tags: Sequence[tuple[str, float]] = ()
    coverage: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Check that all parts speak of the same entities and the same image."""
        object.__setattr__(self, "boxes", np.asarray(self.boxes, np.float32).reshape(-1, 4))
        for name in ("scores", "mask_scores"):
            values = np.asarray(getattr(self, name), np.float32).reshape(-1)
            object.__setattr__(self, name, values)
        n, problem = len(self.boxes), ""
        parts = {"masks": self.masks, "scores": self.scores}
        optional = {
            "labels": self.labels,
            "alternatives": self.alternatives,
            "mask scores": self.mask_scores,
        }
        optional |= {f"rows of coverage {k}": rows for k, rows in self.coverage.items()}
        if any(len(part) != n for part in parts.values()) or any(
            len(part) not in (0, n) for part in optional.values()
        ):
            counts = {"boxes": self.boxes} | parts | optional
            problem = ", ".join(f"{len(part)} {name}" for name, part in counts.items())
        elif not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            problem = "a box or a score is not finite"
        elif isinstance(self.masks, np.ndarray):
            if self.masks.dtype != bool or self.masks.shape[1:] != tuple(self.size):
                problem = f"masks are {self.masks.dtype}{list(self.masks.shape)}"
        elif any(tuple(rle["size"]) != tuple(self.size) for rle in self.masks):
            problem = "a mask has another size than the image"
        if problem:
            raise errors.SgqlmError(
                "the entities of an image do not fit together",
                why=f"{problem}; image {self.size[1]} x {self.size[0]} (width x height)",
                fix="give one mask, box and score per entity, at the size of the original image",
                code=errors.DATA,
            )

    def __len__(self) -> int:
        """Return the number of entities."""
        return len(self.boxes)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> "Entities":
        """Return no entities for an image of `size` (height, width)."""
        return cls([], np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32), size)

    @classmethod
    def from_boxes(
        cls,
        boxes: np.ndarray,
        size: tuple[int, int],
        *,
        labels: Sequence[str] = (),
        scores: np.ndarray | None = None,
    ) -> "Entities":
        """Return entities whose masks are their boxes (annotations without masks)."""
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        masks = [_box_rle(box, size) for box in np.round(boxes).astype(int).tolist()]
        scores = np.ones(len(boxes), np.float32) if scores is None else scores
        return cls(masks, boxes, list(labels), scores, size)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Entities":
        """Return the entities at `indices`, in that order."""
        keep = np.asarray(indices, np.int64).reshape(-1).tolist()
        coded = not isinstance(self.masks, np.ndarray)
        masks = [self.masks[i] for i in keep] if coded else np.asarray(self.masks)[keep]
        return dataclasses.replace(
            self,
            masks=masks,
            boxes=self.boxes[keep],
            labels=[self.labels[i] for i in keep] if len(self.labels) else [],
            scores=self.scores[keep],
            alternatives=[self.alternatives[i] for i in keep] if len(self.alternatives) else (),
            mask_scores=np.asarray(self.mask_scores)[keep] if len(self.mask_scores) else (),
            coverage={name: rows[keep] for name, rows in self.coverage.items()},
        )

    def with_coverage(self, grid: int, fit: str, *, image_size: int | None = None) -> "Entities":
        """Return the same entities with the coverage of one more view; see `coverage`."""
        name = view(grid, fit, image_size=image_size)
        made = coverage(self, grid, fit, image_size=image_size)
        return dataclasses.replace(self, coverage=dict(self.coverage) | {name: made})

    def dense_masks(self) -> np.ndarray:
        """Return the masks as bool[n, h, w]."""
        if isinstance(self.masks, np.ndarray):
            return self.masks
        shape = (0, *self.size)
        return (
            np.stack([decode_rle(r) for r in self.masks]) if self.masks else np.zeros(shape, bool)
        )

    def coded_masks(self) -> list[Rle]:
        """Return the masks as COCO run-length codes."""
        return [m if isinstance(m, Mapping) else encode_rle(m) for m in self.masks]


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Return the compressed COCO run-length code of a bool[h, w] mask."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"]}


def _box_rle(box: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """Return the run-length code of a box of at least one pixel, as far as it is in the image."""
    (height, width), (x0, y0, x1, y1) = size, box
    left, right = max(x0, 0), min(max(x1, x0 + 1), width)
    top, bottom = max(y0, 0), min(max(y1, y0 + 1), height)
    columns, rows = right - left, bottom - top
    if columns <= 0 or rows <= 0:
        runs = [height * width]
    else:
        if rows == height:  # whole columns are one run
            rows, columns = rows * columns, 1
        runs = [left * height + top, *[rows, height - rows] * (columns - 1), rows]
        runs += [height * width - sum(runs)] if sum(runs) < height * width else []
    plain: Any = {"size": [height, width], "counts": runs}
    code = coco_mask.frPyObjects(plain, height, width)
    return {"size": [height, width], "counts": code["counts"]}


def decode_rle(rle: Rle) -> np.ndarray:
    """Return the bool[h, w] mask of a COCO run-length code (compressed, or a list of counts)."""
    counts = _counts(rle["counts"])
    height, width = rle["size"]
    if counts.sum() != height * width:
        raise ValueError(f"a run-length code covers {counts.sum()} of {height * width} pixels")
    ones = np.arange(len(counts)) % 2 == 1
    return np.repeat(ones, counts).reshape(width, height).T


def window(
    size: tuple[int, int], fit: str, *, image_size: int | None = None
) -> tuple[float, float, float, float]:
    """Return the part of the image plane that becomes the model's square.

    A 4 x 2 image (width x height) has the window (0, -1, 4, 3) with `pad`: one row of padding above
    and below; and (1, 0, 3, 2) with `crop`.

    Args:
        size: (height, width) of the original image.
        fit: `pad` (to a square, the odd pixel right or below) or `crop` (CLIP's centre crop).
        image_size: side of the model's square in pixels; only needed to follow the rounding of
            `crop`, which moves its window by less than one pixel of that square.

    Returns:
        x0, y0, x1, y1 in original pixels; outside of the image where it is padded.
    """
    height, width = size
    if fit == "pad":
        side = max(height, width)
        x0, y0 = -((side - width) // 2), -((side - height) // 2)
        return float(x0), float(y0), float(x0 + side), float(y0 + side)
    short = min(height, width)
    if image_size is None:
        x0, y0 = (width - short) / 2, (height - short) / 2
        return x0, y0, x0 + short, y0 + short
    new_w, new_h = (image_size * width) // short, (image_size * height) // short
    x0, x_scale = (new_w - image_size) // 2, width / new_w
    y0, y_scale = (new_h - image_size) // 2, height / new_h
    return (
        x0 * x_scale,
        y0 * y_scale,
        (x0 + image_size) * x_scale,
        (y0 + image_size) * y_scale,
    )


def view(grid: int, fit: str, *, image_size: int | None = None) -> str:
    """Return the name of a patch grid on an image, as in `24x24:pad` or `24x24:crop@336`.

    The side of the model's square counts with `crop` alone, see `window`.
    """
    return f"{grid}x{grid}:{fit}" + (f"@{image_size}" if fit == "crop" and image_size else "")


def parse_view(name: str) -> tuple[int, str, int | None]:
    """Return the grid, fit and image side that `view` made a name of; the side may be None.

    Raises:
        SgqlmError: it is not the name of a view.
    """
    found = re.fullmatch(r"(\d+)x\1:(pad|crop)(?:@(\d+))?", name)
    grid, fit, side = found.groups() if found else ("0", "", None)
    image_size = int(side) if side else None
    if not 0 < int(grid) <= 1024 or view(int(grid), fit, image_size=image_size) != name:
        raise errors.SgqlmError(
            f"{name!r} is no view of patches", where="--views",
            fix="give a square grid and how images are fitted: 24x24:pad, 24x24:crop@336",
        )  # fmt: skip
    return int(grid), fit, image_size


def coverage(
    entities: Entities, grid: int, fit: str, *, image_size: int | None = None
) -> np.ndarray:
    """Return how much of every patch lies under every mask.

    The share is exact: pixels that a patch border cuts count with the part inside. Padding is
    under no mask. An entity that the square shows keeps at least one patch with 1/255.

    Args:
        entities: n entities.
        grid: patches along a side of the model's square.
        fit: `pad` or `crop`, see `window`.
        image_size: see `window`.

    Returns:
        uint8[n, grid * grid], row-major patches, 255 = all of the patch.
    """
    x0, y0, x1, y1 = window(entities.size, fit, image_size=image_size)
    height, width = entities.size
    _, rows_before = _overlap(height, grid, y0, y1)
    columns, columns_before = _overlap(width, grid, x0, x1)
    shares = np.zeros((len(entities), grid, grid))
    for share, mask in zip(shares, entities.masks, strict=True):
        # The prefix of column-major pixels up to p covers whole columns and a piece of one more.
        position, sign = _boundaries(mask)
        column, row = np.divmod(position, height)
        piece = (rows_before[row] * sign[:, None]).T @ columns[column]
        share += np.outer(rows_before[-1], sign @ columns_before[column]) + piece
    flat = shares.reshape(len(entities), grid * grid)
    result = np.floor(flat * 255 + (0.5 + 1e-6)).clip(0, 255).astype(np.uint8)
    lost = (result.max(1, initial=0) == 0) & (flat.max(1, initial=0) > 1e-9)
    result[lost, flat[lost].argmax(1) if lost.any() else 0] = 1
    return result


@functools.lru_cache(maxsize=64)
def _overlap(pixels: int, grid: int, start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
    """Return [pixels + 1, grid], the share of patch interval j on pixel i, and its prefix sums."""
    edges = start + (stop - start) * np.arange(grid + 1) / grid
    pixel = np.arange(pixels)[:, None]
    inside = np.minimum(pixel + 1, edges[1:]) - np.maximum(pixel, edges[:-1])
    share = inside.clip(0) * (grid / (stop - start))
    zero = np.zeros((1, grid))
    return np.concatenate([share, zero]), np.concatenate([zero, share.cumsum(0)])


def _boundaries(mask: np.ndarray | Rle) -> tuple[np.ndarray, np.ndarray]:
    """Return column-major positions where runs of ones end (+1) and start (-1)."""
    if isinstance(mask, Mapping):
        position = _counts(mask["counts"]).cumsum()
    else:
        flat = np.concatenate([[False], mask.T.reshape(-1), [False]])
        position = np.flatnonzero(flat[1:] != flat[:-1])
    sign = np.ones(len(position))
    sign[::2] = -1
    if len(position) % 2:  # the last run is one of zeros
        position, sign = position[:-1], sign[:-1]
    return position, sign


def _counts(counts: bytes | str | Sequence[int]) -> np.ndarray:
    """Return the run lengths of a COCO code: 5 bits a character, later ones as steps."""
    if not isinstance(counts, bytes | str):
        return np.asarray(counts, np.int64)
    values: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii") if isinstance(counts, str) else counts:
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if code < 32:  # the last character of this number; bit 4 is its sign
            value -= (code & 16) << (shift - 4)
            values.append(value + values[-2] if len(values) > 2 else value)
            value = shift = 0
    return np.array(values, np.int64)


def square_boxes(entities: Entities, fit: str, *, image_size: int | None = None) -> np.ndarray:
    """Return the boxes in the model's square, f32[n, 4] in 0..1 and cut at its border."""
    x0, y0, x1, y1 = window(entities.size, fit, image_size=image_size)
    origin = np.array([x0, y0, x0, y0])
    extent = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
    return ((entities.boxes - origin) / extent).clip(0, 1).astype(np.float32)


class Nodes(NamedTuple):
    """The nodes of one image, best first: arrays without padding.

    coverage uint8[n, P], boxes f32[n, 4], label_ids int32[n, L], source int32[n] (index of the
    node among the entities it was made from).
    """

    coverage: np.ndarray
    boxes: np.ndarray
    label_ids: np.ndarray
    source: np.ndarray


def make_nodes(
    entities: Entities,
    model: config.ModelConfig,
    *,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> Nodes:
    """Turn entities into the nodes of the scene graph.

    Entities the model's square does not show are left out; of the rest the `num_nodes` with the
    highest scores stay (equal scores: the earlier one).

    Args:
        entities: entities of one image.
        model: grid, fit, number of nodes and label tokens.
        encode: text to token ids without BOS; needed where labels are used.

    Returns:
        At most `model.graph.num_nodes` nodes.
    """
    grid, fit, side = model.vision.grid, model.image_fit, model.vision.image_size
    cover = entities.coverage.get(view(grid, fit, image_size=side))
    if cover is None:
        cover = coverage(entities, grid, fit, image_size=side)
    boxes = square_boxes(entities, fit, image_size=side)
    order = np.argsort(-entities.scores, kind="stable")
    seen = np.asarray(cover.any(1))
    order = order[seen[order]][: model.graph.num_nodes].astype(np.int32)
    label_ids = np.full((len(order), model.graph.label_tokens), -1, np.int32)
    if model.graph.labels == "predicted" and len(entities.labels) and encode is not None:
        for ids, index in zip(label_ids, order, strict=True):
            tokens = list(encode(entities.labels[int(index)]))[: len(ids)] if len(ids) else []
            ids[: len(tokens)] = tokens
    return Nodes(cover[order], boxes[order], label_ids, order)


def image_bounds(
    size: tuple[int, int], fit: str, *, image_size: int | None = None
) -> tuple[float, float, float, float]:
    """Return the part of the model's square that shows the image, x0, y0, x1, y1 in 0..1.

    A 4 x 2 image (width x height) has the bounds (0, 0.25, 1, 0.75) with `pad`.
    """
    height, width = size
    x0, y0, x1, y1 = window(size, fit, image_size=image_size)
    spans = [(0 - x0) / (x1 - x0), (0 - y0) / (y1 - y0)]
    spans += [(width - x0) / (x1 - x0), (height - y0) / (y1 - y0)]
    left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in spans)
    return left, top, right, bottom


def jitter(
    nodes: Nodes,
    amount: float,
    *,
    rng: np.random.Generator,
    bounds: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> Nodes:
    """Move and scale every node a little, its box and its coverage alike.

    Each side of a box is scaled by a factor in 1 - amount ... 1 + amount and its centre moved by up
    to `amount` of that side; a box that would leave the image is moved back into it. The coverage
    is that of the same shape moved in the same way, exact for shapes that are even within a patch;
    no node loses all of it.

    Args:
        nodes: the nodes of one image.
        amount: share of a side, in 0..1; with 0 the nodes stay as they are.
        rng: source of the draws.
        bounds: part of the square that shows the image, see `image_bounds`.

    Returns:
        As many nodes, in the same order.
    """
    if not amount or not len(nodes.boxes):
        return nodes
    draws = rng.uniform(-amount, amount, (len(nodes.boxes), 2, 2))
    low, high = np.array(bounds[:2]), np.array(bounds[2:])
    start, stop = nodes.boxes[:, :2].astype(float), nodes.boxes[:, 2:].astype(float)
    side = stop - start
    scaled = np.minimum(side * (1 + draws[:, 0]), np.maximum(high - low, 1e-6))
    middle = (start + stop) / 2 + draws[:, 1] * side
    moved = np.clip(middle - scaled / 2, low, np.maximum(high - scaled, low))
    boxes = np.concatenate([moved, moved + scaled], 1).clip(0, 1).astype(np.float32)
    grid = math.isqrt(nodes.coverage.shape[1])
    cover = nodes.coverage.reshape(-1, grid, grid).astype(np.float64)
    factor = np.where(side > 0, scaled / np.maximum(side, 1e-9), 1.0)
    shares = [_moved(grid, start[:, k], moved[:, k], factor[:, k], bounds[k::2]) for k in (0, 1)]
    exact = (shares[1] @ cover @ shares[0].transpose(0, 2, 1)).reshape(len(boxes), -1)
    result = np.floor(exact + 0.5).clip(0, 255).astype(np.uint8)
    lost = (result.max(1) == 0) & (nodes.coverage.max(1) > 0)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 * grid).astype(int).clip(0, grid - 1)
    best = np.where(exact.max(1) > 0, exact.argmax(1), centre[:, 1] * grid + centre[:, 0])
    result[lost, best[lost]] = 1
    return nodes._replace(coverage=result, boxes=boxes)


def _moved(grid, start, moved, factor, bounds) -> np.ndarray:
    """Return [n, grid, grid], the share of old patch i under new patch j along one axis."""
    edges = np.arange(grid + 1) / grid
    # where the new patches lie in the old square; what left the image is seen by none of them
    new = (np.clip(edges, *bounds) - moved[:, None]) / factor[:, None] + start[:, None]
    inside = np.minimum(new[:, 1:, None], edges[1:]) - np.maximum(new[:, :-1, None], edges[:-1])
    return inside.clip(0) * (grid * factor)[:, None, None]


def stack(
    nodes: Sequence[Nodes | None],
    prompts: Sequence[Sequence[Sequence[int]]],
    model: config.ModelConfig,
    *,
    num_runs: int,
) -> types.GraphBatch:
    """Pad the nodes and prompts of B samples to one `GraphBatch` of numpy arrays.

    Args:
        nodes: nodes of every sample; None for none.
        prompts: token ids of the prompt of every run of graph tokens of every sample.
        model: sizes.
        num_runs: R of the result; further runs are cut.

    Returns:
        Arrays of the shapes in `types.GraphBatch`, `predicate_ids` None.
    """
    graph, size, patches = model.graph, len(nodes), model.vision.num_patches
    count, width = graph.num_nodes, graph.prompt_tokens
    batch = types.GraphBatch(
        coverage=np.zeros((size, count, patches), np.uint8),
        boxes=np.zeros((size, count, 4), np.float32),
        label_ids=np.full((size, count, graph.label_tokens), -1, np.int32),
        valid=np.zeros((size, count), bool),
        prompt_ids=np.zeros((size, num_runs, width), np.int32),
        prompt_valid=np.zeros((size, num_runs, width), bool),
    )
    for b, (item, runs) in enumerate(zip(nodes, prompts, strict=True)):
        if item is not None:
            n = len(item.boxes)
            batch.coverage[b, :n], batch.boxes[b, :n] = item.coverage, item.boxes
            batch.label_ids[b, :n], batch.valid[b, :n] = item.label_ids, True
        for r, prompt in enumerate(runs[:num_runs]):
            ids = list(prompt)[:width]
            batch.prompt_ids[b, r, : len(ids)] = ids
            batch.prompt_valid[b, r, : len(ids)] = True
    return batch
