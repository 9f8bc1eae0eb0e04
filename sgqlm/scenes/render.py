"""Draw a scene, and the exact mask of what is visible of each object."""

import math

import numpy as np
from PIL import Image, ImageDraw

from sgqlm.scenes import marks, shapes, world

SCALE = 2  # drawn at twice the size, then averaged
STRIPE_PERIOD = 6.0  # pixels
INK = {
    "red": (225, 40, 40),
    "orange": (255, 140, 10),
    "yellow": (252, 232, 60),
    "green": (40, 160, 50),
    "cyan": (70, 220, 230),
    "blue": (45, 85, 225),
    "purple": (140, 45, 185),
    "pink": (255, 150, 205),
}


def draw(scene: world.Scene) -> tuple[Image.Image, np.ndarray]:
    """Draw a scene.

    The strokes and marks of relations lie over the objects as ink: they change no mask.

    Args:
        scene: what to draw.

    Returns:
        The RGB image, and the modal masks as uint8[side, side]: 0 is background, k + 1 is a pixel
        at which object k is the frontmost.
    """
    side = scene.image_size * SCALE
    canvas = backdrop(scene)
    ids = np.zeros((side, side), np.uint8)
    amodal = []
    for k, item in enumerate(scene.objects):
        mask, x0, y0 = shapes.silhouette(item, SCALE, side)
        window = slice(y0, y0 + mask.shape[0]), slice(x0, x0 + mask.shape[1])
        inside = mask > 0
        bands = _bands(item, inside, x0, y0)
        canvas[window][inside] = _paint(item)[mask[inside], bands]
        ids[window][inside] = k + 1
        amodal.append((inside, x0, y0))
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for relation in scene.relations:
        start = _rim(scene, relation.subject, relation.object, amodal)
        end = _rim(scene, relation.object, relation.subject, amodal)
        marks.draw(pen, relation.predicate, start, end, SCALE)
    return image.reduce(SCALE), np.ascontiguousarray(ids[1::SCALE, 1::SCALE])


def backdrop(scene: world.Scene) -> np.ndarray:
    """Return uint8[2 side, 2 side, 3]: a grey that changes slowly over the image."""
    rng = world.generator("backdrop", scene.split, scene.index)
    level = rng.uniform(135, 165) + rng.uniform(-14, 14, size=(4, 4, 1))
    tint = rng.uniform(-6, 6, size=3)
    coarse = Image.fromarray((level + tint).round().astype(np.uint8))
    side = scene.image_size * SCALE
    return np.array(coarse.resize((side, side), Image.Resampling.BILINEAR))


def _paint(item: world.SceneObject) -> np.ndarray:
    """Return uint8[3, 2, 3]: colour of (unused, fill, outline) x (base band, dark band)."""
    base = np.array(INK[item.colour], np.float64)
    dark = base * 0.45 if item.texture == "striped" else base
    edge = base * 0.6
    return np.array([[base, dark], [base, dark], [edge, edge]]).astype(np.uint8)


def _bands(item: world.SceneObject, inside: np.ndarray, x0: int, y0: int) -> np.ndarray:
    """Return int[pixels inside]: which band of the stripes a pixel lies in."""
    rows, columns = np.nonzero(inside)
    turn = math.radians(45 + item.angle)
    across = (columns + x0) * math.cos(turn) + (rows + y0) * math.sin(turn)
    return (across // (STRIPE_PERIOD * SCALE / 2)).astype(np.int64) % 2


def _rim(scene: world.Scene, k: int, other: int, amodal) -> tuple[float, float]:
    """Return where the ray from object `k` towards `other` leaves it, in canvas pixels."""
    item, partner = scene.objects[k], scene.objects[other]
    inside, x0, y0 = amodal[k]
    direction = math.atan2(partner.y - item.y, partner.x - item.x)
    steps = np.arange(item.radius * SCALE + 1, -1, -1)
    columns = np.round(item.x * SCALE + steps * math.cos(direction) - 0.5).astype(int) - x0
    rows = np.round(item.y * SCALE + steps * math.sin(direction) - 0.5).astype(int) - y0
    height, width = inside.shape
    valid = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    hit = valid & inside[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    reach = max(float(steps[hit.argmax()]) if hit.any() else 0.0, 0.55 * item.radius * SCALE)
    return (
        item.x * SCALE + reach * math.cos(direction),
        item.y * SCALE + reach * math.sin(direction),
    )
