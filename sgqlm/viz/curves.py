"""Line and bar charts as inline SVG."""

import math
from collections.abc import Mapping, Sequence

from sgqlm.viz import pages

Number = float | int
Series = Sequence[tuple[Number, Number]]

_COLOURS = ("#2457c5", "#d9741a", "#2a9461", "#8a4fbf", "#c23b56", "#5b6475")
_WIDTH, _LEFT, _RIGHT, _TOP = 340, 40, 12, 12
_INK, _LINE = "#5b6475", "#dfe3ea"


def lines(series: Mapping[str, Series], *, height: int = 190, x_label: str = "step") -> str:
    """Return a line chart; values that are not finite are left out.

    Args:
        series: points (x, y) of each named line, in the order of their colours.
        height: of the drawing; the width follows the place it stands in.
        x_label: text under the axis.

    Returns:
        An SVG element with its legend.
    """
    series = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    points = [point for line in series.values() for point in line]
    if not points:
        return pages.note("nothing was recorded")
    bottom = height - 34
    x_low, x_high = _range([x for x, _ in points])
    y_ticks = ticks(min(0.0, *(y for _, y in points)), max(y for _, y in points))

    def place(x: Number, y: Number) -> tuple[Number, Number]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), bottom - up * (bottom - _TOP)

    parts = []
    for value in y_ticks:
        y = place(x_low, value)[1]
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{_LINE}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    for value, anchor in ((x_low, "middle"), (x_high, "end")):  # the last must not be cut off
        parts.append(_text(place(value, 0)[0], bottom + 16, f"{value:g}", anchor=anchor))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 30, x_label, anchor="middle"))
    for colour, line in zip(_cycle(len(series)), series.values(), strict=True):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
            'stroke-linejoin="round"/>'
        )
    return _svg(height, parts) + key(list(series))


def bars(values: Mapping[str, Number | None], *, highest: Number = 1.0) -> str:
    """Return horizontal bars with their names and values; None is drawn as a dash.

    Args:
        values: length of each named bar.
        highest: the value of a full bar.

    Returns:
        An SVG element.
    """
    parts, left, right, pitch = [], 118, 46, 24
    room = _WIDTH - left - right
    for i, (colour, (name, value)) in enumerate(
        zip(_cycle(len(values)), values.items(), strict=True)
    ):
        y = 4 + i * pitch
        length = room * min(max((value or 0.0) / highest, 0.0), 1.0)
        parts.append(_text(left - 8, y + 13, name, anchor="end", colour="#1d2433"))
        parts.append(f'<rect x="{left}" y="{y}" width="{room}" height="17" rx="3" fill="#f0f2f6"/>')
        parts.append(
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="17" rx="3" fill="{colour}"/>'
        )
        shown = "–" if value is None else f"{value:.2f}"
        parts.append(_text(_WIDTH - right + 8, y + 13, shown, colour="#1d2433"))
    return _svg(6 + pitch * len(values), parts)


def key(names: Sequence[str]) -> str:
    """Return the names of the lines beside their colours; nothing for a single line."""
    if len(names) < 2:
        return ""
    entries = (
        f'<span style="display:inline-block;width:14px;height:3px;background:{colour};'
        f'vertical-align:middle;margin:0 6px 0 10px"></span>{pages.escape(name)}'
        for colour, name in zip(_cycle(len(names)), names, strict=True)
    )
    return f'<div class="soft">{"".join(entries)}</div>'


def ticks(low: Number, high: Number, *, most: int = 5) -> list[Number]:
    """Return round values that enclose a range, at least two.

    Example: 0 to 3.7 gives 0, 1, 2, 3, 4.

    Args:
        low: smallest value.
        high: largest value.
        most: intervals at most.

    Returns:
        Ascending values; the first is at most `low`, the last at least `high`.
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    unit = next(power * m for m in (1, 2, 5, 10, 20) if span / (power * m) <= most)
    first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return [round(i * unit, 12) for i in range(first, max(last, first + 1) + 1)]


def _range(values: Sequence[Number]) -> tuple[Number, Number]:
    low, high = min(values), max(values)
    return low, high if high > low else low + 1


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _text(x: Number, y: Number, text: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}">'
        f"{pages.escape(text)}</text>"
    )


def _svg(height: Number, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" style="display:block">{"".join(parts)}</svg>'
    )
