"""The train step of a stage without arrays: traced and compiled from shapes alone.

The step is the one that `train.stage_loop` runs; only what it is called with is abstract.
"""

import dataclasses
import math
import resource
import time
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.experimental import topologies
from jax.sharding import Mesh

from sgqlm import config, errors, types
from sgqlm.models import lora, vlm
from sgqlm.parallel import chips, collectives, rules
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import loop, optim, region_text, stages, state, step

# A batch size that divides no size of a model: arrays that grow with the batch are known by it.
_ROWS = 7919
_STEPS = 1000  # length of the cosine; the program does not depend on it


class Job(NamedTuple):
    """A stage whose step is looked at.

    Attributes:
        settings: the run.
        stage: the stage.
        length: T of its batches.
        known: parts that hold trained values when it starts.
        num_runs: R, runs of graph tokens.
    """

    settings: config.Config
    stage: config.StageConfig
    length: int
    known: frozenset[str]
    num_runs: int = 1

    @property
    def model(self) -> config.ModelConfig:
        """The model as the program has it."""
        return stages.program_model(self.stage, self.settings.model, self.known)

    @property
    def micro_rows(self) -> int:
        """Samples of a micro-batch, over all devices."""
        return self.stage.batch_size // max(self.stage.accumulation, 1)


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass.

    Attributes:
        sample: bytes a sample, not divided over tensor.
        divided: bytes a sample that divide over tensor: heads and the feed-forward layer.
        constant: bytes that do not grow with the batch and are no parameters: copies of weights
            in another type.
    """

    sample: float
    divided: float
    constant: float

    @property
    def total(self) -> float:
        """Bytes a sample on a mesh without tensor."""
        return self.sample + self.divided


class Compiled(NamedTuple):
    """What the compiler says of one device.

    Attributes:
        arguments: bytes of what a step is given.
        temporary: bytes beside arguments and results. On a CPU an upper bound: products run in
            float32 there and attention is not fused.
        peak: bytes at the worst moment, as far as the compiler tells.
        collectives: kind -> total; empty for a TPU, whose program does not tell them.
        lower_seconds: CPU time of tracing.
        compile_seconds: CPU time of compiling.
    """

    arguments: int
    temporary: int
    peak: int
    collectives: dict[str, collectives.Total]
    lower_seconds: float
    compile_seconds: float


def param_shapes(job: Job) -> types.Params:
    """Return shapes and types of all parameters as the stage holds them.

    A frozen tower or language model is counted in the compute type, as a base of that type is
    loaded; what is new, or was trained by an earlier stage, is float32.
    """
    base = jnp.dtype(job.settings.model.compute_dtype)

    def place(path, leaf):
        part = lora.part_of(path)
        is_base = part in ("vision", "llm") and part not in job.stage.learning_rates
        is_base = is_base and part not in job.known
        return jax.ShapeDtypeStruct(leaf.shape, base if is_base else jnp.float32)

    return lora.map_with_path(place, vlm.param_shapes(job.settings.model))


def batch_shapes(job: Job, rows: int) -> types.Batch:
    """Return the shapes of a batch of `rows` samples, see `types.Batch`."""
    model, length, struct = job.settings.model, job.length, jax.ShapeDtypeStruct
    cfg, patches = model.graph, model.vision.num_patches
    side = 0 if job.stage.cache_features else model.vision.image_size
    pairs = cfg.edge_oracle or _scores_pairs(job.stage)
    graph = types.GraphBatch(
        coverage=struct((rows, cfg.num_nodes, patches), jnp.uint8),
        boxes=struct((rows, cfg.num_nodes, 4), jnp.float32),
        label_ids=struct((rows, cfg.num_nodes, cfg.label_tokens), jnp.int32),
        valid=struct((rows, cfg.num_nodes), jnp.bool_),
        prompt_ids=struct((rows, job.num_runs, cfg.prompt_tokens), jnp.int32),
        prompt_valid=struct((rows, job.num_runs, cfg.prompt_tokens), jnp.bool_),
        predicate_ids=struct((rows, cfg.num_nodes, cfg.num_nodes, cfg.label_tokens), jnp.int32)
        if pairs
        else None,
    )
    return types.Batch(
        images=struct((rows, side, side, 3), jnp.uint8),
        image_valid=struct((rows,), jnp.bool_),
        tokens=struct((rows, length), jnp.int32),
        lengths=struct((rows,), jnp.int32),
        labels=struct((rows, length), jnp.int32),
        weights=struct((rows, length), jnp.float32),
        target_kind=struct((rows, length), jnp.int8),
        graph=graph if cfg.enabled else None,
        row=struct((rows,), jnp.int32),
    )


def feature_shapes(job: Job, rows: int) -> jax.ShapeDtypeStruct | None:
    """Return the shape of cached features, where the stage reads them."""
    vision = job.settings.model.vision
    shape = (rows, vision.num_patches, vision.width)
    return jax.ShapeDtypeStruct(shape, jnp.float16) if job.stage.cache_features else None


def uses(job: Job, path: str) -> bool:
    """Return whether the program of the stage reads the parameter at `path`."""
    part, model = lora.part_of(path), job.model
    if part == "vision_lora":
        return model.vision_lora.rank > 0 and not job.stage.cache_features
    if part == "llm_lora" and model.llm_lora.rank == 0:
        return False
    if part == "vision":
        return not job.stage.cache_features
    if job.stage.objective == "region_text":
        is_pair = part == "regions" and path.split("/")[1] not in ("norm", "fc1", "fc2")
        return part == "regions" and (not is_pair or _scores_pairs(job.stage))
    return part != "regions"


def kept(job: Job, params: types.Params, *, without: Collection[tuple[int, int]] = ()) -> Kept:
    """Trace the loss of the stage and measure what is kept between forward and backward pass.

    The residuals of `jax.vjp` are the arrays that have to stay in memory; with layers in a loop
    they are what XLA stores. Nothing is compiled or computed.

    Args:
        job: the stage; `settings.train.remat` counts.
        params: from `param_shapes`.
        without: pairs of sizes; arrays that end in one are left out. Attention that is fused keeps
            no matrix of positions by positions.
    """
    loss_fn = loop.make_loss(job.stage, job.settings, known=job.known)
    trainable, frozen = state.partition(params, job.stage.learning_rates)

    def residuals(trainable, frozen, batch, features):
        def loss(tree):
            extra = {} if features is None else {"features": features}
            return loss_fn(state.join(tree, frozen), batch, jax.random.key(0), **extra)[0]

        return jax.vjp(loss, trainable)[1]

    inputs = (batch_shapes(job, _ROWS), feature_shapes(job, _ROWS))
    leaves = jax.tree.leaves(jax.eval_shape(residuals, trainable, frozen, *inputs))
    given = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((params, inputs))]
    sample = divided = constant = 0.0
    for leaf in leaves:
        if (leaf.shape, leaf.dtype) in given:
            given.remove((leaf.shape, leaf.dtype))
        elif not any(side % _ROWS == 0 for side in leaf.shape):
            constant += leaf.size * leaf.dtype.itemsize
        elif leaf.shape[-2:] not in without:
            share = leaf.size * leaf.dtype.itemsize / _ROWS
            is_divided = _divides(leaf.shape, job.model.llm, job.length)
            divided, sample = divided + share * is_divided, sample + share * (not is_divided)
    return Kept(sample, divided, constant)


def compile_step(job: Job, mesh: Mesh) -> Compiled:
    """Compile the train step for the devices of a mesh, which need not be there.

    Args:
        job: the stage.
        mesh: from `parallel.mesh.make`; its devices may be those of a topology.

    Returns:
        What the compiler says.
    """
    began = _cpu_seconds()
    lowered = _lower(job, mesh)
    lower_seconds = _cpu_seconds() - began
    compiled = lowered.compile(_compiler_options(mesh))
    compile_seconds = _cpu_seconds() - began - lower_seconds
    memory: Any = compiled.memory_analysis()
    # a TPU program hides gathers in rings of its own, whose length is nowhere written
    is_counted = mesh.devices.flat[0].platform == "cpu"
    found = collectives.count(compiled.as_text() or "", trips=loop_trips(job)) if is_counted else {}
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=getattr(memory, "peak_memory_in_bytes", 0),
        collectives=found,
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
    )


def topology_devices(slice_: chips.Topology) -> list[Any]:
    """Return the devices of a TPU slice that only the compiler knows.

    The environment must be that of `chips.compile_environment`.

    Raises:
        SgqlmError: libtpu refuses, for example because another process holds it.
    """
    # one device a chip: v4 joins its two cores, the later chips do so by themselves or have one
    extra = {"chip_config_name": "megacore"} if slice_.chip.name == "v4" else {}
    try:
        found = topologies.get_topology_desc(topology_name=slice_.name, platform="tpu", **extra)
    except Exception as error:
        raise errors.SgqlmError(
            f"libtpu cannot describe {slice_.name}",
            where=f"--topology {slice_.name}",
            why=str(error).splitlines()[0],
            fix="give a slice that exists, end other programs that use libtpu, or --no-compile",
            code=errors.RESOURCES,
        ) from error
    return list(found.devices)


def host_devices(count: int) -> list[Any]:
    """Return the first `count` CPU devices.

    Raises:
        SgqlmError: jax has started with fewer.
    """
    found = jax.devices("cpu")
    if len(found) < count:
        flag = "--xla_force_host_platform_device_count"
        raise errors.SgqlmError(
            f"the mesh has {count} devices, jax shows {len(found)}",
            where="XLA_FLAGS",
            fix=f"set XLA_FLAGS={flag}={count} before jax starts, or --no-compile",
            code=errors.RESOURCES,
        )
    return found[:count]


def with_any_attention(job: Job) -> Job:
    """Return the stage with an attention program that runs on a CPU."""
    model = job.settings.model
    plain = "xla" if model.attention == "xla" else "auto"
    model = dataclasses.replace(model, attention=plain)
    return job._replace(settings=dataclasses.replace(job.settings, model=model))


def loop_trips(job: Job) -> dict[str, int]:
    """Return how often the loops of the step run, by part of their name."""
    model = job.model
    return {
        "/llm/": model.llm.num_layers,
        "/vision/": model.vision.num_used_layers,
        "while": max(job.stage.accumulation, 1),
    }


def _lower(job: Job, mesh: Mesh):
    params = param_shapes(job)
    places = rules.param_shardings(params, mesh)
    parts = job.stage.learning_rates
    trainable, frozen = state.partition(_placed(params, places), parts)
    on, _ = state.partition(places, parts)
    optimizer = optim.make(job.stage, _STEPS)
    shardings = step.state_shardings(trainable, optimizer, on, mesh)
    loss_fn = loop.make_loss(job.stage, job.settings, known=job.known)
    train_step = step.make_train_step(
        loss_fn, optimizer, shardings=shardings, accumulation=job.stage.accumulation
    )
    current: Any = jax.eval_shape(lambda tree: step.init_state(tree, optimizer), trainable)
    current = _placed(current, shardings)
    rows = job.stage.batch_size
    batch, features = (
        jax.tree.map(lambda x: _on(x, mesh_lib.batch_sharding(mesh)), tree)
        for tree in (batch_shapes(job, rows), feature_shapes(job, rows))
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = _on(key, mesh_lib.replicated(mesh))
    # the mesh is current for tracing only: its devices may exist for the compiler alone
    with jax.set_mesh(mesh):
        return train_step.lower(current, frozen, batch, features, key)


def _compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Return options that save time where the program is never run, and change no memory."""
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _placed(shapes, places):
    return jax.tree.map(_on, shapes, places)


def _on(leaf, place):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _scores_pairs(stage: config.StageConfig) -> bool:
    return stage.objective == "region_text" and stage.pair_weight > 0


def _divides(shape: tuple[int, ...], llm: config.LlmConfig, length: int) -> bool:
    """Return whether an array of the language model has heads or feed-forward units."""
    heads = {(count, llm.head_dim) for count in (llm.num_heads, llm.num_kv_heads)}
    is_heads = len(shape) > 2 and shape[-2:] in heads
    return is_heads or llm.mlp_dim in shape or shape[-2:] == (length, length)


def num_pairs(job: Job) -> int:
    """Return how many pairs of regions of an image the stage scores."""
    nodes = job.settings.model.graph.num_nodes
    return min(region_text.NUM_PAIRS, nodes * nodes) if _scores_pairs(job.stage) else 0


def sizes(params: types.Params) -> dict[str, int]:
    """Return path -> number of elements."""
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return {path: math.prod(leaf.shape) for path, leaf in flat.items()}


def peak_memory() -> int:
    """Return the most memory this process has had, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_seconds() -> float:
    return time.process_time()
