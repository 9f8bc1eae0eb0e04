"""Where samples come from: scenes, a built data set, or a LLaVA json read directly."""

import abc
import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sgqlm import config, errors
from sgqlm.data import graphs, images, llava_json, records

Turn = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One conversation with what belongs to it.

    Attributes:
        row: row of the image among the images of its source, -1 without one.
        image: the picture, encoded or decoded; None for text only (or where not asked for).
        turns: LLaVA turns.
        entities: what a detector saw; None where there is nothing of the kind.
        record_key: name of the record, part of every random draw about it.
        annotated: the true label of each entity (empty: it is nothing). Only ever a target.
        relations: (subject, predicate, object) over entities; only the diagnostic
            `graph.edge_oracle` looks at them.
    """

    row: int
    image: images.ImageSource | None
    turns: Sequence[Turn]
    entities: graphs.Entities | None = None
    record_key: str = ""
    annotated: Sequence[str] = ()
    relations: Sequence[tuple[int, str, int]] = ()

    @property
    def has_image(self) -> bool:
        """Whether the sample has an image, loaded or not."""
        return self.row >= 0 or self.image is not None


class Source(abc.ABC):
    """Random access to samples; picklable.

    Attributes:
        name: for messages.
        image_set: name of the set of images; sources with equal ones share their rows.
        num_images: rows of that set.
        content: digest of all records, wherever they lie.
        image_content: digest of images and entities alone.
        lacks_entities: whether its images have none although nobody asked for `none`.
    """

    lacks_entities = False
    name: str
    image_set: str
    num_images: int
    content: str
    image_content: str

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of conversations."""

    @abc.abstractmethod
    def sample(
        self, index: int, *, epoch: int = 0, want_image: bool = True, want_entities: bool = True
    ) -> Sample:
        """Return conversation `index` as it is in pass `epoch` over the data."""

    @abc.abstractmethod
    def image(self, row: int) -> Sample:
        """Return image `row` with its entities, without a conversation."""

    def __getitem__(self, index: int) -> Sample:
        """Return conversation `index` of the first pass."""
        return self.sample(index)

    def turns(self, index: int) -> tuple[Sequence[Turn], bool] | None:
        """Return the turns and whether there is an image, if they are the same in every pass."""
        return None

    def length_cache(self, digest: str) -> pathlib.Path | None:
        """Return where token lengths under the settings `digest` may be kept."""
        return None


class SceneSource(Source):
    """Scenes of one split; the conversation is drawn anew in every pass."""

    def __init__(
        self, folder: str | os.PathLike, split: str, *, tasks: Sequence[str] = (), seed: int = 0
    ):
        """Open scenes.

        Args:
            folder: the built data set of scenes.
            split: `train`, `val` or `test`.
            tasks: kinds of conversation, drawn with equal shares; empty means all.
            seed: of the conversations.
        """
        # Not at the top: sgqlm.scenes builds on sgqlm.data.
        from sgqlm.scenes import builder, questions

        _check_tasks(tasks, "source")
        self.name, self._split, self._seed = "scenes", split, seed
        self._tasks = tuple(tasks) or questions.TASKS
        self._talk = questions.conversation
        self._scenes = builder.SceneSource(pathlib.Path(folder), split)
        self.image_set = f"{pathlib.Path(folder).resolve()}:{split}"
        self.num_images = len(self._scenes)
        manifest = (pathlib.Path(folder) / builder.MANIFEST).read_text()
        self.content = self.image_content = _digest(manifest, split)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.num_images

    def sample(self, index, *, epoch=0, want_image=True, want_entities=True) -> Sample:
        """Return scene `index` with the conversation of this pass."""
        found = self._scenes[index]
        seed = draw(self._seed, "scene", index, epoch)
        task = self._tasks[seed % len(self._tasks)]
        turns = self._talk(found.scene, task, seed=seed >> 8)
        key = f"scenes/{self._split}/{index}"
        if llava_json.IMAGE not in turns[0]["value"]:
            return Sample(-1, None, turns, None, key)
        return (
            self._with_truth(found, index, turns, key)
            if want_entities
            else Sample(index, found.image if want_image else None, turns, None, key)
        )

    def image(self, row: int) -> Sample:
        """Return scene `row` without a conversation."""
        return self._with_truth(self._scenes[row], row, [], f"scenes/{self._split}/{row}")

    def _with_truth(self, found, index: int, turns, key: str) -> Sample:
        entity_of = {int(k): i for i, k in enumerate(found.truth) if k >= 0}
        words = [" ".join(found.scene.objects[k].words) if k >= 0 else "" for k in found.truth]
        relations = [
            (entity_of[r.subject], r.predicate, entity_of[r.object])
            for r in found.scene.relations
            if r.subject in entity_of and r.object in entity_of
        ]
        return Sample(index, found.image, turns, found.entities, key, words, relations)


class StoreSource(Source):
    """A built data set: three stores joined by row number."""

    def __init__(
        self, folder: str | os.PathLike, split: str, *, entities: str = "", name: str = ""
    ):
        """Open a data set.

        Args:
            folder: holds `images`, `conversations` and perhaps `entities`.
            split: of the conversations.
            entities: another entity store; `none` for no entities.
            name: for messages; the folder's name by default.
        """
        folder = pathlib.Path(folder)
        self.name, self._split = name or folder.name, split
        self._images = records.ImageStore(folder / "images")
        self._talks = records.ConversationStore(folder / "conversations", split)
        self._entities = join_entities(entities, folder / "entities", self._images.keys())
        self.image_set, self.num_images = str(folder.resolve()), len(self._images)
        self.lacks_entities = bool(len(self._images)) and not self._entities and entities != "none"
        self.image_content = _digest(self._images.manifest, _content(self._entities))
        self.content = _digest(self.image_content, self._talks.manifest, split)

    def __len__(self) -> int:
        """Return the number of conversations of the split."""
        return len(self._talks)

    def sample(self, index, *, epoch=0, want_image=True, want_entities=True) -> Sample:
        """Return conversation `index` with its image and entities."""
        talk = self._talks[index]
        key = f"{self.name}/{self._split}/{index} {talk.id}"
        if talk.image_row < 0:
            return Sample(-1, None, talk.turns, None, key)
        image = self._images[talk.image_row].data if want_image else None
        found = None
        if want_entities and self._entities:
            found = self._entities[talk.image_row]  # `Joined` maps it to the row of the store
        return Sample(talk.image_row, image, talk.turns, found, key)

    def image(self, row: int) -> Sample:
        """Return image `row` without a conversation."""
        image = self._images[row]
        found = self._entities[row] if self._entities else None
        return Sample(row, image.data, [], found, f"{self.name}/images/{row} {image.key}")

    def turns(self, index: int) -> tuple[Sequence[Turn], bool]:
        """Return the turns of conversation `index`."""
        talk = self._talks[index]
        return talk.turns, talk.image_row >= 0

    def length_cache(self, digest: str) -> pathlib.Path:
        """Return a file beside the conversations."""
        return self._talks.folder / f"lengths-{self._split}-{digest[:16]}.npy"


class JsonSource(Source):
    """A LLaVA json with its image folder, read directly."""

    def __init__(
        self, path: str | os.PathLike, *, entities: str = "", name: str = "", budget: float = 0.0
    ):
        """Read the json.

        Args:
            path: the json, or a folder with one.
            entities: an entity store; the folder `entities` beside the json by default, where there
                is one; `none` for no entities.
            name: for messages; the file's name by default.
            budget: share of records that may be left out for faults.

        Raises:
            SgqlmError: more records than that have faults; the message lists them.
        """
        file, root = llava_json.find(path)
        scan = llava_json.examine(file, root, decode=False)
        dropped = [fault for fault in scan.faults if fault.drops]
        if not scan.total or scan.total - len(scan.records) > budget * scan.total:
            llava_json.refuse(dropped, str(file))
        self._records = scan.records
        self.dropped = scan.total - len(scan.records)
        self.name, self._root = name or file.stem, root
        keys = list(dict.fromkeys(key for key in scan.records.keys() if key))  # noqa: SIM118
        self._keys, self._rows = keys, {key: row for row, key in enumerate(keys)}
        self._entities = join_entities(entities, file.parent / "entities", keys)
        digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
        self.image_set, self.num_images = f"{root.resolve()}:{digest}", len(keys)
        self.lacks_entities = bool(keys) and not self._entities and entities != "none"
        sizes = [(root / key).stat().st_size for key in keys]
        self.image_content = _digest(keys, sizes, _content(self._entities))
        with file.open("rb") as stream:
            told = hashlib.file_digest(stream, "sha256").hexdigest()
        self.content = _digest(self.image_content, told, self.dropped)

    def __len__(self) -> int:
        """Return the number of usable records."""
        return len(self._records)

    def sample(self, index, *, epoch=0, want_image=True, want_entities=True) -> Sample:
        """Return record `index`; its image is the path of the file."""
        record = self._records[index]
        key = f"{self.name}/{index} {record.id}"
        if record.image is None:
            return Sample(-1, None, record.turns, None, key)
        row = self._rows[record.key]
        found = self._entities[row] if want_entities and self._entities else None
        return Sample(row, record.image if want_image else None, record.turns, found, key)

    def image(self, row: int) -> Sample:
        """Return image `row` without a conversation."""
        found = self._entities[row] if self._entities else None
        key = self._keys[row]
        return Sample(row, self._root / key, [], found, f"{self.name}/images/{row} {key}")

    def turns(self, index: int) -> tuple[Sequence[Turn], bool]:
        """Return the turns of record `index`."""
        return self._records[index].turns, self._records[index].image is not None


class Joined:
    """Entities by image row, from a store that has the same images in any order."""

    def __init__(self, store: records.EntityStore, keys: Sequence[str]):
        """Find the row of every key of `keys`; the image rows are their positions."""
        self._store, self.content = store, _digest(store.manifest)
        known = store.keys()
        self._rows = None
        if known != list(keys):
            rows = {key: row for row, key in enumerate(known)}
            missing = [key for key in keys if key not in rows]
            if missing:
                raise errors.SgqlmError(
                    f"the entity store lacks {len(missing)} of {len(keys)} images",
                    where=str(store.folder),
                    why=f"for instance {missing[0]}",
                    fix="run `sgqlm entities extract` on this data set",
                    code=errors.DATA,
                )
            self._rows = np.array([rows[key] for key in keys], np.int64)

    def __getitem__(self, row: int) -> graphs.Entities:
        """Return the entities of image `row`."""
        return self._store[row if self._rows is None else int(self._rows[row])]


def join_entities(choice: str, default: pathlib.Path, keys: Sequence[str]) -> Joined | None:
    """Open the entities of images `keys`.

    Args:
        choice: a store; empty for `default`, if that exists; `none` for no entities.
        default: the store that belongs to the images.
        keys: image keys by row.

    Returns:
        Entities by row of `keys`, or None.
    """
    if choice == "none" or (not choice and not (default / records.MANIFEST).is_file()):
        return None
    return Joined(records.EntityStore(choice or default), keys)


def open_source(source: config.SourceConfig, *, seed: int = 0, budget: float = 0.0) -> Source:
    """Open a data set of a mixture.

    Args:
        source: `name` is `scenes` (with `path`, the folder of built scenes), or any name with
            `path`: a built data set, a folder of data sets with one of that name, a LLaVA json, or
            a folder with a LLaVA json and its images.
        seed: of conversations that are drawn.
        budget: share of faulty records of a json that may be left out.

    Raises:
        SgqlmError: nothing of the kind is there.
    """
    if not source.path:
        raise _no_path(source, "source")
    path = pathlib.Path(source.path)
    if source.name == "scenes":
        return SceneSource(path, source.split, tasks=source.tasks, seed=seed)
    for folder in (path / source.name, path):
        if (folder / "conversations" / records.MANIFEST).is_file():
            return StoreSource(folder, source.split, entities=source.entities, name=source.name)
    if source.split != "train":
        raise errors.SgqlmError(
            f"there is no data set with a split {source.split!r}",
            where=str(path),
            why="a LLaVA json has the split `train` only",
            fix="build a data set with this split, or give the json of the split",
            code=errors.DATA,
        )
    return JsonSource(path, entities=source.entities, name=source.name, budget=budget)


def check_source(source: config.SourceConfig, where: str = "source") -> None:
    """Refuse a source that cannot be opened, without opening it.

    Args:
        source: a row of a mixture; scenes may still have no path.
        where: the setting, for messages.

    Raises:
        SgqlmError: there is no such data set or task, or the weight is not positive.
    """
    if source.weight <= 0:
        fix = "leave the source out, or give its share"
        raise errors.SgqlmError("source weights must be positive", where=f"{where}.weight", fix=fix)
    if source.name == "scenes":
        _check_tasks(source.tasks, where)
    elif not source.path:
        raise _no_path(source, where)
    path = pathlib.Path(source.path)
    if not os.path.exists(path):
        beside = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        fix = f"did you mean {path.parent / near[0]}?" if near else "correct the path"
        raise errors.SgqlmError(
            f"there is no data set {source.path}", where=f"{where}.path", fix=fix
        )


def _check_tasks(tasks: Sequence[str], where: str) -> None:
    from sgqlm.scenes import questions  # not at the top: sgqlm.scenes builds on sgqlm.data

    for task in tasks:
        if task not in questions.TASKS:
            near = difflib.get_close_matches(task, questions.TASKS, n=1)
            fix = f"did you mean {near[0]!r}? " if near else ""
            raise errors.SgqlmError(
                f"unknown scene task {task!r}",
                where=f"{where}.tasks",
                fix=fix + "known: " + ", ".join(questions.TASKS),
            )


def _no_path(source: config.SourceConfig, where: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"the data source {source.name!r} has no path",
        where=f"{where}.path",
        fix="give the folder of a built data set, or a LLaVA json; only `scenes` needs none",
    )


def _content(found: Joined | None) -> str:
    return found.content if found else ""


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def draw(*parts: str | int | np.integer) -> int:
    """Return a 63-bit number that is a pure function of `parts`."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    digest = hashlib.sha256(repr(plain).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
