"""Prototype extractor of SQ-LLaVA, as published (`paper`) and as released (`released`)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config, types
from sgqlm.models import functional, layers


class Prototypes(NamedTuple):
    """What an extractor returns: enhanced patches, the prototypes, and who belongs where."""

    patches: jax.Array  # float[B, P, D]
    centers: jax.Array  # float32[B, K, D]
    responsibility: jax.Array  # float32[B, P, K]: each patch distributed over the prototypes


def em(q, k, v, centers, *, iterations: int):
    """Refine prototypes by attention over the patches (SQ-LLaVA, equations 3 and 4).

    Args:
        q: function from centres float[B, K, D] to queries.
        k: keys float32[B, P, D].
        v: values float32[B, P, D].
        centers: initial centres float32[B, K, D].
        iterations: number of updates, at least one.

    Returns:
        The centres float32[B, K, D] and the last logits float32[B, K, P].
    """
    scale = k.shape[-1] ** -0.5

    def score(centers):
        return jnp.einsum("bkd,bpd->bkp", q(centers), k) * scale

    def update(logits):
        return jnp.einsum("bkp,bpd->bkd", jax.nn.softmax(logits, axis=-1), v)

    logits = score(centers)
    for _ in range(iterations - 1):
        logits = score(update(logits))
    return update(logits), logits


def cosine(a, b):
    """Return the cosines float[B, M, N] between rows of float[B, M, D] and float[B, N, D]."""
    return jnp.einsum("bmd,bnd->bmn", _unit(a), _unit(b))


def usage(responsibility) -> dict[str, jax.Array]:
    """Summarise how a batch uses its prototypes.

    Args:
        responsibility: float[B, P, K], rows summing to one.

    Returns:
        `usage_entropy`, the entropy of the mean share as a part of log K (1: even, 0: one
        prototype), and `dead_share`, the part of prototypes that win no patch of an image. Where
        there are more prototypes than patches, it is a part of those that could win one.
    """
    num_patches, num = responsibility.shape[-2:]
    share = responsibility.mean(1)
    entropy = -(share * jnp.log(share + 1e-9)).sum(-1) / np.log(max(num, 2))
    wins = jax.nn.one_hot(responsibility.argmax(-1), num).sum(1)
    live = (wins > 0).sum(-1) / min(num, num_patches)
    return {"usage_entropy": entropy.mean(), "dead_share": 1.0 - live.mean()}


def mask_guidance(responsibility, coverage, *, temperature: float = 0.1):
    """InfoNCE that draws patches of one entity mask to the same prototypes.

    Args:
        responsibility: float[B, P, K].
        coverage: uint8[B, N, P]; a patch belongs to the mask that covers it most.
        temperature: of the similarities.

    Returns:
        The mean loss over patches that have a partner in their mask; 0 if none has.
    """
    covered = coverage.max(1) > 127
    owner = jnp.where(covered, coverage.argmax(1), -1)
    unit = _unit(responsibility)
    similarity = jnp.einsum("bpk,bqk->bpq", unit, unit) / temperature
    both = (covered[:, :, None] & covered[:, None, :]) & ~jnp.eye(owner.shape[1], dtype=bool)
    same = both & (owner[:, :, None] == owner[:, None, :])
    log_all = jax.nn.logsumexp(jnp.where(both, similarity, functional.MASKED), axis=-1)
    log_same = jax.nn.logsumexp(jnp.where(same, similarity, functional.MASKED), axis=-1)
    has_partner = same.any(-1)
    total = jnp.where(has_partner, log_all - log_same, 0.0).sum()
    return total / jnp.maximum(has_partner.sum(), 1)


def adaptive_pool_matrix(length: int, bins: int) -> np.ndarray:
    """Return float32[bins, length] of torch's adaptive average pooling.

    Row i averages the tokens floor(i L / K) .. ceil((i + 1) L / K) - 1.
    """
    matrix = np.zeros((bins, length), np.float32)
    for i in range(bins):
        start, stop = i * length // bins, -((-(i + 1) * length) // bins)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


def released_cluster(params, x, *, num_prototypes: int, iterations: int):
    """Run the released `Clustering` operator without its final MLP.

    The similarity part runs in float32: in bfloat16 nearly all tokens tie.

    Args:
        params: `c`, `v`, `f` (dense), `sim_alpha`, `sim_beta`.
        x: float[B, P, D].
        num_prototypes: K.
        iterations: T.

    Returns:
        The enhanced tokens float32[B, P, D], the cluster similarity float32[B, K, P] and the
        nearest centre int32[B, P] (the first one on ties).
    """
    x = x.astype(jnp.float32)

    def dense(name, y):
        return y @ params[name]["kernel"] + params[name]["bias"]

    pool = jnp.asarray(adaptive_pool_matrix(x.shape[1], num_prototypes))
    value = dense("f", x)
    keys = dense("v", x)
    # over tokens, channel by channel, as released; the guard under the root, as in `_unit`
    keys = keys * jax.lax.rsqrt(jnp.maximum(jnp.square(keys).sum(1, keepdims=True), 1e-24))
    centers = jnp.einsum("kp,bpd->bkd", pool, x)
    center_values = jnp.einsum("kp,bpd->bkd", pool, value)
    for _ in range(iterations):
        logits = jnp.einsum("bkd,bpd->bkp", _unit(dense("c", centers)), keys)
        weights = jax.nn.softmax(logits, axis=1)  # over the centres
        centers = jnp.einsum("bkp,bpd->bkd", weights, value)
    alpha, beta = params["sim_alpha"].reshape(()), params["sim_beta"].reshape(())
    similarity = jax.nn.sigmoid(beta + alpha * cosine(centers, x))
    nearest = similarity.argmax(1)
    member = jax.nn.one_hot(nearest, num_prototypes, axis=1)
    gate = (similarity * member).sum(1)
    pooled = jnp.einsum("bkp,bpd->bkd", similarity * member, value) + center_values
    pooled = pooled / (member.sum(-1) + 1.0)[..., None]
    gathered = jnp.take_along_axis(pooled, nearest[..., None], axis=1)
    return x + gate[..., None] * gathered, similarity, nearest


def released_connector(params, x, num_prototypes: int, iterations: int):
    """Run the released connector: cluster operator, then the QuickGELU MLP.

    Args:
        params: `{"prototypes": {...}, "projector": {"fc1", "fc2"}}`, as
            `convert.sq_llava.connector_from_state_dict` gives.
        x: patch features float[B, P, D].
        num_prototypes: K.
        iterations: T.

    Returns:
        LLM tokens float32[B, P, Dout] and the nearest centre of each patch int32[B, P].
    """
    args = {"num_prototypes": num_prototypes, "iterations": iterations}
    y, _, nearest = released_cluster(params["prototypes"], x, **args)
    fc1, fc2 = params["projector"]["fc1"], params["projector"]["fc2"]
    hidden = functional.quick_gelu(y @ fc1["kernel"] + fc1["bias"])
    return hidden @ fc2["kernel"] + fc2["bias"], nearest


class PaperExtractor(nn.Module):
    """Learned centres, EM over the patches, and a residual that starts at zero."""

    config: config.PrototypeConfig

    @nn.compact
    def __call__(self, x):
        """Map float[B, P, D] to `Prototypes`."""
        z, width = x.astype(jnp.float32), x.shape[-1]
        init = nn.initializers.normal(1.0)
        start = self.param("centers", init, (self.config.num_prototypes, width))
        start = jnp.broadcast_to(start, (x.shape[0], *start.shape))
        query = layers.Dense(width, name="q")
        keys, values = layers.Dense(width, name="k")(z), layers.Dense(width, name="v")(z)
        centers, logits = em(query, keys, values, start, iterations=self.config.iterations)
        mean = jnp.einsum("bkp,bkd->bpd", cosine(centers, z), centers)
        out = layers.Dense(width, kernel_init=nn.initializers.zeros, name="z")
        patches = z + out(mean / self.config.num_prototypes)
        share = jax.nn.softmax(logits, axis=1).transpose(0, 2, 1)
        return Prototypes(patches.astype(x.dtype), centers, share)


class ReleasedExtractor(nn.Module):
    """Parameters of the released operator; `ln_1` is stored there and never used."""

    config: config.PrototypeConfig

    @nn.compact
    def __call__(self, x):
        """Map float[B, P, D] to `Prototypes`; the centres are those of the hard clusters."""
        width = x.shape[-1]
        params: types.Params = {
            "sim_alpha": self.param("sim_alpha", nn.initializers.ones, (1, 1, 1)),
            "sim_beta": self.param("sim_beta", nn.initializers.zeros, (1, 1, 1)),
        }
        for name in ("c", "v", "f"):
            params[name] = _Linear(width, name=name)()
        _Norm(width, name="ln_1")()
        y, _, nearest = released_cluster(
            params,
            x,
            num_prototypes=self.config.num_prototypes,
            iterations=self.config.iterations,
        )
        share = jax.nn.one_hot(nearest, self.config.num_prototypes)
        weights = share / jnp.maximum(share.sum(1, keepdims=True), 1.0)
        centers = jnp.einsum("bpk,bpd->bkd", weights, y)
        return Prototypes(y.astype(x.dtype), centers, share)


class _Linear(nn.Module):
    width: int

    @nn.compact
    def __call__(self):
        init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
        kernel = self.param("kernel", init, (self.width, self.width))
        return {"kernel": kernel, "bias": self.param("bias", nn.initializers.zeros, (self.width,))}


class _Norm(nn.Module):
    width: int

    @nn.compact
    def __call__(self):
        self.param("scale", nn.initializers.ones, (self.width,))
        self.param("bias", nn.initializers.zeros, (self.width,))


def _unit(x):
    # the guard sits under the root, so that a zero vector has a finite gradient
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
