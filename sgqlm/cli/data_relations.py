"""`sgqlm data check | build --card=NAME` for data sets of relations."""

import argparse
import contextlib
import fnmatch
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.cli import data_report
from sgqlm.data import cards, leaks
from sgqlm.data.relations import build as builder
from sgqlm.data.relations import conversations, endpoint, files, readers, synonyms, types
from sgqlm.train import progress

_MOST = 20  # predicates and reasons that are shown
_STEP = 200  # images between two lines of progress
_SEGMENTERS = ("box", "sam", "sam_hq", "sam2")
_DRAWS = ("seed", "max_per_predicate", "per_image", "rounds")  # of `conversations.Settings`
_TEXT = ("text_to_relations", "text_model")
FLAGS = ("split", *_TEXT, "synonyms", *_DRAWS, "segmenter", "segmenter_weights")
_GENOME = ("visual_genome", "vg150", "gqa_scene_graphs")  # whose images are Visual Genome's
_SIGNS = {  # files by which a data set is known
    "relationships*.json": "visual_genome", "VG-SGG*.h5": "vg150", "psg*.json": "psg",
    "*sceneGraphs*.json": "gqa_scene_graphs", "*annotations-vrd*.csv": "open_images_vrd",
    "annotations_train.json": "vrd",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser, *, is_build: bool) -> None:
    """Add the flags of relation data to `check` or `build`."""
    group = parser.add_argument_group("data sets of relations (a card that names their reader)")
    add = group.add_argument
    splits = ("train", "val", "test", "all")
    add(
        "--split",
        nargs="+",
        choices=splits,
        help="train, val, test, all (train)",
    )
    add("--text-to-relations", metavar="URL", help="captions to relations by an OpenAI-compatible "
        "service, such as http://localhost:8000/v1 (by rule, without it)")  # fmt: skip
    add("--text-model", help="name of the model there")
    add("--synonyms", type=pathlib.Path, help="predicates that mean the same, a line each")
    if not is_build:
        return
    given = conversations.Settings()
    for name in _DRAWS:  # without defaults, so that a flag that is not used is known
        add(_flag(name), type=int, help=f"{_HELP[name]} ({getattr(given, name)})")
    add("--segmenter", choices=_SEGMENTERS, help="masks of annotated boxes (box)")
    add("--segmenter-weights", help="folder or hub id of its weights")


_HELP = {
    "seed": "of the questions",
    "max_per_predicate": "relations of one predicate that are asked about, 0 for all",
    "per_image": "questions about one image at most",
    "rounds": "questions in one conversation",
}


def refuse(args: argparse.Namespace, names: Sequence[str], reader: str) -> None:
    """Refuse flags that were given and are not used by what reads the data."""
    values = {name: getattr(args, name, None) for name in names}
    if given := [_flag(name) for name, value in values.items() if value not in (None, "", [])]:
        raise errors.SgqlmError(
            f"{reader} does not use this", where=", ".join(given), fix="leave it out"
        )


def refuse_folder(path: pathlib.Path) -> None:
    """Refuse the files of a data set of relations where no card was named."""
    names = sorted(os.listdir(path)) if path.is_dir() else [path.name]
    for sign, card in _SIGNS.items():
        if found := fnmatch.filter(names, sign):
            raise errors.SgqlmError(
                "these are the files of a data set of relations", where=str(path),
                why=f"{found[0]} is there", fix=f"say which it is: FOLDER --card={card}",
                code=errors.DATA,
            )  # fmt: skip


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_unused(args: argparse.Namespace, card: cards.Card) -> None:
    refuse(args, ("json", "entities"), f"the reader of {card.name}")
    refuse(args, ["follow_links"] if args.follow_links else (), f"the reader of {card.name}")
    if card.reader != "grit":
        refuse(args, _TEXT, f"{card.name}, whose relations are annotated,")
    if args.text_model and not args.text_to_relations:
        refuse(args, ("text_model",), "nothing without --text-to-relations")


def check(args: argparse.Namespace, card: cards.Card, lists: Sequence[leaks.List]) -> int:
    """Read a data set of relations and print what is in it and what is odd about it."""
    _refuse_unused(args, card)
    if args.report:
        data_report.refuse_suffix(args.report)
    report, root = types.Report(keeps_all=bool(args.report)), _root(args)
    table, left_out = synonyms.load(args.synonyms), _leaks(args, card, lists, root)
    with _reading(args, card, root, report, keep_missing=True) as found:
        exclude = left_out.reason if left_out else None
        summary = builder.check(
            found, root, exclude=exclude, report=report, decode=not args.no_decode
        )
    if args.report:
        told = {"card": card.name, "folder": str(args.path), "images_in": str(root)}
        told |= {"images": summary.images, "excluded": dict(summary.excluded)}
        data_report.write_relations(args.report, report, told)
    _print(card, summary, report, root, all_=args.all)
    _print_unused(lists, left_out)
    if args.synonyms:
        merged = len({table(word) for word in summary.predicates})
        print(f"with the synonyms, {merged} predicates are asked about")
    if not summary.images and not summary.faults:
        print("no image with relations is left")
    return errors.DATA if summary.faults or not summary.images else errors.OK


def build(args: argparse.Namespace, card: cards.Card, lists: Sequence[leaks.List]) -> int:
    """Write the stores of a data set of relations."""
    _refuse_unused(args, card)
    report, root = types.Report(), _root(args)
    given = {name: value for name in _DRAWS if (value := getattr(args, name)) is not None}
    settings = conversations.Settings(
        **given,
        synonyms=synonyms.load(args.synonyms),
        templates=tuple(card.rest.get("templates", conversations.DEFAULT)),
    )
    masks, left_out = _masks(args), _leaks(args, card, lists, root)
    with _reading(args, card, root, report) as found, _lines() as lines:
        summary = builder.build(
            found,
            root,
            args.out,
            settings=settings,
            masks=masks,
            exclude=left_out.reason if left_out else None,
            report=report,
            budget=args.budget if args.drop_bad else 0.0,
            overwrite=args.overwrite,
            about={"card": card.name, "segmenter": args.segmenter or "box"},
            progress=lines,
        )
    _print(card, summary, report, root)
    _print_unused(lists, left_out)
    counts = ", ".join(f"{split} {count}" for split, count in summary.conversations.items())
    print(f"{args.out}: conversations: {counts}")
    print(f"look at it: sgqlm data show {args.out}")
    return errors.OK


@contextlib.contextmanager
def _reading(
    args: argparse.Namespace,
    card: cards.Card,
    root: pathlib.Path,
    report: types.Report,
    *,
    keep_missing: bool = False,
) -> Iterator[Any]:
    """Give the images of the data set, counted on the way."""
    text = None
    if args.text_to_relations:
        if not args.text_model:
            raise errors.SgqlmError(
                "which model shall read the captions?", where="--text-model", fix="name it"
            )
        name = args.text_model.replace("/", "-")
        cache = args.path / f"relations-{name}.jsonl"
        text = endpoint.Endpoint(args.text_to_relations, args.text_model, cache, report)
    chosen = args.split or ["train"]
    splits = () if "all" in chosen else tuple(chosen)
    with _lines() as lines:
        yield readers.read(
            card.reader, args.path, images=root, report=report, splits=splits, text=text,
            progress=lines, keep_missing=keep_missing,
        )  # fmt: skip


def _root(args: argparse.Namespace) -> pathlib.Path:
    if not args.path.is_dir():
        raise errors.SgqlmError(
            "there is no such folder",
            where=str(args.path),
            fix="give the folder of the official files",
            code=errors.DATA,
        )
    if args.images and not args.images.is_dir():
        raise errors.SgqlmError("there is no such folder", where=f"--images={args.images}")
    usual = args.path / "images"
    return args.images or (usual if usual.is_dir() else args.path)


def _masks(args: argparse.Namespace) -> builder.MakeMasks | None:
    """Return what makes masks of boxes, with its weights loaded."""
    if args.segmenter in (None, "box"):
        refuse(args, ("segmenter_weights",), "--segmenter=box")
        return None
    from sgqlm.entities import settings  # brings torch, which nothing else here needs

    config = settings.ExtractorConfig(
        segmenter=args.segmenter, segmenter_weights=args.segmenter_weights or ""
    )
    segmenter = settings.make_segmenter(config)
    return lambda image, boxes: segmenter.segment([image], [boxes])[0].masks


def _leaks(
    args: argparse.Namespace, card: cards.Card, lists: Sequence[leaks.List], root: pathlib.Path
) -> leaks.Leaks | None:
    """Join the lists of --exclude; Visual Genome's images get their numbers in COCO and Flickr."""
    if not lists:
        return None
    lists = list(lists)
    if card.reader in _GENOME and not any(item.same for item in lists):
        found = files.find(args.path, ("image_data.json",))
        same = leaks.load(found[0]).same if found else ()
        if same:  # only what it says of equal images: it names every image
            lists.append(leaks.List(str(found[0]), frozenset(), 0, same))
            print("\n".join(data_report.lists(lists[-1:])))
        for item in () if same else lists:
            if spaces := sorted({name.space for name in item.names} & {"coco", "flickr"}):
                print(
                    f"warning: {item.label} cannot be compared: it has numbers of "
                    f"{' and '.join(spaces)}, and Visual Genome its own; its image_data.json says "
                    "which are the same: put it into the folder, or name it with --exclude"
                )
    return leaks.Leaks(lists, root)


def _print_unused(lists: Sequence[leaks.List], left_out: leaks.Leaks | None) -> None:
    for item in lists:
        if left_out and item.count and item.label not in left_out.used:
            print(f"left out: no record for {item.label}")


def _print(
    card: cards.Card,
    summary: builder.Summary,
    report: types.Report,
    root: pathlib.Path,
    *,
    all_: bool = False,
) -> None:
    for line in report.lines()[: None if all_ else _MOST]:
        print(line)
    if "image missing" in report.examples:
        print(f"images were looked for in {root} (--images names another folder)")
    for reason, count in summary.excluded.items():
        print(f"left out: {count} images {reason}")
    most = ", ".join(f"{word} {count}" for word, count in list(summary.predicates.items())[:_MOST])
    print(f"predicates ({len(summary.predicates)}): {most or 'none'}")
    print(
        f"{card.name}: {summary.images} images, {summary.objects} objects, "
        f"{summary.relations} relations; {summary.faults} images cannot be used"
    )


@contextlib.contextmanager
def _lines() -> Iterator[types.Progress]:
    """Give a callback (what, done, altogether) that shows one progress line per `what`."""
    with contextlib.ExitStack() as stack:
        shown: dict[str, progress.Progress] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.close()
                shown[what] = stack.enter_context(progress.Progress(what, total))
            if done % _STEP == 0 or done == total:
                shown[what].update(done)

        yield report
