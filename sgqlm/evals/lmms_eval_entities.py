"""Entities for the pictures of lmms-eval, which come without names."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, records
from sgqlm.entities import settings as extractor_settings
from sgqlm.evals import lmms_eval_plugin, pictures

_CACHED = 1024  # images whose entities are kept

# (picture, document, its place for messages) -> entities
Finder = Callable[[Image.Image, Mapping[str, Any], str], graphs.Entities | None]


class NoEntities(errors.SgqlmError):
    """A whole run lacks what it needs: no document is left out for this."""


class _Extracting:
    """Find entities in the pixels; equal pictures are looked at once."""

    def __init__(self, settings: extractor_settings.ExtractorConfig):
        self._extractor = extractor_settings.make(settings)
        self._known: dict[bytes, graphs.Entities] = {}

    def __call__(
        self, image: Image.Image, document: Mapping[str, Any], where: str
    ) -> graphs.Entities:
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if key not in self._known:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[key] = self._extractor.extract(image)
        return self._known[key]


class _Stored:
    """Look entities up by the name that a document has for its image."""

    def __init__(self, folder: str, key: str):
        self._store, self._key = records.EntityStore(pathlib.Path(folder)), key
        self._rows = {name: row for row, name in enumerate(self._store.keys())}
        self._names = pictures.Names(self._rows)

    def __call__(
        self, image: Image.Image, document: Mapping[str, Any], where: str
    ) -> graphs.Entities | None:
        if self._key not in document:
            known = ", ".join(document)
            raise NoEntities(
                f"a document has no field {self._key!r}",
                where=where,
                fix=f"give image_key=FIELD, one of {known}",
                code=errors.DATA,
            )
        name = str(document[self._key])
        found = self._names.find(name)
        row = None if found is None else self._rows[found]
        if row is None:
            raise NoEntities(
                f"the entity store has no image {name!r}, or several",
                where=where,
                fix="run `sgqlm entities extract` on the images of the task, or give "
                "entities=extract",
                code=errors.DATA,
            )
        if self._store.status(row).startswith("error"):
            return None
        entities = self._store[row]
        if entities.size != (image.height, image.width):
            raise NoEntities(
                f"the entities of {name!r} are those of an image of another size",
                where=where,
                why=f"{entities.size[1]} x {entities.size[0]} in the store, "
                f"{image.width} x {image.height} in the task",
                fix="give entities=extract",
                code=errors.DATA,
            )
        return entities


def finder(entities: str, image_key: str, extractor: str) -> Finder | None:
    """Return what finds the entities of a picture; None for none.

    Args:
        entities: `none`, `extract` or a store.
        image_key: field of a document that names its image in the store.
        extractor: a preset, or a JSON object of its settings.

    Raises:
        SgqlmError: an argument does not fit, or there is no such store.
    """
    if entities in ("", "none"):
        return None
    if entities == "extract":
        return _Extracting(_extractor(extractor))
    if not image_key:
        raise lmms_eval_plugin.wrong(
            "entities",
            "lmms-eval gives pictures without names, so a store needs a field that names them",
            "give image_key=FIELD, as image_key=image_id, or entities=extract",
        )
    return _Stored(entities, image_key)


def _extractor(text: str) -> extractor_settings.ExtractorConfig:
    if not text.startswith("{"):
        return extractor_settings.preset(text)
    given = lmms_eval_plugin.json_object("extractor", text)
    preset = extractor_settings.preset(given.pop("name", "regions"))
    known = {field.name for field in dataclasses.fields(preset)}
    if unknown := sorted(given.keys() - known):
        raise lmms_eval_plugin.wrong("extractor", f"there is no setting {unknown[0]!r}", "one of "
                     + ", ".join(sorted(known)))  # fmt: skip
    return dataclasses.replace(preset, **given)
