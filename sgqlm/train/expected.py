"""What the data of a stage will be like: how many samples, how long, how much padding."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sgqlm import config, errors
from sgqlm.data import batch, lengths, mixture, pipeline
from sgqlm.scenes import builder
from sgqlm.text import tokenizer as tokenizer_lib

_LOOKED_AT = 512  # records of a source whose length is looked at
_STEPS = mixture.WINDOW  # batches that are laid out with these lengths


class Data(NamedTuple):
    """The samples of a stage.

    Attributes:
        num_samples: of one epoch; None where nobody knows.
        known_by: where that number is from.
        length: mean valid tokens of a sample.
        padded: mean positions of a sample in its batch.
        lengths_by: where the lengths are from.
    """

    num_samples: int | None
    known_by: str
    length: float
    padded: float
    lengths_by: str

    @property
    def padding(self) -> float:
        """Share of positions that are padding."""
        return 1.0 - self.length / self.padded


def look(settings: config.Config, stage: config.StageConfig, *, samples: int | None = None) -> Data:
    """Look at the data of a stage as far as it is there.

    Args:
        settings: the run.
        stage: the stage.
        samples: of one epoch, where the caller knows better.

    Returns:
        What is known; the texts say what is assumed.
    """
    opened, reason = _open(settings, stage)
    count = _scenes(settings, stage)
    if samples is not None:
        count, known_by = samples, "--samples"
    elif opened is not None:
        sizes = [len(source) for source in opened]
        count, known_by = mixture.epoch_size(sizes, [s.weight for s in stage.sources]), "the data"
    else:
        known_by = "config.scenes" if count else f"{reason}; give --samples"
    found = _measure(settings, stage, opened) if opened else None
    length, padded, lengths_by = found or _assume(settings, stage)
    return Data(count or None, known_by, length, padded, lengths_by)


def buckets(settings: config.Config, stage: config.StageConfig) -> tuple[int, ...]:
    """Return the lengths T of the batches of a stage, ascending."""
    return tuple(sorted(stage.buckets or settings.data.buckets))


def _open(settings, stage) -> tuple[list[pipeline.Source] | None, str]:
    """Return the sources, or None and why they cannot be opened."""
    seed, budget = settings.train.seed, settings.data.fault_budget
    try:
        found = [pipeline.open_source(s, seed=seed, budget=budget) for s in stage.sources]
    except (errors.SgqlmError, OSError) as error:
        return None, str(error).splitlines()[0]
    return found, ""


def _scenes(settings, stage) -> int:
    if not all(source.name == "scenes" for source in stage.sources):
        return 0
    sizes = [builder.num_scenes(settings.scenes, source.split) for source in stage.sources]
    return mixture.epoch_size(sizes, [source.weight for source in stage.sources])


class _Few(pipeline.Source):
    """Some records of a source, for their lengths."""

    def __init__(self, source: pipeline.Source, seed: int):
        self._source = source
        count = min(len(source), _LOOKED_AT)
        self._chosen = np.random.default_rng(seed).choice(len(source), count, replace=False)
        self.name, self.image_set = source.name, source.image_set
        self.num_images = source.num_images
        self.content = self.image_content = ""

    def __len__(self) -> int:
        return len(self._chosen)

    def sample(self, index, *, epoch=0, want_image=True, want_entities=True) -> Any:
        return self._source.sample(
            int(self._chosen[index]), epoch=epoch, want_image=want_image, want_entities=False
        )

    def image(self, row: int) -> Any:
        return self._source.image(row)

    def turns(self, index: int):
        return self._source.turns(int(self._chosen[index]))


def _measure(settings, stage, opened: Sequence[pipeline.Source]):
    file = pathlib.Path(settings.text.tokenizer)
    if not file.is_file() or opened[0].turns(0) is None:
        return None
    tokens = tokenizer_lib.load(str(file))
    asked = settings.text.self_questioning
    asked = asked if stage.self_questioning is None else stage.self_questioning
    template = stage.template or settings.text.template
    encoder = batch.Encoder(settings.model, settings.text, tokens, template, asked)
    few = [_Few(source, settings.train.seed) for source in opened]
    bounds = lengths.bounds(few, encoder, needed=True)
    known = [bound.lengths for bound in bounds if bound.lengths is not None]
    if len(known) < len(bounds):
        return None
    bounds = [dataclasses.replace(bound, runs=None) for bound in bounds]
    # the few stand for all records of their source
    weights = [
        source.weight * len(whole) / len(part)
        for source, whole, part in zip(stage.sources, opened, few, strict=True)
    ]
    sizes = buckets(settings, stage)
    order = mixture.Mixture(
        [len(source) for source in few],
        weights,
        batch_size=stage.batch_size,
        seed=settings.train.seed,
        shuffle=settings.data.shuffle,
        repeat=True,
        buckets=sizes,
        bounds=bounds,
    )
    valid, padded = [], []
    for number in range(_STEPS):
        step = order.step(number)
        own = [int(known[item.source][item.index]) for item in step.items]
        valid += [min(size, step.length) for size in own]
        padded.append(step.length)
    looked = sum(len(source) for source in few)
    return float(np.mean(valid)), float(np.mean(padded)), f"{looked} records of the data"


def _assume(settings, stage) -> tuple[float, float, str]:
    sizes = [float(size) for size in buckets(settings, stage)]
    if len(sizes) == 1:
        return sizes[0], sizes[0], "the only bucket, assumed full"
    if (stage.template or settings.text.template) == "plain":
        return sizes[0], sizes[0], "the shortest bucket, assumed full: captions are short"
    middle = sizes[(len(sizes) - 1) // 2]
    return middle, middle, "the middle bucket, assumed full: no data to look at"
