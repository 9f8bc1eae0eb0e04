"""Pictures, masks and boxes of a sgqlm folder, brought to the square the model sees."""

import functools
import io
import os
import pathlib
import struct
import threading
import warnings
from collections.abc import Mapping

import numpy as np
from PIL import ExifTags, Image

PAD_COLOUR = (122, 116, 104)
_DRAFT_PIXELS = 40_000_000
_MAX_ASPECT = 16
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_UPRIGHT = {  # EXIF orientation: what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTER_LOCK = threading.Lock()  # the filters of `warnings` are shared by all threads


def open_image(source) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a picture to RGB, upright; return it and its height and width before any draft."""
    if isinstance(source, np.ndarray):
        picture = Image.fromarray(source).convert("RGB")
        return picture, (picture.height, picture.width)
    try:
        with _opened(source) as image:
            orientation, (width, height) = _orientation(image), image.size
            _draft(image)
            image.load()
            picture = _to_rgb(image)
    except FileNotFoundError:
        raise
    except (*_BROKEN, *_TOO_LARGE) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    if orientation != 1:
        picture = picture.transpose(_UPRIGHT[orientation])
    return picture, (width, height) if orientation > 4 else (height, width)


def to_square(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """Return uint8[size, size, 3]: padded to a square and resized, or CLIP's centre crop."""
    width, height = image.size
    if fit == "pad":
        side = max(width, height)
        if width != height:
            canvas = Image.new("RGB", (side, side), PAD_COLOUR)
            canvas.paste(image, ((side - width) // 2, (side - height) // 2))
            image = canvas
        if side != size:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.array(image)
    image = _shortened(image)
    width, height = image.size
    short = min(width, height)
    scaled = (size * width) // short, (size * height) // short
    if scaled != (width, height):
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def window(size: tuple[int, int], fit: str, image_size: int) -> np.ndarray:
    """Return x0, y0, x1, y1 of the model's square in pixels of an image of (height, width)."""
    height, width = size
    if fit == "pad":
        side = max(height, width)
        x0, y0 = -((side - width) // 2), -((side - height) // 2)
        return np.array([x0, y0, x0 + side, y0 + side], np.float64)
    short = min(height, width)
    new = np.array([(image_size * width) // short, (image_size * height) // short])
    start, scale = (new - image_size) // 2, np.array([width, height]) / new
    return np.concatenate([start * scale, (start + image_size) * scale])


def coverage(masks, size: tuple[int, int], grid: int, square: np.ndarray) -> np.ndarray:
    """Return uint8[n, grid * grid], how much of every patch of the square each mask covers.

    Shares are exact. A mask that the square shows keeps at least one patch with 1/255.
    """
    height, width = size
    _, rows_before = _overlap(height, grid, square[1], square[3])
    columns, columns_before = _overlap(width, grid, square[0], square[2])
    shares = np.zeros((len(masks), grid, grid))
    for share, mask in zip(shares, masks, strict=True):
        # pixels up to p, column by column, are whole columns and a piece of one more
        position, sign = _boundaries(mask)
        column, row = np.divmod(position, height)
        piece = (rows_before[row] * sign[:, None]).T @ columns[column]
        share += np.outer(rows_before[-1], sign @ columns_before[column]) + piece
    flat = shares.reshape(len(masks), grid * grid)
    result = np.floor(flat * 255 + (0.5 + 1e-6)).clip(0, 255).astype(np.uint8)
    lost = (result.max(1, initial=0) == 0) & (flat.max(1, initial=0) > 1e-9)
    result[lost, flat[lost].argmax(1) if lost.any() else 0] = 1
    return result


def read_entities(item, size: tuple[int, int], where: str):
    """Check the entities of one image.

    Args:
        item: a mapping, or an object with these attributes: `boxes` float[n, 4], and optionally
            `masks` (bool[n, h, w] or run-length codes), `labels` and `scores`.
        size: height and width of the image.
        where: name used in messages.

    Returns:
        Masks (bool[h, w] or run-length codes), boxes float32[n, 4], labels, scores float32[n].

    Raises:
        ValueError: the parts speak of different entities or of another image.
    """
    get = item.get if isinstance(item, Mapping) else functools.partial(getattr, item)
    boxes = np.asarray(get("boxes", None), np.float32).reshape(-1, 4)
    count = len(boxes)
    masks, labels, scores = (get(name, None) for name in ("masks", "labels", "scores"))
    masks = _box_masks(boxes, size) if masks is None else [_mask(m, size, where) for m in masks]
    labels = [] if labels is None else list(labels)
    scores = np.ones(count) if scores is None else scores
    scores = np.asarray(scores, np.float32).reshape(-1)
    if len(masks) != count or len(scores) != count or len(labels) not in (0, count):
        raise ValueError(
            f"{where} do not fit together: {len(masks)} masks, {count} boxes, {len(scores)} "
            f"scores, {len(labels)} labels"
        )
    if not np.isfinite(boxes).all():
        raise ValueError(f"{where} have a box that is not finite")
    return masks, boxes, labels, scores


def _box_masks(boxes, size):
    masks = np.zeros((len(boxes), *size), bool)
    if np.isfinite(boxes).all():
        for mask, (x0, y0, x1, y1) in zip(masks, np.round(boxes).astype(int), strict=True):
            mask[max(y0, 0) : max(y1, y0 + 1, 0), max(x0, 0) : max(x1, x0 + 1, 0)] = True
    return list(masks)


def _mask(mask, size, where):
    mask = mask if isinstance(mask, Mapping) else np.asarray(mask)
    found = tuple(mask["size"]) if isinstance(mask, Mapping) else mask.shape
    if found != tuple(size):
        raise ValueError(
            f"{where} have a mask of the size {list(found)}, but the image has {list(size)} "
            "(height, width)"
        )
    if isinstance(mask, Mapping):
        if _counts(mask["counts"]).sum() != size[0] * size[1]:
            raise ValueError(f"{where} have a run-length code that does not cover the image")
    elif mask.dtype != bool:
        raise ValueError(f"{where} have a mask of the type {mask.dtype}; use bool")
    return mask


@functools.lru_cache(maxsize=64)
def _overlap(pixels, grid, start, stop):
    """Return [pixels + 1, grid], the share of patch interval j on pixel i, and its prefix sums."""
    edges = start + (stop - start) * np.arange(grid + 1) / grid
    pixel = np.arange(pixels)[:, None]
    inside = np.minimum(pixel + 1, edges[1:]) - np.maximum(pixel, edges[:-1])
    share = inside.clip(0) * (grid / (stop - start))
    zero = np.zeros((1, grid))
    return np.concatenate([share, zero]), np.concatenate([zero, share.cumsum(0)])


def _boundaries(mask):
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


def _counts(counts):
    """Return the run lengths of a COCO code: 5 bits a character, later ones as steps."""
    if not isinstance(counts, bytes | str):
        return np.asarray(counts, np.int64)
    values = []
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


def _opened(source):
    if isinstance(source, Image.Image):
        return source.copy()
    file = io.BytesIO(source) if isinstance(source, bytes) else pathlib.Path(os.fspath(source))
    with _FILTER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file)


def _orientation(image):
    """Return the EXIF orientation 1..8; a damaged EXIF block does not make a picture bad."""
    if image.format not in ("JPEG", "MPO", "PNG", "WEBP", "TIFF", None):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1
    return value if value in range(1, 9) else 1


def _draft(image):
    width, height = image.size
    scale = next((s for s in (1, 2, 4) if width * height <= _DRAFT_PIXELS * s * s), 8)
    if scale > 1 and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (width // scale, height // scale))


def _to_rgb(image):
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        top = values.max(initial=0)
        scale = 255.0 if top <= 1 and image.mode == "F" else 1 / 257 if top > 255 else 1.0
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _shortened(image):
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max((width - longest) // 2, 0), max((height - longest) // 2, 0)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
