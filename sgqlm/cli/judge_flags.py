"""The flags that name a judge, for `sgqlm eval --tasks` and `sgqlm eval score`."""

import argparse
import pathlib

from sgqlm import errors
from sgqlm.evals import judge, judging

_DETAILS = ("model", "key_env", "runs", "prompt", "parallel", "max_tokens", "record", "timeout")


def add(parser: argparse.ArgumentParser) -> None:
    """Add `--judge` and what belongs to it."""
    group = parser.add_argument_group(
        "judge", "for " + ", ".join((*judging.TASKS, *judging.MATCHED)) + "; nothing is asked twice"
    )
    group.add_argument(
        "--judge",
        default="none",
        help="none (the default); openai; the address of an OpenAI-compatible service such as "
        "http://localhost:8000/v1; replay:FILE of recorded replies",
    )
    group.add_argument("--judge-model", default="", help=f"name of the model (or {judge.MODEL})")
    group.add_argument(
        "--judge-key-env",
        default="",
        metavar="NAME",
        help="environment variable with the key (default OPENAI_API_KEY)",
    )
    group.add_argument(
        "--judge-runs", type=int, help="how often each answer is graded (1; MM-Vet's paper: 5)"
    )
    group.add_argument(
        "--judge-prompt",
        type=pathlib.Path,
        action="append",
        default=[],
        metavar="FILE",
        help="LLaVA's rule.json, MM-Vet's mm-vet_evaluator.py or .ipynb (once for each; default: "
        "words of ours)",
    )
    group.add_argument("--judge-parallel", type=int, help="questions asked at once (1)")
    group.add_argument(
        "--judge-max-tokens",
        type=int,
        help="of a reply, for judges that think before they answer; 0 leaves it to the service "
        "(default: the benchmark's, 1024 or 3)",
    )
    group.add_argument("--judge-record", type=pathlib.Path, help="keep replies here, for replay:")
    group.add_argument("--judge-timeout", type=float, help="seconds to wait for a reply (60)")
    group.add_argument("--judge-tries", type=int, help="how often a failing service is asked (6)")


def settings(
    args: argparse.Namespace, tasks: list[str], reviews: pathlib.Path | None = None
) -> judging.Settings:
    """Return the judge that the flags name.

    Args:
        args: the flags.
        tasks: what is scored.
        reviews: file of the grades.

    Raises:
        SgqlmError: there is no such judge, no task needs one, or a flag is of no use.
    """
    given = [name for name in (*_DETAILS, "tries") if getattr(args, f"judge_{name}")]
    if args.judge == "none":
        if given:
            flag = "--judge-" + given[0].replace("_", "-")
            raise errors.SgqlmError(f"{flag} is of a judge", where=flag, fix="give --judge too")
        return judging.Settings(reviews=reviews)
    if not set(tasks) & {*judging.TASKS, *judging.MATCHED}:
        raise errors.SgqlmError(f"{', '.join(tasks)} needs no judge", where="--judge")
    for name in ("runs", "parallel", "tries", "timeout", "max_tokens"):
        value = getattr(args, f"judge_{name}")
        if value is not None and value < (0 if name == "max_tokens" else 1):
            flag = "--judge-" + name.replace("_", "-")
            raise errors.SgqlmError(f"{flag} is below 1", where=f"{flag}={value}")
    if absent := [path for path in args.judge_prompt if not path.is_file()]:
        raise errors.SgqlmError("there is no such file", where=f"--judge-prompt={absent[0]}")
    by = judge.make(
        args.judge,
        model=args.judge_model,
        record=args.judge_record,
        key_env=args.judge_key_env,
        timeout=args.judge_timeout or 60.0,
        tries=args.judge_tries or 6,
    )
    is_replay = isinstance(by, judge.Replay)  # equal questions have replies in an order
    return judging.Settings(
        by=by,
        runs=args.judge_runs or 1,
        reviews=reviews,
        prompts=args.judge_prompt,
        parallel=1 if is_replay else args.judge_parallel or 1,
        max_tokens=args.judge_max_tokens,
    )
