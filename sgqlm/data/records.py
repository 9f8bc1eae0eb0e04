"""The three stores of a data set: images, entities and conversations, joined by row number.

Every store is a folder of its own: `manifest.json` (counts, SHA-256 of the files), `keys.json`
(image keys by row; images and entities) and the ArrayRecord files with their TFDS description. So
a new detector replaces only the entity store.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sgqlm import errors
from sgqlm.data import builders, graphs

MANIFEST, KEYS = "manifest.json", "keys.json"
FORMAT = 2
ALL = "rows"  # the only split of the images and the entities
Turn = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Image:
    """One image: its key (a relative path), the bytes of its file, (height, width) upright."""

    key: str
    data: bytes
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One conversation; `image_row` and `entity_row` are -1 for a text-only one."""

    id: str
    turns: Sequence[Turn]
    image_row: int = -1
    entity_row: int = -1


class _Store:
    """Random access to one split of a store; picklable."""

    kind = ""

    def __init__(self, folder: str | os.PathLike, split: str = ALL):
        """Open `split`.

        Raises:
            SgqlmError: there is no such store or split, or a file of it is missing or cut off.
        """
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(self.folder, kind=self.kind)
        if split not in self.manifest["rows"]:
            known = ", ".join(self.manifest["rows"])
            raise _problem(f"no split {split!r}", self.folder, f"there are: {known}", "choose one")
        if faults := verify(self.folder, only_sizes=True):
            fix = "build or copy it again"
            raise _problem("the store is not whole", self.folder, faults[0], fix)
        self._length = self.manifest["rows"][split]
        self._rows = builders.read(self.folder, split) if self._length else []

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    @property
    def manifest_digest(self) -> str:
        """Return the SHA-256 of what the manifest tells: that of the store's content."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def _row(self, row: int) -> dict[str, Any]:
        if not 0 <= row < self._length:
            raise IndexError(f"row {row} of {self._length} in {self.folder}")
        try:
            return self._rows[row]
        except RuntimeError as error:
            where = f"{self.folder} row {row}"
            raise _problem("a record is damaged", where, str(error), "copy it again") from error

    def _keys(self) -> list[str]:
        return json.loads((self.folder / KEYS).read_text("utf-8"))


class ImageStore(_Store):
    """Images by row."""

    kind = "images"

    def keys(self) -> list[str]:
        """Return the keys by row."""
        return self._keys()

    def __getitem__(self, row: int) -> Image:
        """Return one image, still encoded."""
        found = self._row(row)
        height, width = map(int, found["size"])
        return Image(_text(found["key"]), found["image"], (height, width))


class EntityStore(_Store):
    """Entities by row; one row an image."""

    kind = "entities"

    def keys(self) -> list[str]:
        """Return the image keys by row."""
        return self._keys()

    def status(self, row: int) -> str:
        """Return `ok`, `empty` (nothing was found), or `error: ...` where the extraction failed."""
        return _text(self._row(row)["status"])

    def image_digest(self, row: int) -> str:
        """Return the SHA-256 of the image file the entities were found in, empty if unknown."""
        return _text(self._row(row)["sha256"])

    def __getitem__(self, row: int) -> graphs.Entities:
        """Return the entities of one image; masks stay run-length codes."""
        found = self._row(row)
        height, width = map(int, found["size"])
        counts = found["masks"].split(b"\n") if len(found["boxes"]) else []
        masks = [{"size": [height, width], "counts": code} for code in counts]
        tags = zip(map(_text, found["tags"]), map(float, found["tag_scores"]), strict=True)
        alternatives = json.loads(_text(found["alternatives"]) or "[]")
        return graphs.Entities(
            masks,
            found["boxes"],
            [_text(label) for label in found["labels"]],
            found["scores"],
            (height, width),
            alternatives=[[(label, score) for label, score in item] for item in alternatives],
            mask_scores=found["mask_scores"],
            tags=list(tags),
            coverage=_unpack(list(map(_text, found["views"])), found["coverage"]),
        )


class ConversationStore(_Store):
    """Conversations by row."""

    kind = "conversations"

    def __getitem__(self, row: int) -> Conversation:
        """Return one conversation."""
        found = self._row(row)
        columns = found["conversations"]
        turns = [
            {"from": _text(who), "value": _text(value)}
            for who, value in zip(columns["from"], columns["value"], strict=True)
        ]
        return Conversation(
            _text(found["id"]), turns, int(found["image_row"]), int(found["entity_row"])
        )


def write_images(
    folder: str | os.PathLike, images: Iterable[Image], *, about: Mapping[str, Any] | None = None
) -> list[str]:
    """Write an image store, row i being the i-th image.

    Args:
        folder: becomes the store; replaces what stood there.
        images: distinct images.
        about: json values to remember in the manifest (no times: a rebuild is byte-identical).

    Returns:
        The keys by row.
    """
    keys: list[str] = []

    def rows():
        for image in images:
            keys.append(image.key)
            yield {"key": image.key, "image": image.data, "size": np.array(image.size, np.int32)}

    _write("images", folder, {ALL: rows()}, about, keys)
    return keys


def write_entities(
    folder: str | os.PathLike,
    entities: Iterable[tuple[str, graphs.Entities | str] | tuple[str, graphs.Entities | str, str]],
    *,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write an entity store, one row an image.

    Args:
        folder: becomes the store; replaces what stood there.
        entities: key of the image, its entities or why there are none, and, if it is known, the
            SHA-256 of the image file; in the order of the image store, so that the row numbers
            are the same.
        about: json values to remember in the manifest.
    """
    keys: list[str] = []

    def rows():
        for key, found, *digest in entities:
            keys.append(key)
            status = f"error: {found}"
            if isinstance(found, graphs.Entities):
                status = "ok" if len(found) else "empty"
            else:
                found = graphs.Entities.empty((1, 1))
            counts = [_code(mask) for mask in found.coded_masks()]
            views = {name: found.coverage[name] for name in sorted(found.coverage)}
            yield {
                "key": key,
                "size": np.array(found.size, np.int32),
                "boxes": found.boxes,
                "scores": found.scores,
                "labels": list(found.labels),
                "masks": b"\n".join(counts),
                "status": status,
                "sha256": digest[0] if digest else "",
                "alternatives": json.dumps(found.alternatives) if found.alternatives else "",
                "mask_scores": np.asarray(found.mask_scores, np.float32),
                "tags": [tag for tag, _ in found.tags],
                "tag_scores": np.array([score for _, score in found.tags], np.float32),
                "views": list(views),
                "coverage": zlib.compress(b"".join(rows.tobytes() for rows in views.values())),
            }

    _write("entities", folder, {ALL: rows()}, about, keys)


def write_conversations(
    folder: str | os.PathLike,
    splits: Mapping[str, Iterable[Conversation]],
    *,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a conversation store.

    Args:
        folder: becomes the store; replaces what stood there.
        splits: conversations of each split.
        about: json values to remember in the manifest.
    """

    def rows(conversations):
        for item in conversations:
            columns = {part: [turn[part] for turn in item.turns] for part in ("from", "value")}
            yield {
                "id": item.id,
                "image_row": item.image_row,
                "entity_row": item.entity_row,
                "conversations": columns,
            }

    _write("conversations", folder, {k: rows(v) for k, v in splits.items()}, about, None)


def read_manifest(folder: str | os.PathLike, *, kind: str = "") -> dict[str, Any]:
    """Return the manifest of a store: format, kind, rows, files, about.

    Raises:
        SgqlmError: there is no store, or one of another kind or format.
    """
    path = pathlib.Path(folder) / MANIFEST
    if not path.is_file():
        fix = "build it (`sgqlm data build`, `sgqlm entities extract`)"
        raise _problem(f"there is no {kind} store".replace("  ", " "), folder, "", fix)
    manifest = json.loads(path.read_text("utf-8"))
    if manifest.get("format") != FORMAT or (kind and manifest.get("kind") != kind):
        why = f"{manifest.get('kind')!r}, format {manifest.get('format')!r}"
        raise _problem(f"this is no {kind} store of format {FORMAT}", folder, why, "build it again")
    return manifest


def verify(folder: str | os.PathLike, *, only_sizes: bool = False) -> list[str]:
    """Compare the files of a store with its manifest.

    Args:
        folder: the store.
        only_sizes: look at the lengths of the files alone, which takes no time.

    Returns:
        One line per difference.
    """
    folder = pathlib.Path(folder)
    faults = []
    for name, known in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name}: missing")
        elif (size := path.stat().st_size) != known["bytes"]:
            faults.append(f"{name}: {size} bytes instead of {known['bytes']}")
        elif not only_sizes and file_digest(path) != known["sha256"]:
            faults.append(f"{name}: changed")
    return faults


@contextlib.contextmanager
def staged(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Give a folder to write to, which takes the place of `folder` when all went well.

    What a killed process of this host left of such a folder is removed.

    Everything is flushed to disk before the rename; on an error nothing is left behind and what
    stood at `folder` stays.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mine = f".{folder.name}.building-{socket.gethostname()}-"
    aside = folder.with_name(f"{mine}{os.getpid()}")
    old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    for place in folder.parent.glob(glob.escape(mine) + "*"):
        if place == aside or not _runs(place.name.removeprefix(mine)):
            shutil.rmtree(place, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for path in sorted(aside.rglob("*")):
            _sync(path)
        _sync(aside)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def file_digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write json in one form: sorted keys, one space of indentation."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def _write(kind, folder, splits, about, keys: list[str] | None) -> None:
    with staged(folder) as aside:
        counts = builders.write(kind, aside, splits)
        if keys is not None:
            if len(set(keys)) != len(keys):
                raise _problem("a key occurs twice", folder, "", "give every image once")
            (aside / KEYS).write_text(json.dumps(keys, ensure_ascii=False), "utf-8")
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            for path in sorted(aside.iterdir())
        }
        manifest = {"format": FORMAT, "kind": kind, "rows": counts, "files": files}
        write_json(aside / MANIFEST, manifest | {"about": dict(about or {})})


def _unpack(views: Sequence[str], packed: bytes) -> dict[str, np.ndarray]:
    """Return uint8[n, P] of each view; all have the n of the record."""
    data = np.frombuffer(zlib.decompress(packed), np.uint8) if views else np.zeros(0, np.uint8)
    patches = [int(name.split("x")[0]) ** 2 for name in views]
    count = len(data) // max(sum(patches), 1)
    ends = np.cumsum([count * size for size in patches], dtype=int)
    parts = np.split(data, ends[:-1]) if views else []
    return {
        name: part.reshape(count, size)
        for name, part, size in zip(views, parts, patches, strict=True)
    }


def _code(mask: graphs.Rle) -> bytes:
    counts = mask["counts"]
    if isinstance(counts, list):
        counts = graphs.encode_rle(graphs.decode_rle(mask))["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else counts


def _runs(process: str) -> bool:
    """Tell whether a process of this host may be alive."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _problem(what: str, where: Any, why: str, fix: str) -> errors.SgqlmError:
    return errors.SgqlmError(what, where=str(where), why=why, fix=fix, code=errors.DATA)
