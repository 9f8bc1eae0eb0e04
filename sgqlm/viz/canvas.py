"""Shapes of a picture, drawn as SVG for a page or as pixels for a file: one layout, two outputs."""

import base64
import dataclasses
import functools
import io
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from sgqlm.viz import pages

Number = float | int
Point = tuple[Number, Number]
Size = tuple[Number, Number]
Box = tuple[Number, Number, Number, Number]  # x, y, width, height
_SMOOTH = 2  # pictures are painted this many times larger, then scaled down
_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "Arial Unicode.ttf", "msyh.ttc"),
    *("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc"),
)
_ABSENT = "\U0010ffff"  # a character that no font has: it gives the sign for missing ones


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image stretched over `box` (x, y, width, height).

    `name` refers to an image that `define` put into the page, so that it is inlined once.
    """

    image: Image.Image
    box: Box
    name: str = ""
    opacity: Number = 1.0
    is_blocky: bool = False
    tag: str = ""

    def svg(self) -> str:
        """Return the shape as SVG."""
        x, y, width, height = self.box
        how = f"{_tag(self.tag)}{_fade(self.opacity)}"
        how += ' style="image-rendering:pixelated"' if self.is_blocky else ""
        if self.name:
            across, down = width / self.image.width, height / self.image.height
            place = f'transform="translate({x:.2f} {y:.2f}) scale({across:.5g} {down:.5g})"'
            return f'<use href="#{pages.escape(self.name)}" {place}{how}/>'
        return (
            f'<image href="{uri(self.image)}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
            f'height="{height:.2f}" preserveAspectRatio="none"{how}/>'
        )

    def paint(self, sheet: Image.Image, scale: Number) -> None:
        """Draw the shape on RGBA pixels, `scale` of them a unit."""
        x, y, width, height = (v * scale for v in self.box)
        x0, y0 = round(x), round(y)
        size = max(1, round(x + width) - x0), max(1, round(y + height) - y0)
        image = self.image.convert("RGBA")
        grows = size[0] > 4 * image.width or self.is_blocky
        method = Image.Resampling.NEAREST if grows else Image.Resampling.BILINEAR
        image = image.resize(size, method)
        if self.opacity < 1:
            image.putalpha(
                image.getchannel("A").point([round(a * self.opacity) for a in range(256)])
            )
        sheet.alpha_composite(*_visible(image, (x0, y0)))


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line through 2 points, or the quadratic curve with the middle one of 3."""

    points: Sequence[Point]
    colour: str
    width: Number
    opacity: Number = 1.0
    halo: str = ""
    dash: Number = 0.0
    tag: str = ""

    def svg(self) -> str:
        """Return the shape as SVG."""
        how = f"{_tag(self.tag)}{_fade(self.opacity)}"
        dash = f' stroke-dasharray="{self.dash:.1f}"' if self.dash else ""
        (x0, y0), *middle, (x1, y1) = self.points
        bend = "Q{:.1f} {:.1f} ".format(*middle[0]) if middle else "L"
        path = f'd="M{x0:.1f} {y0:.1f} {bend}{x1:.1f} {y1:.1f}"'
        halo = (
            f'<path {path} fill="none" stroke="{self.halo}" stroke-width="{self.width * 1.5:.2f}"'
            f"{how}/>"
            if self.halo
            else ""
        )
        ink = f'fill="none" stroke="{self.colour}" stroke-width="{self.width:.2f}"{dash}{how}'
        if middle:
            return f"{halo}<path {path} {ink}/>"
        return f'{halo}<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" {ink}/>'

    def paint(self, sheet: Image.Image, scale: Number) -> None:
        """Draw the shape on RGBA pixels, `scale` of them a unit."""
        points = _scaled(curve(self.points), scale)
        width = max(1, round(self.width * scale))
        paths = _dashes(points, self.dash * scale) if self.dash else [points]
        with _Layer(sheet, self.opacity) as draw:
            if self.halo:
                draw.line(points, fill=self.halo, width=round(width * 1.5) + 1, joint="curve")
            for path in paths:
                draw.line(path, fill=self.colour, width=width, joint="curve")


@dataclasses.dataclass(frozen=True)
class Polygon:
    """A filled polygon."""

    points: Sequence[Point]
    fill: str
    opacity: Number = 1.0
    halo: str = ""
    tag: str = ""

    def svg(self) -> str:
        """Return the shape as SVG."""
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)
        rim = f' stroke="{self.halo}" stroke-linejoin="round"' if self.halo else ""
        how = f"{_tag(self.tag)}{_fade(self.opacity)}"
        return f'<polygon points="{corners}" fill="{self.fill}"{rim}{how}/>'

    def paint(self, sheet: Image.Image, scale: Number) -> None:
        """Draw the shape on RGBA pixels, `scale` of them a unit."""
        with _Layer(sheet, self.opacity) as draw:
            draw.polygon(_scaled(self.points, scale), fill=self.fill, outline=self.halo or None)


@dataclasses.dataclass(frozen=True)
class Rect:
    """A rectangle over `box` (x, y, width, height); an empty fill or stroke is left out."""

    box: Box
    fill: str = ""
    stroke: str = ""
    width: Number = 0.0
    radius: Number = 0.0
    opacity: Number = 1.0
    halo: str = ""
    tag: str = ""

    def svg(self) -> str:
        """Return the shape as SVG."""
        place = 'x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"'.format(*self.box)
        place += f' rx="{self.radius:.1f}"' if self.radius else ""
        how = f"{_tag(self.tag)}{_fade(self.opacity)}"
        fill = self.fill or "none"
        if not self.stroke:
            return f'<rect {place} fill="{fill}"{how}/>'
        back = (
            f'<rect {place} fill="none" stroke="{self.halo}" stroke-width="{self.width * 1.6:.2f}"'
            f"{how}/>"
            if self.halo
            else ""
        )
        line = f'stroke="{self.stroke}" stroke-width="{self.width:.2f}"'
        return f'{back}<rect {place} fill="{fill}" {line}{how}/>'

    def paint(self, sheet: Image.Image, scale: Number) -> None:
        """Draw the shape on RGBA pixels, `scale` of them a unit."""
        x, y, width, height = (v * scale for v in self.box)
        line = max(1, round(self.width * scale)) if self.stroke else 0
        with _Layer(sheet, self.opacity) as draw:
            for extra, colour in ((max(1, round(line * 0.3)), self.halo), (0, self.stroke)):
                grown = line / 2 + extra  # a stroke lies half outside, as in SVG
                box = (x - grown, y - grown, x + width + grown, y + height + grown)
                fill = self.fill or None if not extra else None
                if colour or fill:
                    draw.rounded_rectangle(
                        box,
                        self.radius * scale,
                        fill=fill,
                        outline=colour or None,
                        width=line + 2 * extra,
                    )


@dataclasses.dataclass(frozen=True)
class Circle:
    """A disc with a rim."""

    centre: Point
    radius: Number
    fill: str
    stroke: str
    width: Number
    tag: str = ""

    def svg(self) -> str:
        """Return the shape as SVG."""
        x, y = self.centre
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{self.radius:.1f}" fill="{self.fill}" '
            f'stroke="{self.stroke}" stroke-width="{self.width:.2f}"{_tag(self.tag)}/>'
        )

    def paint(self, sheet: Image.Image, scale: Number) -> None:
        """Draw the shape on RGBA pixels, `scale` of them a unit."""
        (x, y), grown = self.centre, (self.radius + self.width / 2) * scale
        box = (x * scale - grown, y * scale - grown, x * scale + grown, y * scale + grown)
        with _Layer(sheet, 1.0) as draw:
            width = max(1, round(self.width * scale))
            draw.ellipse(box, fill=self.fill, outline=self.stroke, width=width)


@dataclasses.dataclass(frozen=True)
class Text:
    """A line of text; `at` is the middle of its height and of its width."""

    at: Point
    text: str
    size: Number
    colour: str
    is_bold: bool = False
    tag: str = ""

    def svg(self) -> str:
        """Return the shape as SVG."""
        x, y = self.at
        weight = ' font-weight="600"' if self.is_bold else ""
        return (
            f'<text x="{x:.1f}" y="{y + 0.35 * self.size:.1f}" text-anchor="middle" '
            f'font-size="{self.size:.1f}"{weight} fill="{self.colour}"{_tag(self.tag)}>'
            f"{pages.escape(self.text)}</text>"
        )

    def paint(self, sheet: Image.Image, scale: Number) -> None:
        """Draw the shape on RGBA pixels, `scale` of them a unit."""
        font = _font(max(1, round(self.size * scale)), self.text)
        text = "".join(c if has_glyph(font, c) else "?" for c in self.text)
        at = (self.at[0] * scale, self.at[1] * scale)
        stroke = self.size * scale * 0.02 if self.is_bold else 0
        with _Layer(sheet, 1.0) as draw:
            draw.text(at, text, font=font, fill=self.colour, anchor="mm", stroke_width=stroke)


Shape = Picture | Line | Polygon | Rect | Circle | Text


def define(images: Iterable[tuple[str, Image.Image]]) -> str:
    """Return a hidden SVG that holds images by name, for any `Picture` of that name on the page."""
    inner = "".join(
        f'<image id="{pages.escape(name)}" href="{uri(image)}" width="{image.width}" '
        f'height="{image.height}" preserveAspectRatio="none"/>'
        for name, image in images
    )
    return f'<svg width="0" height="0" aria-hidden="true" class="defs"><defs>{inner}</defs></svg>'


def to_svg(shapes: Iterable[Shape], size: Size, *, label: str, style: str = "") -> str:
    """Return shapes as an SVG element as wide as its place.

    Args:
        shapes: in painting order.
        size: width and height of the drawing in its own units.
        label: what it shows, for a reader that cannot see it.
        style: further CSS of the element.

    Returns:
        The element.
    """
    return frame_svg("".join(shape.svg() for shape in shapes), size, label=label, style=style)


def frame_svg(inner: str, size: Size, *, label: str, style: str = "") -> str:
    """Return SVG pieces inside an element of `size`; see `to_svg`."""
    return (
        f'<svg viewBox="0 0 {size[0]:g} {size[1]:g}" width="100%" role="img" '
        f'aria-label="{pages.escape(label)}" xmlns="http://www.w3.org/2000/svg" '
        f'style="display:block;{style}">{inner}</svg>'
    )


def uri(image: Image.Image) -> str:
    """Return an image as a `data:` address; one with transparency stays exact (PNG)."""
    if image.mode in ("RGB", "L"):
        return pages.data_uri(image)
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def to_image(shapes: Iterable[Shape], size: Size, *, side: int, back: str = "white") -> Image.Image:
    """Return shapes as pixels.

    Args:
        shapes: in painting order.
        size: width and height of the drawing in its own units.
        side: pixels of the width.
        back: colour behind everything.

    Returns:
        An RGB image.
    """
    scale = side * _SMOOTH / size[0]
    height = max(1, round(side * size[1] / size[0]))
    sheet = Image.new("RGBA", (side * _SMOOTH, height * _SMOOTH), back)
    for shape in shapes:
        shape.paint(sheet, scale)
    return sheet.convert("RGB").resize((side, height), Image.Resampling.LANCZOS)


def curve(points: Sequence[Point], steps: int = 16) -> list[Point]:
    """Return the corners of a line, or points along the quadratic curve of three."""
    if len(points) != 3:
        return list(points)
    (x0, y0), (x1, y1), (x2, y2) = points
    shares = [i / steps for i in range(steps + 1)]
    return [
        (
            (1 - t) ** 2 * x0 + 2 * t * (1 - t) * x1 + t * t * x2,
            (1 - t) ** 2 * y0 + 2 * t * (1 - t) * y1 + t * t * y2,
        )
        for t in shares
    ]


def has_glyph(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, character: str) -> bool:
    """Return whether a font can draw a character."""
    if character.isascii() or character.isspace():
        return True
    return _drawn(font, character) != _drawn(font, _ABSENT)


def undrawable(text: str) -> str:
    """Return the characters that no font of this machine has; in pixels they become `?`."""
    font = _font(24, text)
    return "".join(dict.fromkeys(c for c in text if not has_glyph(font, c)))


class _Layer:
    """Draw on a transparent layer, which is then laid on the sheet with an opacity."""

    def __init__(self, sheet: Image.Image, opacity: Number):
        self.sheet, self.opacity = sheet, opacity

    def __enter__(self) -> ImageDraw.ImageDraw:
        if self.opacity >= 1:
            return ImageDraw.Draw(self.sheet)
        self.layer = Image.new("RGBA", self.sheet.size)
        return ImageDraw.Draw(self.layer)

    def __exit__(self, *_) -> None:
        if self.opacity >= 1:
            return
        if box := self.layer.getbbox():
            part = self.layer.crop(box)
            part.putalpha(part.getchannel("A").point([round(a * self.opacity) for a in range(256)]))
            self.sheet.alpha_composite(part, box[:2])


def _drawn(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, character: str) -> bytes:
    box = font.getbbox(character)
    size = max(1, round(box[2])), max(1, round(box[3]))
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((0, 0), character, font=font, fill=255)
    return bytes(size[:1]) + image.tobytes()


@functools.lru_cache(maxsize=16)
def _default_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the first font of this machine that has all characters, or the one with the most."""
    own = _default_font(size)
    if all(has_glyph(own, c) for c in text):
        return own
    fonts = [own]
    for name in _FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return max(fonts, key=lambda font: sum(has_glyph(font, c) for c in text))


def _visible(image: Image.Image, at: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """Cut off what lies left of or above the sheet, as `alpha_composite` asks."""
    left, top = max(0, -at[0]), max(0, -at[1])
    image = image.crop((left, top, max(left + 1, image.width), max(top + 1, image.height)))
    return image, (max(0, at[0]), max(0, at[1]))


def _dashes(points: Sequence[Point], length: Number) -> list[list[Point]]:
    (x0, y0), (x1, y1) = points[0], points[-1]
    total = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
    count = max(1, int(total / length))
    marks = [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count + 1)]
    return [[a, b] for a, b in zip(marks[::2], marks[1::2], strict=False)]


def _scaled(points: Sequence[Point], scale: Number) -> list[Point]:
    return [(x * scale, y * scale) for x, y in points]


def _tag(tag: str) -> str:
    return f' class="{tag}"' if tag else ""


def _fade(opacity: Number) -> str:
    return f' opacity="{opacity:.2f}"' if opacity < 1 else ""
