"""Train on one device and on meshes of eight, and look at what the devices send each other.

Run as a script, since the number of devices is fixed before jax starts. Each argument is a case
`model:stage:llm tuning:data,fsdp,tensor[:buckets][:accumulate]`, or `graphs`; each prints one line
of JSON.
"""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np

from sgqlm import config, types
from sgqlm.models import vlm
from sgqlm.parallel import collectives, rules
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import loop, optim, stages, state, step
from tests.train import micro

STEPS, LENGTH, LONGER = 20, 32, 40


def model_config(name: str, tuning: str) -> config.ModelConfig:
    base = micro.model()
    graph = dataclasses.replace(base.graph, num_nodes=4, enabled=name != "sq_llava")
    none = dataclasses.replace(base.prototypes, mode="none")
    return dataclasses.replace(
        base,
        graph=graph,
        prototypes=none if name == "llava_sg" else base.prototypes,
        llm_lora=config.LoraConfig() if tuning == "full" else base.llm_lora,
        region_words=2 if name == "sgqlm" else 0,
    )


def make_batch(cfg: config.ModelConfig, rows: int, seed: int, length: int) -> types.Batch:
    rng = np.random.default_rng(seed)
    nodes, side = cfg.graph.num_nodes, cfg.vision.image_size
    head = [1] + [types.IMAGE_TOKEN_ID] * cfg.num_image_tokens
    head += [types.GRAPH_TOKEN_ID] * nodes * cfg.graph.enabled
    text = rng.integers(3, cfg.llm.vocab_size, (rows, length - len(head)))
    tokens = np.concatenate([np.tile(head, (rows, 1)), text], 1).astype(np.int32)
    lengths = rng.integers(length - 6, length + 1, rows).astype(np.int32)
    position = np.arange(length)[None]
    trained = (position >= len(head) + 3) & (position < lengths[:, None])
    low = rng.uniform(0, 0.5, (rows, nodes, 2))
    graph = types.GraphBatch(
        coverage=rng.integers(0, 256, (rows, nodes, cfg.vision.num_patches)).astype(np.uint8),
        boxes=np.concatenate([low, low + 0.3], -1).astype(np.float32),
        label_ids=rng.integers(-1, 300, (rows, nodes, 2)).astype(np.int32),
        valid=np.ones((rows, nodes), bool),
        prompt_ids=rng.integers(3, 300, (rows, 1, 8)).astype(np.int32),
        prompt_valid=np.ones((rows, 1, 8), bool),
    )
    return types.Batch(
        images=rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
        image_valid=np.ones(rows, bool),
        tokens=tokens,
        lengths=lengths,
        labels=np.where(trained, tokens, types.IGNORE).astype(np.int32),
        weights=trained.astype(np.float32),
        target_kind=trained.astype(np.int8),
        graph=graph if cfg.graph.enabled else None,
        row=np.arange(rows, dtype=np.int32),
    )


make_params = functools.cache(micro.draw_params)


def stage_row(name: str, stage: str, tuning: str, options: tuple[str, ...]):
    if stage == "regions":
        row = micro.stage("regions", STEPS, "vision", "regions", objective="region_text")
    else:
        row = stages.preset(name, stage, llm_tuning=tuning)
    accumulation = 2 if "accumulate" in options else 1
    return dataclasses.replace(
        row, steps=STEPS, batch_size=8 * accumulation, accumulation=accumulation
    )


@functools.cache
def train(name: str, stage: str, tuning: str, sizes: tuple[int, ...], options: tuple[str, ...]):
    """Train and return losses, gradient norms and the number of compiled train steps."""
    cfg = model_config(name, tuning)
    row = stage_row(name, stage, tuning, options)
    lengths = (LENGTH, LONGER) if "buckets" in options else (LENGTH,)
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = mesh_lib.make(dict(zip(rules.MESH_AXES, sizes, strict=True)), devices)
    settings = config.Config(model=cfg, train=config.TrainConfig(stages=(row,)))
    loss_fn = loop.make_loss(row, settings, known=())
    losses, norms = [], []
    with jax.set_mesh(mesh):
        params = make_params(cfg)
        places = rules.param_shardings(params, mesh)
        trainable, frozen = state.split(jax.device_put(params, places), row.learning_rates)
        optimizer = optim.make(row, STEPS)
        on, _ = state.partition(places, row.learning_rates)
        shardings = step.state_shardings(trainable, optimizer, on, mesh)
        current = step.init_state(trainable, optimizer, shardings)
        train_step = step.make_train_step(
            loss_fn, optimizer, shardings=shardings, accumulation=row.accumulation
        )
        for index in range(STEPS):
            batch = make_batch(cfg, row.batch_size, index, lengths[index % len(lengths)])
            placed = mesh_lib.put_batch(batch, mesh)
            current, report = train_step(current, frozen, placed, None, jax.random.key(0))
            losses.append(float(report["loss"]))
            norms.append(float(report["grad_norm"]))
    return losses, norms, train_step._cache_size()


def graphs() -> dict:
    """Count the collectives of the scene graph, forward and for the gradient of its features."""
    cfg = model_config("sgqlm", "lora")
    mesh = mesh_lib.make({"data": 8})
    batch = make_batch(cfg, 8, 0, LENGTH)
    features = np.ones((8, cfg.vision.num_patches, cfg.vision.width), np.float32)

    def tokens(params, features, graph):
        return vlm.graph_tokens(params, cfg, features, graph).tokens

    def gradient(params, features, graph):
        return jax.grad(lambda x: (tokens(params, x, graph) ** 2).sum())(features)

    def over_batch(params, features, graph):  # a control: what does mix images is seen
        return gradient(params, features - features.mean(0), graph)

    def count(function):
        with jax.set_mesh(mesh):
            whole = jax.device_put(make_params(cfg), mesh_lib.replicated(mesh))
            given = mesh_lib.put_batch((features, batch.graph), mesh)
            on = mesh_lib.batch_sharding(mesh)
            lowered = jax.jit(function, out_shardings=on).lower(whole, *given)
            return collectives.count(lowered.compile().as_text())

    functions = {"forward": tokens, "gradient": gradient, "control": over_batch}
    return {name: count(function) for name, function in functions.items()}


def main(cases: list[str]):
    assert len(jax.devices()) == 8
    for case in cases:
        if case == "graphs":
            print(json.dumps({"case": case, **graphs()}), flush=True)
            continue
        name, stage, tuning, mesh, *options = case.split(":")
        about = (name, stage, tuning)
        one = train(*about, (1, 1, 1), tuple(options))
        many = train(*about, tuple(map(int, mesh.split(","))), tuple(options))
        print(json.dumps({"case": case, "one": one, "many": many}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
