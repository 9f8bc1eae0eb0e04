"""Lists of tags: files of them, what is left out, and the tagger that knows only such a list."""

import hashlib
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.entities import interfaces

NOTHING = "none"
# What a detector answers with a box of the whole image, or with none at all. A scene graph is of
# things in a picture, so these are not asked for unless the user says so.
_SCENES = (
    "apartment, aquarium, attic, backyard, bar, basement, bathroom, bedroom, building, city, "
    "classroom, construction site, corner, countryside, courtyard, dining room, doorway, garage, "
    "gym, hall, hallway, home, hospital room, hotel room, house, kitchen, living room, lobby, "
    "market, museum, office, restaurant, room, salon, school, shop, stadium, store, studio, "
    "supermarket, theater, town, village, waiting room, warehouse, workshop"
)
_SURROUNDINGS = (
    "background, ceiling, floor, land, landscape, scene, scenery, shade, shadow, sky, skylight, "
    "skyline, space, stall, view, wall, wall lamp, wood floor, carpet, bureau"
)
_PICTURES = "3d, black and white, close-up, collage, image, photo, photograph, picture, screenshot"
_LOOKS = (
    "beige, big, black, blue, brown, dark, gray, green, grey, large, modern, orange color, pink, "
    "purple, red, small, tall, white, yellow"
)
_IDEAS = (
    "advantage, courage, faith, freedom, fun, happiness, hope, joy, justice, life, love, peace, "
    "pursuit, success, time, understanding, wisdom, work"
)
EXCLUDED = frozenset(
    word
    for words in (_SCENES, _SURROUNDINGS, _PICTURES, _LOOKS, _IDEAS)
    for word in words.split(", ")
)


class FixedVocabulary:
    """Answer every image with the same tags: a closed world, or a list for the detector."""

    name = "fixed"

    def __init__(self, labels: Sequence[str], *, exclude: Collection[str] = ()):
        """Take the tags in the order in which they are answered; repeated ones count once.

        Raises:
            SgqlmError: no tag is left.
        """
        self.labels = without(list(dict.fromkeys(labels)), exclude)
        if not self.labels:
            raise errors.SgqlmError(
                "the vocabulary has no tags",
                where="--tags",
                why="all of them are excluded" if labels else "the list is empty",
                fix="give a file with one tag a line",
            )

    @classmethod
    def load(cls, path: str | pathlib.Path, *, exclude: Collection[str] = ()) -> "FixedVocabulary":
        """Read a file with one tag a line.

        Raises:
            SgqlmError: the file cannot be used, or no tag is left.
        """
        return cls(read_tags(path), exclude=exclude)

    def settings(self) -> Mapping[str, Any]:
        """Return the number and the digest of the tags."""
        return {"tagger": self.name, "tags": len(self.labels), "tags_sha256": digest(self.labels)}

    def tag(self, images: Sequence[Image.Image]) -> list[interfaces.Tags]:
        """Return all tags, with score 1, for each image."""
        return [[(label, 1.0) for label in self.labels] for _ in images]


def read_tags(path: str | pathlib.Path, flag: str = "--tags") -> list[str]:
    """Read a list of tags, one a line, in its order; empty lines are passed over.

    Args:
        path: UTF-8 text, as RAM's `ram_tag_list.txt`.
        flag: the setting, for messages.

    Raises:
        SgqlmError: the file cannot be read, is empty, or has a line that names nothing.
    """
    found = []
    for number, line in enumerate(_lines(path, flag), 1):
        if not (tag := " ".join(line.split())):
            continue
        if not any(letter.isalnum() for letter in tag):
            raise _fault("a line of the tag list names nothing", f"{path}:{number}", repr(tag))
        found.append(tag)
    if not found:
        raise _fault("the tag list is empty", str(path), "")
    return found


def read_thresholds(
    source: str | pathlib.Path, count: int, flag: str = "--tag-thresholds"
) -> np.ndarray:
    """Read the score each tag must exceed.

    Args:
        source: a file with one number a line, as RAM's `ram_tag_list_threshold.txt`, or one number
            for all tags.
        count: number of tags.
        flag: the setting, for messages.

    Returns:
        f32[count] in 0..1.

    Raises:
        SgqlmError: the file cannot be read, holds other things, or other than `count` numbers.
    """
    single = _number(str(source))
    if single is not None:
        lines = [str(source)]
    else:
        lines = [line for line in _lines(source, flag) if line.strip()]
    values = []
    for number, line in enumerate(lines, 1):
        value = _number(line)
        if value is None or not 0 <= value <= 1:
            where = flag if single is not None else f"{source}:{number}"
            raise _fault("a threshold is no number from 0 to 1", where, repr(line.strip()))
        values.append(value)
    if len(values) not in (1, count):
        raise errors.SgqlmError(
            "the thresholds are not those of the tags", where=str(source), code=errors.DATA,
            why=f"there are {len(values)} thresholds and {count} tags",
            fix="give one number a tag, in the order of the tag list, or one for all",
        )  # fmt: skip
    return np.broadcast_to(np.array(values, np.float32), (count,)).copy()


def read_exclude(value: str) -> frozenset[str]:
    """Return tags to leave out, in lower case.

    Args:
        value: empty for `EXCLUDED`, `none`, or a file with one tag a line.

    Raises:
        SgqlmError: the file cannot be used.
    """
    if not value:
        return EXCLUDED
    if value == NOTHING and not pathlib.Path(value).exists():
        return frozenset()
    return frozenset(tag.lower() for tag in read_tags(value, "--tags-exclude"))


def without(tags: Sequence[str], exclude: Collection[str]) -> list[str]:
    """Return the tags that are not excluded; case makes no difference."""
    out = {word.lower() for word in exclude}
    return [tag for tag in tags if tag.lower() not in out]


def digest(lines: Sequence[str]) -> str:
    """Return the SHA-256 of some lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(path: str | pathlib.Path, flag: str) -> list[str]:
    if not str(path):
        raise _fault("no tag list is named", flag, "")
    try:
        return pathlib.Path(path).read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise _fault(f"there is no file {path}", flag, "") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(f"{path} cannot be read as text", flag, str(error)) from None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _fault(what: str, where: str, why: str) -> errors.SgqlmError:
    fix = "give a text file with one entry a line"
    return errors.SgqlmError(what, where=where, why=why, fix=fix, code=errors.DATA)
