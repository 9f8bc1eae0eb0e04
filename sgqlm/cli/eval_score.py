"""`sgqlm eval score`: measure answers of any model to a benchmark.

Answers are joined with the official annotations by id; what does not fit is told apart: missing,
unknown, doubled and empty answers, and annotations of another revision.
"""

import argparse
import itertools
import pathlib
import sys

from sgqlm import errors
from sgqlm.cli import common, eval_relations
from sgqlm.data import records
from sgqlm.evals import report, scoring

_FLAGS = ("--task", "--annotations", "--out", "--split", "--allow-mismatch")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval score`; return the exit code."""
    if _is_relations(argv):
        return eval_relations.score(argv)
    parser = argparse.ArgumentParser(
        prog="sgqlm eval score",
        description=__doc__,
        epilog="See also `sgqlm eval score --task relations --help`.",
    )
    parser.add_argument(
        "answers", nargs="+", type=pathlib.Path, help="LLaVA's jsonl, a submission, json or tsv"
    )
    parser.add_argument("--task", "--tasks", required=True, choices=(*scoring.TASKS, "relations"))
    parser.add_argument(
        "--annotations",
        nargs="+",
        type=pathlib.Path,
        default=[],
        help="the benchmark's official files; not needed where the answers hold the truth too",
    )
    parser.add_argument("--split", default="test", help="of ScienceQA's pid_splits.json")
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="leave with 0 although answers are missing (they count as wrong) or unknown",
    )
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, _FLAGS)
    _check_there([*args.answers, *args.annotations])
    done = scoring.score(args.task, args.answers, args.annotations, split=args.split)
    print("\n".join(done.lines()))
    if args.out:
        files = {
            "answers": [str(path) for path in args.answers],
            "annotations": [str(path) for path in args.annotations],
        }
        digests = {
            str(path): records.file_digest(path)
            for path in [*args.answers, *args.annotations]
            if path.is_file()
        }
        print(report.write(args.out, {**done.report(), **files, "sha256": digests}))
    if done.faults.is_mismatch and not args.allow_mismatch:
        print(
            "answers and annotations are not to the same questions: the figures above are no "
            "published protocol (--allow-mismatch takes them nevertheless)",
            file=sys.stderr,
        )
        return errors.DATA
    return errors.OK


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
