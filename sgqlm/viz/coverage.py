"""Draw which patches of the model's square lie under a mask, padding and cropping included."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import canvas, overlay, placing

_PADDING, _HATCH, _CUT, _EDGE = "#c4c9d4", "#8d95a6", "#0b0f18", "#0b0f18"
_FINEST = 64  # patches along a side whose borders are drawn


class View(NamedTuple):
    """A patch grid on the model's square; see `graphs.view` for its name."""

    name: str
    grid: int
    fit: str
    image_size: int | None

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the model's square in pixels of an image of `size` (height, width)."""
        return graphs.window(size, self.fit, image_size=self.image_size)

    def plane(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the smallest rectangle that holds the image and the model's square."""
        x0, y0, x1, y1 = self.window(size)
        return min(x0, 0.0), min(y0, 0.0), max(x1, float(size[1])), max(y1, float(size[0]))

    def of(self, entities: graphs.Entities) -> np.ndarray:
        """Return the coverage uint8[n, P]: the stored one of this view, or else counted now."""
        stored = entities.coverage.get(self.name)
        if stored is not None:
            return stored
        return graphs.coverage(entities, self.grid, self.fit, image_size=self.image_size)


def parse(name: str) -> View:
    """Read the name of a view, as in `24x24:pad` or `16x16:crop@224`.

    Raises:
        SgqlmError: this is no such name.
    """
    return View(name.strip(), *graphs.parse_view(name.strip()))


def heat(values: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Return a picture of one pixel a patch whose opacity is the coverage.

    Args:
        values: uint8[grid * grid], row-major, 255 for a patch that is covered whole.
        colours: uint8[3], or uint8[grid * grid, 3].

    Returns:
        RGBA of grid x grid pixels; alpha is `values`.
    """
    grid = round(len(values) ** 0.5)
    paint = np.broadcast_to(np.asarray(colours, np.uint8), (len(values), 3))
    pixels = np.concatenate([paint, values[:, None]], axis=1)
    return Image.fromarray(pixels.reshape(grid, grid, 4))


def overview(values: np.ndarray, colours: Sequence[overlay.Colour]) -> Image.Image:
    """Return the heat of all entities together.

    Each patch shows the coverage and colour of the smallest entity that covers half of it, or, if
    none does, of the one that covers most of it.

    Args:
        values: uint8[n, grid * grid].
        colours: n colours.

    Returns:
        RGBA of grid x grid pixels.
    """
    small_first = np.argsort(values.sum(1, dtype=int), kind="stable")
    ordered = values[small_first]
    has_half = ordered >= 128
    best = np.where(has_half.any(0), has_half.argmax(0), ordered.argmax(0))
    shown = np.take_along_axis(ordered, best[None], axis=0)[0]
    return heat(shown, np.array(colours, np.uint8)[small_first[best]])


def ground(frame: placing.Frame, size: tuple[int, int], view: View) -> list[canvas.Shape]:
    """Return the hatched padding of the model's square, which lies under the image."""
    if view.fit != "pad":
        return []
    return [
        shape
        for part in _outside(view.window(size), (0, 0, size[1], size[0]))
        for shape in _hatched(frame.rect(*part))
    ]


def grid_lines(
    frame: placing.Frame, size: tuple[int, int], view: View, px: float | int
) -> list[canvas.Shape]:
    """Return the dark veil over what a crop cuts off, the patch borders and the square's edge."""
    window = view.window(size)
    x, y, width, height = frame.rect(*window)
    out: list[canvas.Shape] = []
    for part in _outside((0, 0, size[1], size[0]), window):
        out.append(canvas.Rect(frame.rect(*part), _CUT, opacity=0.66))
    for i in range(1, view.grid if view.grid <= _FINEST else 0):
        across, down = x + width * i / view.grid, y + height * i / view.grid
        for line in ([(across, y), (across, y + height)], [(x, down), (x + width, down)]):
            out.append(canvas.Line(line, _EDGE, 0.35 * px, 0.3))
    return [*out, canvas.Rect((x, y, width, height), "", _EDGE, 1.6 * px, halo="#ffffff")]


def _outside(outer, inner) -> list[placing.Box]:
    """Return the up to four rectangles of `outer` that `inner` leaves free (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = outer
    a, b, c, d = max(inner[0], x0), max(inner[1], y0), min(inner[2], x1), min(inner[3], y1)
    parts = [(x0, y0, x1, b), (x0, d, x1, y1), (x0, b, a, d), (c, b, x1, d)]
    return [p for p in parts if p[2] - p[0] > 1e-6 and p[3] - p[1] > 1e-6]


def _hatched(box: placing.Box) -> list[canvas.Shape]:
    x, y, width, height = box
    out: list[canvas.Shape] = [canvas.Rect(box, _PADDING)]
    step = placing.WIDTH / 50
    for i in range(1, int((width + height) / step) + 1):
        reach = i * step  # the line x + y = reach, cut to the box
        start = (x + min(reach, width), y + max(0.0, reach - width))
        end = (x + max(0.0, reach - height), y + min(reach, height))
        out.append(canvas.Line([start, end], _HATCH, 1.0, 0.7))
    return out
