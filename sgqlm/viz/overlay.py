"""Draw entities on an image: translucent masks, outlines, boxes and readable numbers."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgqlm.data import graphs

Colour = tuple[int, int, int]
_PALETTE = (
    "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 882233 77ffff cc00ff 0000ff 770099 00dd99 "
    "ffbbbb 006600 cc0077 ff88ff 4488ff 00bb00 005577 aa55bb 227766 00ff00 7700dd 995544 88ffaa "
    "0044bb ff2266 bbccff 228800 dd9988 0099bb"
)


def colours(count: int) -> list[Colour]:
    """Return `count` colours that neighbours in the list do not share; always the same ones.

    The first seven are those of Okabe and Ito. Up to the 32nd, each is the one farthest from all
    before it in OKLab, as most people see it and with two kinds of red-green blindness (Machado,
    Oliveira, Fernandes 2009); the rest go around the colour wheel.
    """
    found = [_rgb(code) for code in _PALETTE.split()[:count]]
    for i in range(len(found), count):
        hue = (0.58 + i * 0.61803398875) % 1  # golden-ratio steps keep neighbours apart
        saturation, value = ((0.85, 0.95), (0.6, 1.0), (1.0, 0.75))[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def ink(colour: Colour) -> str:
    """Return black or white, whichever reads better on a colour."""
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return "#ffffff" if bright < 140 else "#000000"


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scale an image so that its longer side has `side` pixels (nearest when it grows a lot)."""
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    method = Image.Resampling.NEAREST if factor > 4 else Image.Resampling.LANCZOS
    return image if size == image.size else image.resize(size, method)


def draw_entities(
    image: Image.Image,
    entities: graphs.Entities,
    *,
    side: int = 640,
    masks: bool = True,
    boxes: bool = True,
    names: Sequence[str] | None = None,
    opacity: float = 0.4,
) -> Image.Image:
    """Return the image, scaled to `side`, with its entities drawn on it.

    Every pixel takes the colour of the smallest entity it belongs to, so that parts stay visible
    on the groups that hold them. A tag stands on what is visible of its mask; without masks, or
    where nothing is visible, it stands at the corner of the box.

    Args:
        image: RGB image of the size that `entities.size` names.
        entities: what to draw; colour i belongs to entity i.
        side: longer side of the picture in pixels.
        masks: fill and outline the masks.
        boxes: draw the boxes.
        names: text of each entity; the default is its number and, if it has one, its label.
        opacity: of the mask colour, 0 to 1.

    Returns:
        A new RGB image.
    """
    canvas = fit(image.convert("RGB"), side)
    count = len(entities.boxes)
    palette = colours(count)
    scale = np.array([canvas.width / image.width, canvas.height / image.height] * 2)
    corners = np.asarray(entities.boxes) * scale
    order = np.argsort(-_areas(corners), kind="stable")
    owner = np.full((canvas.height, canvas.width), -1)
    if masks:
        scaled = scale_masks(entities, canvas.size)
        order = np.argsort(-scaled.sum((1, 2)), kind="stable")
        for i in order:
            owner[scaled[i]] = i
        canvas = _fill(canvas, owner, palette, opacity)
    draw = ImageDraw.Draw(canvas)
    if boxes:
        for i in order:
            width = max(1, round(side / 320))
            draw.rectangle(_inside(corners[i], canvas.size), outline=palette[i], width=width)
    font = ImageFont.load_default(size=max(11, side // 45))
    for i in order:
        text = str(names[i]) if names else _name(entities, int(i))
        at = centre(owner == i)
        if at is None and not boxes:
            continue
        write_tag(draw, at or tuple(corners[i, :2]), text, palette[i], font, canvas.size)
    return canvas


def scale_masks(entities: graphs.Entities, size: tuple[int, int]) -> np.ndarray:
    """Return the masks at another size, as bool[n, height, width]; `size` is (width, height)."""
    out = np.zeros((len(entities.boxes), size[1], size[0]), bool)
    rows = np.arange(size[1]) * entities.size[0] // size[1]
    columns = np.arange(size[0]) * entities.size[1] // size[0]
    for i, mask in enumerate(entities.masks):
        dense = graphs.decode_rle(mask) if isinstance(mask, Mapping) else mask
        out[i] = dense[np.ix_(rows, columns)]
    return out


def write_tag(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Write a tag centred on a point, on a background of its colour, moved inside the picture.

    Args:
        draw: of the picture.
        at: x and y in pixels.
        text: what to write.
        colour: of the background; the text is black or white, whichever reads better.
        font: of the text.
        size: width and height of the picture.
    """
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(at[0] - width / 2, 0), max(size[0] - width, 0))
    y = min(max(at[1] - height / 2, 0), max(size[1] - height, 0))
    draw.rounded_rectangle((x, y, x + width, y + height), 4, fill=colour, outline=(255, 255, 255))
    draw.text((x + 4 - left, y + 3 - top), text, font=font, fill=ink(colour))


def _fill(canvas: Image.Image, owner: np.ndarray, palette: Sequence[Colour], opacity: float):
    if not palette:
        return canvas
    pixels, paint = np.asarray(canvas).astype(np.float32), np.array(palette, np.float32)
    covered = owner >= 0
    pixels[covered] += opacity * (paint[owner[covered]] - pixels[covered])
    wide = np.pad(owner, 1, mode="edge")
    neighbours = (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:])
    edge = np.any([other != owner for other in neighbours], axis=0) & covered
    pixels[edge] = paint[owner[edge]]
    return Image.fromarray(pixels.round().astype(np.uint8))


def centre(mask: np.ndarray) -> tuple[float, float] | None:
    """Return x and y of the mask point nearest the centre of mass, None of an empty mask."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return float(columns[nearest]), float(rows[nearest])


def _rgb(code: str) -> Colour:
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[float]:
    last = np.array([size[0] - 1, size[1] - 1] * 2)
    x0, y0, x1, y1 = np.clip(box, 0, last)
    return [x0, y0, max(x0, x1), max(y0, y1)]


def _name(entities: graphs.Entities, i: int) -> str:
    label = entities.labels[i] if i < len(entities.labels) else ""
    return f"{i + 1} {label}".strip()
