"""AdamW with one learning rate a part and one cosine for all."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sgqlm import config, types
from sgqlm.models import lora
from sgqlm.train import state

DECAYED = ("kernel", "embedding", "lora_a", "lora_b", "centers")  # stacked norms are 2-D too


class Optimizer(NamedTuple):
    """The gradient transformation of a stage, and the schedule it is scaled with."""

    transform: optax.GradientTransformation  # clip, Adam, decay; without the learning rate
    factor: Callable[[Any], jax.Array]  # step -> share of the peak learning rate
    rates: dict[str, float]  # part -> peak learning rate

    def update(self, grads, opt, trainable, *, step):
        """Return the new trainable parameters and optimizer state."""
        updates, opt = self.transform.update(grads, opt, trainable)
        factor = self.factor(step)

        def apply(path, leaf, update):
            return leaf - self.rates[lora.part_of(state.path_name(path))] * factor * update

        return jax.tree_util.tree_map_with_path(apply, trainable, updates), opt


def make(stage: config.StageConfig, num_steps: int) -> Optimizer:
    """Build the optimizer of a stage.

    Args:
        stage: learning rates, warm-up, clipping and decay. The norm is clipped over the trainable
            part only; biases, norms and other vectors do not decay.
        num_steps: length of the cosine.

    Returns:
        The optimizer, to be applied to trees that `state.split` made.
    """
    transform = optax.chain(
        optax.clip_by_global_norm(stage.clip_norm) if stage.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=stage.b1, b2=stage.b2),
        optax.add_decayed_weights(stage.weight_decay, mask=_decays),
    )
    return Optimizer(transform, cosine(stage, num_steps), dict(stage.learning_rates))


def cosine(stage: config.StageConfig, num_steps: int) -> Callable[[Any], jax.Array]:
    """Return the schedule: linear warm-up from 1 / warm-up steps, then a cosine to `final_lr`."""
    warmup = math.ceil(stage.warmup * num_steps)

    def factor(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
        decayed = stage.final_lr + (1 - stage.final_lr) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, (step + 1) / max(warmup, 1), decayed)

    return factor


def _decays(params: types.Params):
    def decays(path, _):
        return state.path_name(path).rsplit("/", 1)[-1] in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params)
