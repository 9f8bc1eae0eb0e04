"""Relation data sets: three stores and `annotations.jsonl`, made from what a reader gives.

How a command uses this (`card` is the data set's card, `card.rest["reader"]` a name in
`readers.READERS`):

    report = types.Report()
    text = endpoint.Endpoint(URL, MODEL, CACHE, report) or None   # None: by rule; `grit` alone
    found = readers.read(NAME, FOLDER, images=IMAGES, report=report, splits=SPLITS, text=text,
                         progress=progress)                      # streams types.Annotated
    settings = conversations.Settings(seed=, max_per_predicate=, per_image=, rounds=,
                                      templates=card.rest.get("templates", DEFAULT),
                                      synonyms=synonyms.load(FILE or None))
    summary = check(found, IMAGES, exclude=exclude, report=report, decode=True)   # writes nothing,
                                                          # from a reader with keep_missing=True
    summary = build(found, IMAGES, OUT, settings=settings, masks=masks, exclude=exclude,
                    report=report, budget=0.0, about={...}, progress=progress)

Flags: `--images` (default: `FOLDER/images` where it is, else FOLDER), `--split` (several allowed;
default train), `--seed`, `--max-per-predicate`, `--per-image`, `--rounds`, `--synonyms=FILE`,
`--exclude=FILE...`, `--segmenter`, `--segmenter-weights`, `--text-to-relations=URL` with
`--text-model` (answers in FOLDER/relations-MODEL.jsonl), `--drop-bad --budget`.
`exclude(key, image_id)` returns a reason or None. `masks(image, boxes)` takes an upright RGB
picture and f32[n, 4] and returns bool[n, h, w]. Leave with `errors.DATA` if `summary.faults`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, images, records
from sgqlm.data.relations import annotations, assemble, balance, conversations, types

IMAGES, ENTITIES, CONVERSATIONS = "images", "entities", "conversations"
RELATED, UNRELATED = 1.0, 0.5  # scores of nodes: those that relations speak of are kept first
SAME_NODE = 0.9  # IoU above which two boxes are one node, whatever they are called
VIEWS = ("24x24:pad",)  # that of LLaVA-1.5
_MANY = 20  # faults after which a build without a budget gives up

Exclude = Callable[[str, str], str | None]
MakeMasks = Callable[[Image.Image, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was found or built.

    Attributes:
        images: images that can be used.
        objects: their objects.
        relations: their relations.
        conversations: number of conversations by split; empty after a check.
        kinds: number of questions by template; empty after a check.
        predicates: number of relations by predicate, as annotated, the most frequent first.
        excluded: number of images by list that excluded them.
        faults: number of images that cannot be used.
    """

    images: int
    objects: int
    relations: int
    conversations: Mapping[str, int]
    kinds: Mapping[str, int]
    predicates: Mapping[str, int]
    excluded: Mapping[str, int]
    faults: int


def check(
    found: Iterable[types.Annotated],
    root: pathlib.Path | None,
    *,
    exclude: Exclude | None = None,
    report: types.Report,
    decode: bool = True,
) -> Summary:
    """Read everything and write nothing.

    Args:
        found: what a reader gives, those of missing images too (`keep_missing`).
        root: image root the keys start from; None: images are not looked at.
        exclude: key and image id to the reason why an image is left out, or None.
        report: the reader's; receives what is wrong with images.
        decode: also decode every image.
    """
    taken = _Taken(root, exclude, report, budget=1.0, decode=decode, is_check=True)
    for _ in taken.items(found):
        pass
    return taken.summary({}, {})


def build(
    found: Iterable[types.Annotated],
    root: pathlib.Path,
    out: pathlib.Path,
    *,
    settings: conversations.Settings | None = None,
    masks: MakeMasks | None = None,
    exclude: Exclude | None = None,
    report: types.Report | None = None,
    budget: float = 0.0,
    overwrite: bool = False,
    views: Sequence[str] = VIEWS,
    about: Mapping[str, Any] | None = None,
    progress: types.Progress = lambda what, done, total: None,
) -> Summary:
    """Write the stores of a relation data set; `out` is whole or absent.

    Nodes are the annotated boxes or masks. They have no labels: an annotated label may be what is
    asked for. Boxes that nearly coincide are one node, whatever their names.

    Args:
        found: what a reader gives, read with the same image root.
        root: image root the keys start from.
        out: becomes the data set; a data set that stood there is replaced.
        settings: of the conversations.
        masks: makes masks of boxes; None: the boxes themselves, unless the data set has masks.
        exclude: key and image id to the reason why an image is left out, or None.
        report: the reader's; receives what is wrong with images.
        budget: share of images that may be left out because they cannot be used.
        overwrite: replace also entities that this would not make, such as extracted ones.
        views: patch grids whose coverage is stored, see `graphs.view`; others are made when read.
        about: json values to remember with the conversations.
        progress: called with (what, done, altogether).

    Raises:
        SgqlmError: `out` is something else, more images than `budget` cannot be used, or nothing is
            left.
    """
    settings, root = settings or conversations.Settings(), pathlib.Path(root)
    _refuse_other(out)
    if not overwrite:
        _refuse_loss(out, _entities_about(masks))
    taken = _Taken(root, exclude, report or types.Report(), budget)
    with records.staged(out) as aside:
        _write_images(taken, found, aside)
        taken.refuse(final=True)
        _write_entities(aside, taken.images, masks, views, progress)
        talks, kinds = _write_conversations(aside, taken, settings, about, progress)
    return taken.summary(talks, kinds)


class _Taken:
    """Takes usable images and counts them, and the others by reason."""

    def __init__(
        self,
        root: pathlib.Path | None,
        exclude: Exclude | None,
        report: types.Report,
        budget: float,
        *,
        decode: bool = True,
        is_check: bool = False,
    ):
        self._root, self._exclude, self.report, self._budget = root, exclude, report, budget
        self._decode, self._is_check = decode, is_check
        self.images = self.objects = self.relations = 0
        self.excluded: dict[str, int] = {}
        self.predicates: dict[str, int] = {}
        self.data = b""  # the file of the image that was given last
        self._keys: set[str] = set()

    def items(self, found: Iterable[types.Annotated]) -> Iterator[types.Annotated]:
        """Yield usable images at their own size."""
        self.report.watch = self.refuse
        for item in found:
            if not item.relations and not any(thing.attributes for thing in item.objects):
                self.report.note("image without relations and attributes", item.key)
            elif item.key in self._keys:
                self.report.note("image given twice", item.key)
            elif reason := self._exclude(item.key, item.image_id) if self._exclude else None:
                self.excluded[reason] = self.excluded.get(reason, 0) + 1
            elif item.fault:
                self.report.fault(item.fault, item.key)
            elif (sized := self._sized(item)) is not None:
                self._keys.add(item.key)
                self.images += not self._is_missing(item)
                self.objects += len(sized.objects)
                self.relations += len(sized.relations)
                for relation in sized.relations:
                    word = relation.predicate
                    self.predicates[word] = self.predicates.get(word, 0) + 1
                yield sized

    def _is_missing(self, item: types.Annotated) -> bool:
        """Return whether a check met an image that is not there, which its reader counted."""
        return self._is_check and bool(self._root) and not (self._root / item.key).is_file()

    def _sized(self, item: types.Annotated) -> types.Annotated | None:
        if self._root is None or not self._decode or self._is_missing(item):
            return item
        try:
            self.data = (self._root / item.key).read_bytes()
            width, height = images.open_image(self.data, where=item.key).size
        except OSError as error:
            self.report.fault("image missing", f"{item.key}: {error.strerror}")
            return None
        except errors.SgqlmError as error:
            self.report.fault(error.what, item.key + (f" ({error.why})" if error.why else ""))
            return None
        if (sized := assemble.rescaled(item, (height, width))) is None:
            sizes = f"{item.size[1]} x {item.size[0]} annotated, {width} x {height} found"
            self.report.fault("image of another shape than annotated", f"{item.key}: {sizes}")
        return sized

    def refuse(self, *, final: bool = False) -> None:
        """Stop if too many images cannot be used.

        Raises:
            SgqlmError: with exit code `DATA`, naming the first of them.
        """
        faults = sum(self.report.faults.values())
        seen = self.images + faults
        if faults > self._budget * seen and (final or (not self._budget and faults >= _MANY)):
            lines = [f"{n} x {reason}" for reason, n in self.report.faults.items()]
            lines += [e for reason in self.report.faults for e in self.report.examples[reason]]
            raise errors.SgqlmError(
                f"{faults} of {seen} images cannot be used, allowed are {self._budget:.2%}",
                where=str(self._root or ""),
                why="\n    ".join(lines[:_MANY]),
                fix="get these images, or leave them out with --drop-bad --budget=SHARE",
                code=errors.DATA,
            )
        if final and not self.images:
            raise errors.SgqlmError(
                "no image with relations is left",
                where=str(self._root or ""),
                why="\n    ".join(self.report.lines()[:_MANY]),
                fix="look at the reasons with `sgqlm data check`",
                code=errors.DATA,
            )

    def summary(self, talks: Mapping[str, int], kinds: Mapping[str, int]) -> Summary:
        """Return the counts."""
        order = sorted(self.predicates, key=lambda p: (-self.predicates[p], p))
        return Summary(
            self.images,
            self.objects,
            self.relations,
            talks,
            kinds,
            {word: self.predicates[word] for word in order},
            self.excluded,
            sum(self.report.faults.values()),
        )


def _write_images(taken: _Taken, found: Iterable[types.Annotated], aside: pathlib.Path) -> None:
    """Write the image store and, in the order of its rows, the annotations."""
    with (aside / annotations.FILE).open("w", encoding="utf-8") as lines:

        def rows() -> Iterator[records.Image]:
            for item in taken.items(found):
                lines.write(annotations.encode(item) + "\n")
                yield records.Image(item.key, taken.data, item.size)

        records.write_images(aside / IMAGES, rows())


def _write_entities(
    aside: pathlib.Path,
    total: int,
    masks: MakeMasks | None,
    views: Sequence[str],
    progress: types.Progress,
) -> None:
    stored = records.ImageStore(aside / IMAGES) if masks else None

    def rows() -> Iterator[tuple[str, graphs.Entities]]:
        for row, item in enumerate(annotations.iterate(aside)):
            picture = images.open_image(stored[row].data, where=item.key) if stored else None
            found = nodes(item, masks=masks, picture=picture)
            for grid, fit, image_size in map(graphs.parse_view, views):
                found = found.with_coverage(grid, fit, image_size=image_size)
            yield item.key, found
            progress("entities", row + 1, total)

    records.write_entities(aside / ENTITIES, rows(), about=_entities_about(masks))


def _entities_about(masks: MakeMasks | None) -> dict[str, Any]:
    made = "segmenter" if masks else "boxes"
    return {"extractor": "annotated", "labels": False, "masks": made}


def nodes(
    item: types.Annotated,
    *,
    masks: MakeMasks | None = None,
    picture: Image.Image | None = None,
) -> graphs.Entities:
    """Return the annotated objects as entities without labels.

    Their order tells neither names nor roles: related objects first, then by area. It and what
    counts as one node are functions of boxes and of which objects are related to any other.

    Args:
        item: an image at the size of its file.
        masks: makes masks for objects that have none; needs `picture`.
        picture: the upright image.
    """
    related = {end for r in item.relations for end in (r.subject, r.object)}
    boxes = np.array([t.box for t in item.objects], np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = sorted(
        range(len(boxes)), key=lambda i: (i not in related, -areas[i], boxes[i].tolist())
    )
    kept: list[int] = []
    for index in order:
        thing = item.objects[index]
        if thing.mask is not None or not any(
            assemble.iou(item.objects[k].box, thing.box) > SAME_NODE for k in kept
        ):
            kept.append(index)
    scores = np.array([RELATED if i in related else UNRELATED for i in kept], np.float32)
    coded = {i: item.objects[i].mask for i in kept}
    plain = [i for i, mask in coded.items() if mask is None]
    for i, mask in zip(plain, _masks(boxes[plain], item.size, masks, picture), strict=True):
        coded[i] = mask
    found = [mask for i in kept if (mask := coded[i]) is not None]
    return graphs.Entities(found, boxes[kept], [], scores, item.size)


def _masks(
    boxes: np.ndarray,
    size: tuple[int, int],
    masks: MakeMasks | None,
    picture: Image.Image | None,
) -> Iterator[graphs.Rle]:
    """Yield one mask a box: made from the picture, or the box where that finds nothing."""
    plain = graphs.Entities.from_boxes(boxes, size).masks
    if masks is None or picture is None or not len(boxes):
        yield from plain
        return
    for mask, box in zip(np.asarray(masks(picture, boxes), bool), plain, strict=True):
        yield graphs.encode_rle(mask) if mask.any() else box


def _write_conversations(
    aside: pathlib.Path,
    taken: _Taken,
    settings: conversations.Settings,
    about: Mapping[str, Any] | None,
    progress: types.Progress,
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the conversations of each split; return their numbers, and those of questions."""
    splits = list(dict.fromkeys(item.split for item in annotations.iterate(aside)))
    talks, kinds, done = dict.fromkeys(splits, 0), dict.fromkeys(settings.templates, 0), 0

    def rows(split: str) -> Iterator[records.Conversation]:
        nonlocal done
        chosen = balance.choose(_of(aside, split), settings)
        others = conversations.frequent(balance.count(_of(aside, split), settings))
        for number, (row, item) in enumerate(_numbered(aside, split)):
            asked = conversations.questions(
                item, settings, chosen=chosen.get(number, ()), others=others
            )
            for question in asked:
                kinds[question.kind] += 1
            for index, turns in enumerate(conversations.conversations(asked, settings.rounds)):
                talks[split] += 1
                yield records.Conversation(f"{item.key}#{index}", turns, row, row)
            done += 1
            progress("conversations", done, taken.images)

    values = dataclasses.asdict(settings) | {"synonyms": len(settings.synonyms.table)}
    counts = dict(taken.report.notes + taken.report.faults)
    told = {"settings": values, "left_out": counts, "excluded": taken.excluded} | dict(about or {})
    records.write_conversations(
        aside / CONVERSATIONS, {split: rows(split) for split in splits}, about=told
    )
    return talks, kinds


def _numbered(aside: pathlib.Path, split: str) -> Iterator[tuple[int, types.Annotated]]:
    for row, item in enumerate(annotations.iterate(aside)):
        if item.split == split:
            yield row, item


def _of(aside: pathlib.Path, split: str) -> Iterator[types.Annotated]:
    return (item for _, item in _numbered(aside, split))


def _refuse_other(out: pathlib.Path) -> None:
    """Refuse to replace what is no data set."""
    is_data_set = (out / CONVERSATIONS / records.MANIFEST).is_file()
    if out.exists() and not is_data_set and not (out.is_dir() and not any(out.iterdir())):
        raise errors.SgqlmError(
            "the output would replace something else",
            where=str(out),
            fix="name a folder that does not exist yet with --out",
        )


def _refuse_loss(out: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Refuse to replace entities that a build with these settings does not make."""
    if not (out / ENTITIES / records.MANIFEST).is_file():
        return
    before = records.read_manifest(out / ENTITIES, kind=ENTITIES)["about"]
    if before != about:
        made = before.get("extractor", "another extractor")
        masks = f", masks {before.get('masks')}" if made == about["extractor"] else ""
        raise errors.SgqlmError(
            "the data set that is there has other entities",
            where=str(out / ENTITIES),
            why=f"they were made by {made}{masks}, and would be lost",
            fix="name another folder with --out, or replace them with --overwrite",
        )
