"""Prototypes that collapse, or are more than the patches: finite, measured, and said once."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import config
from sgqlm.models import prototypes, vlm
from sgqlm.train import health, loss, metrics, stage_loop
from tests.models import helpers
from tests.train import micro, toys

WIDTH, PATCHES = 8, 9


def features(kind):
    """Return patch features float32[2, 9, 8] that are hard on a clustering."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, PATCHES, WIDTH)).astype(np.float32)
    return {
        "random": x,
        "identical": np.broadcast_to(x[:, :1], x.shape).copy(),
        "zero": np.zeros_like(x),
        "large": 1e4 * x,
        "two images": np.stack([np.zeros_like(x[0]), x[1]]),
    }[kind]


@functools.cache
def programs(mode, num):
    """Return fresh parameters, and the compiled (loss, gradients, usage) of an extractor."""
    cfg = config.PrototypeConfig(mode=mode, num_prototypes=num)
    kinds = {"paper": prototypes.PaperExtractor, "released": prototypes.ReleasedExtractor}
    module = kinds[mode](cfg)
    masks = np.zeros((2, 3, PATCHES), np.uint8)
    masks[0, 0, :4] = masks[0, 1, 4:] = 255

    def objective(params, x):
        found = module.apply({"params": params}, x)
        guidance = prototypes.mask_guidance(found.responsibility, masks)
        total = jnp.square(found.patches).mean() + found.centers.mean() + guidance
        return total, (found, prototypes.usage(found.responsibility))

    params = module.init(jax.random.key(0), features("random"))["params"]
    return params, jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("kind", ["random", "identical", "zero", "large", "two images"])
@pytest.mark.parametrize("num", [4, 20])  # 20: more prototypes than patches
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_values_and_gradients_stay_finite(mode, num, kind):
    params, program = programs(mode, num)
    (total, (found, usage)), grads = program(params, features(kind))
    assert found.patches.shape == (2, PATCHES, WIDTH) and found.centers.shape == (2, num, WIDTH)
    leaves = jax.tree.leaves((total, found, usage, grads))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    share = np.asarray(found.responsibility).sum(-1)
    np.testing.assert_allclose(share, 1, atol=1e-5)  # sums of up to 20 float32
    assert 0 <= usage["dead_share"] <= 1 and -1e-6 <= usage["usage_entropy"] <= 1 + 1e-6


def test_collapsed_prototypes_stay_finite_and_are_seen():
    params, program = programs("paper", 4)
    same = jnp.broadcast_to(params["centers"][:1], params["centers"].shape)
    for centers in (same, jnp.zeros_like(same), 1e6 * same):
        (total, (_, usage)), grads = program({**params, "centers": centers}, features("random"))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((total, grads)))
        assert usage["dead_share"] == 0.75  # the first of four wins every tie


def test_prototypes_without_a_patch_to_win_are_not_counted_as_dead():
    every = np.eye(20, dtype=np.float32)[None, :PATCHES]  # 9 patches, each with its own
    assert prototypes.usage(every)["dead_share"] == pytest.approx(0, abs=1e-6)
    one = np.repeat(every[:, :1], PATCHES, axis=1)
    assert prototypes.usage(one)["dead_share"] == pytest.approx(8 / 9)


def one_wins(num):
    """Return a responsibility in which the first prototype takes all but a trace."""
    share = np.full((2, PATCHES, num), 1e-4, np.float32)
    share[:, :, 0] = 1 - 1e-4 * (num - 1)
    return share


@pytest.mark.parametrize("num", [2, 4, 64])
def test_collapse_is_worth_a_warning(num):
    figures = {name: float(value) for name, value in prototypes.usage(one_wins(num)).items()}
    assert "win no patch" in health.warning(figures)


@pytest.mark.parametrize("name", ["even", "fresh", "nothing", "no prototypes"])
def test_health_is_not(name):
    figures = {
        "even": {"dead_share": 0.0, "usage_entropy": 1.0},
        "fresh": {"dead_share": 0.76, "usage_entropy": 0.99},  # 256 fresh ones over 576 patches
        "nothing": {"dead_share": float("nan"), "usage_entropy": float("nan")},
        "no prototypes": {"loss": 1.0},
    }[name]
    assert health.warning(figures) == ""


def test_a_stage_logs_the_dead_share_and_warns_once(tmp_path, capsys):
    usage = {name: float(value) for name, value in prototypes.usage(one_wins(64)).items()}

    def collapsed(tree, part, key, features=None):
        total, count, values = toys.loss(tree, part, key, features)
        return total, count, values | {name: (u * count, count) for name, u in usage.items()}

    job = toys.job(toys.stage(), 6)._replace(loss_fn=collapsed)
    run = toys.run(tmp_path, lambda job, saved: "", train=config.TrainConfig(log_every=1))
    with jax.set_mesh(run.mesh), run.interrupt, contextlib.closing(run.writer):
        stage_loop.run_stage(run, job, toys.placed(toys.params()))
    said = capsys.readouterr().err
    assert said.count("WARNING: toy step 1: ") == said.count("WARNING") == 1
    records = metrics.read(tmp_path)["toy"]
    dead = pytest.approx(usage["dead_share"])
    assert [records[step]["dead_share"] for step in range(1, 7)] == [dead] * 6


def test_the_loss_of_a_model_with_prototypes_reports_them():
    model = micro.model()
    batch = helpers.batch(model, num_nodes=(2, 0), length=32)
    params = vlm.param_shapes(model)
    found = jax.eval_shape(lambda tree, part: loss.lm_loss(tree, model, part), params, batch)
    assert {"dead_share", "usage_entropy"} <= set(found[2])
