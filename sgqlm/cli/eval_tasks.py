"""`sgqlm eval --tasks=gqa,pope,...`: answer benchmarks as the papers do, and score the answers.

Official files lie under --root as in LLaVA's playground/data/eval; data/TASK/README.md names them.
Answers are greedy and kept: a run that was stopped goes on where it was.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import common
from sgqlm.evals import answers, benchmark, finishing
from sgqlm.evals import tasks as tasks_lib
from sgqlm.text import templates
from sgqlm.train import checkpoint, progress

_TEMPLATES = ("vicuna_v1", "v1_sq", "plain", "trained")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval --tasks=...`; return the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    has_file = any(word == "--config" or word.startswith("--config=") for word in rest)
    settings, rest = common.load_config(rest) if has_file else (None, rest)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if settings is not None:
        common.refuse_rest(rest, flags)
    _check(args)
    jobs = [benchmark.prepare(place, limit=args.limit) for place in _places(args)]
    if args.unpack:
        return _unpack(jobs, args.unpack)
    path = args.checkpoint or (settings.train.workdir if settings else None)
    if path is None:
        raise errors.SgqlmError("there is no model to measure", fix="give --checkpoint or --config")
    model = model_lib.load(path, base=args.base)
    settings = settings or common.override_all(model.config, rest, flags)
    jobs = [_with_entities(job, model, args.entities) for job in jobs]
    model = _asked_as(model, args.template)
    chosen = benchmark.Settings(
        checkpoint=str(_resolved(path)),
        model_id=args.model_id or pathlib.Path(path).resolve().name,
        template=args.template,
        max_new_tokens=args.max_new_tokens,
    )
    for job in jobs:
        benchmark.check_room(model, job, chosen)
    out = args.out or pathlib.Path("runs/eval") / chosen.model_id
    for job in jobs:
        _one(model, job, chosen, out / job.place.task.name, args, settings)
    return errors.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sgqlm eval --tasks=...", description=__doc__)
    parser.add_argument(
        "--tasks", "--task", required=True, help="with commas: " + ",".join(tasks_lib.TASKS)
    )
    parser.add_argument("--root", type=pathlib.Path, required=True, help="folder of the files")
    parser.add_argument("--checkpoint", help="checkpoint, export or work directory")
    parser.add_argument("--base", help="where the base weights lie, if they were moved")
    parser.add_argument(
        "--entities",
        default="",
        help="entity store of the images, or a folder with one for each task (DIR/gqa ...); none: "
        "without the scene graph",
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder (default runs/eval/MODEL)")
    parser.add_argument(
        "--limit", type=int, default=0, help="questions of a task; of MMBench, items with all rolls"
    )
    parser.add_argument("--batch-size", type=int, default=0, help="default config.eval.batch_size")
    parser.add_argument(
        "--max-new-tokens", type=int, default=0, help="default: those of LLaVA, 128 or 1024"
    )
    parser.add_argument(
        "--template", choices=_TEMPLATES, default=_TEMPLATES[0],
        help="of the conversation; trained: that of the checkpoint (default vicuna_v1, as in the "
        "papers)",
    )  # fmt: skip
    parser.add_argument("--questions", type=pathlib.Path, nargs="+", help="of one task, if not "
                        "the usual file")  # fmt: skip
    parser.add_argument("--model-id", default="", help="name in the answers")
    parser.add_argument("--retry", action="store_true", help="ask again what had an error")
    parser.add_argument(
        "--unpack", type=pathlib.Path,
        help="write the pictures in MMBench's file to this folder, for `sgqlm entities extract`, "
        "and stop",
    )  # fmt: skip
    return parser


def _check(args: argparse.Namespace) -> None:
    for name in ("limit", "batch_size", "max_new_tokens"):
        if getattr(args, name) < 0:
            flag = "--" + name.replace("_", "-")
            raise errors.SgqlmError(f"{flag} is below 0", where=flag, fix="leave it out, or give 1")
    if not args.root.is_dir():
        raise errors.SgqlmError("there is no such folder", where=f"--root={args.root}")
    for path in args.questions or ():
        if not path.is_file():
            raise errors.SgqlmError("there is no such file", where=f"--questions={path}")


def _places(args: argparse.Namespace) -> list[tasks_lib.Place]:
    names = list(dict.fromkeys(name.strip() for name in args.tasks.split(",") if name.strip()))
    if alone := [name for name in names if name in ("relations", "scenes")]:
        raise errors.SgqlmError(
            f"{alone[0]} is measured alone", where="--tasks", fix=f"--tasks={alone[0]} by itself"
        )
    if not names:
        raise errors.SgqlmError("no task is named", where="--tasks")
    if args.questions and len(names) > 1:
        raise errors.SgqlmError("--questions are of one task", where="--questions")
    found = [tasks_lib.get(name) for name in names]
    return [tasks_lib.locate(task, args.root, args.questions or ()) for task in found]


def _unpack(jobs: Sequence[benchmark.Job], folder: pathlib.Path) -> int:
    for job in jobs:
        if not job.place.task.is_rolled:
            raise errors.SgqlmError(
                f"the images of {job.place.task.name} are files already", where="--unpack"
            )
        print(f"{folder}: {benchmark.unpack(job, folder)} pictures")
    return errors.OK


def _with_entities(job: benchmark.Job, model, choice: str) -> benchmark.Job:
    if not model.config.model.graph.enabled:
        if choice not in ("", "none"):
            print("the model has no scene graph: --entities is not used", file=sys.stderr)
        return job
    if not choice:
        raise errors.SgqlmError(
            "the model has a scene graph, and there are no entities",
            where="--entities",
            fix="give the store that `sgqlm entities extract` wrote for the images, or "
            "--entities=none to measure the model without its graph",
        )
    if choice == "none":
        return job
    return benchmark.with_entities(job, pathlib.Path(choice))


def _asked_as(model: model_lib.VisionLanguageModel, template: str):
    asked, text = benchmark.with_template(model, template), model.config.text
    if template != "trained" and (
        text.template != template or text.system not in (None, templates.get(template).system)
    ):
        print(
            f"asked with the template {template} as in the papers; the model was trained with "
            f"{text.template} (--template=trained)",
            file=sys.stderr,
        )
    return asked


def _one(
    model: model_lib.VisionLanguageModel,
    job: benchmark.Job,
    chosen: benchmark.Settings,
    folder: pathlib.Path,
    args: argparse.Namespace,
    settings: config.Config,
) -> None:
    name, total, about = job.place.task.name, len(job.chosen), benchmark.header(model, job, chosen)
    path, size = folder / benchmark.PROGRESS, args.batch_size or settings.eval.batch_size
    if args.retry:
        benchmark.forget_errors(path)
    with answers.AnswerFile(path, about) as out:
        known = sum(str(at) in out.done for at in job.chosen)
        if known:
            print(f"{name}: {known} of {total} questions have an answer in {path}", file=sys.stderr)
        with progress.Progress(name, total, done=known) as bar:
            benchmark.run(model, job, chosen, out, batch_size=size, progress=bar.update)
    found = benchmark.collect(job, folder)
    done = finishing.finish(job, found, folder)
    print("\n".join(done.lines()))
    print(folder / benchmark.ANSWERS)
    if done.submission:
        print(done.submission)
    print(finishing.write_report(done, about, folder / benchmark.REPORT), flush=True)


def _resolved(path: str) -> pathlib.Path:
    """Return the checkpoint that a work directory stands for, as `model.load` takes it."""
    found = checkpoint.find(path)
    return (found[-1] if found else pathlib.Path(path)).resolve()
