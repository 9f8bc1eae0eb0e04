"""The local engine: images in, an entity store out; finished shards are never done again."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import graphs, images, records
from sgqlm.entities import interfaces, regions

EXTRACTORS = ("regions",)
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
VERSION = 1  # of this engine; raise it when the same settings begin to give other entities
Progress = Callable[[int, int], None]  # images finished, images altogether


@dataclasses.dataclass(frozen=True)
class Source:
    """One image to work on: its key, and how to get the bytes of its file."""

    key: str
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        images: images altogether.
        reused: those that an earlier run had finished.
        failed: key and reason of each image that could not be worked on.
        entities: entities found, over all images.
    """

    images: int
    reused: int
    failed: tuple[tuple[str, str], ...]
    entities: int


def make(name: str) -> interfaces.EntityExtractor:
    """Return the extractor called `name` with its default settings.

    Raises:
        SgqlmError: there is no such extractor.
    """
    if name == "regions":
        return regions.RegionsExtractor()
    known = ", ".join(EXTRACTORS)
    raise errors.SgqlmError(f"there is no extractor {name!r}", fix=f"use one of {known}")


def from_folder(folder: pathlib.Path) -> list[Source]:
    """Return the images below a folder in the order of their keys, their relative paths."""
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    return [Source(key, paths[key].read_bytes) for key in sorted(paths)]


def from_store(folder: pathlib.Path) -> list[Source]:
    """Return the images of an image store in the order of its rows."""
    store = records.ImageStore(folder)
    return [Source(key, _row_reader(store, row)) for row, key in enumerate(store.keys())]


def run(
    extractor: interfaces.EntityExtractor,
    sources: Sequence[Source],
    out: pathlib.Path,
    *,
    shard_size: int = 256,
    progress: Progress = lambda done, total: None,
) -> Summary:
    """Extract entities and write an entity store, one row per source in the given order.

    Shards are written to `.<out>.parts` beside `out`, each complete or not at all, and joined at
    the end. A shard is known by the extractor's settings and the content of its images, so a run
    that was stopped goes on where it was, and one with nothing new to do extracts nothing.

    Args:
        extractor: finds the entities.
        sources: images with distinct keys.
        out: becomes the store.
        shard_size: images of one shard.
        progress: called after every image.

    Returns:
        What was done. An image that cannot be read has a row without entities and a status.

    Raises:
        SgqlmError: there are no images, or `out` holds something else.
    """
    if not sources:
        raise errors.SgqlmError(
            "there are no images to work on", where=str(out), code=errors.DATA,
            fix="give a folder that holds photographs",
        )  # fmt: skip
    refuse_other(out)
    parts = out.with_name(f".{out.name}.parts")
    shards = [sources[i : i + shard_size] for i in range(0, len(sources), shard_size)]
    tags = [_identity(extractor, shard) for shard in shards]
    whole = _digest(tags)
    if _about(out).get("identity") == whole:
        progress(len(sources), len(sources))
        return dataclasses.replace(_summary(out), reused=len(sources))
    done = reused = 0
    for index, (shard, tag) in enumerate(zip(shards, tags, strict=True)):
        folder = parts / f"{index:05d}"
        if _about(folder).get("identity") == tag:
            reused += len(shard)
        else:
            rows = _extract(extractor, shard, done, lambda now: progress(now, len(sources)))
            records.write_entities(folder, rows, about={"identity": tag})
        done += len(shard)
        progress(done, len(sources))
    _join(parts, len(shards), out, {"identity": whole} | describe(extractor))
    shutil.rmtree(parts)
    return dataclasses.replace(_summary(out), reused=reused)


def refuse_other(out: pathlib.Path, store: str = "") -> None:
    """Refuse to replace a folder that sgqlm did not write.

    Args:
        out: a folder that is about to be replaced.
        store: the sub-folder by which such a folder is known; empty for `out` itself.

    Raises:
        SgqlmError: `out` is a file, or a folder with other content.
    """
    if out.is_dir() and (not any(out.iterdir()) or (out / store / records.MANIFEST).is_file()):
        return
    if out.exists():
        raise errors.SgqlmError(
            "the output would replace something else",
            where=str(out),
            fix="name a folder that does not exist yet with --out",
        )


def describe(extractor: interfaces.EntityExtractor) -> dict[str, Any]:
    """Return what an entity store remembers of how it was made."""
    settings = dict(extractor.settings())
    config = {"extractor": extractor.name, "settings": settings, "version": VERSION}
    return config | {"config": _digest(config)}


def extract_one(
    extractor: interfaces.EntityExtractor, data: bytes, *, where: str = ""
) -> graphs.Entities | str:
    """Return the entities of an encoded image, or the reason why there are none."""
    try:
        return extractor.extract(images.open_image(data, where=where))
    except errors.SgqlmError as error:
        return f"{error.what}: {error.why}".rstrip(": ").replace("\n", " ")


def _extract(
    extractor: interfaces.EntityExtractor,
    shard: Sequence[Source],
    done: int,
    tick: Callable[[int], None],
) -> Iterator[tuple[str, graphs.Entities | str]]:
    for count, source in enumerate(shard, done):
        tick(count)
        try:
            found = extract_one(extractor, source.read(), where=source.key)
        except OSError as error:
            found = f"the image file cannot be read: {error.strerror or error}"
        yield source.key, found


def _identity(extractor: interfaces.EntityExtractor, shard: Sequence[Source]) -> str:
    return _digest([describe(extractor), [[source.key, _content(source)] for source in shard]])


def _content(source: Source) -> str:
    try:
        return hashlib.sha256(source.read()).hexdigest()
    except OSError as error:
        return f"error {error.errno}"


def _row_reader(store: records.ImageStore, row: int) -> Callable[[], bytes]:
    return lambda: store[row].data


def _join(parts: pathlib.Path, count: int, out: pathlib.Path, about: dict[str, Any]) -> None:
    about = about | {"entities": 0, "failed": []}

    def rows() -> Iterator[tuple[str, graphs.Entities | str]]:
        for index in range(count):
            store = records.EntityStore(parts / f"{index:05d}")
            for row, key in enumerate(store.keys()):
                status = store.status(row)
                if not status.startswith("error"):
                    about["entities"] += len(store[row])
                    yield key, store[row]
                else:
                    about["failed"].append((key, status.removeprefix("error: ")))
                    yield about["failed"][-1]

    records.write_entities(out, rows(), about=about)  # reads `about` after the last row


def _summary(out: pathlib.Path) -> Summary:
    manifest = records.read_manifest(out, kind="entities")
    about = manifest["about"]
    failed = tuple((key, reason) for key, reason in about["failed"])
    return Summary(manifest["rows"][records.ALL], 0, failed, about["entities"])


def _about(folder: pathlib.Path) -> dict[str, Any]:
    if not (folder / records.MANIFEST).is_file():
        return {}
    return records.read_manifest(folder, kind="entities")["about"]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
