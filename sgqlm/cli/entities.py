"""`sgqlm entities extract | show`: find the entities in images, or look at them."""

import argparse
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, images, records
from sgqlm.entities import extract
from sgqlm.train import progress
from sgqlm.viz import overlay, pages

_BOXES = 12  # more boxes in one picture cannot be told apart


def run(argv: list[str]) -> int:
    """Run `sgqlm entities`; return the exit code."""
    args = _parser().parse_args(argv)
    return args.run(args)


def gallery(
    title: str,
    rows: Sequence[tuple[str, Image.Image | None, graphs.Entities | str]],
    *,
    subtitle: str = "",
) -> str:
    """Return a page with masks, boxes and a table of entities for each image.

    Args:
        title: of the page.
        rows: key, image (None where it cannot be shown), and its entities or why there are none.
        subtitle: a line under the title.

    Returns:
        The HTML document.
    """
    return pages.page(title, [_card(*row) for row in rows], subtitle=subtitle)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sgqlm entities", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="{extract,show}")
    make = verbs.add_parser("extract", help="find the entities in images")
    make.add_argument("--extractor", default="regions", help=", ".join(extract.EXTRACTORS))
    what = make.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=pathlib.Path, help="folder of photographs")
    what.add_argument("--data", type=pathlib.Path, help="data set that `sgqlm data build` wrote")
    make.add_argument("--out", type=pathlib.Path, required=True, help="becomes the entity store")
    make.add_argument("--shard-size", type=int, default=256, help="images of one shard")
    make.set_defaults(run=_extract)
    show = verbs.add_parser("show", help="write a page and pictures of entities")
    show.add_argument("store", type=pathlib.Path, help="entity store, or a built data set")
    show.add_argument("--images", type=pathlib.Path, help="folder of the photographs, or data set")
    show.add_argument("--n", type=int, default=8, help="images to show")
    show.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/entities"))
    show.set_defaults(run=_show)
    return parser


def _extract(args: argparse.Namespace) -> int:
    extractor = extract.make(args.extractor)
    folder = args.images or args.data
    if not folder.is_dir():
        raise _missing(folder, "give an existing folder")
    if args.shard_size < 1:
        raise errors.SgqlmError(
            "a shard needs an image", where="--shard-size", fix="give 1 or more"
        )
    sources = extract.from_folder(folder) if args.images else extract.from_store(folder / "images")
    with progress.Progress(f"entities ({args.extractor})", len(sources)) as line:
        summary = extract.run(
            extractor,
            sources,
            args.out,
            shard_size=args.shard_size,
            progress=lambda done, total: line.update(done),
        )
    new = summary.images - summary.reused
    print(f"{args.out}: {summary.entities} entities in {summary.images} images, {new} of them new")
    for key, reason in summary.failed[:20]:
        print(f"  without entities: {key}: {reason}")
    if len(summary.failed) > 20:
        print(f"  and {len(summary.failed) - 20} more")
    return errors.OK


def _show(args: argparse.Namespace) -> int:
    folder = args.store / "entities" if (args.store / "entities").is_dir() else args.store
    store = records.EntityStore(folder)
    read = _reader(args.images or args.store)
    rows = []
    for row, key in list(enumerate(store.keys()))[: args.n]:
        status = store.status(row)
        found = status if status.startswith("error") else store[row]
        try:
            image = images.open_image(read(key), where=key)
        except (errors.SgqlmError, OSError) as error:
            image, found = None, f"error: {error}".splitlines()[0]
        rows.append((key, image, found))
        if image is not None and isinstance(found, graphs.Entities):
            _write_picture(args.out / f"{pathlib.PurePosixPath(key).stem}-{row}.png", image, found)
    about = store.manifest["about"]
    subtitle = f"{len(rows)} of {len(store)} images. Extractor: {about.get('extractor', 'unknown')}"
    path = pages.write(
        args.out / "entities.html", gallery(f"Entities of {folder}", rows, subtitle=subtitle)
    )
    print(path)
    return errors.OK


def _card(key: str, image: Image.Image | None, found: graphs.Entities | str) -> str:
    if image is None or not isinstance(found, graphs.Entities):
        return pages.card(key, pages.note(str(found)))
    masks, boxes = _pictures(image, found)
    size = f"{found.size[1]} x {found.size[0]} pixels"
    shown = min(len(found), _BOXES)
    figures = pages.pair(
        pages.figure(masks, caption=f"masks of {len(found)} entities; {size}"),
        pages.figure(boxes, caption=f"boxes of the {shown} with the highest scores"),
    )
    return pages.card(key, figures, entity_table(found))


def _pictures(image: Image.Image, found: graphs.Entities) -> tuple[Image.Image, Image.Image]:
    best = np.argsort(-found.scores, kind="stable")[:_BOXES]
    names = [str(i + 1) for i in best]
    masks = overlay.draw_entities(image, found, boxes=False)
    return masks, overlay.draw_entities(image, found.take(best), masks=False, names=names)


def entity_table(entities: graphs.Entities) -> str:
    """Return a folded table of numbers, labels, scores, shares and boxes."""
    area = entities.size[0] * entities.size[1]
    has_labels = len(entities.labels) > 0
    rows = []
    for i, mask in enumerate(entities.masks):
        dense = graphs.decode_rle(mask) if isinstance(mask, Mapping) else mask
        label = [entities.labels[i]] if has_labels else []
        share, box = (
            f"{100 * dense.sum() / area:.1f}",
            ", ".join(f"{v:.0f}" for v in entities.boxes[i]),
        )
        rows.append([i + 1, *label, f"{entities.scores[i]:.2f}", share, box])
    header = ["entity", *(["label"] if has_labels else []), "score", "% of image", "x0, y0, x1, y1"]
    return pages.fold(f"{len(rows)} entities", pages.table(header, rows))


def _write_picture(path: pathlib.Path, image: Image.Image, entities: graphs.Entities) -> None:
    left, right = _pictures(image, entities)
    sheet = Image.new("RGB", (left.width + right.width + 8, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + 8, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


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
        raise _missing(folder, "name the folder of the photographs with --images")
    return lambda key: (folder / key).read_bytes()


def _missing(folder: pathlib.Path, fix: str) -> errors.SgqlmError:
    return errors.SgqlmError("there is no such folder", where=str(folder), fix=fix)
