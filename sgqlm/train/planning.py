"""The plan of a run, stage by stage, as numbers and as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sgqlm import config
from sgqlm.data import lengths
from sgqlm.parallel import chips, collectives, plan
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import aot, estimate, expected, flops, stages

GIB = chips.GIB
_WIDTH = 12  # of the first column


class Plan(NamedTuple):
    """What is known of one stage.

    Attributes:
        job: the stage at its longest bucket.
        mesh: axis -> size.
        chip: None where none was named.
        memory: of one device.
        host: bytes a device keeps in the memory of its host.
        arguments: bytes of what a step is given, to compare with the compiler.
        minimum: elements that fully sharded data parallelism has to move a step.
        fix: the cheapest change that makes it fit; None if it fits or nothing helps.
        data: its samples.
        effort: work, time, money.
        answering: bytes of weights and of the cache of one device in evaluation.
        checkpoint: bytes.
        counts: parameters that train, and all.
        attention: program of the language model and why.
        compiled: what the compiler says, if it was asked.
    """

    job: aot.Job
    mesh: dict[str, int]
    chip: chips.Chip | None
    memory: plan.Memory
    host: int
    arguments: int
    minimum: int
    fix: estimate.Fix | None
    data: expected.Data
    effort: estimate.Effort
    answering: tuple[int, int]
    checkpoint: int
    counts: tuple[int, int]
    attention: str
    compiled: aot.Compiled | None = None

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return self.mesh["data"] * self.mesh["fsdp"] * self.mesh["tensor"]

    @property
    def is_fitting(self) -> bool | None:
        """Whether a step fits; None where no chip was named."""
        return None if self.chip is None else plan.fits(self.memory, self.chip)


def jobs(settings: config.Config) -> Iterator[aot.Job]:
    """Yield the selected stages; what earlier rows of the table train is known to later ones.

    Raises:
        SgqlmError: a stage trains a part that the model does not have.
    """
    chosen = {stage.name for stage in stages.select(settings.train)}
    known: set[str] = set()
    runs = lengths.default_runs(settings.model)
    for stage in settings.train.stages:
        if stage.name in chosen:
            length = expected.buckets(settings, stage)[-1]
            yield aot.Job(settings, stage, length, frozenset(known), runs)
        known |= set(stage.learning_rates)


def make(
    job: aot.Job,
    settings: config.Config,
    mesh: Mapping[str, int],
    chip: chips.Chip | None,
    prices: chips.Prices,
    *,
    mfu: float,
    samples: int | None = None,
) -> Plan:
    """Plan one stage by arithmetic and tracing.

    Args:
        job: from `jobs`.
        settings: the run.
        mesh: axis -> size, all axes there.
        chip: None: no verdict, no time, no price.
        prices: the table.
        mfu: share of the peak that model FLOPs reach.
        samples: of an epoch, where the data is not here.

    Returns:
        The plan.

    Raises:
        SgqlmError: the stage does not fit the model, or the model not the mesh.
    """
    found = estimate.Estimator(job, chip.platform if chip else "cpu")
    stages.check(job.stage, found.params)
    memory = found.memory(found.job, mesh)
    fix = None
    if chip and not plan.fits(memory, chip):
        fix = found.fixes(mesh, chip)
    data = expected.look(settings, job.stage, samples=samples)
    devices = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    effort = estimate.effort(job, data, chip=chip, num_chips=devices, mfu=mfu, prices=prices)
    sizes = aot.sizes(found.params)
    choice = found.program
    return Plan(
        job,
        dict(mesh),
        chip,
        memory,
        found.host_bytes(found.job, mesh),
        found.arguments(mesh),
        found.minimum_elements(mesh),
        fix,
        data,
        effort,
        estimate.evaluation(found, mesh, settings.eval),
        estimate.checkpoint_bytes(found),
        (sum(n for path, n in sizes.items() if found.trains(path)), sum(sizes.values())),
        f"{choice.name} attention",
    )


def compiled(found: Plan, topology: chips.Topology | None) -> aot.Compiled:
    """Compile the step of a planned stage.

    Args:
        found: the plan.
        topology: None: for as many CPU devices as the mesh has, which this process must show.

    Raises:
        SgqlmError: the devices are not there.
    """
    devices = aot.topology_devices(topology) if topology else aot.host_devices(found.num_devices)
    mesh = mesh_lib.make(found.mesh, devices)
    return aot.compile_step(found.job if topology else aot.with_any_attention(found.job), mesh)


def text(found: Plan) -> str:
    """Return the plan of a stage as a table."""
    stage = found.job.stage
    trained, count = found.counts
    head = f"stage {stage.name}: trains {', '.join(stage.learning_rates)}"
    rows = [
        ("parameters", f"{trained:,d} of {count:,d} train"),
        *_data_rows(found),
        *_memory_rows(found),
        *_effort_rows(found),
        ("verdict", verdict(found)),
    ]
    return "\n".join(["", head, *(f"  {name:{_WIDTH}}{value}" for name, value in rows)])


def verdict(found: Plan) -> str:
    """Return in one line whether the stage fits, and what to change if it does not."""
    need = found.memory.total
    if found.chip is None:
        names = {chip.name: plan.fits(found.memory, chip) for chip in chips.CHIPS.values()}
        good = ", ".join(name for name, fits in names.items() if fits) or "no chip that is known"
        return f"{_gib(need)} a device: fits {good}; --chip gives time and price"
    size = f"{need / GIB:.1f} of {_gib(found.chip.memory)} of {found.chip.name}"
    if found.is_fitting:
        return f"fits: {size}"
    share = f"{plan.USABLE:.0%} of it can be used"
    if found.fix is None:
        return (
            f"does NOT fit: {size} ({share}); no remat, accumulation or 16 times as many chips"
            " makes it fit: shorten data.buckets, or train llm_lora instead of llm"
        )
    return (
        f"does NOT fit: {size} ({share}); turn {found.fix.text}: then"
        f" {_gib(found.fix.memory.total)}"
    )


def compiled_text(found: aot.Compiled, planned: Plan, topology: chips.Topology | None) -> str:
    """Return what the compiler said, beside the arithmetic."""
    where = topology.name if topology else f"{planned.num_devices} CPU devices"
    moved = collectives.elements(found.collectives)
    note = "" if topology else " (upper bound: float32 products, no fused attention)"
    rows = [
        (
            "compiled",
            f"for {where}: {found.lower_seconds + found.compile_seconds:.0f} CPU s",
        ),
        (
            "arguments",
            f"{_gib(found.arguments)}, by arithmetic {_gib(planned.arguments)}"
            f" (ratio {found.arguments / max(planned.arguments, 1):.3f})",
        ),
        ("temporary", f"{_gib(found.temporary)}{note}"),
    ]
    if topology:
        rows.append(("peak", f"{_gib(found.peak)} of {_gib(topology.chip.memory)} a chip"))
    if planned.num_devices > 1 and moved:
        ratio = moved / max(planned.minimum, 1)
        rows.append(
            ("wire", f"{moved / 1e9:.2f} G elements a step, {ratio:.2f} of the FSDP minimum")
        )
    return "\n".join(f"  {name:{_WIDTH}}{value}" for name, value in rows)


def closing(plans: Sequence[Plan], prices: chips.Prices, mfu: float) -> str:
    """Return the sums over all stages, and what the numbers rest on."""
    lines = [""]
    hours = [found.effort.hours for found in plans]
    if plans and all(hour is not None for hour in hours):
        line = f"all stages: {_hours(sum(hour or 0 for hour in hours))}"
        dollars = [found.effort.dollars for found in plans]
        if all(price is not None for price in dollars):
            sums = [sum(price[k] for price in dollars if price) for k in range(2)]
            line += f", {sums[0]:,.0f} USD on demand, {sums[1]:,.0f} USD spot"
        lines.append(f"{line} (estimate)")
    lines.append(
        f"Time is work over {mfu:.0%} of the peak; loading, evaluation and compiling come on top."
        f" Prices of {prices.date}; change them with --prices."
    )
    lines.append("Memory is an estimate but for weights and optimizer, which are exact.")
    return "\n".join(lines)


def to_dict(found: Plan) -> dict[str, Any]:
    """Return the plan as json types; bytes and FLOPs as numbers."""
    effort = found.effort
    result: dict[str, Any] = {
        "stage": found.job.stage.name,
        "mesh": found.mesh,
        "chip": found.chip.name if found.chip else None,
        "remat": found.job.settings.train.remat,
        "length": found.job.length,
        "parameters": {"trained": found.counts[0], "all": found.counts[1]},
        "memory": {**found.memory._asdict(), "total": found.memory.total, "host": found.host},
        "arguments": found.arguments,
        "minimum_elements": found.minimum,
        "fits": found.is_fitting,
        "fix": found.fix.text if found.fix else None,
        "data": {**found.data._asdict(), "padding": found.data.padding},
        "steps": effort.steps,
        "flops": {name: work._asdict() for name, work in effort.parts.items()},
        "hours": effort.hours,
        "dollars": effort.dollars,
        "evaluation": {"weights": found.answering[0], "cache": found.answering[1]},
        "checkpoint": found.checkpoint,
        "verdict": verdict(found),
    }
    if found.compiled:
        totals = {name: total._asdict() for name, total in found.compiled.collectives.items()}
        result["compiled"] = {**found.compiled._asdict(), "collectives": totals}
    return result


def _data_rows(found: Plan) -> list[tuple[str, str]]:
    data, stage = found.data, found.job.stage
    count = "unknown" if data.num_samples is None else f"{data.num_samples:,d}"
    rows = [("samples", f"{count} an epoch ({data.known_by})")]
    padding = f", {data.padding:.1%} padding" if data.padding else ""
    rows.append(
        (
            "length",
            f"{data.length:,.0f} tokens in {data.padded:,.0f} positions{padding}"
            f" ({data.lengths_by})",
        )
    )
    micro = f" in {stage.accumulation} micro-batches" if stage.accumulation > 1 else ""
    steps = found.effort.steps
    amount = "unknown" if steps is None else f"{steps:,d}"
    tokens = (
        "" if steps is None else f", {steps * stage.batch_size * data.length / 1e6:,.1f} M tokens"
    )
    rows.append(("steps", f"{amount} of {stage.batch_size} samples{micro}{tokens}"))
    return rows


def _memory_rows(found: Plan) -> list[tuple[str, str]]:
    parts = found.memory._asdict()
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    shards = estimate.batch_shards(found.mesh)
    rows = -(-found.job.micro_rows // shards)
    remat = found.job.settings.train.remat
    where = f"{rows} samples of {found.job.length:,d} positions, the longest bucket"
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.items())
    lines = [
        ("a device", listed),
        ("", f"{mesh}; {where}; remat={remat}; {found.attention}"),
    ]
    if found.host:
        lines.append(("host", f"{_gib(found.host)} a device, kept there for the backward pass"))
    weights, cache = found.answering
    lines.append(
        ("evaluation", f"weights {_gib(weights)}, cache {_gib(cache)} a device (no fsdp there)")
    )
    keep = found.job.settings.train.keep + 1
    lines.append(
        (
            "checkpoint",
            f"{_gib(found.checkpoint)}; {keep} at a time: {_gib(keep * found.checkpoint)}",
        )
    )
    return lines


def _effort_rows(found: Plan) -> list[tuple[str, str]]:
    effort = found.effort
    total = flops.total(effort.parts)
    parts = ", ".join(
        f"{name} {_flop(work.model)}" for name, work in effort.parts.items() if work.model
    )
    again = f"; remat adds {_flop(total.remat)}" if total.remat else ""
    rows = [("work", f"{_flop(total.model)} a sample{again}"), ("", parts)]
    if effort.hours is not None and found.chip:
        chip = f"{found.num_devices} x {found.chip.name}"
        rows.append(("time", f"{_hours(effort.hours)} on {chip} (estimate)"))
    if effort.dollars:
        on_demand, spot = effort.dollars
        rows.append(("price", f"{on_demand:,.2f} USD on demand, {spot:,.2f} USD spot (estimate)"))
    return rows


def _gib(size: int | float) -> str:
    if size < GIB / 10:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"


def _flop(work: int) -> str:
    for unit, factor in (("T", 1e12), ("G", 1e9)):
        if work >= 0.1 * factor:
            return f"{work / factor:.2f} {unit}FLOP"
    return f"{work / 1e6:.2f} MFLOP"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours >= 1 / 60 else f"{hours * 3600:.1f} seconds"
