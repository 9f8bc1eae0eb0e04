import contextlib
import functools
import os
import signal

import jax
import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.train import checkpoint, metrics, stage_loop
from tests.train import toys


def saver(folder):
    def save(job, saved):
        meta = checkpoint.Meta({}, job.stage.name, job.index, saved.step, saved.is_final)
        return str(checkpoint.save(folder, meta, saved.params, opt=saved.opt, keep=9))

    return save


def resume(folder):
    path, meta = checkpoint.latest(folder)
    params = checkpoint.load_params(path)
    load = lambda target: checkpoint.load_opt(path, target)  # noqa: E731
    return stage_loop.Saved(meta.step, toys.placed(params), load, meta.is_final)


def train(folder, steps=6, *, resumed=None, row=None, **options):
    fields = {k: options.pop(k) for k in ("batches", "validation") if k in options}
    run = toys.run(folder, saver(folder), **options)
    job = toys.job(row or toys.stage(), steps, fields.pop("batches", toys.batches), **fields)
    with jax.set_mesh(run.mesh), run.interrupt, contextlib.closing(run.writer):
        return stage_loop.run_stage(run, job, toys.placed(toys.params()), resumed=resumed)


def stop_at(step, number):
    def on_step(info):
        if info.step == step:
            os.kill(os.getpid(), number)

    return stage_loop.Hooks(on_step=on_step)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, errors.PREEMPTED), (signal.SIGINT, errors.INTERRUPTED)],
)
def test_a_signal_saves_and_the_resumed_run_is_bit_identical(tmp_path, number, code):
    whole = train(tmp_path / "whole")
    with pytest.raises(errors.SgqlmError) as caught:
        train(tmp_path / "cut", hooks=stop_at(3, number))
    assert caught.value.code == code
    resumed = resume(tmp_path / "cut")
    assert 3 <= resumed.step < 6
    assert not resumed.is_final
    assert toys.same(whole, train(tmp_path / "cut", resumed=resumed))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_ends_an_evaluation(tmp_path):
    settings, drawn = config.TrainConfig(eval_every=3, log_every=1), []

    def validation():
        for index in range(50):
            drawn.append(index)
            if index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield toys.batch(100 + index)

    options = {"train": settings, "validation": validation}
    with pytest.raises(errors.SgqlmError) as caught:
        train(tmp_path / "cut", **options)
    assert caught.value.code == errors.PREEMPTED
    assert len(drawn) < 10
    assert metrics.read(tmp_path / "cut", "eval") == {}
    resumed = resume(tmp_path / "cut")
    assert resumed.step == 4
    whole = train(tmp_path / "whole", train=config.TrainConfig())
    assert toys.same(whole, train(tmp_path / "cut", resumed=resumed))


def test_saving_every_few_steps_does_not_change_the_result(tmp_path):
    whole = train(tmp_path / "whole")
    settings = config.TrainConfig(save_every=2, eval_every=2, log_every=1)
    two = lambda: [toys.batch(100), toys.batch(101)]  # noqa: E731
    saved = train(tmp_path / "saved", train=settings, validation=two)
    assert toys.same(whole, saved)
    names = [path.name for path in checkpoint.find(tmp_path / "saved")]
    assert names == ["00-toy-0000002", "00-toy-0000004", "00-toy-0000006"]
    records = metrics.read(tmp_path / "saved", "eval")["toy"]
    assert sorted(records) == [2, 4, 6]
    assert metrics.read(tmp_path / "saved")["toy"][1]["lr_projector"] == pytest.approx(1e-2)


def test_three_bad_steps_in_a_row_stop_after_saving(tmp_path):
    with pytest.raises(errors.SgqlmError, match="third in a row") as caught:
        train(tmp_path, 8, batches=functools.partial(toys.batches, bad=(2, 3, 4)))
    assert caught.value.code == errors.NON_FINITE
    params = checkpoint.load_params(checkpoint.latest(tmp_path)[0])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_two_bad_steps_are_survived(tmp_path):
    train(tmp_path, 8, batches=functools.partial(toys.batches, bad=(2, 3, 5)))
    assert metrics.read(tmp_path)["toy"][8]["skipped"] == 3


def test_the_sampler_sees_live_parameters(tmp_path):
    seen = []

    def sampler(sample):
        seen.append((sample.step, float(jax.tree.leaves(sample.params)[0].sum())))

    settings = config.TrainConfig(sample_every=2)
    train(tmp_path, train=settings, hooks=stage_loop.Hooks(sampler=sampler))
    assert [step for step, _ in seen] == [2, 4]


def test_an_error_of_the_loader_arrives(tmp_path):
    def broken(start):
        yield toys.batch(start)
        raise errors.SgqlmError("broken record", code=errors.DATA)

    with pytest.raises(errors.SgqlmError, match="broken record"):
        train(tmp_path, batches=broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": {"vision": 1e-3}}, "trains vision"),
        ({"learning_rates": {"graphs": 1e-3}}, "unknown part"),
        ({"learning_rates": {}}, "trains nothing"),
        ({"accumulation": 3}, "multiple of accumulation"),
    ],
)
def test_stages_that_cannot_run(tmp_path, changes, message):
    with pytest.raises(errors.SgqlmError, match=message):
        train(tmp_path, row=toys.stage(**changes))
