"""`sgqlm eval --tasks=gqa,pope,...`: answer benchmarks as the papers do, and score the answers.

Official files lie under --root as in LLaVA's playground/data/eval; data/TASK/README.md names them.
`scenes` are drawn, `relations` are those of --data: any of them can stand in the list. Answers are
greedy and kept: a run that was stopped goes on where it was.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import common, devices, eval_model, eval_own, eval_relations, judge_flags
from sgqlm.evals import answers, benchmark, finishing, judging, self_asked_rounds, sharing
from sgqlm.evals import tasks as tasks_lib
from sgqlm.parallel import distributed
from sgqlm.text import templates
from sgqlm.train import progress

_ROUND_TOKENS = 256
_TEMPLATES = ("vicuna_v1", "v1_sq", "plain", "trained")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval --tasks=...`; return the exit code."""
    parser, of_relations = make_parser()
    args, rest = parser.parse_known_args(argv)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    _check(args)
    places = _places(args)
    if args.unpack and places:
        return _unpack([benchmark.prepare(place, limit=args.limit) for place in places], args)
    judge = judge_flags.settings(args, [place.task.name for place in places])
    source = eval_model.find(args, rest, flags)
    name = args.model_id or pathlib.Path(source.path).resolve().name
    out = args.out or pathlib.Path("runs/eval") / name
    own = eval_own.prepare(args, parser, of_relations, out)
    devices.force(args.mesh)
    distributed.initialize(heartbeat=3 * int(sharing.WATCH_SECONDS))  # the team sees it first
    folders = [*(out / place.task.name for place in places), *own.folders]
    # once more: jax.distributed has put a handler of its own in the place of that of `eval`
    with common.stoppable("the answers so far are kept"), sharing.join(folders) as team:
        if not places and not team.is_main:  # only the main process measures the own tasks
            return errors.OK
        return _measure(places, own, source, name, out, args, team, judge)


def _measure(
    places, own: eval_own.Own, source: eval_model.Source, name: str, out, args, team, judge
) -> int:
    jobs = [benchmark.prepare(place, limit=args.limit) for place in places]
    finishing.check_judge(jobs, judge)
    model, settings = eval_model.load(source)
    jobs = [_with_entities(job, model, args.entities) for job in jobs]
    _warn_of_rounds(model, args, team)
    trained = model
    model = _asked_as(model, args.template, team) if jobs else model
    chosen = benchmark.Settings(
        checkpoint=str(source.checkpoint),
        model_id=name,
        template=args.template,
        max_new_tokens=args.max_new_tokens,
    )
    for job in jobs:
        benchmark.check_room(model, job, chosen)
    size = args.batch_size or settings.eval.batch_size
    rounds = self_asked_rounds.Rounds(args.self_questions, args.round_tokens, settings.eval.seed)
    responds = [
        self_asked_rounds.answering(model, job, chosen, rounds, batch_size=size) for job in jobs
    ]
    headers = [{**benchmark.header(model, job, chosen), **rounds.header()} for job in jobs]
    runs = [
        _Run(job, out / job.place.task.name, about)
        for job, about in zip(jobs, headers, strict=True)
    ]
    todo = team.agree("plan", lambda: [
        benchmark.plan(run.job, run.folder, run.about, retry=args.retry) for run in runs
    ])  # fmt: skip
    code = errors.OK
    for run, left, respond in zip(runs, todo, responds, strict=True):
        run.ask(left, respond, size, team)
        team.done(run.job.place.task.name)
        if team.is_main:
            code = max(code, run.finish(judge))
    if team.is_main:
        own.measure(trained, settings, source, args)
    return code


@dataclasses.dataclass(frozen=True)
class _Run:
    """One benchmark that is measured: what to ask, its folder, the header of its answers."""

    job: benchmark.Job
    folder: pathlib.Path
    about: dict[str, Any]

    def ask(
        self, todo: list[int], respond: benchmark.Respond, size: int, team: sharing.Team
    ) -> None:
        name, path = self.job.place.task.name, self.folder / benchmark.PROGRESS
        known, total = len(self.job.chosen) - len(todo), len(self.job.chosen)
        if known and team.is_main:
            told = f"{name}: {known} of {total} questions have an answer in {path}"
            if failed := benchmark.count_errors(self.job, self.folder):
                told += f"; {failed} have an error and an empty one (--retry asks them again)"
            print(told, file=sys.stderr)
        shares, label = sharing.share(benchmark.by_image(self.job, todo), team), name
        own = [at for about in shares for at in about]
        if self_asked_rounds.KEY in self.about:
            own = self_asked_rounds.order(shares, batch_size=size)
        if team.count > 1:
            known, total, label = 0, len(own), f"{name}, process 0 of {team.count}"
        file = answers.AnswerFile(sharing.own_file(path, team), self.about)
        with (
            file as out,
            progress.Progress(label, total, done=known, is_active=team.is_main) as bar,
        ):

            def tell(done: int) -> None:
                bar.update(known + done)
                team.check()

            benchmark.run(
                self.job, own, out, respond,
                model_id=self.about["model_id"], batch_size=size, progress=tell,
            )  # fmt: skip

    def finish(self, judge: judging.Settings) -> int:
        found = benchmark.collect(self.job, self.folder)
        done = finishing.finish(self.job, found, self.folder, judge)
        path = finishing.write_report(done, self.about, self.folder / benchmark.REPORT)
        print("\n".join(done.lines()))
        print(self.folder / benchmark.ANSWERS)
        if done.submission:
            print(done.submission)
        print(path, flush=True)
        return done.code


def make_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of all tasks, and the names of the values of relations alone."""
    parser = _parser()
    return parser, eval_relations.add_flags(parser)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="sgqlm eval --tasks=...", description=__doc__)
    parser.add_argument(
        "--tasks", "--task", required=True,
        help="with commas: " + ",".join((*tasks_lib.TASKS, *eval_own.NAMES)),
    )  # fmt: skip
    parser.add_argument("--root", type=pathlib.Path, help="folder of the benchmarks' files")
    eval_model.add_flags(parser)
    parser.add_argument(
        "--entities",
        default="",
        help="entity store of the images, or a folder with one for each task (DIR/gqa ...); none: "
        "without the scene graph",
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder (default runs/eval/MODEL)")
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        help="questions of a task; of MMBench, items with all rolls (default 0: all)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=0,
        help="questions at once, over all devices of a process; default config.eval.batch_size",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int, default=0,
        help="of an answer, in all the tasks (default: those of LLaVA, 128 or 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--template", choices=_TEMPLATES, default=_TEMPLATES[0],
        help="of the conversation; trained: that of the checkpoint (default vicuna_v1, as in the "
        "papers)",
    )  # fmt: skip
    parser.add_argument(
        "--self-questions", type=int, default=0, metavar="N",
        help="SQ-LLaVA's rounds: before each question or caption the model describes the image, "
        "asks itself N questions and answers them (default 0: none)",
    )  # fmt: skip
    parser.add_argument("--round-tokens", type=int, default=_ROUND_TOKENS, metavar="N", help="of a "
                        "description, an own question or its answer at most (256)")  # fmt: skip
    parser.add_argument("--questions", type=pathlib.Path, nargs="+", help="of one task, if not "
                        "the usual file")  # fmt: skip
    parser.add_argument("--model-id", default="", help="name in the answers")
    parser.add_argument("--retry", action="store_true", help="ask again what had an error")
    parser.add_argument(
        "--unpack", type=pathlib.Path,
        help="write the pictures in MMBench's file to this folder, for `sgqlm entities extract`, "
        "and stop",
    )  # fmt: skip
    judge_flags.add(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.out:
        common.check_folder(args.out)
    if args.unpack:
        common.check_folder(args.unpack, "--unpack")
    for name in ("limit", "batch_size", "max_new_tokens", "self_questions"):
        if getattr(args, name) < 0:
            flag = "--" + name.replace("_", "-")
            raise errors.SgqlmError(
                f"{flag} is below 0", where=flag, fix="leave it out, or give 0, which is the same"
            )
    if args.round_tokens < 1:
        raise errors.SgqlmError("--round-tokens is below 1", where="--round-tokens")
    if args.round_tokens != _ROUND_TOKENS and not args.self_questions:
        raise errors.SgqlmError(
            "--round-tokens is of self-asked questions, and none are asked",
            where="--round-tokens",
            fix="leave it out, or give --self-questions",
        )
    if eval_own.names_of(args.tasks)[0] and args.root is None:
        raise errors.SgqlmError(
            "the folder of the official files is not named", where="--root",
            fix="give it with --root=FOLDER; data/TASK/README.md says what it has",
        )  # fmt: skip
    if args.root and not args.root.is_dir():
        raise errors.SgqlmError("there is no such folder", where=f"--root={args.root}")
    for path in args.questions or ():
        if not path.is_file():
            raise errors.SgqlmError("there is no such file", where=f"--questions={path}")


def _places(args: argparse.Namespace) -> list[tasks_lib.Place]:
    names, _ = eval_own.names_of(args.tasks)
    if args.questions and len(names) > 1:
        raise errors.SgqlmError("--questions are of one task", where="--questions")
    found = [tasks_lib.get(name) for name in names]
    return [tasks_lib.locate(task, args.root, args.questions or ()) for task in found]


def _unpack(jobs: Sequence[benchmark.Job], args: argparse.Namespace) -> int:
    folder = args.unpack
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
    return dataclasses.replace(job, entities=benchmark.Entities(pathlib.Path(choice), job))


def _warn_of_rounds(model, args: argparse.Namespace, team: sharing.Team) -> None:
    name = model.config.text.template
    if args.self_questions and team.is_main and not templates.get(name).can_ask:
        told = f"the model was trained with {name}, and so not to ask: its own questions may be odd"
        print(told, file=sys.stderr)


def _asked_as(model: model_lib.VisionLanguageModel, template: str, team: sharing.Team):
    asked, text = benchmark.with_template(model, template), model.config.text
    if (
        team.is_main
        and template != "trained"
        and (text.template != template or text.system not in (None, templates.get(template).system))
    ):
        print(
            f"asked with the template {template} as in the papers; the model was trained with "
            f"{text.template} (--template=trained)",
            file=sys.stderr,
        )
    return asked
