"""Pictures of every kind, and equality with the official preprocessing."""

import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from sgqlm import errors
from sgqlm.data import images
from tests import paths

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def _normalised(pixels):
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


def _regenerated(k, width, height):
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x * 7 + y * 13) % 256]
    noise = np.random.RandomState(k).randint(-20, 20, (height, width, 3))
    return (np.stack(channels, -1) + noise).clip(0, 255).astype(np.uint8)


def test_equals_official_llava_preprocessing():
    cases = json.loads(paths.fixture("llava/image_preprocess.json").read_text())["cases"]
    arrays = np.load(paths.fixture("llava/image_preprocess.npz"))
    compared = 0
    for case in cases:
        if "aspect" not in case:
            continue
        k, (width, height) = int(case["case"].split("_")[0]), case["size"]
        name = f"rgb_{k}"
        rgb = arrays[name] if name in arrays else _regenerated(k, width, height)
        got = _normalised(images.to_square(Image.fromarray(rgb), case["S"], case["aspect"]))
        assert abs(got.mean() - case["mean"]) < 1e-6 and abs(got.std() - case["std"]) < 1e-6
        if (name := f"pv_{k}_{case['aspect']}_{case['S']}") in arrays:
            np.testing.assert_allclose(got, arrays[name], atol=1e-6)  # float32 of the fixture
            compared += 1
    assert compared == 20


def test_equals_official_sq_llava_preprocessing():
    arrays = np.load(paths.fixture("sq_llava/clip_preprocess.npz"))
    for name in ("wide", "tall", "square"):
        image = Image.fromarray(arrays[f"{name}.image"])
        for fit, key in (("pad", "pad"), ("crop", "square")):
            got = _normalised(images.to_square(image, 336, fit))[:, ::6, ::6]
            np.testing.assert_allclose(got, arrays[f"{name}.{key}"], atol=1e-6)


def _saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _red_corner(mode="RGB"):
    image = Image.new("RGB", (40, 20), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 9, 9), fill="red")
    return image.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = _saved(_red_corner(), "PNG", exif=exif)
    got = images.open_image(data)
    assert got.size == ((40, 20) if orientation < 5 else (20, 40))
    x, y = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[
        orientation
    ]
    at = (1 + x * (got.width - 3), 1 + y * (got.height - 3))
    assert got.getpixel(at) == (255, 0, 0)


def test_colour_modes():
    red = images.open_image(_saved(_red_corner("CMYK"), "JPEG", quality=95)).getpixel((4, 4))
    assert red[0] > 230 and max(red[1:]) < 40
    grey = images.open_image(_saved(_red_corner("L"), "PNG"))
    assert grey.mode == "RGB" and grey.getpixel((30, 15)) == (255, 255, 255)
    assert images.open_image(_saved(_red_corner("1"), "PNG")).getpixel((30, 15)) == (255,) * 3
    palette = _red_corner("P")
    assert images.open_image(_saved(palette, "PNG")).getpixel((4, 4)) == (255, 0, 0)
    clear = _saved(palette, "PNG", transparency=bytes([0] * 100))
    assert images.open_image(clear).getpixel((4, 4)) == (255, 0, 0)
    alpha = _red_corner("RGBA")
    alpha.putalpha(10)
    assert images.open_image(_saved(alpha, "PNG")).getpixel((4, 4)) == (255, 0, 0)


def test_deep_greyscale_keeps_its_range():
    ramp = np.linspace(0, 65535, 40 * 20).reshape(20, 40).astype(np.uint16)
    got = np.asarray(images.open_image(_saved(Image.fromarray(ramp), "PNG")))[..., 0]
    assert np.abs(got - ramp / 257).max() <= 1
    real = Image.fromarray(np.linspace(0, 1, 800, dtype=np.float32).reshape(20, 40))
    got = np.asarray(images.open_image(_saved(real, "TIFF")))
    assert got.min() == 0 and got.max() == 255


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = _saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert images.open_image(data).getpixel((3, 3)) == (255, 0, 0), form


def test_huge_picture_is_decoded_small(monkeypatch):
    monkeypatch.setattr(images, "DRAFT_PIXELS", 100_000)
    data = _saved(Image.new("RGB", (900, 600), (10, 200, 30)), "JPEG", quality=95)
    got = images.open_image(data)
    assert got.size == (225, 150)
    assert np.abs(np.asarray(got).reshape(-1, 3).mean(0) - [10, 200, 30]).max() < 4
    png = _saved(Image.new("RGB", (900, 600)), "PNG")
    assert images.open_image(png).size == (900, 600)


def test_pillow_warning_zone_is_open_and_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert images.open_image(_saved(Image.new("RGB", (40, 40)), "PNG")).size == (40, 40)
    with pytest.raises(errors.SgqlmError, match="too large") as caught:
        images.open_image(_saved(Image.new("RGB", (60, 60)), "PNG"), where="bomb.png")
    assert caught.value.where == "bomb.png" and caught.value.code == errors.DATA


def test_broken_files_say_what_is_wrong(tmp_path):
    whole = _saved(Image.effect_noise((200, 200), 60).convert("RGB"), "JPEG")
    for form in ("JPEG", "PNG"):
        data = _saved(Image.effect_noise((200, 200), 60).convert("RGB"), form)
        path = tmp_path / f"cut.{form.lower()}"
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(errors.SgqlmError, match="cannot be decoded") as caught:
            images.open_image(path)
        assert caught.value.where == str(path) and "truncated" in caught.value.why
    with pytest.raises(errors.SgqlmError, match="cannot be decoded"):
        images.open_image(b"no picture at all")
    (tmp_path / "empty.jpg").touch()
    for empty in (b"", tmp_path / "empty.jpg"):
        with pytest.raises(errors.SgqlmError, match="cannot be decoded") as caught:
            images.open_image(empty)
        assert caught.value.why == "the file is empty"
    with pytest.raises(errors.SgqlmError, match="is missing"):
        images.open_image(tmp_path / "absent.jpg")
    assert images.open_image(whole).size == (200, 200)


def test_extreme_shapes_stay_cheap():
    for size in [(4000, 1), (1, 4000), (1, 1)]:
        for fit in ("pad", "crop"):
            assert images.to_square(Image.new("RGB", size), 28, fit).shape == (28, 28, 3)


def test_pad_puts_the_odd_pixel_right_and_below():
    square = images.to_square(Image.new("RGB", (4, 1), "red"), 4, "pad")
    assert (square[1] == (255, 0, 0)).all() and (square[[0, 2, 3]] == images.PAD_COLOUR).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_known_without_decoding(form, orientation, monkeypatch):
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    options = {} if form == "GIF" else {"exif": exif}
    Image.new("RGB", (90, 41)).save(file, form, **options)
    for limit in (images.DRAFT_PIXELS, 1000):  # above it a JPEG is decoded at a fraction
        monkeypatch.setattr(images, "DRAFT_PIXELS", limit)
        size = images.open_image(file.getvalue()).size
        assert images.upright_size(file.getvalue()) == size
    assert (size == (90, 41)) == (form == "GIF" or (form != "JPEG" and orientation in (1, 3)))
    with pytest.raises(errors.SgqlmError, match="cannot be decoded"):
        images.upright_size(b"words", where="x")
