"""`sgqlm data check | build --card=NAME` for data sets of relations."""

import argparse
import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import cards, leaks
from sgqlm.data.relations import build as builder
from sgqlm.data.relations import conversations, endpoint, readers, synonyms, types
from sgqlm.train import progress

_MOST = 20  # predicates and reasons that are shown
_STEP = 200  # images between two lines of progress
_SEGMENTERS = ("box", "sam", "sam_hq", "sam2")


def add_arguments(parser: argparse.ArgumentParser, *, is_build: bool) -> None:
    """Add the flags of relation data to `check` or `build`."""
    group = parser.add_argument_group("data sets of relations (a card that names their reader)")
    add = group.add_argument
    splits = ("train", "val", "test", "all")
    add(
        "--split",
        nargs="+",
        default=["train"],
        choices=splits,
        help="train, val, test, all (train)",
    )
    add("--text-to-relations", metavar="URL", help="captions to relations by an OpenAI-compatible "
        "service, such as http://localhost:8000/v1 (by rule, without it)")  # fmt: skip
    add("--text-model", default="", help="name of the model there")
    add("--synonyms", type=pathlib.Path, help="predicates that mean the same, a line each")
    if not is_build:
        return
    given = conversations.Settings()
    add("--seed", type=int, default=given.seed, help="of the questions")
    for name in ("max_per_predicate", "per_image", "rounds"):
        default = getattr(given, name)
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=int, default=default, help=f"{_HELP[name]} ({default})")
    add("--segmenter", choices=_SEGMENTERS, default="box", help="masks of annotated boxes (box)")
    add("--segmenter-weights", default="", help="folder or hub id of its weights")


_HELP = {
    "max_per_predicate": "relations of one predicate that are asked about, 0 for all",
    "per_image": "questions about one image at most",
    "rounds": "questions in one conversation",
}


def check(args: argparse.Namespace, card: cards.Card, lists: Sequence[leaks.List]) -> int:
    """Read a data set of relations and print what is in it and what is odd about it."""
    if args.report:
        raise errors.SgqlmError(
            "a report file is written for LLaVA json only", where="--report", fix="leave it out"
        )
    report, root = types.Report(), _root(args)
    with _reading(args, card, root, report, keep_missing=True) as found:
        exclude = leaks.Leaks(lists, root).reason if lists else None
        summary = builder.check(
            found, root, exclude=exclude, report=report, decode=not args.no_decode
        )
    _print(card, summary, report)
    return errors.DATA if summary.faults or not summary.images else errors.OK


def build(args: argparse.Namespace, card: cards.Card, lists: Sequence[leaks.List]) -> int:
    """Write the stores of a data set of relations."""
    report, root = types.Report(), _root(args)
    settings = conversations.Settings(
        seed=args.seed,
        max_per_predicate=args.max_per_predicate,
        per_image=args.per_image,
        rounds=args.rounds,
        synonyms=synonyms.load(args.synonyms),
        templates=tuple(card.rest.get("templates", conversations.DEFAULT)),
    )
    masks = _masks(args)
    with _reading(args, card, root, report) as found, _lines() as lines:
        summary = builder.build(
            found,
            root,
            args.out,
            settings=settings,
            masks=masks,
            exclude=leaks.Leaks(lists, root).reason if lists else None,
            report=report,
            budget=args.budget if args.drop_bad else 0.0,
            about={"card": card.name, "segmenter": args.segmenter},
            progress=lines,
        )
    _print(card, summary, report)
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
    splits = () if "all" in args.split else tuple(args.split)
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
    if args.segmenter == "box":
        return None
    from sgqlm.entities import settings  # brings torch, which nothing else here needs

    config = settings.ExtractorConfig(
        segmenter=args.segmenter, segmenter_weights=args.segmenter_weights
    )
    segmenter = settings.make_segmenter(config)
    return lambda image, boxes: segmenter.segment([image], [boxes])[0].masks


def _print(card: cards.Card, summary: builder.Summary, report: types.Report) -> None:
    for line in report.lines()[:_MOST]:
        print(line)
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
