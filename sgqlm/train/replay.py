"""Take the steps of a crash bundle again and compare."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sgqlm import config, errors, types
from sgqlm.models import vlm
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import checkpoint, crash, exactness, loop, program


class Step(NamedTuple):
    """One step that was taken again.

    Attributes:
        index: steps of the stage done before it.
        found: its figures now.
        recorded: those of the run.
        differences: names of the figures that differ in some bit.
    """

    index: int
    found: dict[str, float]
    recorded: dict[str, float]
    differences: list[str]


class Outcome(NamedTuple):
    """What a replay found.

    Attributes:
        steps: all steps.
        bad_rows: rows of the first batch that alone are not finite.
        records: names of the records of that batch.
        changed: what differs from the machine of the run, such as its mesh; figures then differ by
            rounding, and only what is finite is compared.
        is_reproduced: the steps came out as they did in the run.
    """

    steps: list[Step]
    bad_rows: list[int]
    records: list[str]
    changed: list[str]
    is_reproduced: bool


def run(bundle: crash.Bundle, *, tell: Callable[[str], None]) -> Outcome:
    """Load the state of a bundle, take its steps and compare them with what was recorded.

    Args:
        bundle: from `crash.read`.
        tell: told what is done, line by line.

    Returns:
        The outcome.

    Raises:
        SgqlmError: the checkpoint of the bundle cannot be read, or its base is not there.
    """
    about = bundle.about
    settings = config.from_config_dict(about["config"])
    mesh = _mesh(settings, tell)
    changed = _changed(about, mesh)
    with jax.set_mesh(mesh):
        taken = _program(bundle, settings, mesh)
        first, steps = about["first"], []
        rows = taken.bad_rows(crash.batch(bundle, first))
        for index, recorded in enumerate(about["reports"], first):
            placed = mesh_lib.put_batch(crash.batch(bundle, index), mesh)
            report = jax.device_get(taken.take(placed)[0])
            found = {name: float(value) for name, value in report.items()}
            unlike = [name for name in recorded if not _same(recorded[name], found.get(name))]
            steps.append(Step(index, found, recorded, unlike))
            tell(_line(steps[-1]))
    is_same = all(_is_like(step) if changed else not step.differences for step in steps)
    records = about["records"][0] if about["records"] else []
    return Outcome(steps, rows, records, changed, is_same)


def _program(bundle: crash.Bundle, settings: config.Config, mesh: Mesh) -> program.Program:
    about = bundle.about
    stage = next(row for row in settings.train.stages if row.name == about["stage"])
    shapes = vlm.param_shapes(settings.model)
    places = rules.param_shardings(shapes, mesh)
    params: types.Params = checkpoint.load_params(bundle.checkpoint, shardings=places)
    return program.Program(
        settings.train,
        stage,
        mesh,
        index=about["stage_index"],
        num_steps=about["num_steps"],
        loss_fn=loop.make_loss(stage, settings, known=about["known"]),
        params=params,
        done=about["first"],
        opt=functools.partial(checkpoint.load_opt, bundle.checkpoint),
    )


def _mesh(settings: config.Config, tell: Callable[[str], None]) -> Mesh:
    try:
        return mesh_lib.make(settings.train.mesh)
    except errors.SgqlmError:
        tell(f"the mesh {dict(settings.train.mesh)} does not fit {len(jax.devices())} devices")
        return mesh_lib.make({}, jax.devices()[:1])


def _changed(about: Mapping[str, Any], mesh: Mesh) -> list[str]:
    before = {**about["versions"], "mesh": about["mesh"]}
    now = {**checkpoint.versions(), "mesh": exactness.where(mesh)}
    unlike = [name for name in before if before[name] != now.get(name)]
    return [f"{name}: {before[name]} -> {now.get(name)}" for name in unlike]


def _same(recorded: float, found: float | None) -> bool:
    both_nan = found is not None and math.isnan(recorded) and math.isnan(found)
    return both_nan or recorded == found


def _is_like(step: Step) -> bool:
    names = ("loss", "grad_norm")
    return all(np.isfinite(step.found[n]) == np.isfinite(step.recorded[n]) for n in names)


def _line(step: Step) -> str:
    names = ("loss", "grad_norm", *(n for n in step.found if n.startswith("grad_norm_")))
    figures = ", ".join(f"{n} {step.found[n]:.6g} ({step.recorded[n]:.6g})" for n in names)
    verdict = f"differs: {', '.join(step.differences)}" if step.differences else "the same bits"
    return f"step {step.index + 1}: {figures}: {verdict}"
