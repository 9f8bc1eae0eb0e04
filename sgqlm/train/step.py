"""One optimizer step as one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sgqlm import types
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import optim, state

# (params, batch, key or None) -> sum, weight, metrics; with cached features also `features=`
LossFn = Callable[..., tuple[jax.Array, jax.Array, dict[str, Any]]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optim.Optimizer,
    *,
    shardings: state.State | None = None,
    accumulation: int = 1,
):
    """Compile a train step.

    Gradients of the micro-batches are summed and divided once by the sum of all weights, so the
    result is the global token mean whatever the accumulation and the number of devices. A step
    whose loss or gradient is not finite leaves parameters and optimizer as they were.

    Args:
        loss_fn: the loss of a (micro-)batch as sums, see `train.loss.lm_loss`.
        optimizer: from `train.optim.make`.
        shardings: of the state, from `state_shardings`; None on one device without a mesh.
        accumulation: number of micro-batches.

    Returns:
        A jitted function (state, frozen, batch, features or None, key) -> (state, metrics). The
        state is donated. Metrics are float32 scalars.
    """

    def train_step(current: state.State, frozen, batch, features, key):
        key = jax.random.fold_in(key, current.step)
        sums = _summed(loss_fn, current.trainable, frozen, (batch, features), key, accumulation)
        (total, weight, metrics), grads = sums
        scale = 1.0 / jnp.maximum(weight, 1e-9)
        grads = jax.tree.map(lambda g: g * scale, grads)
        norm = optax.tree.norm(grads)
        is_good = jnp.isfinite(total) & jnp.isfinite(norm)
        trainable, opt = optimizer.update(grads, current.opt, current.trainable, step=current.step)
        kept = _choose(is_good, (trainable, opt), (current.trainable, current.opt))
        updated = state.State(
            step=current.step + 1,
            trainable=kept[0],
            opt=kept[1],
            bad_run=jnp.where(is_good, 0, current.bad_run + 1),
            skipped=current.skipped + ~is_good,
        )
        report = {
            **finish(metrics),
            "loss": total * scale,
            "grad_norm": norm,
            "lr_factor": optimizer.factor(current.step),
            "bad_run": updated.bad_run,
            "skipped": updated.skipped,
        }
        return updated, report

    out = None if shardings is None else (shardings, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out)


def make_eval_step(loss_fn: LossFn):
    """Compile (trainable, frozen, batch, features or None) -> (sum, weight, metrics)."""

    def eval_step(trainable, frozen, batch, features):
        return _call(loss_fn, state.join(trainable, frozen), batch, None, features)

    return jax.jit(eval_step)


def init_state(
    trainable: types.Params, optimizer: optim.Optimizer, shardings: state.State | None = None
) -> state.State:
    """Return the state before the first step; it holds the arrays of `trainable` themselves."""

    def rest(tree):
        zeros = (jnp.zeros((), jnp.int32) for _ in range(3))
        return optimizer.transform.init(tree), *zeros

    if shardings is None:
        opt, *zeros = jax.jit(rest)(trainable)
    else:
        trainable = jax.device_put(trainable, shardings.trainable)
        places = (shardings.opt, shardings.step, shardings.bad_run, shardings.skipped)
        opt, *zeros = jax.jit(rest, out_shardings=places)(trainable)
    return state.State(zeros[0], trainable, opt, zeros[1], zeros[2])


def state_shardings(
    trainable: types.Params, optimizer: optim.Optimizer, params_on: types.Params, mesh: Mesh
) -> state.State:
    """Derive the placement of a state from that of the parameters.

    Args:
        trainable: arrays or shapes of the trainable tree.
        optimizer: its optimizer.
        params_on: shardings of the trainable tree.
        mesh: the mesh.

    Returns:
        A state of shardings: moments lie as their parameter, scalars on every device.
    """
    whole: Any = mesh_lib.replicated(mesh)
    shapes = jax.eval_shape(optimizer.transform.init, trainable)
    opt = optax.tree_map_params(
        optimizer.transform,
        lambda _, place: place,
        shapes,
        params_on,
        transform_non_params=lambda _: whole,
    )
    return state.State(whole, params_on, opt, whole, whole)


def finish(metrics: dict[str, Any]) -> dict[str, jax.Array]:
    """Divide the pairs of summed metrics; scalars stay. An empty mean is NaN."""

    def value(entry):
        if not isinstance(entry, tuple):
            return jnp.asarray(entry, jnp.float32)
        return jnp.where(entry[1] > 0, entry[0] / jnp.maximum(entry[1], 1e-9), jnp.nan)

    return {name: value(entry) for name, entry in metrics.items()}


def _summed(loss_fn, trainable, frozen, inputs, key, accumulation):
    def loss(tree, micro, micro_key):
        batch, features = micro
        params = state.join(tree, frozen)
        total, weight, metrics = _call(loss_fn, params, batch, micro_key, features)
        return total, (total, weight, metrics)

    def one(micro, index):
        micro_key = jax.random.fold_in(key, index)
        grads, sums = jax.grad(loss, has_aux=True)(trainable, micro, micro_key)
        return sums, grads

    if accumulation == 1:
        return one(inputs, 0)
    micros = jax.tree.map(lambda x: _cut(x, accumulation), inputs)

    def body(carry, scanned):
        found = one(*scanned)
        return jax.tree.map(jnp.add, carry, found), None

    first = jax.tree.map(lambda x: x[0], micros)
    shapes = jax.eval_shape(one, first, 0)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    summed, _ = jax.lax.scan(body, zeros, (micros, jnp.arange(accumulation)))
    return summed


def _call(loss_fn, params, batch, key, features):
    if features is None:
        return loss_fn(params, batch, key)
    return loss_fn(params, batch, key, features=features)


def _cut(x, count):
    # every device keeps its own rows: row b goes to micro-batch b mod count
    x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
    return rules.shard(x, None, "batch", *(None,) * (x.ndim - 2))


def _choose(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
