"""`sgqlm eval --tasks=relations`: recall of the scene graphs that a model predicts.

Predicates of a list are ranked by their likelihood as the answer for pairs of an image's objects:
R@K, mR@K, ng-R@K, zR@K and F@K. The answers are kept; a run that was stopped goes on where it was.
"""

import argparse
import hashlib
import pathlib
import sys
from collections.abc import Sequence

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import common
from sgqlm.data.relations import annotations, types
from sgqlm.evals import answers, ranking, relations, report, scene_graphs
from sgqlm.evals.metrics import scene_graph
from sgqlm.train import checkpoint, progress

ANSWERS, REPORT = "answers.jsonl", "report.json"
MANY = 500  # predicates from which a list of the usual ones is advised


def run(argv: list[str]) -> int:
    """Run `sgqlm eval --tasks=relations`; return the exit code."""
    parser = _parser("sgqlm eval --tasks=relations", __doc__)
    parser.add_argument("--checkpoint", required=True, help="checkpoint, export or work directory")
    parser.add_argument("--base", help="where the base weights lie, if they were moved")
    parser.add_argument("--mode", choices=scene_graph.MODES, default="predcls")
    parser.add_argument("--objects", help="list of names for --mode=sgcls; as --predicates")
    parser.add_argument(
        "--entities", default="", help="entity store the graph sees; objects of --mode=sgdet"
    )
    parser.add_argument("--pairs", choices=scene_graphs.PAIRS, default="all")
    parser.add_argument("--max-pairs", type=int, default=0, help="of an image; 0: no limit")
    parser.add_argument("--limit", type=int, default=0, help="images at most")
    parser.add_argument(
        "--calibrate", action="store_true", help="subtract the likelihood without the image"
    )
    parser.add_argument(
        "--per-token", action="store_true", help="mean over the tokens of a predicate, not the sum"
    )
    args, rest = parser.parse_known_args(argv)
    _check_counts(args, ("limit", "max_pairs"))
    items = annotations.load(args.data)
    data = scene_graphs.open_data(args.data, items, args.split, limit=args.limit)
    words = _words(args, items)
    entities = scene_graphs.open_entities(args.data, args.mode, args.entities)
    model = model_lib.load(args.checkpoint, base=args.base)
    if entities is None and model.config.model.graph.enabled:
        print("there are no entities: the model works without its graph", file=sys.stderr)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    settings = _settings(args, data, words, items, model, rest, flags)
    folder = args.out or pathlib.Path("runs/eval") / f"{args.data.resolve().name}-{args.mode}"
    _predict(model, data, settings, folder, args, entities)
    path = folder / ANSWERS
    return _report(path, data, words, args, items, folder / REPORT)


def score(argv: list[str]) -> int:
    """Run `sgqlm eval score`; return the exit code."""
    parser = _parser(
        "sgqlm eval score",
        "Measure answers: those that `sgqlm eval --tasks=relations` wrote, or scene graphs that "
        'another model wrote as text (json lines with "key" and "text").',
    )
    parser.add_argument("file", type=pathlib.Path, help="answers.jsonl, or json lines of texts")
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, ["--tasks", "--data", "--predicates", "--out"])
    items = annotations.load(args.data)
    data = scene_graphs.open_data(args.data, items, args.split)
    return _report(args.file, data, _words(args, items), args, items, args.out)


def _parser(prog: str, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--tasks", "--task", choices=[scene_graphs.TASK], required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="built relation data set")
    parser.add_argument("--split", default="", help="of --data; the test split where there is one")
    parser.add_argument(
        "--predicates",
        help="the list: a text file with one a line, VG-SGG-dicts-with-attri.json or psg.json; "
        "without it all predicates of the data set",
    )
    parser.add_argument(
        "--synonyms",
        default="",
        help="default, none, or a file: predicates that mean the same; default without "
        "--predicates, else none",
    )
    parser.add_argument("--aliases", help="file: names of objects that mean the same")
    parser.add_argument(
        "--train", type=pathlib.Path, help="data set whose split train is known; default --data"
    )
    parser.add_argument("--matching", choices=scene_graph.MATCHING, default="instances")
    parser.add_argument("--boxes", action="store_true", help="compare boxes, also where masks are")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="folder of the results (default runs/eval/DATA-MODE); of score: a json file",
    )
    return parser


def _words(args: argparse.Namespace, items: Sequence[types.Annotated]) -> relations.Words:
    words = relations.make_words(
        items, file=args.predicates, merge=args.synonyms, aliases=args.aliases
    )
    if len(words.predicates) > MANY:
        told = (
            f"{len(words.predicates)} predicates; --predicates=FILE takes a list of the usual ones"
        )
        print(told, file=sys.stderr)
    return words


def _settings(args, data, words, items, model, rest, flags) -> scene_graphs.Settings:
    config = common.override_all(model.config, rest, flags)
    names = ()
    if args.mode == "sgcls":
        listed = ranking.read_words(args.objects, "objects") if args.objects else None
        names = tuple(dict.fromkeys(map(words.name, listed or relations.object_names(items))))
    options = ranking.Options(config.eval.batch_size, args.calibrate, args.per_token)
    return scene_graphs.Settings(
        args.mode, words.predicates, names, args.pairs, args.max_pairs, options, data.style
    )


def _predict(model, data, settings, folder: pathlib.Path, args, entities) -> None:
    about = {
        "checkpoint": str(_resolved(args.checkpoint)),
        "data": _digest(args.data / annotations.FILE),
        "entities": str(pathlib.Path(args.entities).resolve()) if args.entities else "",
    }
    total = len(data.items)
    with answers.AnswerFile(folder / ANSWERS, scene_graphs.header(settings, about)) as out:
        done = sum(item.key in out.done for item in data.items)
        if done:
            print(f"{done} of {total} images have an answer in {out.path}", file=sys.stderr)
        with progress.Progress(f"{settings.mode} images", total, done=done) as bar:
            scene_graphs.run(
                model,
                data,
                settings,
                out,
                entities=entities,
                progress=bar.update,
            )


def _report(path: pathlib.Path, data, words, args, items, out: pathlib.Path | None) -> int:
    known = annotations.load(args.train) if args.train else items
    is_train = bool(data.items) and data.items[0].split == "train"
    zero_shot = None if is_train and not args.train else relations.train_triples(known, words)
    if next(answers.iterate(path), {}).get("task") == scene_graphs.TASK:
        result = relations.score(
            path,
            data,
            words,
            zero_shot=zero_shot or None,
            matching=args.matching,
            use_masks=not args.boxes,
        )
    else:
        result = relations.score_texts(path, data, words, zero_shot=zero_shot or None)
    print("\n".join(relations.lines(result)))
    if out is not None:
        print(report.write(out, {"task": scene_graphs.TASK, **result}))
    return errors.OK


def _resolved(path: str) -> pathlib.Path:
    """Return the checkpoint that a work directory stands for, as `model.load` takes it."""
    found = checkpoint.find(path)
    return (found[-1] if found else pathlib.Path(path)).resolve()


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_counts(args: argparse.Namespace, names: Sequence[str]) -> None:
    for name in names:
        if getattr(args, name) < 0:
            flag = "--" + name.replace("_", "-")
            raise errors.SgqlmError(f"{flag} is below 0", where=flag, fix="give 0 for no limit")
