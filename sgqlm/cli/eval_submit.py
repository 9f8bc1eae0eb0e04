"""`sgqlm eval submit`: answers in LLaVA's layout as the server of a benchmark takes them."""

import argparse
import pathlib

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.evals import submissions, tasks

_FLAGS = ("--task", "--questions", "--out")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval submit`; return the exit code."""
    parser = argparse.ArgumentParser(prog="sgqlm eval submit", description=__doc__)
    parser.add_argument("answers", type=pathlib.Path, help="LLaVA's jsonl")
    parser.add_argument("--task", required=True, choices=submissions.TASKS)
    parser.add_argument(
        "--questions",
        type=pathlib.Path,
        help="all questions of the split; not needed for gqa and mmvet",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the file to send")
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, _FLAGS)
    ending = tasks.get(args.task).submission
    common.check_file(
        args.out, (ending, ".tsv") if ending == ".xlsx" else (ending, ".json", ".jsonl")
    )
    faults = submissions.write(args.task, args.answers, args.out, args.questions)
    told = {
        "missing": "questions have no answer; an empty one is sent",
        "unknown": "answers are to other questions, and are not sent",
        "repeated": "ids are answered more than once with the same text; one is sent",
        "empty": "answers are empty",
    }
    for name, ids in vars(faults).items():
        if ids:
            print(f"{len(ids)} {told[name]}")
    print(args.out)
    return errors.OK
