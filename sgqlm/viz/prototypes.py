"""Draw which prototype each patch of an image belongs to."""

import numpy as np
from PIL import Image

from sgqlm.viz import overlay


def draw(
    square: Image.Image, nearest: np.ndarray, *, side: int = 360, opacity: float = 0.55
) -> Image.Image:
    """Tint every patch with the colour of its prototype.

    Colours go by how many patches a prototype has in this image, so the same colour in two
    images need not be the same prototype.

    Args:
        square: the image as the model sees it, square.
        nearest: int[grid, grid], index of each patch's prototype, row by row.
        side: pixels of the picture.
        opacity: of the tint.

    Returns:
        An RGB image of `side` by `side` pixels.
    """
    used, index, counts = np.unique(nearest, return_inverse=True, return_counts=True)
    rank = np.empty(len(used), int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(used))
    palette = np.array(overlay.colours(len(used)), np.float32)
    cells = np.arange(side) * len(nearest) // side
    tint = palette[rank[index.reshape(nearest.shape)]][np.ix_(cells, cells)]
    picture = np.asarray(overlay.fit(square.convert("RGB"), side).resize((side, side)), np.float32)
    return Image.fromarray((picture + opacity * (tint - picture)).round().astype(np.uint8))
