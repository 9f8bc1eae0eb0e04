"""Train ten steps on one device and on a mesh of eight, and print the losses of both as JSON.

Run as a script: the number of devices is fixed before jax starts.
"""

import dataclasses
import json

import jax
import numpy as np

from sgqlm import types
from sgqlm.models import vlm
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import loss, optim, state, step
from tests.train import micro

STEPS, ROWS, LENGTH = 10, 8, 32


def make_model():
    base = micro.model()
    none = {"dropout": 0.0}
    return dataclasses.replace(
        base,
        graph=dataclasses.replace(base.graph, num_nodes=4, prompt_dropout=0.0),
        llm_lora=dataclasses.replace(base.llm_lora, **none),
        vision_lora=dataclasses.replace(base.vision_lora, **none),
    )


def make_batch(cfg, seed: int) -> types.Batch:
    rng = np.random.default_rng(seed)
    nodes, side = cfg.graph.num_nodes, cfg.vision.image_size
    head = [1] + [types.IMAGE_TOKEN_ID] * cfg.num_image_tokens
    head += [types.GRAPH_TOKEN_ID] * nodes
    text = rng.integers(3, cfg.llm.vocab_size, (ROWS, LENGTH - len(head)))
    tokens = np.concatenate([np.tile(head, (ROWS, 1)), text], 1).astype(np.int32)
    lengths = rng.integers(LENGTH - 6, LENGTH + 1, ROWS).astype(np.int32)
    position = np.arange(LENGTH)[None]
    trained = (position >= len(head) + 3) & (position < lengths[:, None])
    low = rng.uniform(0, 0.5, (ROWS, nodes, 2))
    graph = types.GraphBatch(
        coverage=rng.integers(0, 256, (ROWS, nodes, cfg.vision.num_patches)).astype(np.uint8),
        boxes=np.concatenate([low, low + 0.3], -1).astype(np.float32),
        label_ids=rng.integers(-1, 300, (ROWS, nodes, 2)).astype(np.int32),
        valid=np.ones((ROWS, nodes), bool),
        prompt_ids=rng.integers(3, 300, (ROWS, 1, 8)).astype(np.int32),
        prompt_valid=np.ones((ROWS, 1, 8), bool),
    )
    return types.Batch(
        images=rng.integers(0, 256, (ROWS, side, side, 3)).astype(np.uint8),
        image_valid=np.ones(ROWS, bool),
        tokens=tokens,
        lengths=lengths,
        labels=np.where(trained, tokens, types.IGNORE).astype(np.int32),
        weights=trained.astype(np.float32),
        target_kind=trained.astype(np.int8),
        graph=graph,
        row=np.arange(ROWS, dtype=np.int32),
    )


def train(mesh, params, cfg) -> tuple[list[float], int]:
    parts = ("llm_lora", "vision_lora", "graph", "projector", "prototypes")
    row = micro.stage("all", STEPS, *parts, accumulation=2)
    places = rules.param_shardings(params, mesh)
    with jax.set_mesh(mesh):
        trainable, frozen = state.split(jax.device_put(params, places), parts)
        optimizer = optim.make(row, STEPS)
        on, _ = state.partition(places, parts)
        shardings = step.state_shardings(trainable, optimizer, on, mesh)
        current = step.init_state(trainable, optimizer, shardings)

        def loss_fn(tree, batch, key):
            return loss.lm_loss(tree, cfg, batch, key=key)

        train_step = step.make_train_step(loss_fn, optimizer, shardings=shardings, accumulation=2)
        losses = []
        for index in range(STEPS):
            batch = mesh_lib.put_batch(make_batch(cfg, index), mesh)
            current, report = train_step(current, frozen, batch, None, jax.random.key(0))
            losses.append(float(report["loss"]))
    return losses, train_step._cache_size()


def main():
    cfg = make_model()
    assert len(jax.devices()) == 8
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: (0.2 * rng.normal(size=s.shape)).astype(np.float32), vlm.param_shapes(cfg)
    )
    one = mesh_lib.make({}, jax.devices()[:1])
    eight = mesh_lib.make({"data": 2, "fsdp": 2, "tensor": 2})
    found = [train(mesh, params, cfg) for mesh in (one, eight)]
    print(json.dumps({"one": found[0], "eight": found[1]}))


if __name__ == "__main__":
    main()
