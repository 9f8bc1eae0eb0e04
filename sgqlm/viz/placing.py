"""Where things stand in a picture: the image, and labels and nodes that do not overlap."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH = 800.0  # units of a canvas; its width on a page is free
_LOWEST, _HIGHEST = 0.3, 1.25  # height of a canvas as a share of its width
_THINNEST = 0.03  # an image of one pixel's width is still this share of the canvas
Number = float | int
Box = tuple[Number, Number, Number, Number]  # x, y, width, height


class Frame(NamedTuple):
    """A canvas, and the rectangle in it that shows a part of the image's plane.

    width, height: of the canvas. box: x, y, width, height in the canvas. plane: x0, y0, x1, y1 in
    pixels of the original image, which the box shows.
    """

    width: Number
    height: Number
    box: Box
    plane: Box

    def place(self, points: np.ndarray) -> np.ndarray:
        """Return f64[..., 2k], pairs x, y in original pixels, in units of the canvas."""
        points = np.asarray(points, np.float64)
        x0, y0, x1, y1 = self.plane
        pairs = points.reshape(*points.shape[:-1], -1, 2) - (x0, y0)
        pairs = pairs * (self.box[2] / (x1 - x0), self.box[3] / (y1 - y0)) + self.box[:2]
        return pairs.reshape(points.shape)

    def rect(self, x0: Number, y0: Number, x1: Number, y1: Number) -> Box:
        """Return a box in original pixels as x, y, width, height in the canvas."""
        a, b, c, d = self.place(np.array([x0, y0, x1, y1])).tolist()
        return a, b, c - a, d - b


def frame(plane: Box, *, margin: Number = 0.0) -> Frame:
    """Fit a part of the image's plane into a canvas of width `WIDTH`.

    Very tall and very wide images leave a margin; a side of few pixels is stretched, so that it
    can be seen.

    Args:
        plane: x0, y0, x1, y1 in original pixels.
        margin: free space around, as a share of the canvas' width.

    Returns:
        The canvas.
    """
    width, height = plane[2] - plane[0], plane[3] - plane[1]
    edge = WIDTH * margin
    canvas = min(max(WIDTH * height / width, _LOWEST * WIDTH), _HIGHEST * WIDTH)
    factor = min((WIDTH - 2 * edge) / width, (canvas - 2 * edge) / height)
    shown = [max(side * factor, _THINNEST * WIDTH) for side in (width, height)]
    x, y = (WIDTH - shown[0]) / 2, (canvas - shown[1]) / 2
    return Frame(WIDTH, canvas, (x, y, shown[0], shown[1]), plane)


def measure(text: str, size: Number) -> float:
    """Return about how wide a text is, on the generous side, whatever the font of the reader."""
    total = 0.0
    for character in text:
        if unicodedata.combining(character):
            continue
        if unicodedata.east_asian_width(character) in "WF":
            total += 1.05
        elif character in "iljtfrI.,:;'|!()[] ":
            total += 0.4
        elif character in "mwMW@%" or character.isupper():
            total += 0.86
        else:
            total += 0.63
    return total * size


def shorten(text: str, size: Number, room: Number) -> str:
    """Cut a text that is wider than `room`, with an ellipsis."""
    if measure(text, size) <= room:
        return text
    while text and measure(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def place_labels(
    choices: Sequence[Sequence[tuple[Number, Number]]],
    anchors: Sequence[Box],
    area: Box,
    *,
    taken: Sequence[Box] = (),
    step: Number = 0.0,
) -> list[tuple[int, Box] | None]:
    """Find a place for every label so that none covers another.

    Labels are placed in the given order. Each tries, for its widest form first, the corners and
    sides of its anchor, then places ever farther away on a ring around it.

    Args:
        choices: sizes (width, height) of the forms of each label, the best form first.
        anchors: x, y, width, height of what each label belongs to.
        area: where labels may stand.
        taken: boxes that no label may cover.
        step: distance between the rings; the height of a label by default.

    Returns:
        For each label the index of its form and its box, or None where no form found a place.
    """
    used = [np.array(box) for box in taken]
    found: list[tuple[int, Box] | None] = []
    for forms, anchor in zip(choices, anchors, strict=True):
        place = None
        for form, size in enumerate(forms):
            spots = _spots(anchor, size, step or size[1], far=form == len(forms) - 1)
            place = next((p for p in spots if _is_free(p, size, area, used)), None)
            if place is not None:
                box = (float(place[0]), float(place[1]), float(size[0]), float(size[1]))
                found.append((form, box))
                used.append(np.array(box))
                break
        if place is None:
            found.append(None)
    return found


def spread(points: np.ndarray, radii: np.ndarray, area: Box, *, rounds: int = 200) -> np.ndarray:
    """Push circles apart until they do not overlap, each as little as needed.

    Args:
        points: f64[n, 2], centres.
        radii: f64[n].
        area: where the circles have to stay, as far as there is room.
        rounds: at most; circles that touch nothing do not move.

    Returns:
        f64[n, 2], the new centres.
    """
    out = np.asarray(points, np.float64).reshape(-1, 2).copy()
    low = np.array(area[:2]) + np.asarray(radii)[:, None]
    high = np.array(area[:2]) + np.array(area[2:]) - np.asarray(radii)[:, None]
    high = np.maximum(low, high)
    # circles on one point part along directions of their own
    turn = 2.399963 * np.arange(len(out))
    apart = np.stack([np.cos(turn), np.sin(turn)], 1)
    for _ in range(rounds):
        delta = out[:, None] - out[None]
        distance = np.hypot(delta[..., 0], delta[..., 1])
        overlap = (radii[:, None] + radii[None]) * 1.04 - distance
        np.fill_diagonal(overlap, 0.0)
        if not (overlap > 0.02 * np.max(radii, initial=1.0)).any():
            break
        same = distance < 1e-6
        unit = np.where(same[..., None], apart[:, None] - apart[None], delta)
        unit = unit / np.maximum(np.hypot(unit[..., 0], unit[..., 1]), 1e-9)[..., None]
        push = (np.maximum(overlap, 0.0)[..., None] * unit).sum(1)
        moved = np.clip(out + 0.5 * push, low, high)
        out = np.where(np.any(overlap > 0, axis=1, keepdims=True), moved, out)
    return out


def _spots(anchor: Box, size: tuple[Number, Number], step: Number, *, far: bool):
    """Yield upper left corners of a label, the natural ones first."""
    x, y, width, height = anchor
    w, h = size
    if not width and not height:
        yield x - w / 2, y - h / 2
    yield x, y - h
    yield x, y
    yield x + width - w, y - h
    yield x + width - w, y
    yield x, y + height - h
    yield x, y + height
    yield x + width - w, y + height - h
    yield x + width, y
    yield x - w, y
    cx, cy = x + width / 2 - w / 2, y + height / 2 - h / 2
    yield cx, cy
    if not far:
        return
    for ring in range(1, 60):
        for turn in range(8 + 2 * ring):
            angle = 2 * np.pi * turn / (8 + 2 * ring)
            yield cx + ring * step * np.cos(angle), cy + 0.8 * ring * step * np.sin(angle)


def _is_free(
    place: tuple[Number, Number], size: tuple[Number, Number], area: Box, used: list[np.ndarray]
) -> bool:
    (x, y), (w, h) = place, size
    if x < area[0] or y < area[1] or x + w > area[0] + area[2] or y + h > area[1] + area[3]:
        return False
    if not used:
        return True
    others = np.stack(used)
    is_apart = (
        (others[:, 0] >= x + w)
        | (others[:, 0] + others[:, 2] <= x)
        | (others[:, 1] >= y + h)
        | (others[:, 1] + others[:, 3] <= y)
    )
    return bool(is_apart.all())
