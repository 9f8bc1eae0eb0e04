"""The loop of one stage: save, evaluate, fetch, step, log, in this order."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sgqlm import config, errors, types
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import (
    features,
    health,
    interrupt,
    metrics,
    prefetch,
    program,
    progress,
    stages,
    step,
    throughput,
)

MAX_KEPT = 8  # batches of the steps that ended a run


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
    opt: Any  # {"opt", "bad_run", "skipped", "guard"}, or a function from its target to it
    is_final: bool
    is_last: bool = False  # nothing follows: `save` returns when it is on the disk


class Job(NamedTuple):
    """One stage, ready to run."""

    stage: config.StageConfig
    index: int  # row in the stage table
    num_steps: int
    batches: Callable[[int], Iterable[types.Batch]]  # first step -> batches from there on
    loss_fn: step.LossFn
    validation: Callable[[], Iterable[types.Batch]] | None = None
    cache: features.Cache | None = None  # features in place of the batches' images
    records: Callable[[int], list[str]] | None = None  # step -> names of its global batch
    # figures of some steps and their seconds -> rates, see `throughput.meter`
    rates: Callable[[list[dict[str, float]], float], dict[str, float]] | None = None


class Crash(NamedTuple):
    """Steps that left the state as it was and ended the run, the first to the last.

    Attributes:
        first: steps done before them; the checkpoint saved for them has as many.
        reports: figures of each step.
        batches: of each step, with its cached features or None; this process's rows.
        bad_rows: rows of the first batch that alone are not finite; None where that is unknown.
    """

    first: int
    reports: list[dict[str, float]]
    batches: list[tuple[types.Batch, Any]]
    bad_rows: list[int] | None


class Run(NamedTuple):
    """What all stages of a run share."""

    train: config.TrainConfig
    mesh: Mesh
    writer: metrics.Writer
    save: Callable[[Job, Saved], str]
    interrupt: interrupt.Interrupt
    hooks: Hooks = Hooks()
    is_main: bool = True
    check: Callable[[], None] = lambda: None  # raises what went wrong with an earlier save
    crash: Callable[[Job, Crash], str] | None = None  # keeps what `sgqlm replay` needs


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
        SgqlmError: three steps in a row were not finite, or a whole window of steps were spikes
            (the state before them is saved first); a signal asked to stop (saved first); or a
            checkpoint could not be written.
    """
    loop = _StageLoop(run, job, resumed.params if resumed else params, resumed)
    return loop.run()


class _StageLoop:
    def __init__(self, run: Run, job: Job, params: types.Params, resumed: Saved | None):
        stages.check(job.stage, params)
        self._run, self._job = run, job
        self._start = resumed.step if resumed else 0
        self._program = program.Program(
            run.train,
            job.stage,
            run.mesh,
            index=job.index,
            num_steps=job.num_steps,
            loss_fn=job.loss_fn,
            params=params,
            done=self._start,
            opt=resumed.opt if resumed else None,
        )
        self._eval_step = step.make_eval_step(job.loss_fn)
        self._pending: tuple[int, dict] | None = None
        self._left_out: list[tuple[int, dict[str, float]]] = []  # since the last good step
        self._is_warned = False
        self._open_window()
        self._progress = progress.Progress(
            job.stage.name, job.num_steps, done=self._start, is_active=run.is_main
        )

    def run(self) -> types.Params:
        job = self._job
        left = job.num_steps - self._start
        ahead = prefetch.Prefetch(job.batches(self._start), self._place, count=left)
        try:
            with self._progress:
                self._open_window()
                for index in range(self._start, job.num_steps):
                    self._between_steps(index)
                    self._take_step(index, ahead)
                    self._run.interrupt.hold()
                self._flush()
                self._evaluate(job.num_steps)
                self._save(job.num_steps, is_final=True)
        finally:
            self._run.interrupt.release()
            ahead.close()
        return self._program.params()

    def _between_steps(self, index: int):
        # the state of `index` is saved before its batch is drawn, so a resumed run draws it again
        train = self._run.train
        is_new = index > self._start
        if self._run.interrupt.is_requested():
            self._flush()
            where = self._save(index, is_last=True) if is_new else ""
            raise self._run.interrupt.error(where)
        self._run.check()
        if is_new and _is_due(index, train.save_every):
            self._flush()
            self._save(index)
        if is_new and _is_due(index, train.eval_every):
            self._flush()
            self._evaluate(index)
        if is_new and _is_due(index, train.sample_every) and self._run.hooks.sampler:
            self._flush()
            self._sample(index)

    def _take_step(self, index: int, ahead: prefetch.Prefetch):
        began = time.monotonic()
        placed = ahead.next()
        drawn = time.monotonic()
        self._waited += drawn - began
        with jax.profiler.StepTraceAnnotation("train", step_num=index):
            report, is_compiled = self._program.take(placed)
        if is_compiled:  # the call returned when its program was ready
            self._compiled += time.monotonic() - drawn
        self._flush()
        self._pending = (index + 1, report)

    def _flush(self):
        """Take in the figures of the step before the one that is running."""
        if self._pending is None:
            return
        done, report = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(report).items()}
        self._window.append(values)
        job, hooks = self._job, self._run.hooks
        if values["left_out"]:
            self._left_out.append((done, values))
            self._tell_left_out(done, values)
        else:
            self._left_out = []
        if hooks.on_step:
            hooks.on_step(StepInfo(job.stage.name, done, job.num_steps, values))
        if done == 1 or done == job.num_steps or _is_due(done, self._run.train.log_every):
            self._log(done)
        if values["bad_run"] >= step.MAX_BAD_RUN:
            raise self._stopped(_non_finite(job.stage.name, done))
        if values.get("spike_run", 0) >= self._run.train.spike_window:
            raise self._stopped(_only_spikes(job.stage.name, done))

    def _tell_left_out(self, done: int, values: dict[str, float]):
        stage, records = self._job.stage.name, []
        if self._job.records:
            records = self._job.records(done - 1)
        why = "not finite"
        if program.is_spike(values):
            why = f"gradient norm {values['grad_norm']:.3g} is a spike"
        about = {name: values[name] for name in ("loss", "grad_norm", "skipped", "bad_run")}
        about |= {"why": why, "records": records}
        self._run.writer.write("left_out", stage, done, about)
        shown = ", ".join(records[:8]) + (f" and {len(records) - 8} more" * (len(records) > 8))
        self._progress.print(f"{stage} step {done}: {why}, left out. Its records: {shown}")

    def _stopped(self, error: errors.SgqlmError) -> errors.SgqlmError:
        """Save the state from before the steps that were left out, and what shows them again."""
        first, values = self._left_out[0]
        self._program.rewind(first - 1, values)
        crash = self._crash() if self._run.crash else None
        error.where = self._save(first - 1, is_last=True)
        if crash and self._run.crash:
            error.fix += f"; `sgqlm replay {self._run.crash(self._job, crash)}` shows these steps"
        return error

    def _crash(self) -> Crash:
        reports = [values for _, values in self._left_out[:MAX_KEPT]]
        first = self._left_out[0][0] - 1
        drawn = iter(self._job.batches(first))
        cache = self._job.cache
        batches = []
        for _ in reports:
            batch = next(drawn)
            batches.append((batch, cache.rows(batch) if cache else None))
        if hasattr(drawn, "close"):
            drawn.close()  # type: ignore[attr-defined]
        is_known = jax.process_count() == 1 and not program.is_spike(reports[0])
        rows = self._program.bad_rows(batches[0]) if is_known else None
        return Crash(first, reports, batches, rows)

    def _place(self, batch: types.Batch):
        cached = None if self._job.cache is None else self._job.cache.rows(batch)
        return mesh_lib.put_batch((batch, cached), self._run.mesh)

    def _open_window(self):
        self._window: list[dict[str, float]] = []
        self._window_began, self._waited, self._compiled = time.monotonic(), 0.0, 0.0

    def _log(self, done: int):
        if not self._window:
            return
        stage, seconds = self._job.stage, time.monotonic() - self._window_began
        values = {name: _mean([w[name] for w in self._window]) for name in self._window[0]}
        rates = {f"lr_{p}": r * values["lr_factor"] for p, r in stage.learning_rates.items()}
        ran = max(seconds - self._compiled, 1e-9)
        speed = stage.batch_size * len(self._window) / ran
        values |= {"samples_per_second": speed, "data_wait_seconds": self._waited, **rates}
        values |= {"compile_seconds": self._compiled, "step_seconds": ran - self._waited}
        values["skipped"] = self._window[-1]["skipped"]
        found = self._job.rates(self._window, ran) if self._job.rates else {}
        values |= found
        self._run.writer.write("train", stage.name, done, values)
        if not self._is_warned and (fault := health.warning(values)):
            self._is_warned = True
            self._progress.print(f"WARNING: {stage.name} step {done}: {fault}")
        rate = max(rates.values())
        note = (
            f"loss {values['loss']:.4f} lr {rate:.2e} {speed:.1f} samples/s{throughput.note(found)}"
        )
        self._progress.update(done, note)
        self._open_window()

    def _evaluate(self, done: int):
        if self._job.validation is None:
            return
        self._log(done)  # the window of the steps ends before something else takes time
        began, sums, current = time.monotonic(), None, self._program.state
        for batch in self._job.validation():
            if self._run.interrupt.is_pending():
                return
            placed = mesh_lib.put_batch(batch, self._run.mesh)
            found = self._eval_step(current.trainable, self._program.frozen, placed, None)
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        total, weight, counted = jax.device_get(sums)
        values = {name: float(value) for name, value in step.finish(counted).items()}
        values["loss"] = float(total / max(weight, 1e-9))
        values["seconds"] = time.monotonic() - began
        self._run.writer.write("eval", self._job.stage.name, done, values)
        line = f"{self._job.stage.name} {done}/{self._job.num_steps} validation loss"
        self._progress.print(f"{line} {values['loss']:.4f}")
        self._open_window()

    def _sample(self, done: int):
        if self._run.interrupt.is_pending() or not self._run.hooks.sampler:
            return
        self._log(done)
        began, name = time.monotonic(), self._job.stage.name
        self._run.hooks.sampler(Sample(name, done, self._program.params()))
        self._run.writer.write("sample", name, done, {"seconds": time.monotonic() - began})
        self._open_window()

    def _save(self, done: int, *, is_final: bool = False, is_last: bool = False) -> str:
        self._log(done)
        opt = None if is_final else self._program.opt()
        where = self._run.save(
            self._job, Saved(done, self._program.params(), opt, is_final, is_last)
        )
        self._open_window()
        return where


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _mean(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _non_finite(name: str, done: int) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"stage {name}: step {done} is the third in a row that is not finite",
        why="the state from before these steps is saved there",
        fix="lower the learning rate, or look at the batches of these steps",
        code=errors.NON_FINITE,
    )


def _only_spikes(name: str, done: int) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"stage {name}: up to step {done} a whole spike_window of steps were left out as spikes",
        why="the state from before these steps is saved there",
        fix="start a new work directory from it (config.train.init) with a larger spike_factor"
        " or a lower learning rate",
        code=errors.NON_FINITE,
    )
