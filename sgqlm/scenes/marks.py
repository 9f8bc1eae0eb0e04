"""The drawn relations: each predicate has its stroke and a mark of its own at both ends.

Marks are black and white, which no object is, and lie across the rim of the object they belong
to: who does what to whom can be read at the subject, on the way, and at the partner.
"""

import math

from PIL import ImageDraw

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def draw(
    pen: ImageDraw.ImageDraw,
    predicate: str,
    start: tuple[float, float],
    end: tuple[float, float],
    scale: int,
) -> None:
    """Draw one relation.

    Args:
        pen: of the canvas.
        predicate: one of `world.PREDICATES`.
        start: where the stroke leaves the subject, canvas pixels.
        end: where it reaches the partner.
        scale: canvas pixels per image pixel.
    """
    first = _Frame(pen, start, end, scale)
    last = _Frame(pen, end, start, scale)
    {
        "pointing at": _pointing,
        "looking at": _looking,
        "chasing": _chasing,
        "holding": _holding,
        "guarding": _guarding,
    }[predicate](first, last)


class _Frame:
    """Coordinates at one end of a stroke: a points along it, away from the object, b across."""

    def __init__(self, pen, origin, other, scale):
        dx, dy = other[0] - origin[0], other[1] - origin[1]
        self.length = max(math.hypot(dx, dy), 1e-6)
        self.u = dx / self.length, dy / self.length
        self.pen, self.origin, self.scale = pen, origin, scale
        self.length /= scale

    def at(self, a, b):
        a, b = a * self.scale, b * self.scale
        return (
            self.origin[0] + a * self.u[0] - b * self.u[1],
            self.origin[1] + a * self.u[1] + b * self.u[0],
        )

    def polygon(self, points, colour, edge=None):
        corners = [self.at(*p) for p in points]
        self.pen.polygon(corners, fill=colour)
        if edge:
            self.pen.line([*corners, corners[0]], fill=edge, width=self.scale, joint="curve")

    def disc(self, a, b, radius, colour, edge=None):
        x, y = self.at(a, b)
        r = radius * self.scale
        box = x - r, y - r, x + r, y + r
        self.pen.ellipse(box, fill=colour, outline=edge, width=self.scale if edge else 0)

    def line(self, points, width, colour):
        corners = [self.at(*p) for p in points]
        self.pen.line(corners, fill=colour, width=round(width * self.scale), joint="curve")

    def dashes(self, width, colour, on, off):
        a = 0.0
        while a < self.length:
            self.line([(a, 0), (min(a + on, self.length), 0)], width, colour)
            a += on + off


def _pointing(first: _Frame, last: _Frame) -> None:
    first.line([(0, 0), (first.length - 4, 0)], 2, BLACK)
    first.disc(1.5, 0, 3.6, BLACK, WHITE)
    last.polygon([(-1.5, 0), (7, 5.5), (7, -5.5)], BLACK, WHITE)


def _looking(first: _Frame, last: _Frame) -> None:
    for a in range(10, int(first.length) - 5, 6):
        first.disc(a, 0, 1.4, WHITE)
    first.disc(2.5, 0, 4.6, WHITE, BLACK)
    first.disc(4.2, 0, 2.3, BLACK)
    for width, colour, reach in ((3.5, BLACK, 4), (2, WHITE, 3.5)):
        for b in (-reach, reach):
            last.line([(2 - reach, -b), (2 + reach, b)], width, colour)


def _chasing(first: _Frame, last: _Frame) -> None:
    first.dashes(2.5, BLACK, 4, 4)
    for a in (-1, 2.5, 6):
        first.line([(a, -5), (a, 5)], 1.5, BLACK)
    for a in (-1, 3.5):
        last.line([(a + 4.5, -5), (a, 0), (a + 4.5, 5)], 2, BLACK)


def _holding(first: _Frame, last: _Frame) -> None:
    first.line([(0, 0), (first.length - 3, 0)], 2, WHITE)
    first.polygon([(-1.5, -3.5), (5.5, -3.5), (5.5, 3.5), (-1.5, 3.5)], WHITE, BLACK)
    hook = [(-2.5, -5.5), (4, -5.5), (4, 5.5), (-2.5, 5.5)]
    last.line(hook, 3.5, BLACK)
    last.line(hook, 2, WHITE)


def _guarding(first: _Frame, last: _Frame) -> None:
    for b in (-1.5, 1.5):
        first.line([(0, b), (first.length, b)], 1, BLACK)
    first.line([(0, 0), (first.length, 0)], 2, WHITE)
    first.polygon([(-2.5, 0), (2.5, -4.5), (7.5, 0), (2.5, 4.5)], BLACK, WHITE)
    for a, colour in ((4.5, BLACK), (2.5, WHITE), (0.5, BLACK)):
        last.line([(a, -7), (a, 7)], 2, colour)
