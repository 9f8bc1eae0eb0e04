"""A data set of your own: the three stores made from a LLaVA json and its photographs."""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import graphs, images, llava_json, records
from sgqlm.entities import extract, inputs, interfaces, parts, shards

IMAGES, ENTITIES, CONVERSATIONS = "images", "entities", "conversations"
SPLIT = "train"
Progress = Callable[[str, int, int], None]  # what, done, altogether
Entities = interfaces.EntityExtractor | pathlib.Path | None  # what `build` takes them from
_EntityRow = tuple[str, graphs.Entities | str, str]  # key, what is there, digest of the image file


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was built; `failed` are images that have no entities, with the reason."""

    conversations: int
    images: int
    entities: int
    failed: tuple[tuple[str, str], ...]


def kept(out: pathlib.Path, entities: Entities, *, is_chosen: bool) -> pathlib.Path | None:
    """Return the entity store of the data set `out` if a rebuild would make no such one.

    Args:
        out: is about to be replaced.
        entities: what the rebuild would take them from.
        is_chosen: whether the user asked for these, rather than for nothing.

    Returns:
        The store, to be carried over; None where there is none, or it would be made again.

    Raises:
        SgqlmError: the store holds annotated nodes, or other entities than those asked for.
    """
    store = out / ENTITIES
    if not (store / records.MANIFEST).is_file():
        return None
    before, wanted = parts.settings(parts.about(store)), _settings(entities)
    if wanted is not None and _masks(before) == _masks(wanted):
        return None
    name = before.get("extractor", "another extractor")
    is_annotated = name == extract.ANNOTATED
    if is_annotated or (is_chosen and entities is not None):
        raise errors.SgqlmError(
            "the data set that is there has other entities",
            where=str(store),
            why="annotated nodes of relations" * is_annotated or f"made by {name} {_told(before)}",
            fix="name another folder with --out, or replace them with --overwrite",
        )
    return store


def build(
    found: Sequence[llava_json.Record],
    out: pathlib.Path,
    *,
    entities: Entities,
    keep: pathlib.Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Write the image, entity and conversation stores of a data set.

    `out` is whole or absent: an error on the way leaves what stood there before.

    Args:
        found: good and decodable records; an image they share is stored once.
        out: becomes the data set.
        entities: an extractor, a store that already has these images, or None for none.
        keep: of `kept`; is carried over instead of `entities`.
        about: json values to remember with the conversations.
        progress: called after every image of a store.

    Returns:
        Counts.

    Raises:
        SgqlmError: `out` holds something that is no data set, or the entity store does not fit.
    """
    extract.refuse_other(out, CONVERSATIONS)
    files = {record.key: record.image for record in found if record.image is not None}
    with records.staged(out) as aside:
        keys, total, failed = _write_images(files, aside, progress), 0, ()
        has_entities = entities is not None or keep is not None
        if keep is not None:
            total, failed = _carry(keep, aside)
        elif entities is not None:
            rows = _entity_rows(files, aside / IMAGES, entities, progress)
            total, failed = _write_entities(rows, aside, entities)
        row_of = {key: row for row, key in enumerate(keys)}
        conversations = (
            _conversation(record, row_of.get(record.key, -1), has_entities=has_entities)
            for record in found
        )
        records.write_conversations(aside / CONVERSATIONS, {SPLIT: conversations}, about=about)
    return Summary(len(found), len(keys), total, failed)


def _masks(about: Mapping[str, Any]) -> Any:
    """Return what decides all entities; coverage of other views is made when it is needed."""
    return about if about.get("extractor") == extract.ANNOTATED else about.get("masks", about)


def _told(about: Mapping[str, Any]) -> str:
    settings = about.get("settings", {})
    return ", ".join(f"{name} {value}" for name, value in settings.items())[:300]


def _settings(entities: Entities) -> dict[str, Any] | None:
    if entities is None:
        return None
    if isinstance(entities, pathlib.Path):
        return parts.settings(parts.about(entities))
    return parts.settings(shards.describe(entities))


def _carry(store: pathlib.Path, aside: pathlib.Path) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Take over a store that has every image: by links, or by rows if it has others too."""
    images_, old = records.ImageStore(aside / IMAGES), records.EntityStore(store)
    rows = _stored_rows(images_, old, " after a build with --overwrite, which drops the old ones")
    if old.keys() != images_.keys():
        return _write_entities(rows, aside, store)
    total, failed = 0, []
    for key, found, _ in rows:
        if isinstance(found, str):
            failed.append((key, found))
        else:
            total += len(found)
    shutil.copytree(store, aside / ENTITIES, copy_function=parts.link)
    return total, tuple(failed)


def _write_images(
    files: Mapping[str, pathlib.Path], aside: pathlib.Path, progress: Progress
) -> list[str]:
    def rows() -> Iterator[records.Image]:
        for done, (key, path) in enumerate(files.items(), 1):
            data = path.read_bytes()
            width, height = images.upright_size(data, where=key)
            yield records.Image(key, data, (height, width))
            progress("images", done, len(files))

    return records.write_images(aside / IMAGES, rows())


def _write_entities(
    rows: Iterator[_EntityRow],
    aside: pathlib.Path,
    source: interfaces.EntityExtractor | pathlib.Path,
) -> tuple[int, tuple[tuple[str, str], ...]]:
    if isinstance(source, pathlib.Path):
        about = parts.settings(records.read_manifest(source, kind=ENTITIES)["about"])
    else:
        about = shards.describe(source)
    about |= {"entities": 0, "failed": []}

    def counted() -> Iterator[_EntityRow]:
        for key, found, digest in rows:
            if isinstance(found, graphs.Entities):
                about["entities"] += len(found)
            else:
                about["failed"].append((key, found))
            yield key, found, digest

    records.write_entities(aside / ENTITIES, counted(), about=about)  # reads `about` at the end
    return about["entities"], tuple(about["failed"])


def _entity_rows(
    files: Mapping[str, pathlib.Path],
    image_folder: pathlib.Path,
    source: interfaces.EntityExtractor | pathlib.Path,
    progress: Progress,
) -> Iterator[_EntityRow]:
    if isinstance(source, pathlib.Path):
        yield from _stored_rows(records.ImageStore(image_folder), records.EntityStore(source))
        return
    pictures = [inputs.File(key, str(path)) for key, path in files.items()]
    for done, row in enumerate(shards.extract_rows(source, pictures), 1):
        yield row.key, row.found, row.digest
        progress("entities", done, len(files))


def _stored_rows(
    images_: records.ImageStore, store: records.EntityStore, when: str = ""
) -> Iterator[_EntityRow]:
    keys = images_.keys()
    row_of = {key: row for row, key in enumerate(store.keys())}
    if missing := [key for key in keys if key not in row_of]:
        raise errors.SgqlmError(
            f"the entity store lacks {len(missing)} of {len(images_)} images",
            where=str(store.folder),
            why="it has none of: " + ", ".join(missing[:20]),
            fix="extract them: `sgqlm entities extract`" + (when or ", then build again"),
            code=errors.DATA,
        )
    for row, key in enumerate(keys):
        status = store.status(row_of[key])
        if status.startswith("error"):
            yield key, status.removeprefix("error: "), store.image_digest(row_of[key])
            continue
        found, image = store[row_of[key]], images_[row]
        digest = store.image_digest(row_of[key])
        is_same = digest in ("", hashlib.sha256(image.data).hexdigest())
        if not is_same or tuple(found.size) != tuple(image.size):
            raise errors.SgqlmError(
                "the entities are those of another image",
                where=f"{store.folder}: {key}",
                why=f"sizes (height, width): {tuple(found.size)} and {tuple(image.size)}"
                + "; the contents differ" * (not is_same),
                fix="extract the entities of these images again" + when,
                code=errors.DATA,
            )
        yield key, found, digest


def _conversation(
    record: llava_json.Record, row: int, *, has_entities: bool
) -> records.Conversation:
    entity_row = row if has_entities else -1
    return records.Conversation(record.id, record.turns, image_row=row, entity_row=entity_row)
