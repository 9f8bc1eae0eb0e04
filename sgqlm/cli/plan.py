"""`sgqlm plan`: what a run needs, before any weight or accelerator is there."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from sgqlm import config, errors
from sgqlm.cli import common
from sgqlm.parallel import chips

HELP = """usage: sgqlm plan --config=FILE.py[:ARG] [--mesh data=1,fsdp=8,tensor=1] [options]

Tells for every stage what one device has to hold, how much work, time and money the stage is, and
whether it fits; if it does not, the cheapest change that makes it fit. Needs no weights, no data
and no accelerator. Leaves with 6 if a stage does not fit.

  --mesh data=1,fsdp=8,tensor=1  devices; default config.train.mesh, with -1 the whole slice
  --chip v5e                     one of v4 v5e v5p v6e a100-40 a100-80 h100 h200
  --topology v5e:4x4             a TPU slice: compile for it (needs libtpu, no TPU)
  --stage NAME                   this stage only; may be given again
  --no-compile                   arithmetic and tracing only, a few seconds
  --samples N                    samples of an epoch, where the data is not here
  --mfu 0.4                      share of the peak that model FLOPs reach
  --prices FILE                  another table than sgqlm/parallel/prices.json
  --json FILE                    write all numbers as well
  --config.train.remat=full      any setting may be changed, see `sgqlm train --help`
"""
_AXES = ("data", "fsdp", "tensor")
_FLAGS = ("--mesh", "--chip", "--topology", "--stage", "--no-compile", "--samples", "--mfu")
_FLAGS += ("--prices", "--json")


class Request(NamedTuple):
    """A checked command line."""

    settings: config.Config
    mesh: dict[str, int]
    chip: chips.Chip | None
    topology: chips.Topology | None
    is_compiled: bool
    samples: int | None
    mfu: float
    prices: chips.Prices
    json: pathlib.Path | None

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return self.mesh["data"] * self.mesh["fsdp"] * self.mesh["tensor"]


def run(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after `sgqlm plan`.

    Returns:
        0 if every stage fits, or no chip was named; 6 if one does not fit.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return errors.OK
    request = read(argv)
    _prepare(request)
    from sgqlm.train import planning  # jax is imported after the devices are chosen

    common_args = (request.settings, request.mesh, request.chip, request.prices)
    plans = []
    for job in planning.jobs(request.settings):
        found = planning.make(job, *common_args, mfu=request.mfu, samples=request.samples)
        print(planning.text(found))
        if request.is_compiled:
            compiled = planning.compiled(found, request.topology)
            print(planning.compiled_text(compiled, found, request.topology))
            found = found._replace(compiled=compiled)
        plans.append(found)
    print(planning.closing(plans, request.prices, request.mfu))
    if request.json:
        _write(request.json, [planning.to_dict(found) for found in plans])
    is_over = any(found.is_fitting is False for found in plans)
    return errors.RESOURCES if is_over else errors.OK


def read(argv: Sequence[str]) -> Request:
    """Check a command line; nothing of jax is loaded yet.

    Raises:
        SgqlmError: something in it is unknown or does not go together.
    """
    settings, rest = common.load_config(argv)
    parser = common.Parser(prog="sgqlm plan", add_help=False, allow_abbrev=False)
    for flag in _FLAGS:
        if flag == "--no-compile":
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, action="append" if flag == "--stage" else "store")
    args, rest = parser.parse_known_args(rest)
    common.refuse_rest(rest, _FLAGS)
    topology = chips.topology(args.topology) if args.topology else None
    chip = chips.get(args.chip) if args.chip else topology.chip if topology else None
    if topology and chip is not topology.chip:
        fix = f"leave --chip out, or give --chip {topology.chip.name}"
        raise errors.SgqlmError(
            f"{topology.name} has no chips {args.chip}", where="--chip --topology", fix=fix
        )
    mesh = _mesh(args.mesh, settings, topology)
    return Request(
        _with_stages(settings, args.stage, mesh),
        mesh,
        chip,
        topology,
        not args.no_compile,
        _number(args.samples, "--samples", int, 1, None),
        _number(args.mfu, "--mfu", float, 0.001, 1.0) or 0.4,
        chips.read_prices(args.prices),
        pathlib.Path(args.json) if args.json else None,
    )


def _mesh(text: str | None, settings: config.Config, topology) -> dict[str, int]:
    sizes = common.parse_mesh(text) if text else dict(settings.train.mesh)
    where = f"--mesh {text}" if text else "config.train.mesh"
    if unknown := set(sizes) - set(_AXES):
        name = sorted(unknown)[0]
        raise errors.SgqlmError(
            f"unknown mesh axis {name!r}", where=where, fix=chips.nearest(name, _AXES)
        )
    mesh = {axis: sizes.get(axis, 1) for axis in _AXES}
    open_axes = [axis for axis, size in mesh.items() if size == -1]
    known = 1
    for size in mesh.values():
        known *= size if size != -1 else 1
    wanted = topology.num_chips if topology else None
    if len(open_axes) == 1 and known > 0 and (wanted is None or wanted % known == 0):
        mesh[open_axes[0]] = (wanted or known) // known
        known *= mesh[open_axes[0]]
        open_axes = []
    if open_axes or min(mesh.values()) < 1 or (wanted and known != wanted):
        count = f"the {wanted} chips of {topology.name}" if topology else "devices"
        raise errors.SgqlmError(
            f"the mesh {sizes} does not give {count}",
            where=where,
            fix="give sizes of at least 1 whose product is the number of chips, as "
            f"--mesh data=1,fsdp={wanted or 8},tensor=1",
        )
    return mesh


def _with_stages(settings: config.Config, names, mesh) -> config.Config:
    """Return the settings with the stages that are asked for, checked against the mesh."""
    stages = settings.train.stages
    if not stages:
        fix = "give --config=configs/<name>.py"
        raise errors.SgqlmError(
            "the configuration has no stage", where="config.train.stages", fix=fix
        )
    known = [stage.name for stage in stages]
    only = tuple(names or settings.train.only)
    for name in only:
        if name not in known:
            fix = chips.nearest(name, known, "--stage ")
            raise errors.SgqlmError(f"unknown stage {name!r}", where=f"--stage {name}", fix=fix)
    shards = mesh["data"] * mesh["fsdp"]
    for stage in stages:
        parts = shards * max(stage.accumulation, 1)
        if (not only or stage.name in only) and stage.batch_size % parts:
            raise errors.SgqlmError(
                f"batch size {stage.batch_size} does not divide over {shards} devices"
                f" x {stage.accumulation} micro-batches",
                where=f"config.train.stages: {stage.name}",
                fix=f"give a multiple of {parts}: --config.train.stages.{stage.name}.batch_size="
                f"{-(-stage.batch_size // parts) * parts}",
            )
    train = dataclasses.replace(settings.train, only=only, mesh=mesh)
    return dataclasses.replace(settings, train=train)


def _number(text: str | None, flag: str, kind: type, low, high) -> Any:
    if text is None:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= (high or value):
        upper = f" and at most {high}" if high else ""
        raise errors.SgqlmError(
            f"{flag} {text} does not fit", where=flag, fix=f"give a number of at least {low}{upper}"
        )
    return value


def _prepare(request: Request) -> None:
    """Choose the platform before jax starts: the CPU, whatever this machine has."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if request.is_compiled and request.topology is None:
        common.force_host_devices(request.settings)
    if request.is_compiled and request.topology is not None:
        os.environ.update(chips.compile_environment(request.topology, _library()))


def _library() -> str:
    spec = importlib.util.find_spec("libtpu")
    if spec is None or spec.origin is None:
        raise errors.SgqlmError(
            "compiling for a TPU needs the package libtpu",
            where="--topology",
            why="it holds the TPU compiler; no TPU is needed",
            fix=f"{sys.executable} -m pip install -e '.[tpu-compile]' in the clone, or "
            "--no-compile",
            code=errors.RESOURCES,
        )
    return str(pathlib.Path(spec.origin).parent / "libtpu.so")


def _write(file: pathlib.Path, plans: list[dict[str, Any]]) -> None:
    try:
        file.write_text(json.dumps(plans, indent=2) + "\n")
    except OSError as error:
        raise errors.SgqlmError(
            "the plan cannot be written",
            where=str(file),
            why=str(error),
            fix="give another --json file",
        ) from error
