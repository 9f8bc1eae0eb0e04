"""`sgqlm eval --tasks=relations`: recall of the scene graphs that a model predicts.

Predicates of a list are ranked by their likelihood as the answer for pairs of an image's objects:
R@K, mR@K, ng-R@K, zR@K and F@K. The answers are kept; a run that was stopped goes on where it was.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import common, eval_model
from sgqlm.data import records, sources
from sgqlm.data.relations import annotations, types
from sgqlm.evals import answers, benchmark, ranking, relations, report, scene_graphs
from sgqlm.evals.metrics import scene_graph
from sgqlm.train import progress

ANSWERS, REPORT = "answers.jsonl", "report.json"
MANY = 500  # predicates from which a list of the usual ones is advised


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that is asked and compared, read before the model is.

    Attributes:
        items: annotated images of all splits.
        data: those that are measured.
        words: the predicates that count.
        choice: entity store of the graph; empty for that of the data set.
        entities: what that gives.
        folder: of the results.
    """

    items: Sequence[types.Annotated]
    data: scene_graphs.Data
    words: relations.Words
    choice: str
    entities: sources.Joined | None
    folder: pathlib.Path


def add_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Add the flags of the task to those of all tasks; return their names in the parsed values."""
    group = parser.add_argument_group("relations")
    before = len(parser._actions)
    _add_data_flags(group)
    group.add_argument("--mode", choices=scene_graph.MODES, default="predcls")
    group.add_argument("--objects", help="list of names for --mode=sgcls; as --predicates")
    group.add_argument("--pairs", choices=scene_graphs.PAIRS, default="all")
    group.add_argument("--max-pairs", type=int, default=0, help="of an image; 0: no limit")
    group.add_argument(
        "--calibrate", action="store_true", help="subtract the likelihood without the image"
    )
    group.add_argument(
        "--per-token", action="store_true", help="mean over the tokens of a predicate, not the sum"
    )
    return [action.dest for action in parser._actions[before:]]


def prepare(args: argparse.Namespace, *, is_alone: bool, has_files: bool) -> Prepared:
    """Read the data set and all lists.

    Args:
        args: with the flags of `add_flags`, and `entities`, `limit` and `out`.
        is_alone: whether no other task is measured; the default --out names data and mode then.
        has_files: whether benchmarks are measured too; --entities is then first of all theirs, and
            DIR/relations is that of the relations.

    Raises:
        SgqlmError: there is no data set, or something in it or in a list is wrong.
    """
    if args.data is None:
        raise errors.SgqlmError(
            "relations are measured on a data set, and none is named",
            where="--data",
            fix="give a folder that `sgqlm data relations` built",
        )
    if args.max_pairs < 0:
        raise errors.SgqlmError("--max-pairs is below 0", where="--max-pairs", fix="give 0 for no "
                                "limit")  # fmt: skip
    if args.out:
        common.check_folder(args.out)
    items = annotations.load(args.data)
    data = scene_graphs.open_data(args.data, items, args.split, limit=args.limit)
    words, choice = _words(args, items), args.entities
    own = pathlib.Path(choice) / scene_graphs.TASK
    if not is_alone and choice not in ("", "none"):
        has_own = (own / records.MANIFEST).is_file()
        choice = str(own) if has_own else "" if has_files else choice
    entities = scene_graphs.open_entities(args.data, args.mode, choice)
    alone = args.out or pathlib.Path("runs/eval") / f"{args.data.resolve().name}-{args.mode}"
    return Prepared(items, data, words, choice, entities, alone if is_alone else pathlib.Path())


def measure(
    found: Prepared,
    model: model_lib.VisionLanguageModel,
    settings: config.Config,
    source: eval_model.Source,
    args: argparse.Namespace,
) -> None:
    """Predict the scene graphs, measure them and write the report.

    Args:
        found: of `prepare`, with the folder of the results.
        model: the model.
        settings: batch size of the evaluation.
        source: where the model came from.
        args: with the flags of `add_flags`.
    """
    if found.entities is None and model.config.model.graph.enabled:
        print("there are no entities: the model works without its graph", file=sys.stderr)
    names = ()
    if args.mode == "sgcls":
        listed = ranking.read_words(args.objects, "objects") if args.objects else None
        listed = listed or relations.object_names(found.items)
        names = tuple(dict.fromkeys(map(found.words.name, listed)))
    asked = scene_graphs.Settings(
        args.mode,
        found.words.predicates,
        names,
        args.pairs,
        args.max_pairs,
        ranking.Options(settings.eval.batch_size, args.calibrate, args.per_token),
        found.data.style,
    )
    _predict(model, found, asked, source, args)
    path = found.folder / ANSWERS
    _report(path, found.data, found.words, args, found.items, found.folder / REPORT)


def score(argv: list[str]) -> int:
    """Run `sgqlm eval score`; return the exit code."""
    parser = common.Parser(
        prog="sgqlm eval score",
        description="Measure answers: those that `sgqlm eval --tasks=relations` wrote, or scene "
        'graphs that another model wrote as text (json lines with "key" and "text").',
    )
    parser.add_argument("--tasks", "--task", choices=[scene_graphs.TASK], required=True)
    _add_data_flags(parser, required=True)
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    parser.add_argument("file", type=pathlib.Path, help="answers.jsonl, or json lines of texts")
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, ["--tasks", "--data", "--predicates", "--out"])
    if args.out:
        common.check_file(args.out, (".json",))
    items = annotations.load(args.data)
    data = scene_graphs.open_data(args.data, items, args.split)
    return _report(args.file, data, _words(args, items), args, items, args.out)


def _add_data_flags(parser, *, required: bool = False) -> None:
    parser.add_argument(
        "--data", type=pathlib.Path, required=required, help="built relation data set"
    )
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


def _predict(
    model, found: Prepared, settings: scene_graphs.Settings, source: eval_model.Source, args
) -> None:
    data, choice = found.data, found.choice
    about = {
        "checkpoint": str(source.checkpoint),
        "data": records.file_digest(args.data / annotations.FILE),
        "entities": str(pathlib.Path(choice).resolve()) if choice else "",
    }
    header = scene_graphs.header(settings, about)
    if args.retry:
        benchmark.forget_errors(found.folder / ANSWERS, header)
    with answers.AnswerFile(found.folder / ANSWERS, header) as out:
        done = sum(item.key in out.done for item in data.items)
        if done:
            told = f"{done} of {len(data.items)} images have an answer in {out.path}"
            print(told, file=sys.stderr)
        with progress.Progress(f"{settings.mode} images", len(data.items), done=done) as bar:
            scene_graphs.run(
                model,
                data,
                settings,
                out,
                entities=found.entities,
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
    written = []
    if out is not None:
        written = [report.write(out, {"task": scene_graphs.TASK, **result})]
    print("\n".join([*relations.lines(result), *map(str, written)]), flush=True)
    return errors.OK
