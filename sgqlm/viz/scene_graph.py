"""Draw a scene graph on its image: what the question activates, and who listens to whom."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import canvas, overlay, placing

Number = float | int
_COLD, _HOT = np.array([246, 232, 180]), np.array([201, 42, 42])
_INK, _WHITE, _DARK = "#24417f", "#ffffff", "#1d2433"


class Arrow(NamedTuple):
    """An edge: indices of two nodes, its attention 0..1, and what stands on it."""

    sender: int
    receiver: int
    weight: Number
    text: str = ""


def draw(
    image: Image.Image,
    entities: graphs.Entities,
    *,
    node_attention: np.ndarray,
    edges: np.ndarray,
    incoming: int = 2,
    side: int = 360,
    names: Sequence[str] = (),
    weighed: int = 0,
) -> str:
    """Return the graph as SVG over a pale copy of the image.

    A node is larger and redder the more of its prompt attention lies on the question, on a scale
    from the least to the most activated node of this image. An arrow leads from the sender to
    the receiver, and its width is the attention.

    Args:
        image: RGB image of the size that `entities.size` names.
        entities: the nodes.
        node_attention: f32[n], share of the prompt attention that lies on the question.
        edges: f32[n, n], attention of the receiver (row) over the senders (columns).
        incoming: arrows drawn per receiver, the strongest ones.
        side: pixels of the longer side of the inlined image.
        names: n texts beside the nodes, "" for none; or empty.
        weighed: arrows that carry their weight as a number, the strongest ones.

    Returns:
        An SVG element as wide as its place.
    """
    backdrop = overlay.fit(image.convert("RGB"), side)
    width, height = backdrop.size
    scales = np.array([width / image.width, height / image.height] * 2)
    boxes = np.asarray(entities.boxes, np.float64).reshape(-1, 4) * scales
    whole = (0, 0, width, height)
    parts: list[canvas.Shape] = [canvas.Picture(backdrop, whole, opacity=0.45)]
    drawn = arrows(np.asarray(edges), incoming)
    first = len(drawn) - weighed
    parts += shapes(
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        [e._replace(text=f"{e.weight:.2f}") if i >= first else e for i, e in enumerate(drawn)],
        px=side / 280,
        area=whole,
        heat=scale(np.asarray(node_attention)),
        names=names,
    )
    return canvas.to_svg(parts, (width, height), label="scene graph", style="border-radius:6px")


def shapes(
    points: np.ndarray,
    edges: Sequence[Arrow],
    *,
    px: Number,
    area: placing.Box,
    heat: np.ndarray | None = None,
    names: Sequence[str] = (),
    ids: Sequence[int] = (),
    colours: Sequence[overlay.Colour] = (),
) -> list[canvas.Shape]:
    """Return the arrows, nodes and texts of a graph.

    Nodes that would cover each other are moved apart; a thin line leads to where each belongs. Two
    arrows of opposite direction bend away from each other. No text covers a node, the head of an
    arrow or another text.

    Args:
        points: f64[n, 2], where the nodes belong.
        edges: weakest first, so that strong arrows lie on top.
        px: units of one pixel on the page; sizes of text and nodes follow it.
        area: of the canvas that may be drawn on.
        heat: f64[n] in 0..1, size and redness of the nodes; None for nodes of `colours`.
        names: n texts beside the nodes, "" for none; or empty.
        ids: n numbers in the nodes, counted from 0; 0..n-1 by default, negative for none.
        colours: n colours, where there is no heat.

    Returns:
        Shapes in painting order; those of node k carry the class `o<k + 1>`.
    """
    count = len(points)
    ids = list(ids) or list(range(count))
    warm = np.zeros(count) if heat is None else np.asarray(heat, np.float64)
    radii = px * (11 + 6 * warm) if heat is not None else np.full(count, px * 11.0)
    centres = placing.spread(np.asarray(points, np.float64), radii, area)
    ties: list[canvas.Shape] = [
        canvas.Line(_pair(point, centre), _DARK, 0.8 * px, 0.7, _WHITE, tag=_tag(ids[i]))
        for i, (point, centre) in enumerate(zip(points, centres, strict=True))
        if np.hypot(*(point - centre)) > radii[i]
    ]
    pairs = {(edge.sender, edge.receiver) for edge in edges}
    lines: list[canvas.Shape] = []
    middles = []
    for edge in edges:
        bend = 0.16 if (edge.receiver, edge.sender) in pairs else 0.0
        made, middle = _arrow(edge, centres, radii, px, bend, _tag(ids[edge.sender], ids[edge[1]]))
        lines += made
        middles.append(middle)
    nodes: list[canvas.Shape] = []
    for i in range(count):
        paint = _COLD + (_HOT - _COLD) * warm[i] if heat is not None else colours[i]
        nodes += _node(ids[i], centres[i].tolist(), radii[i], paint, px)
    tips = [_around(shape.points) for shape in lines if isinstance(shape, canvas.Polygon)]
    words = _texts(edges, middles, centres, radii, names, ids, px, area, tips)
    return [*ties, *lines, *nodes, *words]


def arrows(edges: np.ndarray, incoming: int, *, most: int = 48) -> list[Arrow]:
    """Return the strongest edges of each receiver, weakest first, at most `most` altogether."""
    pairs = strongest(edges, incoming)[-most:]
    return [Arrow(sender, receiver, float(edges[receiver, sender])) for receiver, sender in pairs]


def width(weight: Number, px: Number = 1.0) -> float:
    """Return how wide an arrow of a weight 0..1 is."""
    return float(px * (0.9 + 4.3 * min(max(float(weight), 0.0), 1.0)))


def scale(values: np.ndarray) -> np.ndarray:
    """Stretch values to 0..1; equal values become 0."""
    values = np.asarray(values, np.float64)
    if not values.size or np.ptp(values) < 1e-6:
        return np.zeros(values.shape)
    return (values - values.min()) / np.ptp(values)


def strongest(edges: np.ndarray, incoming: int) -> list[tuple[int, int]]:
    """List the (receiver, sender) pairs of each receiver's strongest edges, weakest first."""
    pairs = [
        (receiver, int(sender))
        for receiver in range(len(edges))
        for sender in np.argsort(-edges[receiver], kind="stable")[:incoming]
        if sender != receiver and edges[receiver, sender] > 0
    ]
    return sorted(pairs, key=lambda pair: edges[pair])


def _arrow(edge, centres, radii, px, bend, tag) -> tuple[list[canvas.Shape], np.ndarray]:
    """Return the shapes of an arrow and its middle."""
    start, end = centres[edge.sender], centres[edge.receiver]
    delta = end - start
    distance = float(np.hypot(*delta))
    radius = radii[edge.receiver]
    if distance <= radius:
        return [], (start + end) / 2
    side = np.array([-delta[1], delta[0]])
    control = (start + end) / 2 + bend * side
    unit = end - control
    unit = unit / np.hypot(*unit)
    broad = width(edge.weight, px)
    head = min(max(broad * 2.4, 10.5 * px), 0.8 * (distance - radius) + px)
    tip = end - unit * radius
    neck = tip - unit * head
    across = np.array([-unit[1], unit[0]]) * max(head * 0.48, broad * 0.75)
    points = [start, control, neck + unit * head * 0.3] if bend else [start, neck + unit * px]
    opacity = min(0.55 + 0.45 * math.sqrt(float(edge.weight)), 1.0)
    path = [tuple(p.tolist()) for p in points]
    corners = [tuple(p.tolist()) for p in (tip, neck + across, neck - across)]
    made: list[canvas.Shape] = [
        canvas.Line(path, _INK, broad, opacity, _WHITE, tag=tag),
        canvas.Polygon(corners, _INK, opacity, _WHITE, tag=tag),
    ]
    return made, (start + end) / 2 + bend / 2 * side


def _node(number, centre, radius, paint, px) -> list[canvas.Shape]:
    red, green, blue = (int(c) for c in paint)
    tag = _tag(number)
    disc = canvas.Circle(
        tuple(centre), float(radius), f"#{red:02x}{green:02x}{blue:02x}", _WHITE, 1.6 * px, tag
    )
    if number < 0:
        return [disc]
    size = px * (13 if number < 99 else 11)
    return [
        disc,
        canvas.Text(
            tuple(centre), f"{number + 1}", size, overlay.ink((red, green, blue)), True, tag
        ),
    ]


def _texts(edges, middles, centres, radii, names, ids, px, area, tips) -> list[canvas.Shape]:
    """Return predicates on the arrows, then names beside the nodes, as far as there is room."""
    size = 11.5 * px
    height = size * 1.4
    entries = [
        (edge.text, (*middle, 0.0, 0.0), _tag(ids[edge.sender], ids[edge.receiver]), True)
        for edge, middle in zip(edges, middles, strict=True)
        if edge.text
    ]
    entries += [
        (name, (*(centre - r), 2 * r, 2 * r), _tag(ids[i]), False)
        for i, (name, centre, r) in enumerate(zip(names, centres, radii, strict=False))
        if name
    ]
    room = 0.4 * area[2]
    texts = [placing.shorten(text, size, room) for text, *_ in entries]
    forms = [[(placing.measure(text, size) + 0.8 * size, height)] for text in texts]
    discs = [(*(c - r), 2 * r, 2 * r) for c, r in zip(centres, radii, strict=True)]
    places = placing.place_labels(
        forms, [entry[1] for entry in entries], area, taken=[*discs, *tips]
    )
    out: list[canvas.Shape] = []
    for text, entry, place in zip(texts, entries, places, strict=True):
        if place is None:
            continue
        x, y, w, h = place[1]
        middle = entry[1][0] + entry[1][2] / 2, entry[1][1] + entry[1][3] / 2
        at = (x + w / 2, y + h / 2)
        if math.hypot(at[0] - middle[0], at[1] - middle[1]) > w / 2 + 3 * h:
            out.append(canvas.Line([middle, at], _DARK, 0.8 * px, 0.7, _WHITE, tag=entry[2]))
        fill, colour = (_INK, _WHITE) if entry[3] else (_WHITE, _DARK)
        out.append(canvas.Rect(place[1], fill, _WHITE, 0.6 * px, 0.3 * h, 0.94, tag=entry[2]))
        out.append(canvas.Text(at, text, size, colour, tag=entry[2]))
    return out


def _around(points) -> placing.Box:
    """Return the box around an arrow head."""
    low, high = np.min(points, axis=0).tolist(), np.max(points, axis=0).tolist()
    return low[0], low[1], high[0] - low[0], high[1] - low[1]


def _pair(a, b) -> list[canvas.Point]:
    return [(float(a[0]), float(a[1])), (float(b[0]), float(b[1]))]


def _tag(*numbers: int) -> str:
    return " ".join(["o", *(f"o{number + 1}" for number in numbers if number >= 0)])
