"""The flags that name a judge, for `sgqlm eval --tasks` and `sgqlm eval score`."""

import argparse
import pathlib
from collections.abc import Collection, Sequence

from sgqlm import errors
from sgqlm.evals import judge, judging

_OF_SERVICE = ("model", "key_env", "parallel", "record", "timeout", "tries")
_NUMBERS = ("runs", "parallel", "max_tokens", "timeout", "tries")
_DETAILS = (*_OF_SERVICE, "runs", "prompt", "max_tokens", "retry")


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
        help="LLaVA's rule.json, MM-Vet's mm-vet_evaluator.py or .ipynb or a .txt (once for each; "
        "default: words of ours)",
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
    group.add_argument(
        "--judge-retry",
        action="store_true",
        default=None,
        help="ask again where a kept reply of the judge could not be read",
    )


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
    given = [name for name in _DETAILS if getattr(args, f"judge_{name}") not in (None, "", [])]
    if args.judge == "none":
        if flags := [*map(_flag, given), *(["--reviews"] if reviews else [])]:
            raise errors.SgqlmError(f"{flags[0]} is of a judge", where=flags[0], fix="give --judge "
                                    "too")  # fmt: skip
        return judging.Settings()
    if not set(tasks) & {*judging.TASKS, *judging.MATCHED}:
        raise errors.SgqlmError(f"{', '.join(tasks)} needs no judge", where="--judge")
    if args.judge.startswith("replay:"):
        _refuse(set(given) & set(_OF_SERVICE), "of a judge that is asked, not of replay:")
    if not set(tasks) & set(judging.TASKS):
        _refuse({"runs"} & set(given), f"of {', '.join(judging.TASKS)}")
    for name in _NUMBERS:
        value = getattr(args, f"judge_{name}")
        if value is not None and value < (0 if name == "max_tokens" else 1):
            raise errors.SgqlmError(f"{_flag(name)} is below 1", where=f"{_flag(name)}={value}")
    _check_prompts(args.judge_prompt, tasks)
    by = judge.make(
        args.judge,
        model=args.judge_model,
        record=args.judge_record,
        key_env=args.judge_key_env,
        timeout=args.judge_timeout or 60.0,
        tries=args.judge_tries or 6,
    )
    return judging.Settings(
        by=by,
        runs=args.judge_runs or 1,
        reviews=reviews,
        prompts=args.judge_prompt,
        parallel=args.judge_parallel or 1,
        max_tokens=args.judge_max_tokens,
        retry=bool(args.judge_retry),
    )


def _flag(name: str) -> str:
    return "--judge-" + name.replace("_", "-")


def _refuse(names: Collection[str], why: str) -> None:
    for name in sorted(names):
        raise errors.SgqlmError(f"{_flag(name)} is {why}", where=_flag(name), fix="leave it out")


def _check_prompts(paths: Sequence[pathlib.Path], tasks: Sequence[str]) -> None:
    known = {task: judging.PROMPTS[task] for task in tasks if task in judging.PROMPTS}
    for path in paths:
        if not path.is_file():
            raise errors.SgqlmError("there is no such file", where=f"--judge-prompt={path}")
        if not any(path.suffix in endings for endings in known.values()):
            raise errors.SgqlmError(
                "the prompt is of none of the benchmarks",
                where=f"--judge-prompt={path}",
                why="; ".join(f"that of {task} is a {' or '.join(e)}" for task, e in known.items())
                or f"{', '.join(tasks)} take none",
                fix="give LLaVA's rule.json, or MM-Vet's program or a text",
            )
    for task, endings in known.items():
        if len([path for path in paths if path.suffix in endings]) > 1:
            raise errors.SgqlmError(f"{task} has one prompt", where="--judge-prompt")
