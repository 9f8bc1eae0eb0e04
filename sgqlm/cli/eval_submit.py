"""`sgqlm eval submit`: answers in LLaVA's layout as the server of a benchmark takes them."""

import difflib
import pathlib

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.evals import judging, scoring, submissions, tasks

_FLAGS = ("--task", "--questions", "--out")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval submit`; return the exit code."""
    parser = common.Parser(prog="sgqlm eval submit", description=__doc__)
    parser.add_argument("answers", type=pathlib.Path, help="LLaVA's jsonl")
    parser.add_argument("--task", required=True, help=", ".join(submissions.TASKS))
    parser.add_argument(
        "--questions",
        type=pathlib.Path,
        help="all questions of the split; not needed for gqa and mmvet",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the file to send")
    args, rest = parser.parse_known_args(argv)
    common.refuse_rest(rest, _FLAGS)
    _check_task(args.task)
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


def _check_task(task: str) -> None:
    if task in submissions.TASKS:
        return
    where = f"--task={task}"
    if task in (*scoring.TASKS, *judging.TASKS, "relations"):
        raise errors.SgqlmError(
            f"there is no server for {task}", where=where, why="it is scored here",
            fix=f"sgqlm eval score ANSWERS --task={task} --annotations FILES",
        )  # fmt: skip
    near = difflib.get_close_matches(task, submissions.TASKS, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(submissions.TASKS)}"
    raise errors.SgqlmError(f"there is no benchmark {task!r}", where=where, fix=fix)
