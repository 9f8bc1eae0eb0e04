"""Thumbnails of the images that questions are about, with their entities where a store has them."""

import os
import pathlib
from collections.abc import Iterable

from PIL import Image

from sgqlm import errors
from sgqlm.data import images, records
from sgqlm.evals import itemised
from sgqlm.viz import overlay

SIDE = 360
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
_COCO = ("COCO_val2014_", "COCO_train2014_", "COCO_test2015_", "")


class Names:
    """Find a file by the name that a benchmark has for its image.

    A name fits where it is the end of a path, with or without its suffix; the number of a COCO
    image fits its file name too. A name that fits several files fits none.
    """

    def __init__(self, paths: Iterable[str]):
        """Take the paths to choose from."""
        self._ends: dict[str, set[str]] = {}
        for path in paths:
            parts = pathlib.PurePosixPath(path).with_suffix("").parts
            for count in range(1, min(3, len(parts)) + 1):
                self._ends.setdefault("/".join(parts[-count:]), set()).add(path)

    def find(self, name: str) -> str | None:
        """Return the only path that a name fits, None where none or several do."""
        path = pathlib.PurePosixPath(name)
        known = path.suffix.lower() in _SUFFIXES
        stem = str(path.with_suffix("")) if known else str(path)
        candidates = ["/".join(pathlib.PurePosixPath(stem).parts[-n:]) for n in (3, 2, 1)]
        if stem.isdecimal():
            candidates += [f"{prefix}{int(stem):012d}" for prefix in _COCO]
        found = [self._ends[c] for c in candidates if len(self._ends.get(c, ())) == 1]
        return next(iter(found[0])) if found else None


class Pictures:
    """Make thumbnails from an image folder, and entities from a store."""

    def __init__(self, folder: pathlib.Path | None, store: pathlib.Path | None):
        """Open both.

        Args:
            folder: the images, in folders of any depth; None for those in the benchmark's table.
            store: entity store or built data set; None for plain images.

        Raises:
            SgqlmError: there is no such folder, or no such store.
        """
        if folder is not None and not folder.is_dir():
            fix = "give the folder that holds the images"
            raise errors.SgqlmError("there is no such folder", where=str(folder), fix=fix)
        self._folder = folder
        files = _walk(folder) if folder else ()
        self._files = Names(files)
        self._store = None
        if store is not None:
            inside = store / "entities"
            self._store = records.EntityStore(inside if inside.is_dir() else store)
            self._rows = {key: row for row, key in enumerate(self._store.keys())}
            self._keys = Names(self._rows)

    def draw(self, item: itemised.Item) -> tuple[Image.Image | None, str]:
        """Return the picture of an item and what is to be said about it."""
        source = item.pixels
        if not source and self._folder is not None and item.image:
            found = self._files.find(item.image)
            source = self._folder / found if found else b""
        if not source:
            return None, f"image {item.image}" if item.image else ""
        try:
            image = images.open_image(source)
        except errors.SgqlmError as error:
            return None, f"image {item.image}: {error.what}"
        return self._with_entities(image, item.image)

    def _with_entities(self, image: Image.Image, name: str) -> tuple[Image.Image, str]:
        plain = overlay.fit(image, SIDE)
        if self._store is None:
            return plain, f"image {name}"
        key = self._keys.find(name)
        if key is None or not self._store.status(self._rows[key]).startswith("ok"):
            return plain, f"image {name}; no entities in the store"
        entities = self._store[self._rows[key]]
        if entities.size != (image.height, image.width):
            return plain, f"image {name}; its entities are those of an image of another size"
        drawn = overlay.draw_entities(image, entities, side=SIDE, boxes=False)
        noun = "entity" if len(entities) == 1 else "entities"
        return drawn, f"image {name}; {len(entities)} {noun}"


def _walk(folder: pathlib.Path) -> Iterable[str]:
    for root, _, files in os.walk(folder):
        for name in files:
            if pathlib.PurePath(name).suffix.lower() in _SUFFIXES:
                yield pathlib.Path(root, name).relative_to(folder).as_posix()
