"""What a stage needs on a mesh: memory, time, money, and what to change if it is too much."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sgqlm import config, errors, types
from sgqlm.models import attention, lora
from sgqlm.parallel import chips, plan, rules, shardings
from sgqlm.train import aot, expected, flops, stages

_REMAT = ("none", "dots", "offload", "qkv", "full")
_MORE_CHIPS = (1, 2, 4, 8, 16)
_GATHER_COST = 0.03  # of a step, for every doubling of the micro-batches: weights come again


class Fix(NamedTuple):
    """A change that makes a stage fit."""

    text: str  # as settings, ready to type
    memory: plan.Memory
    cost: float  # time of a step times chips, relative to the stage as it is


class Effort(NamedTuple):
    """Work, time and money of a stage.

    Attributes:
        steps: optimizer steps; None where the number of samples is unknown.
        parts: part -> work of one sample.
        hours: at the stated MFU; None without steps or chip.
        dollars: on demand and spot; None likewise, or where the chip has no price.
    """

    steps: int | None
    parts: dict[str, flops.Work]
    hours: float | None
    dollars: tuple[float, float] | None


class Estimator:
    """Memory of a stage on meshes, under settings that may be changed.

    Args:
        job: the stage, with `length` its longest bucket.
        platform: what it is to run on: `cpu`, `gpu` or `tpu`.
    """

    def __init__(self, job: aot.Job, platform: str):
        self._platform, self._wanted = platform, job.settings.model.attention
        self.job = aot.with_any_attention(job)  # traced on the CPU, whatever it will run on
        self.params: types.Params = aot.param_shapes(job)
        self._kept: dict[str, aot.Kept] = {}
        self._rows: dict[tuple, list[shardings.Row]] = {}

    @property
    def program(self) -> attention.Choice:
        """The program that attention of the language model takes on the platform."""
        return self._choose(self._wanted, self.job.length, self.job.model.llm.head_dim)

    def rows(self, mesh: Mapping[str, int]) -> list[shardings.Row]:
        """Return every parameter as it lies on a mesh."""
        key = tuple(sorted(mesh.items()))
        if key not in self._rows:
            self._rows[key] = shardings.table(self.params, mesh)
        return self._rows[key]

    def trains(self, path: str) -> bool:
        """Return whether the parameter at a path trains in this stage."""
        return lora.part_of(path) in self.job.stage.learning_rates

    def memory(self, job: aot.Job, mesh: Mapping[str, int]) -> plan.Memory:
        """Return the bytes of one device.

        Args:
            job: this estimator's, perhaps with other remat, accumulation or batch size.
            mesh: axis -> size.
        """
        found = plan.state(
            self.rows(mesh), self.trains, accumulation=max(job.stage.accumulation, 1)
        )
        rows = -(-job.micro_rows // batch_shards(mesh))
        remat, tensor = job.settings.train.remat, mesh.get("tensor", 1)
        kept = self._trace("full" if remat == "offload" else remat)
        own = kept.sample + kept.divided / tensor
        constant = kept.constant / (mesh.get("fsdp", 1) * tensor)
        everything = job.stage.batch_size // batch_shards(mesh)
        return found._replace(
            batch=2 * everything * self._batch_bytes(),  # the next one is on its way
            activations=round(rows * own + constant),
            working=self._working(rows, remat, mesh),
        )

    def arguments(self, mesh: Mapping[str, int]) -> int:
        """Return the bytes a device is given for a step; what the program never reads left out."""
        rows = [row for row in self.rows(mesh) if aot.uses(self.job, row.path)]
        share = self.job.stage.batch_size // batch_shards(mesh)
        found = plan.state(rows, self.trains)
        return found.arguments + share * self._batch_bytes()

    def minimum_elements(self, mesh: Mapping[str, int]) -> int:
        """Return the elements that a step has to move, see `plan.fsdp_minimum`.

        The embedding table is looked up, not multiplied: its rows travel, not the table. The
        output matrix is gathered once and kept.
        """
        backward = flops.gathers_backward(self.job.stage.learning_rates)
        tied = self.job.model.llm.tie_embeddings
        head = "llm/embed/embedding" if tied else "llm/head/kernel"

        def forward(path: str) -> bool:
            return aot.uses(self.job, path) and (path == head or "llm/embed" not in path)

        def flows(path: str) -> bool:
            return forward(path) and lora.part_of(path) in backward and path != head

        rows = self.rows(mesh)
        passes = max(self.job.stage.accumulation, 1)
        return passes * plan.fsdp_minimum(
            rows, forward=forward, backward=flows, trained=self.trains
        )

    def host_bytes(self, job: aot.Job, mesh: Mapping[str, int]) -> int:
        """Return what a device keeps in the memory of its host (remat `offload`)."""
        if job.settings.train.remat != "offload":
            return 0
        rows = -(-job.micro_rows // batch_shards(mesh))
        return round(rows * (self._trace("qkv").total - self._trace("full").total))

    def fixes(self, mesh: Mapping[str, int], chip: chips.Chip) -> Fix | None:
        """Return the cheapest change that makes the stage fit, found by trying; None: none does."""
        tried = sorted(self._candidates(mesh), key=lambda entry: entry[0])
        for cost, text, job, other in tried:
            memory = self.memory(job, other)
            if plan.fits(memory, chip):
                return Fix(text, memory, cost)
        return None

    def _candidates(self, mesh) -> Iterator[tuple[float, str, aot.Job, dict[str, int]]]:
        stage, remat = self.job.stage, self.job.settings.train.remat
        base = self._hardware(remat)
        micro = [2**k for k in range(21) if stage.batch_size % (2**k) == 0]
        meshes = [{**mesh, "fsdp": mesh.get("fsdp", 1) * factor} for factor in _MORE_CHIPS]
        meshes = [other for other in meshes if _divides(self.params, other)]
        for other, name, count in itertools.product(meshes, _REMAT, micro):
            factor = other["fsdp"] // mesh.get("fsdp", 1)
            shards = batch_shards(other)
            if count < stage.accumulation or stage.batch_size % (count * shards):
                continue
            changes = [
                (name != remat, f"remat={name}"),
                (count != stage.accumulation, f"accumulation={count}"),
                (factor > 1, f"fsdp={other['fsdp']}"),
            ]
            text = ", ".join(text for changed, text in changes if changed)
            slower = self._hardware(name) / base
            slower *= 1 + _GATHER_COST * math.log2(count / max(stage.accumulation, 1))
            slower *= 1.1 if name == "offload" else 1.0  # the way to the host is not free
            yield slower * factor**2, text, with_changes(self.job, name, count), other

    def _hardware(self, remat: str) -> int:
        shape = flops.Shape(self.job.length, self.job.length, self.job.num_runs)
        shape = shape._replace(is_cached=self.job.stage.cache_features)
        trained, objective = self.job.stage.learning_rates, self.job.stage.objective
        found = flops.sample(self.job.model, trained, shape, remat=remat, objective=objective)
        return flops.total(found).hardware

    def _trace(self, remat: str) -> aot.Kept:
        if remat not in self._kept:
            job = with_changes(self.job, remat, self.job.stage.accumulation)
            self._kept[remat] = aot.kept(job, self.params, without=self._fused())
        return self._kept[remat]

    def _fused(self) -> set[tuple[int, int]]:
        """Return the sizes of the attention matrices that are never made."""
        vision = self.job.model.vision
        length = vision.num_patches + 1
        found = set()
        if self.program.name != "xla":
            found.add((self.job.length, self.job.length))
        wanted = "xla" if self._wanted == "xla" else "auto"
        tower = self._choose(wanted, length, vision.width // vision.num_heads)
        return found if tower.name == "xla" else found | {(length, length)}

    def _choose(self, wanted: str, length: int, head_dim: int) -> attention.Choice:
        dtype = self.job.model.compute_dtype
        return attention.choose(
            wanted, platform=self._platform, dtype=dtype, length=length, head_dim=head_dim
        )

    def _batch_bytes(self) -> int:
        inputs = (aot.batch_shapes(self.job, 1), aot.feature_shapes(self.job, 1))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(inputs))

    def _working(self, rows: int, remat: str, mesh) -> int:
        """Estimate what is alive for a moment at the worst place, see docs/plan.md."""
        llm, tensor = self.job.model.llm, mesh.get("tensor", 1)
        size = jnp.dtype(self.job.model.compute_dtype).itemsize
        sizes = aot.sizes(self.params)
        layers = {"llm": llm.num_layers, "vision": self.job.model.vision.num_used_layers}
        used = {p: n for p, n in sizes.items() if aot.uses(self.job, p)}
        weights, grads = 0.0, 0.0
        for part, count in layers.items():
            inside = {p: n / count for p, n in used.items() if p.startswith(f"{part}/blocks/")}
            weights = max(weights, sum(inside.values()))
            grads = max(grads, sum(n for p, n in inside.items() if self.trains(p)))
        head = max((n for p, n in used.items() if "llm/head" in p or "llm/embed" in p), default=0)
        gathered = (2 * weights + head) * size / tensor if mesh.get("fsdp", 1) > 1 else 0.0
        loose = [n for p, n in used.items() if "/blocks/" not in p and self.trains(p)]
        reduced = plan.MASTER_BYTES * max([grads, *loose]) / tensor
        if self.job.stage.objective != "lm":
            return round(gathered + reduced)
        logits = 4 * 3 * min(rows * self.job.length * llm.vocab_size, 2**24) / tensor
        moved = 4 * rows * self.job.length * max(llm.mlp_dim / tensor, llm.width) * size
        if not {(self.job.length, self.job.length)} & self._fused():
            moved += 8 * rows * llm.num_heads / tensor * self.job.length**2
        again = 0.0
        if remat != "none":
            gap = self._trace("none"), self._trace(remat if remat != "offload" else "full")
            again = rows * (gap[0].sample - gap[1].sample) / llm.num_layers
            again += rows * (gap[0].divided - gap[1].divided) / llm.num_layers / tensor
        return round(gathered + reduced + max(logits, moved + again))


def with_changes(job: aot.Job, remat: str, accumulation: int) -> aot.Job:
    """Return the stage under another remat and number of micro-batches."""
    train = dataclasses.replace(job.settings.train, remat=remat)
    settings = dataclasses.replace(job.settings, train=train)
    stage = dataclasses.replace(job.stage, accumulation=accumulation)
    return job._replace(settings=settings, stage=stage)


def batch_shards(mesh: Mapping[str, int]) -> int:
    """Return over how many devices a batch is divided."""
    return mesh.get("data", 1) * mesh.get("fsdp", 1)


def effort(
    job: aot.Job,
    data: expected.Data,
    *,
    chip: chips.Chip | None,
    num_chips: int,
    mfu: float,
    prices: chips.Prices,
) -> Effort:
    """Count work and derive time and money.

    Args:
        job: the stage.
        data: its samples; the mean length is taken for all.
        chip: None: no time, no money.
        num_chips: how many.
        mfu: share of the peak that model FLOPs reach.
        prices: the table.
    """
    model, stage = job.model, job.stage
    length = round(data.length)
    graph = model.graph.num_nodes if model.graph.enabled else 0
    text = max(length - model.num_image_tokens - graph, 1)
    shape = flops.Shape(length, text, job.num_runs, aot.num_pairs(job), stage.cache_features)
    parts = flops.sample(
        model,
        stage.learning_rates,
        shape,
        remat=job.settings.train.remat,
        objective=stage.objective,
    )
    is_known = stage.steps > 0 or data.num_samples is not None
    steps = stages.num_steps(stage, data.num_samples or 0) if is_known else None
    if steps is None or chip is None:
        return Effort(steps, parts, None, None)
    work = flops.total(parts).model * stage.batch_size * steps
    hours = work / (mfu * chip.peak * num_chips) / 3600
    price = prices.chips.get(chip.name)
    cost = hours * num_chips
    dollars = (cost * price.on_demand, cost * price.spot) if price else None
    return Effort(steps, parts, hours, dollars)


def cache_bytes(model: config.ModelConfig, rows: int, length: int) -> int:
    """Return the bytes of keys and values of `rows` sequences: 2 L KV F a position."""
    llm, size = model.llm, jnp.dtype(model.compute_dtype).itemsize
    return 2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * size * rows * length


def evaluation(
    est: Estimator, mesh: Mapping[str, int], evaluation_settings: config.EvalConfig
) -> tuple[int, int]:
    """Return the bytes of weights and of the cache on one device while answering.

    The decode mesh has no fsdp: weights are whole on every device but for tensor.
    """
    tensor = mesh.get("tensor", 1)
    weights = shardings.bytes_per_device(est.params, {"data": 1, "tensor": tensor})
    rows = -(-evaluation_settings.batch_size // batch_shards(mesh))
    length = est.job.length + evaluation_settings.max_new_tokens
    return weights, cache_bytes(est.job.settings.model, rows, length) // tensor


def checkpoint_bytes(est: Estimator) -> int:
    """Return the size of a checkpoint in the middle of the stage.

    It holds the parameters that differ from the base and Adam's moments; without a base, all.
    """
    has_base = bool(est.job.settings.train.init)
    new = {*est.job.known, *est.job.stage.learning_rates}
    total = 0
    for row in est.rows({}):
        part = lora.part_of(row.path)
        size = plan.float32_bytes(row) if est.trains(row.path) else row.bytes
        is_base = has_base and part in ("vision", "llm") and part not in new
        total += 0 if is_base else size
        total += 2 * plan.float32_bytes(row) if est.trains(row.path) else 0
    return total


def _divides(params: types.Params, mesh: Mapping[str, int]) -> bool:
    try:
        rules.param_specs(params, mesh)
    except errors.SgqlmError:
        return False
    return True
