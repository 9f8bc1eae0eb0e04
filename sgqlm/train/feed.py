"""Data of the stages: sources, loaders, and the corpus of a tokenizer."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from sgqlm import config, errors
from sgqlm.data import pipeline, sources
from sgqlm.parallel import distributed
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.scenes import builder, grammar
from sgqlm.text import tokenizer as tokenizer_lib
from sgqlm.train import progress

CORPUS_LIMIT = 20000  # conversations of a source that a tokenizer is trained on
SCENE_LIMIT = 2000
_IMAGE = "<image>"


def check(settings: config.Config, rows: Sequence[config.StageConfig]) -> None:
    """Refuse settings that no batch can be made under, before anything is built or compiled.

    Args:
        settings: the run.
        rows: the stages that will run.

    Raises:
        SgqlmError: a data set does not exist, a length is not positive or a share not in 0..1.
    """
    data, text = settings.data, settings.text
    names = ("fault_budget", "graph_dropout", "image_dropout", "node_dropout", "node_jitter")
    shares = {f"data.{name}": getattr(data, name) for name in names}
    shares["text.self_questioning"] = text.self_questioning
    for stage in rows:
        where = f"train.stages.{stage.name}"
        if stage.self_questioning is not None:
            shares[f"{where}.self_questioning"] = stage.self_questioning
        if min(stage.buckets or data.buckets, default=0) < 1:
            raise errors.SgqlmError(
                f"stage {stage.name} has no lengths to pad to",
                where=f"config.{where}.buckets" if stage.buckets else "config.data.buckets",
                fix="give numbers of tokens, for example 640,1024",
            )
        for source in stage.sources:
            sources.check_source(source, f"config.{where}.sources.{source.name}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            fix = "give a share from 0 to 1"
            raise errors.SgqlmError(f"config.{name} is {share}", where=f"config.{name}", fix=fix)


def with_scenes(settings: config.Config, workdir: pathlib.Path) -> config.Config:
    """Build the scenes that sources without a path ask for, and fill the path in.

    Args:
        settings: the configuration; `scenes.path` says where, else it is `<workdir>/scenes`.
        workdir: the folder of the run.

    Returns:
        The configuration with every source of scenes placed.
    """
    wanted = [source for stage in settings.train.stages for source in stage.sources]
    if not any(_lacks_scenes(source) for source in wanted):
        return settings
    folder = pathlib.Path(settings.scenes.path or workdir / "scenes").absolute()

    def build():
        total = sum(builder.num_scenes(settings.scenes, split) for split in builder.SPLITS)
        with progress.Progress("scenes", total) as shown:
            builder.build(
                settings.scenes,
                folder,
                2 if total > 500 else 1,
                progress=lambda done, _: shown.update(done),
            )

    distributed.on_main(build, "build the scenes")

    def placed(stage: config.StageConfig) -> config.StageConfig:
        found = (
            dataclasses.replace(s, path=str(folder)) if _lacks_scenes(s) else s
            for s in stage.sources
        )
        return dataclasses.replace(stage, sources=tuple(found))

    stages = tuple(placed(stage) for stage in settings.train.stages)
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, stages=stages))


def corpus(settings: config.Config) -> Iterator[str]:
    """Yield the text that a tokenizer of the data of all stages is trained on."""
    for source in dict.fromkeys(s for stage in settings.train.stages for s in stage.sources):
        opened = pipeline.open_source(source, seed=settings.train.seed)
        is_scenes = source.name == "scenes"
        if is_scenes:
            yield from grammar.words()
        for index in range(min(len(opened), SCENE_LIMIT if is_scenes else CORPUS_LIMIT)):
            sample = opened.sample(index, want_image=False, want_entities=not is_scenes)
            yield from (turn["value"].replace(_IMAGE, "").strip() for turn in sample.turns)
            if sample.entities is not None:
                yield from sample.entities.labels


def open_loader(
    settings: config.Config,
    stage: config.StageConfig,
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    start: int = 0,
    with_images: bool = True,
    labels: Sequence[Sequence[str]] | None = None,
    mesh: Mesh | None = None,
) -> pipeline.Loader:
    """Open the training batches of a stage, from global step `start` on.

    Args:
        settings: the run.
        stage: whose data.
        tokenizer: text to ids.
        start: first global step.
        with_images: False leaves the pixels out, for cached features.
        labels: predicted labels of the entities of each image row.
        mesh: where the batches go; this process then makes the rows that lie with it.

    Returns:
        The loader.
    """
    opened = [
        pipeline.open_source(s, seed=settings.train.seed, budget=settings.data.fault_budget)
        for s in stage.sources
    ]
    return _loader(settings, stage, tokenizer, opened, start, with_images, labels, mesh)


def open_validation(
    settings: config.Config,
    stage: config.StageConfig,
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    labels: Sequence[Sequence[str]] | None = None,
    mesh: Mesh | None = None,
) -> pipeline.Loader | None:
    """Open the validation split of a stage's sources without dropout; None if none has one."""
    opened = []
    for source in stage.sources:
        try:
            other = dataclasses.replace(source, split="val")
            opened.append(pipeline.open_source(other, seed=settings.train.seed))
        except errors.SgqlmError:
            continue
    opened = [source for source in opened if len(source)]
    if not opened:
        return None
    settings = without_dropout(settings)
    return _loader(settings, stage, tokenizer, opened, 0, True, labels, mesh)


def warning(stage: config.StageConfig, model: config.ModelConfig, loader: pipeline.Loader) -> str:
    """Return what is odd about the data of a stage; empty if nothing is."""
    names = loader.without_entities
    if not names or not model.graph.enabled:
        return ""
    return (
        f"WARNING: {stage.name}: no entities in {', '.join(names)}: every graph is empty; run "
        "`sgqlm entities extract --data=DATASET --out=DATASET/entities`, or say so with entities="
        "none"
    )


def without_dropout(settings: config.Config) -> config.Config:
    """Return the settings with whole graphs and images, as they are."""
    data = dataclasses.replace(
        settings.data, graph_dropout=0.0, image_dropout=0.0, node_dropout=0.0, node_jitter=0.0
    )
    return dataclasses.replace(settings, data=data)


def digest(
    stage: config.StageConfig, loader: pipeline.Loader, tokenizer: tokenizer_lib.Tokenizer
) -> str:
    """Return a digest of what decides the order and content of a stage's batches."""
    about = {
        "stage": config.to_dict(stage)["sources"],
        "content": loader.content,
        "tokenizer": tokenizer.digest,
    }
    for source in about["stage"]:
        source.pop("path")  # a data set may move
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def image_digest(stage: config.StageConfig, loader: pipeline.Loader, *, split: str = "") -> str:
    """Return a digest of the images and entities of a stage, whatever is said about them.

    Args:
        stage: the stage.
        loader: opened on it.
        split: instead of the sources' own.
    """
    sets = {(s.name, s.path, split or s.split, s.entities): None for s in stage.sources}
    about = repr((list(sets), loader.num_image_rows, loader.image_content))
    return hashlib.sha256(about.encode()).hexdigest()


def _loader(
    settings, stage, tokenizer, opened, start, with_images, labels, mesh
) -> pipeline.Loader:
    if stage.objective == "region_text":
        settings = without_dropout(settings)  # nothing can be named on a blank image
    given = [source.weight for source in stage.sources]
    weights = given if len(opened) == len(given) else None
    return pipeline.Loader(
        opened,
        model=_seen_by(stage, settings.model),
        text=settings.text,
        tokenizer=tokenizer,
        data=settings.data,
        batch_size=stage.batch_size,
        seed=settings.train.seed,
        weights=weights,
        template=stage.template,
        self_questioning=stage.self_questioning,
        question_weight=stage.question_weight,
        buckets=stage.buckets,
        start=start,
        rows=None if mesh is None else mesh_lib.local_rows(mesh, stage.batch_size).tolist(),
        with_images=with_images,
        labels=labels,
        annotated_labels=stage.objective == "region_text",
    )


def _seen_by(stage: config.StageConfig, model: config.ModelConfig) -> config.ModelConfig:
    """Return the sizes of a stage's batches; naming relations needs predicates as targets."""
    if stage.objective != "region_text" or not stage.pair_weight:
        return model
    return dataclasses.replace(model, graph=dataclasses.replace(model.graph, edge_oracle=True))


def _lacks_scenes(source: config.SourceConfig) -> bool:
    return source.name == "scenes" and not source.path
