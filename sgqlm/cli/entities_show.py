"""`sgqlm entities show`: look at the entities of a store or of a photograph."""

import argparse
import dataclasses
import difflib
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.cli import extractor_flags
from sgqlm.data import graphs, images, records
from sgqlm.data.relations import annotations
from sgqlm.entities import settings
from sgqlm.train import progress
from sgqlm.viz import canvas, coverage, gallery, overlay, pages, panels, sheet

_VIEW = "24x24:pad"  # LLaVA-1.5's
_SIDES = (400, 8000)


@dataclasses.dataclass(frozen=True)
class _Found:
    """An image with its entities, before a model has seen it."""

    row: int
    key: str
    image: Image.Image | None
    entities: graphs.Entities | None
    status: str
    relations: panels.Relations | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is to be shown: a title, how many images, how they were made, and the images."""

    title: str
    subtitle: str
    count: int
    about: Mapping[str, Any]
    found: Iterator[_Found]


def add_parser(verbs) -> None:
    """Add the verb `show` to the parser of `sgqlm entities`."""
    text = "write a page and pictures of entities: boxes, masks, scene graph, coverage"
    show = verbs.add_parser("show", help=text, description=text)
    show.add_argument("store", nargs="?", type=pathlib.Path, help="entity store, or built data set")
    show.add_argument("--images", type=pathlib.Path, help="folder of the photographs, or data set")
    show.add_argument("--n", type=int, default=8, help="images to show (8)")
    show.add_argument("--start", type=int, default=0, help="row of the first image (0)")
    show.add_argument("--keys", help="show these images: keys with commas between them")
    show.add_argument(
        "--image", type=pathlib.Path, action="append",
        help="find and show the entities of this photograph; may be given several times",
    )  # fmt: skip
    show.add_argument("--checkpoint", help="a model, whose scene graph and attention are drawn")
    show.add_argument("--base", help="where the base weights of the model lie, if they were moved")
    show.add_argument("--prompt", default="", help="the question that the scene graph hears")
    show.add_argument("--top-edges", type=int, default=2, help="arrows drawn per node (2)")
    show.add_argument(
        "--side", type=int, default=1800, help="width of a PNG in pixels; 1800 is 6 in at 300 dpi"
    )
    show.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/entities"))
    extractor_flags.add(show)
    show.set_defaults(run=run, extractor=None)  # so that it is known whether one was given


def run(args: argparse.Namespace) -> int:
    """Write `entities.html` and one PNG an image.

    Args:
        args: of the parser that `add_parser` made.

    Returns:
        The exit code.
    """
    _check(args)
    work = _live(args) if args.image else _stored(args)
    model = _model(args)
    cards, names, most, texts, absent = [], [], 0, set(), []
    with progress.Progress("pictures", work.count) as line:
        for found in work.found:
            record = _record(found, model, args)
            cards.append(gallery.card(record, len(cards)))
            names.append(found.key)
            most = max(most, len(record.entities) if record.entities is not None else 0)
            absent += [found.key] if record.image is None else []
            if record.image is not None and record.entities is not None:
                _write_picture(args.out, found, record, args.side)
                texts |= set(record.entities.labels)
            line.update(len(cards))
    _tell_absent(absent, work.count, args.images or args.store)
    if missing := "".join(sorted({c for text in texts for c in canvas.undrawable(text)})):
        told = f"no font of this machine has {missing}: the PNG files show ?, the page is right"
        print(f"note: {told}", file=sys.stderr)
    document = gallery.page(
        work.title, cards, subtitle=work.subtitle, names=names, about=work.about, most=most
    )
    print(pages.write(args.out / "entities.html", document))
    return errors.OK


def _tell_absent(absent: Sequence[str], count: int, folder: pathlib.Path | None) -> None:
    """Say which images could not be shown; refuse a page without any."""
    if not absent:
        return
    listed = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
    if len(absent) == count:
        raise errors.SgqlmError(
            "none of the images can be shown", where=str(folder), why=f"missing: {listed}",
            fix="name the folder that the keys of the store start from with --images",
            code=errors.DATA,
        )  # fmt: skip
    print(f"note: {len(absent)} of {count} images cannot be shown: {listed}", file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    if args.out.is_file():
        raise _usage("the output is a file", f"--out={args.out}", "name a folder")
    fields = [field.name for field in dataclasses.fields(settings.ExtractorConfig)]
    given = [name for name in fields if name not in ("name", "views")]
    given = ["--" + name.replace("_", "-") for name in given if getattr(args, name) is not None]
    given += ["--extractor"] if args.extractor is not None else []
    if bool(args.store) == bool(args.image):
        raise _usage(
            "it is not said what to show" if not args.image else "a store and an image are given",
            "sgqlm entities show", "name an entity store or data set, or a photograph with --image",
        )  # fmt: skip
    if args.store and given:
        fix = "give --image PHOTO, or make the store with `sgqlm entities extract`"
        raise _usage("a store has its entities already", ", ".join(given), fix)
    if args.prompt and not args.checkpoint:
        raise _usage("only a model can hear a question", "--prompt", "name one with --checkpoint")
    for flag, value, low, high in (
        ("--n", args.n, 1, 1000),
        ("--start", args.start, 0, None),
        ("--top-edges", args.top_edges, 0, None),
        ("--side", args.side, *_SIDES),
    ):
        if value < low or (high is not None and value > high):
            limit = f"{low} or more" if high is None else f"a number from {low} to {high}"
            raise _usage(f"{value} is out of range", flag, f"give {limit}")
    for name in _words(args.views):
        coverage.parse(name)


def _live(args: argparse.Namespace) -> _Work:
    """Return the photographs given with --image; their entities are found on the way."""
    for path in args.image:
        if not path.is_file():
            raise errors.SgqlmError(
                "there is no such picture", where=str(path), fix="give an image file",
                code=errors.DATA,
            )  # fmt: skip
    args.extractor = args.extractor or "regions"
    made = settings.make(extractor_flags.read(args))

    def found() -> Iterator[_Found]:
        for row, path in enumerate(args.image):
            image = images.open_image(path)
            entities = made.extract(image)
            status = "ok" if len(entities) else "empty"
            yield _Found(row, path.name, image, entities, status)

    title = args.image[0].name if len(args.image) == 1 else f"Entities of {len(args.image)} images"
    about = {"extractor": made.name, "settings": dict(made.settings())}
    return _Work(title, f"Extractor: {made.name}", len(args.image), about, found())


def _stored(args: argparse.Namespace) -> _Work:
    """Return the chosen rows of an entity store."""
    folder = args.store / "entities" if (args.store / "entities").is_dir() else args.store
    store = records.EntityStore(folder)
    read = _reader(args.images or args.store)
    keys = store.keys()
    rows = _rows(args, keys)
    known = _annotated(args.store, rows)

    def found() -> Iterator[_Found]:
        for row in rows:
            yield _one(store, row, keys[row], read, known.get(row))

    about = store.manifest["about"]
    name = about.get("extractor", "unknown")
    subtitle = f"{len(rows)} of {len(store)} images. Extractor: {name}"
    return _Work(f"Entities of {folder}", subtitle, len(rows), about, found())


def _rows(args: argparse.Namespace, keys: Sequence[str]) -> list[int]:
    if args.keys is None:
        if args.start >= len(keys):
            raise _usage(f"there are {len(keys)} images", "--start", "give a smaller number")
        return list(range(args.start, min(len(keys), args.start + args.n)))
    places = {key: row for row, key in enumerate(keys)}
    wanted = _words(args.keys)
    if unknown := [key for key in wanted if key not in places]:
        near = difflib.get_close_matches(unknown[0], keys, n=3, cutoff=0.5) or keys[:3]
        raise _usage(f"there is no image {unknown[0]!r}", "--keys", f"near: {', '.join(near)}")
    if not wanted:
        raise _usage("there is no key", "--keys", f"give some, as in {','.join(keys[:2])}")
    return [places[key] for key in dict.fromkeys(wanted)]


def _one(
    store: records.EntityStore,
    row: int,
    key: str,
    read: Callable[[str], bytes],
    relations: panels.Relations | None,
) -> _Found:
    """Return one row; what is wrong with its image becomes its status."""
    status, entities, notes = store.status(row), None, ()
    if not status.startswith("error"):
        entities = store[row]
    try:
        data = read(key)
        image = images.open_image(data, where=key)
    except (errors.SgqlmError, OSError, KeyError) as error:
        reason = error.what if isinstance(error, errors.SgqlmError) else _reason(error)
        status = status if status.startswith("error") else f"error: {reason}"
        return _Found(row, key, None, entities, status, relations)
    known = store.image_digest(row)
    if known and known != hashlib.sha256(data).hexdigest():
        notes = ("The image file is not the one in which the entities were found.",)
    if entities is not None and entities.size != (image.height, image.width):
        height, width = entities.size
        status = f"error: the image has {image.width} x {image.height} pixels, but its entities"
        status += f" are those of one with {width} x {height}"
        entities = None
    return _Found(row, key, image, entities, status, relations, notes)


def _annotated(folder: pathlib.Path, rows: Sequence[int]) -> dict[int, panels.Relations]:
    """Return what is annotated, of the rows that are shown."""
    if not (folder / annotations.FILE).is_file():
        return {}
    found, wanted = {}, set(rows)
    for row, item in enumerate(annotations.iterate(folder)):
        if row in wanted:
            boxes = np.array([thing.box for thing in item.objects], np.float32).reshape(-1, 4)
            names = [thing.name for thing in item.objects]
            triples = [(r.subject, r.predicate, r.object) for r in item.relations]
            found[row] = panels.Relations(boxes, names, triples)
        if row >= max(wanted):
            break
    return found


def _record(found: _Found, model: Any, args: argparse.Namespace) -> panels.Record:
    """Let the model see an image, and make the image small enough for a page."""
    image, entities, attention = found.image, found.entities, None
    if model is not None and image is not None and entities is not None and len(entities):
        graph = model.scene_graph(image, args.prompt, entities)
        nodes = np.asarray(graph.source, np.int32)
        attention = panels.Attention(
            args.prompt, nodes, graph.node_attention, graph.edges, graph.words,
            np.asarray(graph.word_attention),
        )  # fmt: skip
        if not any(entities.labels) and any(graph.entities.labels):
            labels = [""] * len(entities)
            for node, label in zip(nodes.tolist(), graph.entities.labels, strict=True):
                labels[node] = label
            entities = dataclasses.replace(entities, labels=labels)
    if image is not None and max(image.size) > panels.PHOTO:
        image = overlay.fit(image, panels.PHOTO)
    views = [coverage.parse(name) for name in _views(args, model, entities)]
    return panels.Record(
        found.key, image, entities, found.status, attention, found.relations, views,
        found.notes, args.top_edges,
    )  # fmt: skip


def _views(args: argparse.Namespace, model: Any, entities: graphs.Entities | None) -> Sequence[str]:
    """Return the patch grids to show: the chosen ones, the model's, the stored ones, LLaVA's."""
    if args.views:
        return _words(args.views)
    if model is not None:
        shape = model.config.model
        side = shape.vision.image_size
        return [graphs.view(shape.vision.grid, shape.image_fit, image_size=side)]
    return sorted(entities.coverage) if entities is not None and entities.coverage else [_VIEW]


def _model(args: argparse.Namespace) -> Any:
    if not args.checkpoint:
        return None
    from sgqlm import model as model_lib

    model = model_lib.load(args.checkpoint, base=args.base)
    if not model.config.model.graph.enabled:
        raise errors.SgqlmError(
            "this model has no scene graph", where=args.checkpoint,
            fix="name a model with one, or leave --checkpoint out",
        )  # fmt: skip
    return model


def _write_picture(out: pathlib.Path, found: _Found, record: panels.Record, side: int) -> None:
    path = out / f"{pathlib.PurePosixPath(found.key).stem}-{found.row}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.draw(record, side=side).save(path, dpi=(sheet.INCH, sheet.INCH))


def _reader(folder: pathlib.Path) -> Callable[[str], bytes]:
    """Return how to read the image of a key: from a built data set or a folder of files."""
    if (folder / "images" / records.MANIFEST).is_file():
        store = records.ImageStore(folder / "images")
        rows = {key: row for row, key in enumerate(store.keys())}
        return lambda key: store[rows[key]].data
    if (folder / records.MANIFEST).is_file():
        raise errors.SgqlmError(
            "an entity store has no images",
            where=str(folder),
            fix="name their folder with --images",
        )
    if not folder.is_dir():
        raise _usage(
            "there is no such folder", str(folder),
            "name the folder of the photographs with --images",
        )  # fmt: skip
    return lambda key: (folder / key).read_bytes()


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the image file is missing"
    if isinstance(error, KeyError):
        return "the image store has no image of this key"
    return f"the image cannot be read: {error}"


def _usage(what: str, where: str, fix: str) -> errors.SgqlmError:
    return errors.SgqlmError(what, where=where, fix=fix)
