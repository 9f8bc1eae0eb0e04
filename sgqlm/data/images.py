"""Opening pictures of any kind and bringing them to the model's square."""

import io
import os
import pathlib
import struct
import threading
import warnings

import numpy as np
import PIL
from PIL import ExifTags, Image

from sgqlm import errors

PAD_COLOUR = (122, 116, 104)  # int(255 * CLIP mean)
MAX_PIXELS = 179_000_000  # Pillow refuses larger ones as decompression bombs
DRAFT_PIXELS = 40_000_000  # JPEGs above are decoded at a half, a quarter or an eighth
_MAX_ASPECT = 16  # a longer picture is cut before a centre crop would throw the rest away

ImageSource = bytes | str | os.PathLike | Image.Image | np.ndarray
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error)
_UPRIGHT = {  # EXIF orientation: what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FILTER_LOCK = threading.Lock()  # the filters of `warnings` are shared by all threads


def open_image(source: ImageSource, *, where: str = "") -> Image.Image:
    """Decode a picture to RGB as a person sees it.

    The EXIF orientation is applied, CMYK, greyscale, palette and 16-bit pictures are converted, an
    alpha channel is dropped, an animation gives its first frame.

    Args:
        source: the encoded bytes, a file, uint8[h, w, 3], or an opened picture.
        where: name used in messages; the file name where `source` is one.

    Returns:
        An RGB picture, fully decoded.

    Raises:
        SgqlmError: the file is missing, truncated, no picture, or larger than `MAX_PIXELS`.
    """
    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    if isinstance(source, str | os.PathLike):
        where = where or str(source)
    try:
        with _opened(source) as image:
            orientation = _orientation(image)
            _draft(image)
            image.load()
            picture = _to_rgb(image)
    except FileNotFoundError as error:
        raise _problem("the image file is missing", where, "", "restore it") from error
    except Image.DecompressionBombError as error:
        limit = f"more than {MAX_PIXELS // 1_000_000} million pixels"
        raise _problem("the image is too large", where, limit, "scale it down") from error
    except _BROKEN as error:
        fix = "replace the file, or remove its record"
        why = "the file is empty" if _is_empty(source) else _why(error)
        raise _problem("the image cannot be decoded", where, why, fix) from error
    if orientation != 1:
        picture = picture.transpose(_UPRIGHT[orientation])
    return picture


def _why(error: Exception) -> str:
    """Return what PIL says, without the place in memory that it puts there for open files."""
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    return "it is no picture of a known format" if unknown else str(error)


def upright_size(data: bytes, *, where: str = "") -> tuple[int, int]:
    """Return (width, height) of the picture that `open_image` gives, without decoding it."""
    try:
        with _opened(data) as image:
            orientation = _orientation(image)
            _draft(image)
            width, height = image.size
    except (*_BROKEN, Image.DecompressionBombError) as error:
        fix = "replace the file, or remove its record"
        raise _problem("the image cannot be decoded", where, _why(error), fix) from error
    return (height, width) if orientation >= 5 else (width, height)


def to_square(image: Image.Image, size: int, fit: str) -> np.ndarray:
    """Return the square the vision tower takes.

    Args:
        image: an RGB picture.
        size: side of the square in pixels.
        fit: `pad`: pad to a square with `PAD_COLOUR`, the odd pixel right or below, then resize
            (LLaVA's order); `crop`: resize the shorter side, then cut the centre (CLIP).

    Returns:
        uint8[size, size, 3].
    """
    width, height = image.size
    if fit == "pad":
        side = max(width, height)
        if width != height:
            canvas = Image.new("RGB", (side, side), PAD_COLOUR)
            canvas.paste(image, ((side - width) // 2, (side - height) // 2))
            image = canvas
        if side != size:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return np.array(image)
    image = _shortened(image)
    width, height = image.size
    short = min(width, height)
    scaled = (size * width) // short, (size * height) // short
    if scaled != (width, height):
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return np.array(image.crop((left, top, left + size, top + size)))


def _is_empty(source: ImageSource) -> bool:
    if isinstance(source, str | os.PathLike):
        return os.path.isfile(source) and os.path.getsize(source) == 0
    return isinstance(source, bytes) and not source


def _opened(source: bytes | str | os.PathLike | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    file = io.BytesIO(source) if isinstance(source, bytes) else pathlib.Path(os.fspath(source))
    with _FILTER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8; a damaged EXIF block does not make a picture bad."""
    if image.format not in ("JPEG", "MPO", "PNG", "WEBP", "TIFF", None):
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1
    return value if value in range(1, 9) else 1


def _draft(image: Image.Image) -> None:
    width, height = image.size
    scale = next((s for s in (1, 2, 4) if width * height <= DRAFT_PIXELS * s * s), 8)
    if scale > 1 and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (width // scale, height // scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        top = values.max(initial=0)
        scale = 255.0 if top <= 1 and image.mode == "F" else 1 / 257 if top > 255 else 1.0
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _shortened(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = _MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max((width - longest) // 2, 0), max((height - longest) // 2, 0)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _problem(what: str, where: str, why: str, fix: str) -> errors.SgqlmError:
    return errors.SgqlmError(what, where=where, why=why, fix=fix, code=errors.DATA)
