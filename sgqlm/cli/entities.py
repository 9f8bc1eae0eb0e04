"""`sgqlm entities extract | show`: find the entities in images, or look at them."""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
import platform
import sys
import time
from collections.abc import Sequence

from sgqlm import errors
from sgqlm.cli import common, entities_show, extractor_flags
from sgqlm.data import records
from sgqlm.entities import benchmark, engine, extract, inputs, settings, shards
from sgqlm.train import progress

_SHOWN = 20  # failures that are printed
_RAY_ONLY = ("workers", "gpus_per_worker", "address")


def run(argv: list[str]) -> int:
    """Run `sgqlm entities`; return the exit code."""
    args = _parser().parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="sgqlm entities", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="{extract,show}")
    make = verbs.add_parser("extract", help="find the entities in images", description=_extract_doc)
    what = make.add_argument_group("images")
    what.add_argument("--images", type=pathlib.Path, help="folder of photographs")
    what.add_argument("--data", type=pathlib.Path, help="data set that `sgqlm data build` wrote")
    what.add_argument(
        "--list", type=pathlib.Path,
        help="text file, the path of an image a line, relative to --images or to the file",
    )  # fmt: skip
    make.add_argument("--out", type=pathlib.Path, help="becomes the entity store")
    make.add_argument("--batch-size", type=int, default=8, help="images at once (8)")
    make.add_argument(
        "--shard-size", type=int,
        help="images of one file; what a crash can cost (256, or more for over 131072 images)",
    )  # fmt: skip
    make.add_argument(
        "--fault-budget", type=float, default=0.05,
        help="share of images that may fail, once there are 20 (0.05)",
    )  # fmt: skip
    make.add_argument(
        "--overwrite", action="store_true",
        help="replace annotated nodes, results of other settings, and those of absent images",
    )  # fmt: skip
    make.add_argument("--report", type=pathlib.Path, help="json file for times and failures")
    make.add_argument("--print-settings", action="store_true", help="print them, do nothing")
    place = make.add_argument_group("where")
    place.add_argument("--engine", choices=("local", "ray"), default="local", help="(local)")
    place.add_argument("--workers", type=int, help="of Ray (one a GPU, or one a core)")
    place.add_argument("--gpus-per-worker", type=float, help="of Ray (1 where there are GPUs)")
    place.add_argument("--address", help="of a Ray cluster that shares the files (Ray is started)")
    speed = make.add_argument_group("speed")
    speed.add_argument(
        "--benchmark", action="store_true",
        help="print milliseconds of each stage; writes no store, but a json to --report if given",
    )  # fmt: skip
    speed.add_argument("--n", type=int, default=32, help="images of the benchmark (32)")
    extractor_flags.add(make)
    make.set_defaults(run=_extract)
    entities_show.add_parser(verbs)
    return parser


_extract_doc = (
    "Find the entities in images. A run that was stopped goes on where it was when the same "
    "command is given again. Each image gets a row, with a status where it has no entities."
)


def _extract(args: argparse.Namespace) -> int:
    config = extractor_flags.read(args)
    if args.print_settings:
        print(json.dumps(dataclasses.asdict(config), indent=1))
        return errors.OK
    _check(args)
    sources = _sources(args)
    make = functools.partial(settings.make, config)
    if args.benchmark:
        return _benchmark(args, make, sources)
    if args.out is None:
        raise errors.SgqlmError("the output is not named", where="--out", fix="give --out=FOLDER")
    line = _Line(args.extractor)
    try:
        with common.stoppable("finished shards are kept"), line:
            summary = extract.run(
                make, sources, args.out, shard_size=args.shard_size or 0,
                batch_size=args.batch_size, fault_budget=args.fault_budget,
                overwrite=args.overwrite, engine=_engine(args), progress=line.show,
            )  # fmt: skip
    except KeyboardInterrupt:
        told = "stopped by Ctrl-C: finished shards are kept, the same command goes on"
        print(told, file=sys.stderr)
        return errors.INTERRUPTED
    _tell(args, summary)
    return errors.OK


def _check(args: argparse.Namespace) -> None:
    problem = where = fix = ""
    is_twice = args.data and (args.images or args.list)
    if is_twice or not (args.data or args.images or args.list):
        problem = "the images are named twice" if is_twice else "the images are not named"
        where = "--images, --data, --list"
        fix = "give --images=FOLDER, --data=DATASET or --list=FILE (--images then says where)"
    for name in ("batch_size", "shard_size", "n", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            problem, where, fix = f"{value} is too few", _flag(name), "give 1 or more"
    if not 0 <= args.fault_budget <= 1:
        problem, where = f"{args.fault_budget} is no share", "--fault-budget"
        fix = "give a number from 0 to 1"
    for name in _RAY_ONLY:
        if getattr(args, name) is not None and args.engine != "ray":
            problem, where = f"{_flag(name)} is for Ray", _flag(name)
            fix = "add --engine=ray"
    if problem:
        raise errors.SgqlmError(problem, where=where, fix=fix)


def _sources(args: argparse.Namespace) -> Sequence[inputs.Source]:
    for folder in (args.images, args.data):
        if folder is not None and not folder.is_dir():
            raise errors.SgqlmError(
                "there is no such folder", where=str(folder), fix="give an existing folder"
            )
    if args.list:
        return inputs.from_list(args.list, args.images or args.list.parent)
    if args.images:
        return inputs.from_folder(args.images)
    inner = args.data / "images"
    return inputs.from_store(inner if inner.is_dir() else args.data)


def _engine(args: argparse.Namespace) -> engine.Engine:
    if args.engine == "local":
        return engine.Local()
    return engine.Ray(
        args.workers or 0, gpus_per_worker=args.gpus_per_worker, address=args.address or ""
    )


def _tell(args: argparse.Namespace, summary: extract.Summary) -> None:
    new = summary.images - summary.reused
    print(f"{args.out}: {summary.entities} entities in {summary.images} images, {new} of them new")
    if new:
        print(f"  {new / summary.wall_seconds:.1f} images/s, loading included")
    if summary.empty:
        seen = summary.images - len(summary.failed)
        hint = " (all: are the thresholds too high?)" if summary.empty == seen else ""
        print(f"  nothing was found in {summary.empty} images{hint}")
    for key, reason in summary.failed[:_SHOWN]:
        print(f"  without entities: {key}: {reason}")
    if len(summary.failed) > _SHOWN:
        print(f"  and {len(summary.failed) - _SHOWN} more")
    if args.report:
        about = {
            "host": platform.node(), "engine": args.engine, "extractor": args.extractor,
            "images_per_second": new / summary.wall_seconds, "versions": shards.versions(),
        }  # fmt: skip
        args.report.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(args.report, dataclasses.asdict(summary) | about)


def _benchmark(
    args: argparse.Namespace, make: engine.Make, sources: Sequence[inputs.Source]
) -> int:
    if args.engine == "ray":
        raise errors.SgqlmError(
            "a benchmark measures one worker", where="--engine", fix="leave it out"
        )
    file = args.report or args.out
    if file is not None and (file.is_dir() or file.suffix != ".json"):
        raise errors.SgqlmError(
            "a benchmark writes a json file, not a store", where=str(file),
            fix="name it with --report=FILE.json, or leave the name out",
        )  # fmt: skip
    inputs.check(sources, str(args.images or args.data or args.list))
    wanted = args.n + args.batch_size  # the first batch warms up
    step = max(len(sources) // wanted, 1)
    chosen = sources[::step][:wanted]
    extractor = make()
    with progress.Progress(f"benchmark ({args.extractor})", len(chosen)) as line:
        found = benchmark.measure(
            extractor, chosen, batch_size=args.batch_size, progress=line.update
        )
    print(f"{found.images} images, {found.batch_size} at once, on {shards.versions()['device']}")
    for stage, milliseconds in found.stages.items():
        print(f"  {stage:<10} {milliseconds:10.2f} ms an image")
    print(f"  {'together':<10} {1000 / found.images_per_second:10.2f} ms an image, "
          f"{found.images_per_second:.2f} images/s")  # fmt: skip
    print(f"  {found.entities:.1f} entities and {found.record_bytes:.0f} bytes a record "
          f"({found.disk_bytes:.0f} on disk)")  # fmt: skip
    peak = found.device_peak_bytes or found.host_peak_bytes
    print(f"  {peak / 2**20:.0f} MiB at most {'on the GPU' if found.device_peak_bytes else ''}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {"versions": shards.versions(), "extractor": args.extractor}
        records.write_json(file, dataclasses.asdict(found) | about)
    return errors.OK


class _Line:
    """The line of progress; it begins with the first new image, so that `left` is true."""

    def __init__(self, name: str):
        self._name, self._last = name, -1
        self._first = (0.0, 0)  # when the first images were done, and how many
        self._line: progress.Progress | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *exc_info) -> None:
        self._stack.close()

    def show(self, state: extract.State) -> None:
        if state.done == self._last or not (state.extracted or state.done == state.total):
            return
        if self._line is None:
            done = state.reused if state.done < state.total else 0
            line = progress.Progress(f"entities ({self._name})", state.total, done=done)
            self._line = self._stack.enter_context(line)
            self._first = (time.perf_counter(), state.extracted)
        self._last = state.done
        began, first = self._first  # loading the models came before
        spent = time.perf_counter() - began
        rate = (state.extracted - first) / spent if spent > 1 else 0.0  # results come in batches
        self._line.update(state.done, _note(state, rate))


def _note(state: extract.State, rate: float) -> str:
    rates = [f"in all {rate:.3g}"] if rate else []
    rates += [
        f"{stage} {state.extracted / spent:.3g}"
        for stage, spent in state.seconds.items()
        if spent > 0
    ]
    parts = [f"images/s: {', '.join(rates)}"] if rates else []
    parts += [f"{state.failed} failed"] if state.failed else []
    return "; ".join(parts)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
