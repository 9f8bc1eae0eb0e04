"""One optimizer step as one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sgqlm import types
from sgqlm.models import lora
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import optim, state

MAX_BAD_RUN = 3  # non-finite steps in a row that end a run; none after them changes the state

# (params, batch, key or None) -> sum, weight, metrics; with cached features also `features=`
LossFn = Callable[..., tuple[jax.Array, jax.Array, dict[str, Any]]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optim.Optimizer,
    *,
    shardings: state.State | None = None,
    accumulation: int = 1,
    spike_factor: float = 0.0,
):
    """Compile a train step.

    Gradients of the micro-batches are summed and divided once by the sum of all weights, so the
    result is the global token mean whatever the accumulation and the number of devices. A step
    whose loss or gradient is not finite leaves parameters and optimizer as they were, and so does
    one whose gradient norm is a spike, where the state has a guard.

    Args:
        loss_fn: the loss of a (micro-)batch as sums, see `train.loss.lm_loss`.
        optimizer: from `train.optim.make`.
        shardings: of the state, from `state_shardings`; None on one device without a mesh.
        accumulation: number of micro-batches.
        spike_factor: multiple of the median norm above which a norm is a spike.

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
        norms = _part_norms(grads)
        norm = jnp.sqrt(sum(jnp.square(value) for value in norms.values()))
        is_finite = jnp.isfinite(total) & jnp.isfinite(norm)
        updated, is_good = _updated(optimizer, current, grads, norm, is_finite, spike_factor)
        report = {
            **finish(metrics),
            **{f"grad_norm_{part}": value for part, value in norms.items()},
            "loss": total * scale,
            "grad_norm": norm,
            "lr_factor": optimizer.factor(current.step),
            "left_out": ~is_good,
            "bad_run": updated.bad_run,
            "skipped": updated.skipped,
        }
        if updated.guard is not None:
            report |= {"spikes": updated.guard.spikes, "spike_run": updated.guard.run}
        return updated, report

    out = None if shardings is None else (shardings, None)
    return jax.jit(train_step, donate_argnums=0, out_shardings=out)


def make_eval_step(loss_fn: LossFn):
    """Compile (trainable, frozen, batch, features or None) -> (sum, weight, metrics)."""

    def eval_step(trainable, frozen, batch, features):
        return _call(loss_fn, state.join(trainable, frozen), batch, None, features)

    return jax.jit(eval_step)


def init_state(
    trainable: types.Params,
    optimizer: optim.Optimizer,
    shardings: state.State | None = None,
    *,
    spike_window: int = 0,
) -> state.State:
    """Return the state before the first step; it holds the arrays of `trainable` themselves.

    Args:
        trainable: float32 parameters.
        optimizer: of the stage.
        shardings: of the state, from `state_shardings`.
        spike_window: norms that the spike guard keeps; 0: there is no guard.
    """

    def rest(tree):
        bad_run, skipped, *counts = (jnp.zeros((), jnp.int32) for _ in range(5))
        norms = jnp.zeros(spike_window, jnp.float32)
        guard = state.Guard(norms, *counts) if spike_window else None
        none: Any = None  # the caller puts its own arrays there
        opt = optimizer.transform.init(tree)
        return state.State(jnp.zeros((), jnp.int32), none, opt, bad_run, skipped, guard)

    if shardings is None:
        return jax.jit(rest)(trainable)._replace(trainable=trainable)
    trainable = jax.device_put(trainable, shardings.trainable)
    places = shardings._replace(trainable=None)
    return jax.jit(rest, out_shardings=places)(trainable)._replace(trainable=trainable)


def state_shardings(
    trainable: types.Params,
    optimizer: optim.Optimizer,
    params_on: types.Params,
    mesh: Mesh,
    *,
    has_guard: bool = False,
) -> state.State:
    """Derive the placement of a state from that of the parameters.

    Args:
        trainable: arrays or shapes of the trainable tree.
        optimizer: its optimizer.
        params_on: shardings of the trainable tree.
        mesh: the mesh.
        has_guard: the state has a spike guard.

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
    guard: Any = state.Guard(whole, whole, whole, whole) if has_guard else None
    return state.State(whole, params_on, opt, whole, whole, guard)


def finish(metrics: dict[str, Any]) -> dict[str, jax.Array]:
    """Divide the pairs of summed metrics; scalars stay. An empty mean is NaN."""

    def value(entry):
        if not isinstance(entry, tuple):
            return jnp.asarray(entry, jnp.float32)
        return jnp.where(entry[1] > 0, entry[0] / jnp.maximum(entry[1], 1e-9), jnp.nan)

    return {name: value(entry) for name, entry in metrics.items()}


def bad_rows(is_finite: Callable[[np.ndarray], bool], count: int) -> list[int]:
    """Find the rows of a batch that are not finite, by halves.

    Args:
        is_finite: tells whether a step on these rows alone is finite.
        count: rows of the batch.

    Returns:
        Rows that alone are not finite, or groups of them where only the whole group is not.
    """

    def search(rows: np.ndarray) -> list[int]:
        if is_finite(rows):
            return []
        if len(rows) == 1:
            return rows.tolist()
        middle = len(rows) // 2
        return search(rows[:middle]) + search(rows[middle:]) or rows.tolist()

    return search(np.arange(count))


def _part_norms(grads) -> dict[str, jax.Array]:
    squares: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        part = lora.part_of(state.path_name(path))
        squares[part] = squares.get(part, 0.0) + jnp.square(leaf).sum()
    return {part: jnp.sqrt(value) for part, value in squares.items()}


def _updated(optimizer: optim.Optimizer, current: state.State, grads, norm, is_finite, factor):
    """Return the state after a step, and whether its gradient was applied."""
    is_halted = _is_halted(current)
    guard, is_spike = _guarded(current.guard, norm, is_finite & ~is_halted, factor)
    is_good = is_finite & ~is_spike & ~is_halted
    trainable, opt = optimizer.update(grads, current.opt, current.trainable, step=current.step)
    kept = _choose(is_good, (trainable, opt), (current.trainable, current.opt))
    run = jnp.where(is_spike, current.bad_run, 0)
    return state.State(
        step=current.step + 1,
        trainable=kept[0],
        opt=kept[1],
        bad_run=jnp.where(is_finite & ~is_halted, run, current.bad_run + 1),
        skipped=current.skipped + ~is_finite,
        guard=guard,
    ), is_good


def _is_halted(current: state.State):
    """Tell whether the run ends here, which the host learns a step late."""
    is_bad = current.bad_run >= MAX_BAD_RUN
    if current.guard is None:
        return is_bad
    return is_bad | (current.guard.run >= len(current.guard.norms))


def _guarded(guard: state.Guard | None, norm, counts, factor: float):
    """Return the guard after a step, if the step counts, and whether it is a spike."""
    if guard is None:
        return None, jnp.zeros((), bool)
    window = len(guard.norms)
    is_spike = counts & (guard.good >= window) & (norm > factor * jnp.median(guard.norms))
    is_good = counts & ~is_spike
    kept = guard.norms.at[guard.good % window].set(norm)
    return state.Guard(
        norms=jnp.where(is_good, kept, guard.norms),
        good=guard.good + is_good,
        spikes=guard.spikes + is_spike,
        run=jnp.where(is_spike, guard.run + 1, jnp.where(is_good, 0, guard.run)),
    ), is_spike


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
