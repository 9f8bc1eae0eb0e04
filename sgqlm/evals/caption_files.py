"""Captions of people, in the files in which COCO, Flickr30k, NoCaps and CC3M are published.

Karpathy's splits (dataset_coco.json, dataset_flickr30k.json); COCO's `images` and `annotations`,
which NoCaps shares and adds `domain` to; lists of `image` and `caption` as BLIP has them;
Flickr30k's token file; the tsv of Conceptual Captions, and the folders that img2dataset makes of
it. A file of more images than the benchmark is a pool: a list of names picks the split.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import annotated, joining, tables
from sgqlm.evals.metrics import captions

COCO, FLICKR, NOCAPS, CONCEPTUAL = TASKS = ("coco_caption", "flickr30k", "nocaps", "conceptual")
LISTS = {COCO: "karpathy_test_images.txt", FLICKR: "test.txt"}  # beside a pool, picks the split
_SPLIT = "test"
_KARPATHY = {COCO: "coco", FLICKR: "flickr30k"}  # what its files name themselves
_WHOLE_COCO = "captions_"  # captions_val2014.json has 40,504 images, 5,000 are Karpathy's test
_RESULT = ("image_id", "caption")  # of a record of COCO's results
_STATS = "_stats.json"
_SHARD = 10_000  # samples of a folder of img2dataset, if not told otherwise
CONCEPTUAL_FOLDERS = (".", "images", "val", "validation")  # of the pictures
_HEADER = ("caption", "url")  # of the tsv, where somebody put it there for img2dataset


@dataclasses.dataclass(frozen=True)
class Captioned:
    """An image with its captions.

    Attributes:
        id: of answers and submissions: a number of COCO and NoCaps, else the name of the image.
        image: its file, below a folder of images.
        captions: of people; empty where a file has none.
        domain: of NoCaps.
    """

    id: int | str
    image: str
    captions: tuple[str, ...] = ()
    domain: str = ""


@dataclasses.dataclass(frozen=True)
class Captions:
    """The images of a benchmark.

    Attributes:
        items: the images, in the order of the file.
        is_pool: whether there are more of them than the benchmark has, and nothing picks its split.
        asked: id -> image of a question file in LLaVA's layout, if there is one.
    """

    items: list[Captioned]
    is_pool: bool = False
    asked: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _known(self) -> dict[str, str]:
        found = collections.defaultdict(set)
        for item in self.items:
            for name in _names(item.image):
                found[name].add(str(item.id))
        known = {name: next(iter(ids)) for name, ids in found.items() if len(ids) == 1}
        return known | {str(item.id): str(item.id) for item in self.items}

    def key(self, name: str, *, is_image: bool = False) -> str:
        """Return the id that an answer means, as text; the name itself where it means none.

        Args:
            name: an id of an image, the name of its file, or an id of the question file.
            is_image: whether it is no id of the question file.
        """
        wanted = name if is_image else self.asked.get(name, name)
        return next((self._known[n] for n in _names(wanted) if n in self._known), name)


def _names(image: str) -> list[str]:
    """Return what an image may be called: its path, file, stem, and the number of a COCO file."""
    path = pathlib.PurePosixPath(image)
    number = path.stem.rpartition("_")[2]
    return [image, path.name, path.stem, *([str(int(number))] if number.isdecimal() else [])]


def read(task: str, files: Sequence[str | os.PathLike]) -> Captions:
    """Read the images of a benchmark with their captions.

    Args:
        task: one of `TASKS`.
        files: one or more; what one lacks of an image another may have. A `.txt` lists the names
            of the split, one a line; it is also found beside a pool under its usual name.

    Raises:
        SgqlmError: a file is missing or damaged, of another kind or benchmark, or the list has
            images that the captions have not.
    """
    whole, pools, lists, asked = [], [], [], {}
    for path in map(pathlib.Path, files):
        if path.suffix == ".txt":
            lists.append(path)
            continue
        try:
            found, is_pool = _file(task, path)
            if isinstance(found, dict):
                asked |= found
            else:
                unique = annotated.by_id([path], lambda _: [(str(i.id), i) for i in found], [])  # noqa: B023
                (pools if is_pool else whole).extend(unique.values())
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            why = f"a record is of another kind: {type(error).__name__} {error}"
            raise tables.damaged(path, why) from error
        beside = path.parent / LISTS.get(task, "")
        if is_pool and not lists and beside.is_file() and beside.suffix == ".txt":
            lists.append(beside)
    known = _merged([*whole, *pools])
    chosen = {str(item.id) for item in whole or pools}
    items = [item for key, item in known.items() if key in chosen]
    is_pool = bool(pools) and not whole
    for path in lists if is_pool else ():
        items, is_pool = _listed(items, path), False
    if asked and is_pool:
        of_asked = Captions(items)
        wanted = {of_asked.key(image, is_image=True) for image in asked.values()}
        items, is_pool = [item for item in items if str(item.id) in wanted], False
    return Captions(items, is_pool, asked)


def _merged(items: Sequence[Captioned]) -> dict[str, Captioned]:
    """Return id -> image, with the first captions and domain that any of its records has."""
    out: dict[str, Captioned] = {}
    for item in items:
        first = out.setdefault(str(item.id), item)
        more = {n: getattr(item, n) for n in ("captions", "domain") if not getattr(first, n)}
        if any(more.values()):
            out[str(item.id)] = dataclasses.replace(first, **more)
    return out


def _listed(items: Sequence[Captioned], path: pathlib.Path) -> list[Captioned]:
    """Return the images that a list names with the first word of each line, in its order."""
    names = [line.split()[0] for line in tables.read_text(path).splitlines() if line.strip()]
    found, by_id = Captions(list(items)), {str(item.id): item for item in items}
    keys = list(dict.fromkeys(found.key(name) for name in names))
    if absent := [key for key in keys if key not in by_id]:
        raise tables.damaged(
            path, f"the captions lack {len(absent)} of its images: {joining.shown(absent)}"
        )
    return [by_id[key] for key in keys]


def _file(task: str, path: pathlib.Path) -> tuple[Any, bool]:
    """Return (images, whether they are a pool); of LLaVA's layout id -> image in their place."""
    if task == CONCEPTUAL and (path.is_dir() or path.name.endswith(_STATS)):
        return list(_img2dataset(path if path.is_dir() else path.parent)), False
    if path.suffix == ".token":
        told = captions.read_flickr(tables.read_text(path).splitlines())
        return [_item(task, str(name), texts) for name, texts in told.items()], True
    if task == CONCEPTUAL and path.suffix == ".tsv":
        return list(_gcc(path)), True
    value = tables.load(path)
    value = [value] if "image" in value else value  # a file of one line
    records = value if isinstance(value, list) else value.get("images") or []
    first = records[0] if records and isinstance(records[0], Mapping) else {}
    if isinstance(value, dict) and "sentences" in first:
        return _karpathy(task, path, value), False
    if "annotations" in value or {"image_id", "caption"} <= set(first):
        is_pool = path.name.startswith(_WHOLE_COCO) and task == COCO
        return _coco(task, value if isinstance(value, dict) else {"annotations": value}), is_pool
    if {"question_id", "image", "text"} <= set(first):
        tables.need(records, ("question_id", "image", "text"), path)
        return {str(record["question_id"]): str(record["image"]) for record in records}, False
    if isinstance(value, list) and "image" in first:
        tables.need(records, ("image",), path)
        return [_of_list(task, record) for record in records], False
    raise tables.damaged(path, f"it is in none of the layouts that {task} is known in")


def _item(task: str, image: str, texts: Sequence[str], number: Any = None, domain: str = ""):
    """Return an image under the id that its benchmark gives it."""
    name = pathlib.PurePosixPath(image).name
    if task == CONCEPTUAL:
        return Captioned(image, image, tuple(texts))
    if task == FLICKR:
        return Captioned(name, name, tuple(texts))
    if number is None and task == COCO:
        number = pathlib.PurePosixPath(name).stem.rpartition("_")[2]
    if number is None:
        raise ValueError(f"the image {name} has no id")
    return Captioned(int(number), name, tuple(texts), str(domain))


def image_id(task: str, image: str, question: str) -> int | str:
    """Return the id of an image by its file, of NoCaps by the id of its question.

    Raises:
        SgqlmError: there is none in it.
    """
    try:
        return _item(task, image, (), question if task == NOCAPS else None).id
    except ValueError as error:
        raise errors.SgqlmError(
            "an image has no number",
            where=question if task == NOCAPS else image,
            fix="give the official file with --questions",
            code=errors.DATA,
        ) from error


def _karpathy(task: str, path: pathlib.Path, value: Mapping[str, Any]) -> list[Captioned]:
    name = value.get("dataset", _KARPATHY.get(task))
    if name != _KARPATHY.get(task):
        raise tables.damaged(path, f"it is of {name}, not of {task}")
    return [
        _item(task, i["filename"], [s["raw"] for s in i["sentences"]], i.get("cocoid"))
        for i in value["images"]
        if i["split"] == _SPLIT
    ]


def _coco(task: str, value: Mapping[str, Any]) -> list[Captioned]:
    """Return the images of `images` and `annotations`; Karpathy's test is of val2014."""
    texts = captions.read_references(value) if value.get("annotations") else {}
    images = {image["id"]: image for image in value.get("images", ())}
    out = []
    for number in {**images, **texts}:
        about = images.get(number, {})
        named = next((about[n] for n in ("file_name", "image", "filename") if about.get(n)), "")
        plain = {COCO: f"COCO_val2014_{number:0>12}.jpg", FLICKR: f"{number}.jpg"}
        image = str(named or plain.get(task, f"{number}.jpg"))
        out.append(_item(task, image, texts.get(number, ()), number, about.get("domain", "")))
    return out


def _of_list(task: str, record: Mapping[str, Any]) -> Captioned:
    told = next((record[n] for n in ("caption", "captions") if record.get(n)), ())
    texts = [told] if isinstance(told, str) else list(map(str, told))
    number = next((record[n] for n in ("img_id", "image_id") if n in record), None)
    return _item(task, str(record["image"]), texts, number, record.get("domain", ""))


def _gcc(path: pathlib.Path) -> Iterator[Captioned]:
    """Yield the lines of the tsv; their pictures lie where img2dataset puts row n, from 0.

    Where some of the pictures are there, lines without one are left out: many of the addresses
    are dead.
    """
    lines = [line for line in tables.read_text(path).split("\n") if line.strip()]
    rows = [tuple(line.split("\t")) for line in lines]
    if short := [at for at, row in enumerate(rows, 1) if len(row) < 2]:
        raise tables.damaged(path, f"line {short[0]} has no `caption<tab>url`")
    rows = rows[1:] if rows and rows[0][:2] == _HEADER else rows
    found = [
        Captioned(name, name, (row[0],))
        for at, row in enumerate(rows)
        for name in [f"{at // _SHARD:05d}/{at:09d}.jpg"]
    ]
    folders = [path.parent / name for name in CONCEPTUAL_FOLDERS]
    there = [item for item in found if any((place / item.image).is_file() for place in folders)]
    yield from there or found


def _img2dataset(folder: pathlib.Path) -> Iterator[Captioned]:
    """Yield the pictures of img2dataset's output `files`, by the json beside each of them."""
    found = 0
    for path in sorted(folder.glob("*/*.json")):
        value = json.loads(path.read_text("utf-8"))
        near = [file for file in path.parent.glob(f"{path.stem}.*") if _is_picture(file)]
        if near and value.get("caption"):
            image, found = near[0].relative_to(folder).as_posix(), found + 1
            yield Captioned(image, image, (str(value["caption"]),))
    if not found:
        raise tables.damaged(folder, "it has no picture with a json beside it, of img2dataset")


def _is_picture(path: pathlib.Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")


def results(path: str | os.PathLike) -> list[tables.Answer]:
    """Read captions: LLaVA's answers, or COCO's results, also under `imgToEval`.

    Raises:
        SgqlmError: the file is missing or damaged.
    """
    value = tables.load(path)
    if isinstance(value, Mapping) and isinstance(value.get("imgToEval"), Mapping):
        value = list(value["imgToEval"].values())
    first = value[0] if isinstance(value, list) and value else {}
    if not isinstance(first, Mapping) or not set(_RESULT) <= set(first):
        return tables.answers(path)
    tables.need(value, _RESULT, path)
    return [
        tables.Answer(str(record["image_id"]), str(record["caption"] or ""), "", None, record)
        for record in value
    ]


def without_split(task: str, path: str | os.PathLike) -> errors.SgqlmError:
    """Return the error for a pool where the images of the benchmark are needed."""
    name = LISTS.get(task, "")
    return errors.SgqlmError(
        f"the file has more images than {task}, and nothing says which are meant",
        where=str(path),
        fix=f"put {name} beside it, with a name of an image a line, or give Karpathy's file",
        code=errors.DATA,
    )


def annotations(
    files: Sequence[pathlib.Path], others: Callable[[], Sequence[pathlib.Path]]
) -> tuple[pathlib.Path, ...]:
    """Return the files that score the answers to these questions.

    Args:
        files: the question files.
        others: finds the first further file with captions; asked for only where it is needed.
    """
    if all(path.suffix in (".jsonl", ".txt") or path.name == "nocaps_val.json" for path in files):
        more = [path for path in others() if path not in files]
        return (*files, *more) if more else ()
    return tuple(files)
