"""One picture file of an image and its entities: panels with captions, for papers and talks."""

from collections.abc import Sequence

from PIL import Image

from sgqlm.viz import canvas, panels, placing

INCH = 300  # pixels, at which text is laid out: a sheet of 1800 pixels is six inches wide
_PRINT = 860  # a sheet is laid out as if it were this many pixels wide on a page
_LETTERS = "abcdefghijklmnopqrstuvwxyz" * 4


def draw(
    record: panels.Record, *, side: int = 1800, kinds: Sequence[str] = panels.KINDS
) -> Image.Image:
    """Return the panels of one image, two in a row, each with its caption.

    Args:
        record: with its image.
        side: width of the picture in pixels; 1800 is six inches at 300 dpi.
        kinds: which panels, of `panels.KINDS`.

    Returns:
        An RGB image on white.
    """
    picture = panels.photo(_image(record), "")
    masks, boxes = panels.both(record, picture)
    shown = [
        *masks,
        *boxes,
        *panels.graph(record, picture),
        *panels.relations(record, picture),
        *panels.covers(record, picture),
    ]
    shown = [panel for panel in shown if panel.kind in kinds]
    gap, lowest, tiles = max(2, side // 60), 0.0, []
    for start in range(0, len(shown), 2):
        row = shown[start : start + 2]
        room = side - gap * (len(row) + 1)
        height = room / sum(panel.size[0] / panel.size[1] for panel in row)
        lowest = height if len(row) == 2 else min(height, lowest or 0.7 * side)
        tiles.append([
            _tile(panel, round(lowest * panel.size[0] / panel.size[1]), side, _LETTERS[start + i])
            for i, panel in enumerate(row)
        ])  # fmt: skip
    total = sum(max(tile.height for tile in row) + gap for row in tiles) + gap
    sheet, y = Image.new("RGB", (side, total), "white"), gap
    for row in tiles:
        x = (side - sum(tile.width for tile in row) - gap * (len(row) - 1)) // 2
        for tile in row:
            sheet.paste(tile, (x, y))
            x += tile.width + gap
        y += max(tile.height for tile in row) + gap
    return sheet


def _image(record: panels.Record) -> Image.Image:
    if record.image is None:
        raise ValueError(f"{record.key} has no image to draw")
    return record.image


def _tile(panel: panels.Panel, width: int, side: int, letter: str) -> Image.Image:
    """Return a panel above its caption; text has the same size on all panels of a sheet."""
    px = panel.size[0] / width * side / _PRINT
    text = 12 * px
    lines = wrap(f"({letter}) {panel.caption}", text, panel.size[0])
    height = panel.size[1]
    words = [
        canvas.Text((panel.size[0] / 2, height + (i + 1) * 1.4 * text), line, text, "#1d2433")
        for i, line in enumerate(lines)
    ]
    well = canvas.Rect((0, 0, *panel.size), "#eef0f4")
    shapes = [well, *panel.under, *panel.over(px), *words]
    size = (panel.size[0], height + (len(lines) + 0.6) * 1.4 * text)
    return canvas.to_image(shapes, size, side=max(1, width))


def wrap(text: str, size: placing.Number, room: placing.Number) -> Sequence[str]:
    """Return a text as lines of at most `room`, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and placing.measure(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
