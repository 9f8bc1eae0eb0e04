"""The stage table: what trains in which stage, at which rate (specification of each model)."""

import dataclasses
import difflib
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

from sgqlm import config, errors, types
from sgqlm.models import lora
from sgqlm.text import templates

MODELS = ("llava_sg", "sq_llava", "sgqlm")
STAGES = ("pretrain", "align", "graph", "instruct", "end_to_end")

_LORA_RATE, _FULL_RATE, _ALIGN_RATE, _NEW_RATE = 2e-4, 2e-5, 1e-3, 2e-4

# model -> new modules beside the towers, in the order they start to train
_MODULES = {
    "llava_sg": ("projector", "graph"),
    "sq_llava": ("projector", "prototypes"),
    "sgqlm": ("projector", "prototypes", "graph"),
}


def preset(
    model: str, stage: str, *, llm_tuning: str | None = None, vision_tuning: str | None = None
) -> config.StageConfig:
    """Return a row of the stage table.

    Args:
        model: `llava_sg`, `sq_llava` or `sgqlm`.
        stage: `align`, `graph` and `instruct` are the published stages; `end_to_end` trains all
            their parts at once; `pretrain` trains every parameter, for models without towers.
        llm_tuning: `lora`, `full` or `frozen` in `instruct` and `end_to_end`; None: the model's.
        vision_tuning: likewise.

    Returns:
        The row; data sources, steps and batch size are the caller's to change.

    Raises:
        SgqlmError: there is no such row.
    """
    _check(model, MODELS, "model")
    _check(stage, STAGES, "stage")
    if stage == "graph" and model == "sq_llava":
        raise errors.SgqlmError("sq_llava has no stage graph", fix="leave the stage out")
    llm = llm_tuning or ("full" if model == "llava_sg" else "lora")
    vision = vision_tuning or ("frozen" if model == "llava_sg" else "lora")
    modules = _MODULES[model]
    rows = {
        "pretrain": dict.fromkeys(("vision", *modules, "llm"), _ALIGN_RATE),
        "align": dict.fromkeys((m for m in modules if m != "graph"), _ALIGN_RATE),
        "graph": {"graph": _ALIGN_RATE},
        "instruct": dict.fromkeys(modules, _FULL_RATE) | _towers(llm, vision),
        "end_to_end": dict.fromkeys(modules, _NEW_RATE) | _towers(llm, vision),
    }
    asks = model != "llava_sg" and stage in ("instruct", "end_to_end")
    return config.StageConfig(
        name=stage,
        learning_rates=rows[stage],
        batch_size=256 if stage in ("align", "graph") else 128,
        template="plain" if stage == "align" else "",
        self_questioning=0.5 if asks else 0.0,
    )


def check(stage: config.StageConfig, params: types.Params) -> None:
    """Refuse a stage that trains nothing, or a part the model does not have.

    Args:
        stage: the row.
        params: the model's parameters or their shapes.

    Raises:
        SgqlmError: as said; also when cached features belong to a tower that trains, when a batch
            is empty, or when there is no such template.
    """
    where = f"config.train.stages: {stage.name}"
    present = {part for part in lora.PARTS if _has_part(params, part)}
    for part in stage.learning_rates:
        _check(part, lora.PARTS, "part", f"config.train.stages.{stage.name}.learning_rates")
        if part not in present:
            raise errors.SgqlmError(
                f"stage {stage.name} trains {part}, which this model does not have",
                where=where,
                fix="parts of this model: " + ", ".join(p for p in lora.PARTS if p in present),
            )
    if not stage.learning_rates:
        fix = "give learning_rates, for example {'projector': 1e-3}"
        raise errors.SgqlmError(f"stage {stage.name} trains nothing", where=where, fix=fix)
    if stage.cache_features and {"vision", "vision_lora"} & set(stage.learning_rates):
        raise errors.SgqlmError(
            f"stage {stage.name} caches features of a tower that trains",
            where=where,
            fix="set cache_features=False, or freeze vision and vision_lora",
        )
    if stage.template:
        try:
            templates.get(stage.template)
        except errors.SgqlmError as error:
            error.where = f"config.train.stages.{stage.name}.template"
            raise
    if min(stage.batch_size, stage.accumulation) < 1:
        raise errors.SgqlmError(
            f"stage {stage.name} has batches of {stage.batch_size} samples in"
            f" {stage.accumulation} parts",
            where=where,
            fix="give at least 1 for batch_size and accumulation",
        )
    if stage.batch_size % stage.accumulation:
        raise errors.SgqlmError(
            f"batch size {stage.batch_size} is not a multiple of accumulation {stage.accumulation}",
            where=where,
            fix="change batch_size or accumulation",
        )


def program_model(
    stage: config.StageConfig, model: config.ModelConfig, known: Collection[str]
) -> config.ModelConfig:
    """Return the model as the program of a stage has it.

    Adapters that neither train here nor hold anything yet are left out, and frozen ones are not
    dropped out.

    Args:
        stage: the stage.
        model: the whole model.
        known: parts that hold trained values.
    """
    for part in ("llm_lora", "vision_lora"):
        if part not in stage.learning_rates:
            adapter = dataclasses.replace(getattr(model, part), dropout=0.0)
            adapter = adapter if part in known else config.LoraConfig()
            model = dataclasses.replace(model, **{part: adapter})
    return model


def num_steps(stage: config.StageConfig, num_samples: int) -> int:
    """Return the number of optimizer steps of a stage over `num_samples` samples an epoch."""
    steps = math.ceil(stage.epochs * num_samples / stage.batch_size)
    return stage.steps or max(1, stage.min_steps, steps)


def select(train: config.TrainConfig) -> tuple[config.StageConfig, ...]:
    """Return the stages that `train.only` names, in table order.

    Raises:
        SgqlmError: a name is unknown or stands twice in the table.
    """
    names = [stage.name for stage in train.stages]
    if len(set(names)) != len(names):
        fix = "name every stage differently: " + ", ".join(names)
        raise errors.SgqlmError("two stages have one name", where="config.train.stages", fix=fix)
    for name in train.only:
        _check(name, tuple(names), "stage", "config.train.only")
    return tuple(s for s in train.stages if not train.only or s.name in train.only)


def with_sources(stage: config.StageConfig, *sources: config.SourceConfig) -> config.StageConfig:
    """Return the row with other data."""
    return dataclasses.replace(stage, sources=tuple(sources))


def in_folder(
    table: Mapping[str, Sequence[config.SourceConfig]], folder: str | os.PathLike
) -> dict[str, tuple[config.SourceConfig, ...]]:
    """Return the sources of each stage with their paths: a folder of its own for each data set.

    Args:
        table: stage -> its sources, by name.
        folder: of the data sets.
    """
    return {
        stage: tuple(dataclasses.replace(s, path=str(pathlib.Path(folder) / s.name)) for s in rows)
        for stage, rows in table.items()
    }


def with_data(found: Mapping[str, tuple[config.SourceConfig, ...]]) -> config.Config:
    """Return a configuration that has stages of these names and sources, and nothing else."""
    rows = (config.StageConfig(name=name, sources=sources) for name, sources in found.items())
    return config.Config(train=config.TrainConfig(stages=tuple(rows)))


def _towers(llm: str, vision: str) -> dict[str, float]:
    _check(llm, ("lora", "full", "frozen"), "llm_tuning")
    _check(vision, ("lora", "full", "frozen"), "vision_tuning")
    rates = {}
    if llm != "frozen":
        rates |= {"llm_lora": _LORA_RATE} if llm == "lora" else {"llm": _FULL_RATE}
    if vision != "frozen":
        rates["vision_lora" if vision == "lora" else "vision"] = _FULL_RATE
    return rates


def _has_part(params: types.Params, part: str) -> bool:
    found = []
    lora.map_with_path(lambda path, _: found.append(lora.part_of(path) == part), params)
    return any(found)


def _check(value: str, known: tuple[str, ...], kind: str, where: str = ""):
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        fix = (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(known)
        raise errors.SgqlmError(f"unknown {kind} {value!r}", where=where, fix=fix)
