import dataclasses
import itertools

import jax
import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import checkpoint, metrics, program, step
from tests.train import test_stage_loop, toys

GUARD = config.TrainConfig(spike_factor=3.0, spike_window=4, log_every=1)


def make(train=GUARD, **options):
    row = toys.stage()
    fields = {"index": 0, "num_steps": 10, "loss_fn": toys.loss} | options
    with jax.set_mesh(toys.mesh()):
        return program.Program(train, row, toys.mesh(), params=toys.placed(toys.params()), **fields)


def spiked(index):
    """Return a batch whose loss is a hundred times that of others."""
    made = toys.batch(index)
    return made._replace(weights=10 * made.weights)


def take(made, batch):
    placed = mesh_lib.put_batch((batch, None), toys.mesh())
    with jax.set_mesh(toys.mesh()):
        report, _ = made.take(placed)
    return {name: float(value) for name, value in report.items()}


def test_a_spike_changes_nothing_and_is_no_bad_step():
    made = make()
    for index in range(3):
        take(made, toys.batch(index))
    assert not take(made, spiked(3))["left_out"]  # too few norms to tell
    take(made, toys.batch(4))
    before = jax.tree.map(np.asarray, (made.state.trainable, made.state.opt, made.state.guard))
    values = take(made, spiked(5))
    assert (values["left_out"], values["spikes"], values["skipped"], values["bad_run"]) == (
        1,
        1,
        0,
        0,
    )
    assert program.is_spike(values)
    assert toys.same(before[:2], (made.state.trainable, made.state.opt))
    assert (made.state.guard.norms == before[2].norms).all()
    assert not take(made, toys.batch(6))["left_out"]
    assert int(made.state.guard.run) == 0
    values = take(made, toys.batch(7, bad=True))
    assert (values["left_out"], values["spikes"], values["skipped"]) == (1, 1, 1)
    assert not program.is_spike(values)


def test_without_a_guard_nothing_is_kept():
    made = make(config.TrainConfig())
    assert made.state.guard is None
    assert "guard" not in made.opt()
    assert "spikes" not in take(made, toys.batch(0))


def test_after_three_bad_steps_even_a_good_one_changes_nothing():
    made = make()
    take(made, toys.batch(0))
    before = jax.tree.map(np.asarray, (made.state.trainable, made.state.opt, made.state.guard))
    first = take(made, toys.batch(1, bad=True))
    for index in (2, 3):
        take(made, toys.batch(index, bad=True))
    assert take(made, toys.batch(4))["bad_run"] > step.MAX_BAD_RUN
    made.rewind(1, first)
    after = made.state
    assert toys.same(before, jax.tree.map(np.asarray, (after.trainable, after.opt, after.guard)))
    assert [int(n) for n in (after.step, after.bad_run, after.skipped)] == [1, 0, 0]


def test_the_rows_that_are_not_finite_are_found():
    made = make()
    before = jax.tree.map(np.asarray, made.state)
    batch = toys.batch(0)
    batch.images[[2, 5], 1] = np.nan
    with jax.set_mesh(toys.mesh()):
        assert made.bad_rows((batch, None)) == [2, 5]
        assert made.bad_rows((toys.batch(0), None)) == []
    assert toys.same(before, jax.tree.map(np.asarray, made.state))


def test_rows_that_are_bad_only_together():
    taken = []

    def is_finite(rows):
        taken.append(rows.tolist())
        return not {1, 6} <= set(rows.tolist())

    assert step.bad_rows(is_finite, 8) == list(range(8))
    assert len(taken) == 3


def test_the_guard_survives_a_resume_bit_for_bit(tmp_path):
    def batches(start):
        return (spiked(i) if i in (6, 9) else toys.batch(i) for i in itertools.count(start))

    options = {"steps": 12, "train": GUARD, "batches": batches}
    whole = test_stage_loop.train(tmp_path / "whole", **options)
    assert metrics.read(tmp_path / "whole")["toy"][12]["spikes"] == 2
    stop = test_stage_loop.stop_at(7, 15)
    with pytest.raises(errors.SgqlmError, match="SIGTERM"):
        test_stage_loop.train(tmp_path / "cut", hooks=stop, **options)
    resumed = test_stage_loop.resume(tmp_path / "cut")
    assert toys.same(whole, test_stage_loop.train(tmp_path / "cut", resumed=resumed, **options))
    assert metrics.read(tmp_path / "cut")["toy"][12]["spikes"] == 2


def test_a_window_of_spikes_ends_the_run_and_keeps_the_state_before_them(tmp_path):
    def batches(start):
        return (spiked(i) if i >= 6 else toys.batch(i) for i in itertools.count(start))

    saving = dataclasses.replace(GUARD, save_every=6)
    test_stage_loop.train(tmp_path / "good", 30, train=saving)
    with pytest.raises(errors.SgqlmError, match="a whole spike_window") as caught:
        test_stage_loop.train(tmp_path / "bad", 30, train=GUARD, batches=batches)
    assert caught.value.code == errors.NON_FINITE
    folder, meta = checkpoint.latest(tmp_path / "bad")
    assert meta.step == 6
    good = checkpoint.load_params(checkpoint.find(tmp_path / "good")[0])
    assert toys.same(good, checkpoint.load_params(folder))
