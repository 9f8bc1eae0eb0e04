"""`sgqlm eval score`: measure answers of any model to a benchmark.

Answers are joined with the official annotations by id; what does not fit is told apart: missing,
unknown, doubled and empty answers, and annotations of another revision. LLaVA-Bench and MM-Vet are
graded by a --judge; a run that was stopped asks nothing twice.
"""

import argparse
import itertools
import pathlib
import sys

from sgqlm import errors
from sgqlm.cli import common, eval_relations, judge_flags
from sgqlm.data import files as data_files
from sgqlm.data import records
from sgqlm.evals import hallucinated, judging, report, reviewed, scored, scoring, tables


def run(argv: list[str]) -> int:
    """Run `sgqlm eval score`; return the exit code."""
    if _is_relations(argv):
        return eval_relations.score(argv)
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, [flag for action in parser._actions for flag in action.option_strings])
    if args.out:
        common.check_file(args.out, (".json",))
    _take_synonyms(args)
    _check_there([*args.answers, *args.annotations])
    args.annotations = scoring.opened(args.task, args.annotations)
    with common.stoppable("the grades so far are kept"):
        done = _score(args)
    written = _write(done, args) if args.out else []  # first: who reads the lines may leave
    print("\n".join([*done.lines(), *map(str, written), *_next(done, args)]))
    if done.faults.is_mismatch and not args.allow_mismatch:
        print(
            "answers and annotations are not to the same questions: the figures above are no "
            "published protocol (--allow-mismatch takes them nevertheless)",
            file=sys.stderr,
        )
        return errors.DATA
    is_open = done.more.get("judging", {}).get("needs_judge", 0) > 0
    return errors.DATA if done.score is None and "judge" in done.more and not is_open else errors.OK


def _write(done: scored.Scored, args: argparse.Namespace) -> list[pathlib.Path]:
    files = {
        "answers": [str(path) for path in args.answers],
        "annotations": [str(path) for path in args.annotations],
    }
    digests = {
        str(path): records.file_digest(path)
        for path in [*args.answers, *args.annotations]
        if path.is_file()
    }
    name = _model_id(args.answers)
    about = {"settings": {"model_id": name}} if name else {}
    told = {**done.report(), **files, **about, "sha256": digests}
    written = [report.write(args.out, told)]
    for end, text in reviewed.sheets(done, args.answers[0].stem).items():
        path = args.out.with_name(f"{args.out.stem}-{end}")
        written.append(data_files.write(path, text))
    return written


def _next(done: scored.Scored, args: argparse.Namespace) -> list[str]:
    """Return how the report of `sgqlm eval --tasks` beside the answers gets what a judge gave."""
    path = args.answers[0].with_name("report.json")
    if args.answers[0].name != "answers.jsonl" or not path.is_file() or done.score is None:
        return []
    if "judging" not in done.more or (args.out and args.out.resolve() == path.resolve()):
        return []
    if args.reviews:
        return [f"next: --out={path} puts these figures into the report of the folder"]
    return [
        f"next: for these figures in {path}, give the command of `sgqlm eval --tasks` again with "
        "the same --judge; it answers nothing and asks the judge nothing again"
    ]


def _model_id(paths: list[pathlib.Path]) -> str:
    """Return the `model_id` that all answers share; empty where there is none."""
    try:
        found = {answer.record.get("model_id") for path in paths for answer in tables.answers(path)}
    except errors.SgqlmError:  # what a judge has graded, or a folder
        return ""
    return str(found.pop() or "") if len(found) == 1 else ""


def _take_synonyms(args: argparse.Namespace) -> None:
    if args.synonyms and args.task != hallucinated.TASK:
        raise errors.SgqlmError(
            f"--synonyms are of the task {hallucinated.TASK}", where="--synonyms", fix="leave it "
            "out",
        )  # fmt: skip
    if args.synonyms and args.synonyms.suffix != ".txt":
        raise errors.SgqlmError(
            "synonyms are a text file", where=f"--synonyms={args.synonyms}", fix="call it .txt"
        )
    args.annotations = [*args.annotations, *([args.synonyms] if args.synonyms else [])]


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(
        prog="sgqlm eval score",
        description=__doc__,
        epilog="See also `sgqlm eval score --task relations --help`.",
    )
    parser.add_argument(
        "answers",
        nargs="+",
        type=pathlib.Path,
        help="LLaVA's jsonl, a submission, json or tsv; what a judge has graded: review files of "
        "LLaVA-Bench, a grade file of MM-Vet",
    )
    tasks = (*scoring.TASKS, *judging.TASKS, "relations")
    parser.add_argument("--task", "--tasks", required=True, choices=tasks)
    parser.add_argument(
        "--annotations",
        nargs="+",
        type=pathlib.Path,
        default=[],
        help="the benchmark's official files; not needed where the answers hold the truth too; of "
        "hallucination {id: [objects]}, or COCO's instances (and captions) json",
    )
    parser.add_argument(
        "--synonyms", type=pathlib.Path, help="of hallucination: `name, synonym, ...` a line"
    )
    parser.add_argument("--split", default="test", help="of ScienceQA's pid_splits.json")
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="leave with 0 although answers are missing (they count as wrong; LLaVA-Bench leaves "
        "them out) or unknown (left out); no judge is asked about either",
    )
    parser.add_argument(
        "--reviews",
        type=pathlib.Path,
        help="where the grades of the judge are kept (default: beside the answers)",
    )
    judge_flags.add(parser)
    return parser


def _score(args: argparse.Namespace) -> scored.Scored:
    settings = judge_flags.settings(args, [args.task], args.reviews)
    if args.task not in judging.TASKS and settings.is_open:
        return scoring.score(args.task, args.answers, args.annotations, split=args.split)
    return judging.score(
        args.task,
        args.answers,
        args.annotations,
        settings,
        allow_mismatch=args.allow_mismatch,
    )


def _is_relations(argv: list[str]) -> bool:
    words = [part for word in argv for part in word.split("=", 1)]
    pairs = itertools.pairwise(words)
    return any(name in ("--task", "--tasks") and task == "relations" for name, task in pairs)


def _check_there(paths: list[pathlib.Path]) -> None:
    for path in paths:
        if not path.exists():
            raise errors.SgqlmError(
                "there is no such file", where=str(path), fix="correct the path"
            )
