import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFont

from sgqlm.viz import canvas

RED = (255, 0, 0)


def picture(alpha):
    return Image.fromarray(np.full((2, 2, 4), (0, 0, 255, alpha), np.uint8))


def every_shape():
    return [
        canvas.Picture(Image.new("RGB", (3, 2), RED), (0, 0, 30, 20), is_blocky=True, tag="o o1"),
        canvas.Picture(picture(90), (5, 5, 4, 4), opacity=0.5),
        canvas.Line([(0, 0), (9, 9)], "#000000", 1.0, 0.5, "#ffffff", 2.0),
        canvas.Line([(0, 0), (5, 9), (9, 0)], "#000000", 1.0),
        canvas.Polygon([(0, 0), (5, 0), (0, 5)], "#00ff00", 0.9, "#ffffff"),
        canvas.Rect((2, 2, 9, 9), "#00ff00", "#ff0000", 1.0, 2.0, 0.5, "#ffffff"),
        canvas.Circle((20, 10), 4, "#ffff00", "#ffffff", 1.0),
        canvas.Text((10, 10), '<b>&"猫', 8, "#123456", True),
    ]


def test_every_shape_is_well_formed_svg_and_is_painted():
    text = canvas.to_svg(every_shape(), (30, 20), label='a "picture" & more')
    root = ElementTree.fromstring(text)
    assert root.get("viewBox") == "0 0 30 20" and root.get("aria-label") == 'a "picture" & more'
    assert root[-1].text == '<b>&"猫'
    image = canvas.to_image(every_shape(), (30, 20), side=300)
    assert image.size == (300, 200) and image.mode == "RGB"


def test_paint_falls_where_the_shape_is():
    shapes = [
        canvas.Rect((2, 2, 4, 4), "#ff0000"),
        canvas.Rect((10, 2, 4, 4), "", "#00ff00", 1.0),
        canvas.Picture(picture(255), (2, 10, 4, 4), opacity=0.5),
        canvas.Line([(10, 12), (18, 12)], "#0000ff", 2.0),
        canvas.Polygon([(20, 10), (28, 10), (24, 18)], "#ff0000"),
    ]
    pixels = np.asarray(canvas.to_image(shapes, (30, 20), side=300))
    assert tuple(pixels[40, 40]) == RED and tuple(pixels[40, 80]) == (255, 255, 255)
    assert tuple(pixels[40, 100]) == (0, 255, 0) and tuple(pixels[40, 120]) == (255, 255, 255)
    assert tuple(pixels[120, 40]) == pytest.approx((127, 127, 255), abs=2)
    assert tuple(pixels[120, 140]) == (0, 0, 255) and tuple(pixels[135, 140]) == (255, 255, 255)
    assert tuple(pixels[120, 240]) == RED and tuple(pixels[170, 205]) == (255, 255, 255)


def test_what_lies_outside_is_cut_off():
    shapes = [canvas.Picture(picture(255), (-5, -5, 10, 10)), canvas.Rect((25, 15, 20, 20), "#f00")]
    pixels = np.asarray(canvas.to_image(shapes, (30, 20), side=60))
    assert tuple(pixels[2, 2]) == (0, 0, 255) and tuple(pixels[35, 55]) == RED


def test_a_curve_bends_between_its_ends():
    points = canvas.curve([(0, 0), (5, 10), (10, 0)])
    assert points[0] == (0, 0) and points[-1] == (10, 0)
    assert max(y for _, y in points) == pytest.approx(5)
    assert canvas.curve([(0, 0), (9, 9)]) == [(0, 0), (9, 9)]


def test_an_image_is_inlined_once_and_used_by_name():
    image = Image.new("RGB", (40, 20), RED)
    stored = canvas.define([("photo", image)])
    used = canvas.Picture(image, (10, 0, 80, 40), "photo").svg()
    assert stored.count("data:image/") == 1 and "data:" not in used
    assert 'href="#photo"' in used and "scale(2 2)" in used


def test_transparent_pictures_stay_exact():
    alpha = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    image = Image.fromarray(np.dstack([np.full((4, 4, 3), 7, np.uint8), alpha]))
    assert canvas.uri(image).startswith("data:image/png;base64,")


def test_characters_without_a_glyph_are_known():
    font = ImageFont.load_default(size=20)
    assert canvas.has_glyph(font, "a") and canvas.has_glyph(font, "~")
    assert not canvas.has_glyph(font, "\U0010fffe") and not canvas.has_glyph(font, "猫")
