"""Pictures that questions are about, with their entities where a store has them."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence

from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, images, records
from sgqlm.evals import joining, measured, tasks
from sgqlm.viz import overlay

SIDE = 360
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
_OPACITY = 0.25  # of the masks: what the question is about stays to be seen
_SEVERAL = (
    "for several benchmarks: --images=ROOT, the root of all, and --entities=STORES, a folder of "
    "stores that are called as the tasks"
)
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

    def find(self, name: str, folders: Sequence[str] = ()) -> str | None:
        """Return the only path that a name fits, None where none or several do.

        Args:
            name: of an image.
            folders: names of folders of which the path has one, where several paths fit.
        """
        path = pathlib.PurePosixPath(name)
        known = path.suffix.lower() in _SUFFIXES
        stem = str(path.with_suffix("")) if known else str(path)
        candidates = ["/".join(pathlib.PurePosixPath(stem).parts[-n:]) for n in (3, 2, 1)]
        if stem.isdecimal() and not known:
            candidates += [f"{prefix}{int(stem):012d}" for prefix in _COCO]
        for candidate in candidates:
            fitting = self._ends.get(candidate, set())
            if len(fitting) > 1:
                inside = {p for p in fitting if set(pathlib.PurePosixPath(p).parts) & set(folders)}
                fitting = inside or fitting
            if len(fitting) == 1:
                return next(iter(fitting))
        return None


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is of the image of a question.

    Attributes:
        image: the picture, upright; None where it cannot be had.
        entities: in the picture; None where the store has none of this very picture.
        words: on both.
        store: digest of the manifest of the store; empty without entities.
    """

    image: Image.Image | None
    entities: graphs.Entities | None
    words: str
    store: str = ""


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
        self._missed: dict[tuple[str, str], set[str]] = {}
        self._stores: dict[str, _Store] = {}
        for name, place in _stores(store) if store is not None else ():
            self._stores[name] = _Store(place)

    def find(self, item: measured.Item, task: str = "") -> Found:
        """Return the picture of an item and its entities.

        Args:
            item: the item.
            task: its benchmark; a folder of that name counts first where several files fit.
        """
        folders = (task, *tasks.TASKS[task].folders) if task in tasks.TASKS else (task,)
        source = item.pixels
        try:
            if not source and self._folder is not None and item.image:
                found = self._files.find(item.image, folders)
                source = (self._folder / found).read_bytes() if found else b""
            if not source:
                self._miss(task, "not below --images", item.image)
                return Found(None, None, f"image {item.image}" if item.image else "")
            image = images.open_image(source)
        except (errors.SgqlmError, OSError) as error:
            why = error.what if isinstance(error, errors.SgqlmError) else error.strerror
            self._miss(task, "that cannot be read", item.image)
            return Found(None, None, f"image {item.image}: {why}")
        store = self._stores.get(task) or self._stores.get("")
        if store is None:
            return Found(image, None, f"image {item.image}")
        try:
            entities, words = store.of(item.image, folders, source, image)
        except errors.SgqlmError as error:  # one damaged record costs no page
            entities, words = None, error.line
        if entities is None:
            self._miss(task, f"without entities ({words})", item.image)
        return Found(image, entities, f"image {item.image}; {words}", store.digest)

    def _miss(self, task: str, why: str, image: str) -> None:
        if image and self._folder is not None:
            self._missed.setdefault((task, why), set()).add(image)

    def missed_lines(self) -> list[str]:
        """Return which pictures were asked for and could not be shown as a whole, in words."""
        out = [
            f"{task}: pictures {why}: {len(images)} ({joining.shown(sorted(images))})"
            for (task, why), images in self._missed.items()
        ]
        return [*out, _SEVERAL] if out else []

    def draw(self, item: measured.Item, task: str = "") -> tuple[Image.Image | None, str]:
        """Return a thumbnail of an item, with entities, and what is to be said about it."""
        found = self.find(item, task)
        if found.image is None:
            return None, found.words
        if found.entities is None:
            return overlay.fit(found.image, SIDE), found.words
        options = {"side": SIDE, "opacity": _OPACITY}
        return overlay.draw_entities(found.image, found.entities, **options), found.words


class _Store:
    """An entity store whose rows are found by the names of benchmarks."""

    def __init__(self, folder: pathlib.Path):
        self._store = records.EntityStore(folder)
        self._rows = {key: row for row, key in enumerate(self._store.keys())}
        self._keys = Names(self._rows)
        self.digest = self._store.manifest_digest

    def of(self, name: str, folders: Sequence[str], data: bytes, image: Image.Image):
        """Return the entities of a picture, None where there are none, and words on them."""
        key = self._keys.find(name, folders)
        if key is None or not self._store.status(row := self._rows[key]).startswith("ok"):
            return None, "no entities in the store"
        entities, digest = self._store[row], self._store.image_digest(row)
        if entities.size != (image.height, image.width):
            return None, "its entities are those of an image of another size"
        if digest and digest != hashlib.sha256(data).hexdigest():
            return None, "the file is not the one in which its entities were found"
        return entities, "1 entity" if len(entities) == 1 else f"{len(entities)} entities"


def _stores(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Return (benchmark or "" for any, store): a store, a data set, or a store a benchmark."""
    for place in (folder, folder / "entities"):
        if (place / records.MANIFEST).is_file():
            return [("", place)]
    inside = sorted(path.parent for path in folder.glob(f"*/{records.MANIFEST}"))
    return [(path.name, path) for path in inside] or [("", folder)]


def _walk(folder: pathlib.Path) -> Iterable[str]:
    for root, _, files in os.walk(folder):
        for name in files:
            # the pictures of SEED-Bench have none
            if pathlib.PurePath(name).suffix.lower() in {*_SUFFIXES, ""}:
                yield pathlib.Path(root, name).relative_to(folder).as_posix()
