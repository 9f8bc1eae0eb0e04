"""Outlines of the twelve shapes, and the pixels they cover."""

import math

import numpy as np
from PIL import Image, ImageDraw

FILL, OUTLINE = 1, 2


def outline(shape: str) -> list[tuple[float, float]]:
    """Return the corners of a shape in a unit circle, y downwards, not turned."""
    if shape in ("circle", "ring", "moon"):
        return _polygon(40)
    if shape == "star":
        return [
            (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5))
            for k, r in enumerate((1.0, 0.42) * 5)
        ]
    if shape == "heart":
        turns = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (
                math.sin(t) ** 3,
                (5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t) - 13 * math.cos(t))
                / 16.5
                + 0.1,
            )
            for t in turns
        ]
    return {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0.0, -1.0), (0.93, 0.65), (-0.93, 0.65)],
        "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
        "hexagon": [(-1.0, 0.0), (-0.5, -0.8), (0.5, -0.8), (1.0, 0.0), (0.5, 0.8), (-0.5, 0.8)],
        "cross": _cross(0.33),
        "arrow": [
            (1.0, 0.0),
            (0.1, -0.85),
            (0.1, -0.35),
            (-1.0, -0.35),
            (-1.0, 0.35),
            (0.1, 0.35),
            (0.1, 0.85),
        ],
        "bar": [(-1.0, -0.33), (1.0, -0.33), (1.0, 0.33), (-1.0, 0.33)],
    }[shape]


def hole(shape: str) -> list[tuple[float, float]]:
    """Return the corners of what is cut out of a ring or a moon; empty for other shapes."""
    if shape == "ring":
        return [(0.5 * x, 0.5 * y) for x, y in _polygon(32)]
    if shape == "moon":
        return [(0.62 + 0.8 * x, 0.8 * y) for x, y in _polygon(40)]
    return []


def silhouette(item, scale: int, side: int) -> tuple[np.ndarray, int, int]:
    """Fill an object's shape at `scale` times its size.

    Args:
        item: a `world.SceneObject`.
        scale: canvas pixels per image pixel.
        side: of the canvas; what lies outside is cut.

    Returns:
        uint8[h, w] with 0 outside, `FILL` inside and `OUTLINE` on the rim, and the canvas column
        and row of its first pixel.
    """
    reach = item.radius * scale + 2
    x0, y0 = max(int(item.x * scale - reach), 0), max(int(item.y * scale - reach), 0)
    x1 = min(int(item.x * scale + reach) + 1, side)
    y1 = min(int(item.y * scale + reach) + 1, side)
    turn = math.radians(item.angle)
    cos, sin = math.cos(turn) * item.radius * scale, math.sin(turn) * item.radius * scale
    frame = item.x * scale - 0.5 - x0, item.y * scale - 0.5 - y0, cos, sin
    mask = Image.new("L", (x1 - x0, y1 - y0))
    pen = ImageDraw.Draw(mask)
    pen.polygon(_placed(outline(item.shape), frame), fill=FILL, outline=OUTLINE, width=scale)
    if cut := hole(item.shape):
        pen.polygon(_placed(cut, frame), fill=0)
        pen.line(_placed([*cut, cut[0]], frame), fill=OUTLINE, width=scale)
    if item.shape == "moon":  # the rim of the cut must not reach beyond the disc
        disc = Image.new("L", mask.size)
        ImageDraw.Draw(disc).polygon(_placed(outline(item.shape), frame), fill=255)
        mask = Image.composite(mask, Image.new("L", mask.size), disc)
    return np.asarray(mask), x0, y0


def _placed(points, frame: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    """Turn, scale and move points; `frame` is the new origin and the new x axis."""
    left, top, cos, sin = frame
    return [(left + cos * x - sin * y, top + sin * x + cos * y) for x, y in points]


def _polygon(num: int) -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / num for k in range(num)]
    return [(math.cos(t), math.sin(t)) for t in turns]


def _cross(arm: float) -> list[tuple[float, float]]:
    quarter = [(arm, -arm), (arm, -1.0), (-arm, -1.0)]
    corners = []
    for _ in range(4):
        corners.extend(quarter)
        quarter = [(y, -x) for x, y in quarter]
    return corners
