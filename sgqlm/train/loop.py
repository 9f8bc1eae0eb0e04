"""A run: the stages in order, from where an earlier run was stopped."""

import dataclasses
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
from sgqlm.models import lora
from sgqlm.parallel import distributed
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.text import tokenizer as tokenizer_lib
from sgqlm.train import (
    checkpoint,
    features,
    feed,
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
)

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
    distributed.initialize()
    folder = pathlib.Path(workdir or settings.train.workdir)
    rows = _rows(settings)
    mesh = mesh_lib.make(settings.train.mesh)
    _check_batches(rows, mesh)
    is_main = distributed.is_main()
    _prepare_folder(folder, is_main)
    settings = feed.with_scenes(settings, folder)
    with jax.set_mesh(mesh), interrupt.Interrupt() as stop:
        begun = start.begin(settings, folder, mesh, feed.corpus)
        writer = metrics.Writer(folder, is_active=is_main, tensorboard=settings.train.tensorboard)
        try:
            return _Runner(begun, folder, mesh, writer, stop, hooks).run(rows)
        finally:
            writer.close()


class _Runner:
    def __init__(self, begun: start.Start, folder, mesh: Mesh, writer, stop, hooks):
        self._settings, self._tokenizer = begun.config, begun.tokenizer
        self._params, self._begun = begun.params, begun
        self._folder, self._is_main = folder, distributed.is_main()
        self._trained = set(begun.resumed[1].trained) if begun.resumed else set()
        self._saved: pathlib.Path | None = begun.resumed[0] if begun.resumed else None
        self._writer, self._mesh = writer, mesh
        self._data = ""
        self._run = stage_loop.Run(
            begun.config.train, mesh, writer, self._save, stop, self._told(hooks), self._is_main
        )

    def run(self, rows: tuple[config.StageConfig, ...]) -> Result:
        if self._is_main:
            text = json.dumps(config.to_dict(self._settings), indent=2)
            (self._folder / CONFIG_FILE).write_text(text + "\n")
        order = [stage.name for stage in self._settings.train.stages]
        placed = {stage.name: stage for stage in self._settings.train.stages}
        for row in rows:
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
        self._trained |= set(stage.learning_rates)
        self._params = stage_loop.run_stage(self._run, job, self._params, resumed=resumed)
        seconds = time.monotonic() - began
        self._writer.write("stage", stage.name, job.num_steps, {"seconds": seconds})

    def _job(self, stage: config.StageConfig, index: int) -> stage_loop.Job:
        settings, tokenizer = self._settings, self._tokenizer
        loader = feed.open_loader(settings, stage, tokenizer)
        self._data = feed.digest(stage, loader, tokenizer)
        cache = self._cache(stage, loader) if stage.cache_features else None
        labels = self._labels(stage, loader)
        open_from = functools.partial(
            feed.open_loader,
            settings,
            stage,
            tokenizer,
            with_images=cache is None,
            labels=labels,
        )
        return stage_loop.Job(
            stage=stage,
            index=index,
            num_steps=stages.num_steps(stage, loader.num_records),
            batches=lambda first: open_from(start=first),
            loss_fn=make_loss(stage, settings, known=self._trained | self._base_parts()),
            validation=self._validation(stage),
            cache=cache,
        )

    def _digest(self, stage: config.StageConfig) -> str:
        loader = feed.open_loader(self._settings, stage, self._tokenizer)
        return feed.digest(stage, loader, self._tokenizer)

    def _told(self, hooks: stage_loop.Hooks) -> stage_loop.Hooks:
        """Let the sampler know configuration and tokenizer too."""
        sampler = hooks.sampler
        if sampler is None:
            return hooks
        about = {"config": self._settings, "tokenizer": self._tokenizer}
        return hooks._replace(sampler=lambda sample: sampler(sample._replace(**about)))

    def _base_parts(self) -> set[str]:
        return {lora.part_of(path) for path in self._begun.from_base}

    def _validation(self, stage: config.StageConfig):
        train = self._settings.train
        if not train.eval_every or not train.eval_batches:
            return None
        args = (self._settings, stage, self._tokenizer)
        plain = feed.open_validation(*args)
        labels = None if plain is None else self._labels(stage, plain, "val")
        loader = feed.open_validation(*args, labels=labels)
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
        return features.compute(
            self._params,
            self._settings.model,
            loader.images(),
            loader.num_image_rows,
            mesh=self._mesh,
            file=self._folder / "features" / f"{name}.npy",
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
        )
        began = time.monotonic()
        self._saved = checkpoint.save(
            self._folder / checkpoint.FOLDER,
            meta,
            saved.params,
            opt=saved.opt,
            tokenizer=self._tokenizer.model_bytes,
            from_base=kept,
            keep=self._settings.train.keep,
        )
        seconds = {"seconds": time.monotonic() - began}
        self._writer.write("checkpoint", job.stage.name, saved.step, seconds)
        return str(self._saved)

    def _print(self, text: str):
        progress.Progress("", 0, is_active=self._is_main).print(text)


def make_loss(
    stage: config.StageConfig, settings: config.Config, *, known: Collection[str] = lora.PARTS
) -> step.LossFn:
    """Return the loss of a stage's objective as the train step takes it.

    Adapters that neither train here nor hold anything yet are left out of the program, and frozen
    ones are not dropped out.

    Args:
        stage: the stage.
        settings: the run.
        known: parts that hold trained values.
    """
    model, remat = settings.model, settings.train.remat
    for part in ("llm_lora", "vision_lora"):
        if part not in stage.learning_rates:
            adapter = dataclasses.replace(getattr(model, part), dropout=0.0)
            adapter = adapter if part in known else config.LoraConfig()
            model = dataclasses.replace(model, **{part: adapter})

    def lm(params, batch, key, features=None):
        return loss.lm_loss(params, model, batch, features=features, key=key, remat=remat)

    def regions(params, batch, key):
        weight = stage.pair_weight
        return region_text.region_loss(params, model, batch, key=key, pair_weight=weight)

    return {"lm": lm, "region_text": regions}[stage.objective]


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


def _prepare_folder(folder: pathlib.Path, is_main: bool):
    if not is_main:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise errors.SgqlmError(
            "the work directory cannot be written",
            where=str(folder),
            why=str(error),
            fix="give another config.train.workdir",
        ) from error
    for name in checkpoint.remove_unfinished(folder / checkpoint.FOLDER):
        progress.Progress("", 0).print(f"removed the unfinished checkpoint {name}")


def _other_data(folder) -> errors.SgqlmError:
    return errors.SgqlmError(
        "the data set is not the one of the checkpoint",
        where=str(folder),
        why="a stage would go on, or count as done, with samples it did not begin with",
        fix="put the data set back, or train in another config.train.workdir",
        code=errors.CHECKPOINT,
    )
