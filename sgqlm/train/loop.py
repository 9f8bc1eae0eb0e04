"""A run: the stages in order, from where an earlier run was stopped."""

import contextlib
import functools
import json
import os
import pathlib
import time
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sgqlm import config, errors, types
from sgqlm.data import pipeline
from sgqlm.models import lora, vlm
from sgqlm.parallel import distributed
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.text import tokenizer as tokenizer_lib
from sgqlm.train import (
    checkpoint,
    exactness,
    features,
    feed,
    goodput,
    interrupt,
    loss,
    metrics,
    progress,
    region_text,
    stage_loop,
    stages,
    start,
    state,
    step,
    throughput,
    writing,
)
from sgqlm.train import crash as crash_lib
from sgqlm.train import workdir as workdir_lib

Hooks, Sample, StepInfo = stage_loop.Hooks, stage_loop.Sample, stage_loop.StepInfo
run_stage = stage_loop.run_stage
CONFIG_FILE = "config.json"


class Result(NamedTuple):
    """What a run leaves behind.

    Attributes:
        config: resolved.
        params: the whole tree.
        tokenizer: the text side.
        checkpoint: the newest one.
        stages: name -> `{"steps", "first_loss", "last_loss", "seconds"}`, of all stages that the
            work directory knows.
    """

    config: config.Config
    params: types.Params
    tokenizer: tokenizer_lib.Tokenizer
    checkpoint: pathlib.Path | None
    stages: dict[str, dict[str, Any]]


def run(
    settings: config.Config,
    workdir: str | os.PathLike | None = None,
    *,
    hooks: stage_loop.Hooks = stage_loop.Hooks(),
) -> Result:
    """Train all stages of a configuration, or those that `train.only` names.

    Args:
        settings: the configuration.
        workdir: the folder of the run; default `train.workdir`.
        hooks: called during training; its sampler is given `stage_loop.Sample`.

    Returns:
        The trained model and where it lies.

    Raises:
        SgqlmError: any failure a user can act on; code 75 or 130 after a signal, once all is saved.
    """
    began = time.monotonic()
    folder = workdir_lib.local(workdir or settings.train.workdir)
    distributed.initialize()
    with interrupt.Interrupt() as stop:
        return _run(settings, folder, hooks, stop, began)


def _run(settings: config.Config, folder: pathlib.Path, hooks, stop, began: float) -> Result:
    rows = _rows(settings)
    mesh = mesh_lib.make(settings.train.mesh)
    _check_batches(rows, mesh)
    _check_rows(rows, settings, folder)
    with contextlib.ExitStack() as stack:
        claim = lambda: stack.enter_context(_claimed(folder))  # noqa: E731
        distributed.on_main(claim, "claim the work directory")
        distributed.check_shared(folder)
        settings = feed.with_scenes(settings, folder)
        stack.enter_context(jax.set_mesh(mesh))
        begun = start.begin(settings, folder, mesh, feed.corpus)
        is_main, board = distributed.is_main(), settings.train.tensorboard
        log = metrics.Writer(folder, is_active=is_main, tensorboard=board)
        stack.callback(log.close)
        stack.callback(_tell_goodput, log, folder, is_main)
        writer = stack.enter_context(writing.Writer(is_async=settings.train.async_save))
        runner = _Runner(begun, folder, mesh, log, writer, stop, hooks)
        runner.log_start(time.monotonic() - began)
        return runner.run(rows)


class _Runner:
    def __init__(self, begun: start.Start, folder, mesh: Mesh, log, writer, stop, hooks):
        self._settings, self._tokenizer = begun.config, begun.tokenizer
        self._params, self._begun = begun.params, begun
        self._folder, self._is_main = folder, distributed.is_main()
        self._trained = set(begun.resumed[1].trained) if begun.resumed else set()
        self._saved: pathlib.Path | None = begun.resumed[0] if begun.resumed else None
        self._log, self._writer, self._mesh = log, writer, mesh
        self._data, self._stop = "", stop
        stop.saved = str(self._saved or "")
        self._run = stage_loop.Run(
            begun.config.train,
            mesh,
            log,
            self._save,
            stop,
            self._told(hooks),
            self._is_main,
            check=writer.check,
            crash=self._crash,
        )

    def log_start(self, seconds: float):
        """Log that an attempt begins, and what it goes on from."""
        meta = self._begun.resumed[1] if self._begun.resumed else None
        stage, done = (meta.stage, meta.step) if meta else ("", 0)
        self._log.write("start", stage, done, {"seconds": seconds})
        for note in exactness.notes(meta, self._settings, self._mesh) if meta else ():
            self._print(f"not bit-identical: the checkpoint was written {note}")

    def run(self, rows: tuple[config.StageConfig, ...]) -> Result:
        if self._is_main:
            text = json.dumps(config.to_dict(self._settings), indent=2)
            (self._folder / CONFIG_FILE).write_text(text + "\n")
        order = [stage.name for stage in self._settings.train.stages]
        placed = {stage.name: stage for stage in self._settings.train.stages}
        for row in rows:
            if self._stop.is_pending():  # it came when the stage before was all but done
                raise self._stop.error()
            self._stage(placed[row.name], order.index(row.name))
        return Result(
            self._settings, self._params, self._tokenizer, self._saved, summary(self._folder)
        )

    def _stage(self, stage: config.StageConfig, index: int):
        folder, meta = self._begun.resumed or (None, None)
        resumed = None
        if meta and (index < meta.stage_index or (index == meta.stage_index and meta.is_final)):
            if index == meta.stage_index and meta.data != self._digest(stage):
                raise _other_data(folder)
            self._print(f"{stage.name}: done before")
            return
        if folder and meta and index == meta.stage_index:
            resumed = self._resumed(folder, meta)
        began = time.monotonic()
        stages.check(stage, self._params)
        job = self._job(stage, index)
        if resumed and meta and meta.data != self._data:
            raise _other_data(self._saved)
        table = state.part_table(self._params, stage.learning_rates)
        self._print(f"\nstage {stage.name}: {job.num_steps} steps of {stage.batch_size} samples")
        self._print(state.format_table(table))
        self._print(_attention(stage, self._settings))
        self._log.write("set_up", stage.name, 0, {"seconds": time.monotonic() - began})
        self._trained |= set(stage.learning_rates)
        self._params = stage_loop.run_stage(self._run, job, self._params, resumed=resumed)
        seconds = time.monotonic() - began
        self._log.write("stage", stage.name, job.num_steps, {"seconds": seconds})
        if self._is_main:
            found = goodput.account(metrics.records(self._folder))
            self._log.write("goodput", stage.name, job.num_steps, found)

    def _job(self, stage: config.StageConfig, index: int) -> stage_loop.Job:
        settings, tokenizer = self._settings, self._tokenizer
        loader = feed.open_loader(settings, stage, tokenizer)
        self._data = feed.digest(stage, loader, tokenizer)
        if warning := feed.warning(stage, settings.model, loader):
            self._print(warning)
        cache = self._cache(stage, loader) if stage.cache_features else None
        labels = self._labels(stage, loader)
        model = stages.program_model(stage, settings.model, self._known())
        open_from = functools.partial(
            feed.open_loader,
            settings,
            stage,
            tokenizer,
            with_images=cache is None,
            labels=labels,
            mesh=self._mesh,
        )
        return stage_loop.Job(
            stage=stage,
            index=index,
            num_steps=stages.num_steps(stage, loader.num_records),
            batches=lambda first: open_from(start=first),
            loss_fn=make_loss(stage, settings, known=self._known()),
            validation=self._validation(stage),
            cache=cache,
            records=loader.records,
            rates=throughput.meter(
                stage,
                model,
                device_kind=self._mesh.devices.flat[0].device_kind,
                num_devices=self._mesh.size,
                is_cached=cache is not None,
            ),
        )

    def _digest(self, stage: config.StageConfig) -> str:
        loader = feed.open_loader(self._settings, stage, self._tokenizer)
        return feed.digest(stage, loader, self._tokenizer)

    def _told(self, hooks: stage_loop.Hooks) -> stage_loop.Hooks:
        """Let the sampler know configuration and tokenizer too."""
        sampler = hooks.sampler
        if sampler is None:
            return hooks
        if jax.process_count() > 1:
            if self._settings.train.sample_every:
                self._print("train.sample_every: samples are written by runs of one process only")
            return hooks._replace(sampler=None)
        about = {"config": self._settings, "tokenizer": self._tokenizer}
        return hooks._replace(sampler=lambda sample: sampler(sample._replace(**about)))

    def _known(self) -> set[str]:
        return self._trained | {lora.part_of(path) for path in self._begun.from_base}

    def _validation(self, stage: config.StageConfig):
        train = self._settings.train
        if not train.eval_every or not train.eval_batches:
            return None
        args = (self._settings, stage, self._tokenizer)
        plain = feed.open_validation(*args)
        labels = None if plain is None else self._labels(stage, plain, "val")
        loader = feed.open_validation(*args, labels=labels, mesh=self._mesh)
        if loader is None:
            self._print(f"stage {stage.name}: no data source has a validation split")
            return None
        return lambda: (loader.batch(index) for index in range(train.eval_batches))

    def _cache(self, stage: config.StageConfig, loader: pipeline.Loader) -> features.Cache:
        if jax.process_count() > 1:
            raise errors.SgqlmError(
                "cached features work in one process only",
                where=f"config.train.stages: {stage.name}",
                fix="set cache_features=False",
            )
        images = feed.image_digest(stage, loader)
        name = features.digest(self._params, self._settings.model, images)
        file = self._folder / "features" / f"{name}.npy"
        if not file.is_file():
            tower = self._settings.model.vision
            size = (loader.num_image_rows + 1) * tower.num_patches * tower.width * 2
            workdir_lib.check_room(self._folder, size, "the cached features")
        return features.compute(
            self._params,
            self._settings.model,
            loader.images(),
            loader.num_image_rows,
            mesh=self._mesh,
            file=file,
        )

    def _labels(self, stage: config.StageConfig, loader: pipeline.Loader, split: str = ""):
        """Predict the labels of all entities, where the model has a trained classifier for it."""
        model = self._settings.model
        is_known = "regions" in self._trained or any(
            path.startswith("regions/") for path in self._begun.from_base
        )
        wants = model.graph.enabled and model.graph.labels == "predicted"
        if not (model.region_words and wants and is_known) or stage.objective == "region_text":
            return None
        images = feed.image_digest(stage, loader, split=split)
        name = features.digest(self._params, model, model.graph, images, self._tokenizer.digest)
        return features.compute_labels(
            self._params,
            model,
            loader.regions(),
            self._tokenizer.decode,
            loader.num_image_rows,
            file=self._folder / "features" / f"{name}.json",
        )

    def _resumed(self, folder: pathlib.Path, meta: checkpoint.Meta) -> stage_loop.Saved:
        self._print(f"resuming {folder.name}: {meta.stage} from step {meta.step}")
        load = functools.partial(checkpoint.load_opt, folder)
        return stage_loop.Saved(meta.step, self._params, load, is_final=False)

    def _save(self, job: stage_loop.Job, saved: stage_loop.Saved) -> str:
        kept = frozenset(
            path for path in self._begun.from_base if lora.part_of(path) not in self._trained
        )
        meta = checkpoint.Meta(
            config=config.to_dict(self._settings),
            stage=job.stage.name,
            stage_index=job.index,
            step=saved.step,
            is_final=saved.is_final,
            trained=tuple(sorted(self._trained)),
            base=self._begun.base,
            data=self._data,
            mesh=exactness.where(self._mesh),
        )
        began, before = time.monotonic(), self._saved
        self._saved = checkpoint.save(
            self._folder / checkpoint.FOLDER,
            meta,
            saved.params,
            opt=saved.opt,
            tokenizer=self._tokenizer.model_bytes,
            from_base=kept,
            keep=self._settings.train.keep,
            writer=self._writer,
        )
        if saved.is_final or saved.is_last:
            self._writer.wait()
            before = self._saved
        self._stop.saved = str(before or "")  # the one that is written now may yet fail
        seconds = {"seconds": time.monotonic() - began}
        self._log.write("checkpoint", job.stage.name, saved.step, seconds)
        return str(self._saved)

    def _crash(self, job: stage_loop.Job, crash: stage_loop.Crash) -> str:
        about = {
            "config": config.to_dict(self._settings),
            "stage": job.stage.name,
            "stage_index": job.index,
            "num_steps": job.num_steps,
            "known": sorted(self._known()),
            "mesh": exactness.where(self._mesh),
            "versions": checkpoint.versions(),
        }
        saved = self._saved or self._folder
        return str(
            crash_lib.write(self._folder, job, crash, about=about, state=saved, mesh=self._mesh)
        )

    def _print(self, text: str):
        progress.Progress("", 0, is_active=self._is_main).print(text)


def make_loss(
    stage: config.StageConfig, settings: config.Config, *, known: Collection[str] = lora.PARTS
) -> step.LossFn:
    """Return the loss of a stage's objective as the train step takes it.

    Args:
        stage: the stage.
        settings: the run.
        known: parts that hold trained values, see `stages.program_model`.
    """
    model, remat = stages.program_model(stage, settings.model, known), settings.train.remat

    def lm(params, batch, key, features=None):
        return loss.lm_loss(params, model, batch, features=features, key=key, remat=remat)

    def regions(params, batch, key):
        weight = stage.pair_weight
        return region_text.region_loss(params, model, batch, key=key, pair_weight=weight)

    return {"lm": lm, "region_text": regions}[stage.objective]


def _attention(stage: config.StageConfig, settings: config.Config) -> str:
    """Say which attention the stage takes, and why; a wish that cannot be met is an error."""
    found = vlm.attention_programs(
        settings.model,
        stage.buckets or settings.data.buckets,
        rows=stage.batch_size // stage.accumulation,
    )
    parts = []
    for part, choices in found.items():
        about = {choice.name: choice.reason for choice in choices}  # the longest of each
        parts += [f"{part} {name} ({reason})" for name, reason in about.items()]
    return "attention: " + "; ".join(parts)


def summary(workdir: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Return name -> `{"steps", "first_loss", "last_loss", "seconds"}` of the stages of a run."""
    times = metrics.read(workdir, "stage")
    found = {}
    for name, records in metrics.read(workdir).items():
        steps = sorted(records)
        seconds = [record["seconds"] for record in times.get(name, {}).values()]
        found[name] = {
            "steps": steps[-1],
            "first_loss": records[steps[0]]["loss"],
            "last_loss": records[steps[-1]]["loss"],
            "seconds": seconds[-1] if seconds else None,
        }
    return found


def _rows(settings: config.Config) -> tuple[config.StageConfig, ...]:
    rows = stages.select(settings.train)
    if not rows:
        raise errors.SgqlmError(
            "the configuration has no stage",
            where="config.train.stages",
            fix="give --config=configs/<name>.py",
        )
    return rows


def _check_batches(rows, mesh: Mesh):
    shards = mesh_lib.num_batch_shards(mesh)
    for stage in rows:
        if stage.batch_size % (shards * max(stage.accumulation, 1)):
            raise errors.SgqlmError(
                f"batch size {stage.batch_size} does not divide over {shards} devices"
                f" x {stage.accumulation} micro-batches",
                where=f"config.train.stages: {stage.name}",
                fix=f"give a multiple of {shards * max(stage.accumulation, 1)}",
            )


def _check_rows(rows, settings: config.Config, folder: pathlib.Path):
    """Refuse what would else stop the run only after the first programs are compiled."""
    if not checkpoint.find(folder):  # data of stages that are done need not be there any more
        feed.check(settings, rows)
    shapes, count = vlm.param_shapes(settings.model), settings.train.keep + 1
    for stage in rows:
        stages.check(stage, shapes)
    size = workdir_lib.checkpoint_bytes(shapes, rows, has_base=bool(settings.train.init))
    workdir_lib.check_room(folder, count * size, f"{count} checkpoints")


@contextlib.contextmanager
def _claimed(folder: pathlib.Path):
    with workdir_lib.claim(folder):
        for name in checkpoint.remove_unfinished(folder / checkpoint.FOLDER):
            progress.Progress("", 0).print(f"removed the unfinished checkpoint {name}")
        yield


def _tell_goodput(log: metrics.Writer, folder: pathlib.Path, is_main: bool):
    if is_main:
        found = goodput.account(metrics.records(folder))
        log.write("goodput", "run", 0, found)
        progress.Progress("", 0).print(goodput.line(found))


def _other_data(folder) -> errors.SgqlmError:
    return errors.SgqlmError(
        "the data set is not the one of the checkpoint",
        where=str(folder),
        why="a stage would go on, or count as done, with samples it did not begin with",
        fix="put the data set back, or train in another config.train.workdir",
        code=errors.CHECKPOINT,
    )
