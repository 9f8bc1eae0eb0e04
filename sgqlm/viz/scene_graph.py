"""Draw a scene graph on its image: what the question activates, and who listens to whom."""

import math

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import overlay, pages

_COLD, _HOT = np.array([246, 232, 180]), np.array([201, 42, 42])


def draw(
    image: Image.Image,
    entities: graphs.Entities,
    *,
    node_attention: np.ndarray,
    edges: np.ndarray,
    incoming: int = 2,
    side: int = 360,
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

    Returns:
        An SVG element as wide as its place.
    """
    backdrop = overlay.fit(image.convert("RGB"), side)
    width, height = backdrop.size
    boxes = np.asarray(entities.boxes, np.float32).reshape(-1, 4) * (width / image.width)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    heat = scale(np.asarray(node_attention))
    radii = side * (0.036 + 0.02 * heat)
    lines = [
        _arrow(centres[sender], centres[receiver], radii[receiver], edges[receiver, sender], side)
        for receiver, sender in strongest(np.asarray(edges), incoming)
    ]
    nodes = [_node(i, centres[i], radii[i], heat[i], side) for i in range(len(boxes))]
    return (
        f'<svg viewBox="0 0 {width} {height}" width="100%" role="img" aria-label="scene graph" '
        'xmlns="http://www.w3.org/2000/svg" style="display:block;border-radius:6px">'
        f'<image href="{pages.data_uri(backdrop)}" width="{width}" height="{height}" '
        'opacity=".45"/>'
        f"{''.join(lines)}{''.join(nodes)}</svg>"
    )


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


def _arrow(start, end, radius, weight, side) -> str:
    delta = end - start
    distance = float(np.hypot(*delta))
    if distance <= radius:
        return ""
    unit = delta / distance
    width = side * (0.003 + 0.014 * float(weight))
    head = max(width * 2.2, side * 0.02)
    tip = end - unit * radius
    neck = tip - unit * head
    across = np.array([-unit[1], unit[0]]) * head * 0.5
    corners = " ".join("{:.1f},{:.1f}".format(*p) for p in (tip, neck + across, neck - across))
    opacity = 0.45 + 0.5 * math.sqrt(float(weight))
    return (
        f'<g opacity="{min(opacity, 1):.2f}" fill="#24417f" stroke="#24417f">'
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{neck[0]:.1f}" y2="{neck[1]:.1f}" '
        f'stroke-width="{width:.2f}"/><polygon points="{corners}" stroke="none"/></g>'
    )


def _node(i, centre, radius, heat, side) -> str:
    x, y = centre
    colour = "rgb({}, {}, {})".format(*(int(c) for c in _COLD + (_HOT - _COLD) * heat))
    ink = "#fff" if heat > 0.55 else "#1d2433"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" stroke="#fff" '
        f'stroke-width="{side / 180:.1f}"/><text x="{x:.1f}" y="{y + side * 0.017:.1f}" '
        f'text-anchor="middle" font-size="{side * 0.047:.1f}" font-weight="600" fill="{ink}">'
        f"{i + 1}</text>"
    )
