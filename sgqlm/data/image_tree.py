"""Where the images of a json lie: looked up in listings of their folders, counted by folder."""

import dataclasses
import os
import pathlib
import posixpath
import re
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
RENAMED = "image suffix"  # the file has another suffix than the json says
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # `http://...`, also `file:/...`
_NUMBER = re.compile(r"(?:^|/)\d+(?=/|$)")
_EXAMPLES, _SHOWN = 3, 100


class Place(NamedTuple):
    """What an image path leads to.

    Attributes:
        key: path below the root, empty if there is no such image.
        rule: `image inside root`, `image exists`, or `image suffix` with a key; else empty.
        message: what is wrong.
    """

    key: str
    rule: str = ""
    message: str = ""


@dataclasses.dataclass
class Folder:
    """Counts of distinct images that a json names in one folder.

    Folders that differ in numbers alone (`00000`, `00001`, ...) are one, written `*`.
    """

    name: str
    found: int = 0
    missing: int = 0
    renamed: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def needed(self) -> int:
        """Return how many distinct images are named."""
        return self.found + self.missing


class _Listing(NamedTuple):
    """A folder: its path below the root (None: outside or not there), and the files in it."""

    below: str | None
    files: frozenset[str]


class Tree:
    """Images below a root.

    Every folder is listed once, so that hundreds of thousands of images take seconds, on a network
    disk too. What a listing does not settle (links, `..`, odd names) is asked for one by one.

    Args:
        root: folder that image paths start from and may not leave.
        follow_links: allow links that lead out of the root.
    """

    def __init__(self, root: str | os.PathLike, *, follow_links: bool = False):
        """See the class."""
        self.root = pathlib.Path(root).resolve()
        self._follows = follow_links
        self._places: dict[str, str | Place] = {}  # a key alone where nothing is to be said
        self._listings: dict[str, _Listing] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, Folder] = {}

    def __len__(self) -> int:
        """Return the number of distinct images asked for."""
        return len(self._places)

    def locate(self, image: str) -> Place:
        """Return where an image is; every image is looked for and counted once.

        Args:
            image: path below the root, as a json has it.

        Returns:
            Its key, or what is wrong.
        """
        known = self._places.get(image)
        if known is None:
            place = self._look(image)
            known = image if place == Place(image) else place
            self._places[image] = known
            self._count(image, place)
        return known if isinstance(known, Place) else Place(known)

    def folders(self) -> list[Folder]:
        """Return the counts by folder, by name."""
        return sorted(self._folders.values(), key=lambda folder: folder.name)

    def _count(self, image: str, place: Place) -> None:
        name = _NUMBER.sub(lambda m: m[0][: m[0].rfind("/") + 1] + "*", posixpath.dirname(image))
        folder = self._folders.setdefault(name, Folder(name))
        if place.key:
            folder.found += 1
            folder.renamed += place.rule == RENAMED
            return
        folder.missing += 1
        if len(folder.examples) < _EXAMPLES:
            folder.examples.append(shown(image))

    def _look(self, image: str) -> Place:
        outside = "image inside root"
        if "\0" in image:
            return Place("", outside, f"{shown(image)} has a zero byte")
        if _ADDRESS.match(image):
            return Place("", outside, f"{shown(image)} is an address, outside the image folder")
        path = posixpath.normpath(image)
        if posixpath.isabs(path) or path.split("/")[0] == "..":
            return Place("", outside, f"{shown(image)} is outside the image folder")
        if ".." in image.split("/"):  # a link on the way decides what it means
            return self._ask(image)
        folder, name = posixpath.split(path)
        listing = self._listing(folder)
        if listing.below is not None and name in listing.files:
            return Place(posixpath.join(listing.below, name))
        place = self._ask(path)
        if place.rule == "image exists" and listing.below is not None:
            return self._other_suffix(image, listing.below, name) or place
        return place

    def _listing(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = self._list(folder)
        return self._listings[folder]

    def _list(self, folder: str) -> _Listing:
        try:
            path = self.root / folder if self._follows else (self.root / folder).resolve()
            if not (self._follows or path.is_relative_to(self.root)):
                return _Listing(None, frozenset())
            with os.scandir(path) as found:
                names = frozenset(
                    item.name for item in found if item.is_file(follow_symlinks=False)
                )
        except (OSError, ValueError, RuntimeError):
            return _Listing(None, frozenset())
        below = path.relative_to(self.root).as_posix()
        return _Listing("" if below == "." else below, names)

    def _ask(self, image: str) -> Place:
        """Ask the file system about one image."""
        told = shown(image)
        try:
            path = (self.root / image).resolve()
            if not path.is_relative_to(self.root):
                if not self._follows or ".." in image.split("/"):
                    return Place("", "image inside root", f"{told} is outside the image folder")
                path = self.root / image
            if not path.is_file():
                return Place("", "image exists", f"{told} is missing")
        except (OSError, ValueError, RuntimeError) as error:  # too long, half a character, a loop
            problem = getattr(error, "strerror", "") or type(error).__name__
            return Place("", "image exists", f"{told}: {problem}")
        return Place(path.relative_to(self.root).as_posix())

    def _other_suffix(self, image: str, folder: str, name: str) -> Place | None:
        """Find the only image of the same name with another suffix.

        OCR-VQA is the reason: its official list calls every file `.jpg`, and the program that
        downloads them keeps the suffix of the address, `.gif` or `.png` for some.
        """
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for file in self._listings[posixpath.dirname(posixpath.normpath(image))].files:
                stem, suffix = posixpath.splitext(file)
                if suffix.lower() in SUFFIXES:
                    stems.setdefault(stem, []).append(file)
            self._stems[folder] = stems
        same = self._stems[folder].get(posixpath.splitext(name)[0], [])
        if len(same) != 1 or posixpath.splitext(name)[1].lower() not in SUFFIXES:
            return None
        return Place(posixpath.join(folder, same[0]), RENAMED, f"{shown(image)} is {same[0]}")


def shown(text: str) -> str:
    """Return a text of a data set as messages may show it: short, on one line, printable."""
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]
