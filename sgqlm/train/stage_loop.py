"""The loop of one stage: save, evaluate, fetch, step, log, in this order."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sgqlm import config, errors, types
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import (
    features,
    interrupt,
    metrics,
    optim,
    prefetch,
    progress,
    stages,
    state,
    step,
)

MAX_BAD_RUN = 3  # non-finite steps in a row that end a run


class StepInfo(NamedTuple):
    """What `on_step` is told: one call a step, one step late."""

    stage: str
    step: int  # steps done
    num_steps: int
    metrics: dict[str, float]


class Sample(NamedTuple):
    """What a sampler is given; the arrays live until it returns."""

    stage: str
    step: int
    params: types.Params
    config: Any = None  # config.Config; it and the tokenizer are filled in by `loop.run`
    tokenizer: Any = None


class Hooks(NamedTuple):
    """What a caller of the loop may add."""

    on_step: Callable[[StepInfo], None] | None = None
    sampler: Callable[[Sample], None] | None = None  # every `train.sample_every` steps


class Saved(NamedTuple):
    """What a stage resumes from, and what it hands to `Run.save`."""

    step: int
    params: types.Params
    opt: Any  # {"opt", "bad_run", "skipped"}, or a function from its target to it
    is_final: bool


class Job(NamedTuple):
    """One stage, ready to run."""

    stage: config.StageConfig
    index: int  # row in the stage table
    num_steps: int
    batches: Callable[[int], Iterable[types.Batch]]  # first step -> batches from there on
    loss_fn: step.LossFn
    validation: Callable[[], Iterable[types.Batch]] | None = None
    cache: features.Cache | None = None  # features in place of the batches' images


class Run(NamedTuple):
    """What all stages of a run share."""

    train: config.TrainConfig
    mesh: Mesh
    writer: metrics.Writer
    save: Callable[[Job, Saved], str]
    interrupt: interrupt.Interrupt
    hooks: Hooks = Hooks()
    is_main: bool = True


def run_stage(
    run: Run, job: Job, params: types.Params, *, resumed: Saved | None = None
) -> types.Params:
    """Train one stage.

    Args:
        run: what the stages share; its mesh is the current one.
        job: the stage.
        params: the whole tree on the mesh. Its trainable leaves are consumed (donated).
        resumed: where to go on; its params replace `params`.

    Returns:
        The whole tree after the stage.

    Raises:
        SgqlmError: three steps in a row were not finite (saved first), or a signal asked to stop
            (saved first).
    """
    loop = _StageLoop(run, job, resumed.params if resumed else params, resumed)
    return loop.run()


class _StageLoop:
    def __init__(self, run: Run, job: Job, params: types.Params, resumed: Saved | None):
        stages.check(job.stage, params)
        self._run, self._job = run, job
        trainable, self._frozen = state.split(params, job.stage.learning_rates)
        optimizer = optim.make(job.stage, job.num_steps)
        places = rules.param_shardings(params, run.mesh)
        places, _ = state.partition(places, job.stage.learning_rates)
        shardings = step.state_shardings(trainable, optimizer, places, run.mesh)
        self._state = _first_state(trainable, optimizer, shardings, resumed)
        self._start = resumed.step if resumed else 0
        self._step = step.make_train_step(
            job.loss_fn, optimizer, shardings=shardings, accumulation=job.stage.accumulation
        )
        self._eval_step = step.make_eval_step(job.loss_fn)
        self._key = jax.random.fold_in(jax.random.key(run.train.seed), job.index)
        self._pending: tuple[int, dict] | None = None
        self._window: list[dict[str, float]] = []
        self._window_began, self._waited = time.monotonic(), 0.0
        self._progress = progress.Progress(
            job.stage.name, job.num_steps, done=self._start, is_active=run.is_main
        )

    def run(self) -> types.Params:
        job = self._job
        left = job.num_steps - self._start
        ahead = prefetch.Prefetch(job.batches(self._start), self._place, count=left)
        try:
            with self._progress:
                for index in range(self._start, job.num_steps):
                    self._between_steps(index)
                    self._take_step(index, ahead)
                self._flush()
                self._evaluate(job.num_steps)
                self._save(job.num_steps, is_final=True)
        finally:
            ahead.close()
        return self._params()

    def _between_steps(self, index: int):
        # the state of `index` is saved before its batch is drawn, so a resumed run draws it again
        train = self._run.train
        is_new = index > self._start
        if self._run.interrupt.is_requested(index):
            self._flush()
            raise self._run.interrupt.error(self._save(index))
        if is_new and _is_due(index, train.save_every):
            self._flush()
            self._save(index)
        if is_new and _is_due(index, train.eval_every):
            self._flush()
            self._evaluate(index)
        if is_new and _is_due(index, train.sample_every) and self._run.hooks.sampler:
            self._flush()
            name = self._job.stage.name
            self._run.hooks.sampler(Sample(name, index, self._params()))

    def _take_step(self, index: int, ahead: prefetch.Prefetch):
        began = time.monotonic()
        batch, cached = ahead.next()
        self._waited += time.monotonic() - began
        with jax.profiler.StepTraceAnnotation("train", step_num=index):
            self._state, report = self._step(self._state, self._frozen, batch, cached, self._key)
        self._flush()
        self._pending = (index + 1, report)

    def _place(self, batch: types.Batch):
        cached = None if self._job.cache is None else self._job.cache.rows(batch)
        return mesh_lib.put_batch((batch, cached), self._run.mesh)

    def _flush(self):
        """Take in the figures of the step before the one that is running."""
        if self._pending is None:
            return
        done, report = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(report).items()}
        self._window.append(values)
        job, hooks = self._job, self._run.hooks
        if values["bad_run"]:
            self._progress.print(
                f"{job.stage.name} step {done}: not finite, skipped ({values['skipped']:.0f})"
            )
        if hooks.on_step:
            hooks.on_step(StepInfo(job.stage.name, done, job.num_steps, values))
        if done == 1 or done == job.num_steps or _is_due(done, self._run.train.log_every):
            self._log(done)
        if values["bad_run"] >= MAX_BAD_RUN:
            where = self._save(int(jax.device_get(self._state.step)))
            raise _non_finite(job.stage.name, done, where)

    def _log(self, done: int):
        stage, seconds = self._job.stage, time.monotonic() - self._window_began
        values = {name: _mean([w[name] for w in self._window]) for name in self._window[0]}
        rates = {f"lr_{p}": r * values["lr_factor"] for p, r in stage.learning_rates.items()}
        speed = stage.batch_size * len(self._window) / max(seconds, 1e-9)
        values |= {"samples_per_second": speed, "data_wait_seconds": self._waited, **rates}
        values["skipped"] = self._window[-1]["skipped"]
        self._run.writer.write("train", stage.name, done, values)
        rate = max(rates.values())
        note = f"loss {values['loss']:.4f} lr {rate:.2e} {speed:.1f} samples/s"
        self._progress.update(done, note)
        self._window, self._waited, self._window_began = [], 0.0, time.monotonic()

    def _evaluate(self, done: int):
        if self._job.validation is None:
            return
        sums = None
        for batch in self._job.validation():
            placed = mesh_lib.put_batch(batch, self._run.mesh)
            found = self._eval_step(self._state.trainable, self._frozen, placed, None)
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        total, weight, counted = jax.device_get(sums)
        values = {name: float(value) for name, value in step.finish(counted).items()}
        values["loss"] = float(total / max(weight, 1e-9))
        self._run.writer.write("eval", self._job.stage.name, done, values)
        line = f"{self._job.stage.name} {done}/{self._job.num_steps} validation loss"
        self._progress.print(f"{line} {values['loss']:.4f}")
        self._window_began = time.monotonic()

    def _save(self, done: int, *, is_final: bool = False) -> str:
        opt = None if is_final else _opt_tree(self._state)
        return self._run.save(self._job, Saved(done, self._params(), opt, is_final))

    def _params(self) -> types.Params:
        return state.join(self._state.trainable, self._frozen)


def _first_state(trainable, optimizer, shardings, resumed: Saved | None) -> state.State:
    current = step.init_state(trainable, optimizer, shardings)
    if resumed is None:
        return current
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        _opt_tree(current),
    )
    loaded = resumed.opt(target)
    done = jax.device_put(np.asarray(resumed.step, np.int32), shardings.step)
    return state.State(done, current.trainable, loaded["opt"], loaded["bad_run"], loaded["skipped"])


def _opt_tree(current: state.State) -> dict[str, Any]:
    return {"opt": current.opt, "bad_run": current.bad_run, "skipped": current.skipped}


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _mean(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _non_finite(name: str, done: int, where: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"stage {name}: step {done} is the third in a row that is not finite",
        where=where,
        why="the parameters from before these steps are saved there",
        fix="lower the learning rate, or look at the batches of these steps",
        code=errors.NON_FINITE,
    )
