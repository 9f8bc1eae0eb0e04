"""A linear model in the shape of a parameter tree, for tests of everything around the model."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config, types
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import interrupt, metrics, stage_loop

WIDTH = 4


def params(seed: int = 0):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "projector": {"fc1": {"kernel": leaf(WIDTH, WIDTH), "bias": leaf(WIDTH)}},
        "graph": {"out": {"kernel": leaf(WIDTH, 1)}},
    }


def batch(step: int, rows: int = 8, *, bad: bool = False) -> types.Batch:
    """Return a batch whose images are the inputs and whose weights are the targets."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    target = (x.sum(1, keepdims=True) + rng.normal(size=(rows, 1))).astype(np.float32)
    if bad:
        x[0, 0] = np.nan
    zeros = np.zeros((rows, 1), np.int32)
    return types.Batch(
        images=x,
        image_valid=np.ones(rows, bool),
        tokens=zeros,
        lengths=np.ones(rows, np.int32),
        labels=zeros,
        weights=target,
        target_kind=zeros.astype(np.int8),
        graph=None,
        row=np.arange(rows, dtype=np.int32),
    )


def loss(tree, part: types.Batch, key, features=None):
    """Return the summed squared error, with noise on the inputs where there is a key."""
    x = part.images
    if key is not None:
        x = x + 0.01 * jax.random.normal(key, x.shape)
    fc1 = tree["projector"]["fc1"]
    y = jnp.tanh(x @ fc1["kernel"] + fc1["bias"]) @ tree["graph"]["out"]["kernel"]
    error = jnp.square(y - part.weights).sum()
    count = jnp.asarray(len(x), jnp.float32)
    return error, count, {"rows": count, "error": (error, count)}


def batches(start: int, bad=()):
    return (batch(step, bad=step in bad) for step in itertools.count(start))


def stage(**changes) -> config.StageConfig:
    values = {"name": "toy", "batch_size": 8, "learning_rates": {"projector": 1e-2}}
    return config.StageConfig(**(values | changes))


@functools.cache
def mesh():
    return mesh_lib.make({}, jax.devices()[:1])


def placed(tree):
    return jax.device_put(tree, rules.param_shardings(tree, mesh()))


def run(workdir, save, *, train=None, hooks=None):
    return stage_loop.Run(
        train=train or config.TrainConfig(log_every=2),
        mesh=mesh(),
        writer=metrics.Writer(workdir, is_active=True, tensorboard=False),
        save=save,
        interrupt=interrupt.Interrupt(),
        hooks=hooks or stage_loop.Hooks(),
    )


def job(row: config.StageConfig, steps: int, batches=batches, **fields) -> stage_loop.Job:
    return stage_loop.Job(row, 0, steps, batches, loss, **fields)


def same(a, b) -> bool:
    equal = jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(equal))
