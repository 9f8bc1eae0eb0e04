"""From sources to batches: every batch is a pure function of (seed, step).

A run can therefore go on from any step, on another number of hosts or workers, with the very
batches it would have had. Importing this module imports grain, which imports jax where jax is
installed; no code of this package uses it.
"""

import dataclasses
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import grain
import numpy as np

from sgqlm import config, errors, types
from sgqlm.data import batch as batches
from sgqlm.data import graphs, lengths, mixture
from sgqlm.data import sources as source_lib

Sample: TypeAlias = source_lib.Sample
Source: TypeAlias = source_lib.Source
open_source = source_lib.open_source
make_batch = batches.make_batch

_BROKEN = (errors.SgqlmError, OSError, RuntimeError, ValueError)
_LOG = logging.getLogger("sgqlm.data")


@dataclasses.dataclass
class _Maker:
    """Makes a host's part of step s; what it holds is sent to the data workers."""

    sources: Sequence[source_lib.Source]
    offsets: Sequence[int]
    encoder: batches.Encoder
    order: mixture.Mixture
    rows: Sequence[int]
    question_weight: float
    with_images: bool
    labels: Mapping[int, Sequence[str]] | Sequence[Sequence[str]] | None
    annotated_labels: bool
    cache: bool
    _nodes: dict[int, graphs.Nodes] = dataclasses.field(default_factory=dict)
    _pixels: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def __getstate__(self):
        return self.__dict__ | {"_nodes": {}, "_pixels": {}}

    def __call__(self, step: int) -> types.Batch:
        plan = self.order.step(step)
        return batches.collate(
            [self.example(item, plan) for item in self.items(plan)],
            self.encoder.model,
            length=plan.length,
            num_runs=plan.num_runs,
            question_weight=self.question_weight,
            with_images=self.with_images,
        )

    def items(self, plan: mixture.Step) -> list[mixture.Item]:
        """Return this host's records of a global batch."""
        return [plan.items[row] for row in self.rows]

    def example(self, item: mixture.Item, plan: mixture.Step) -> batches.Example:
        """Return the example of an item; a dummy where the record is broken or does not fit."""
        if item.source < 0:
            return batches.dummy(self.encoder.tokenizer, batches.PADDING)
        try:
            return self.try_fitted(item, plan)
        except _BROKEN:
            return batches.dummy(self.encoder.tokenizer, batches.FAULT)

    def try_fitted(self, item: mixture.Item, plan: mixture.Step) -> batches.Example:
        """Return the example of an item cut to its batch, or raise what is wrong with it."""
        whole = self.try_example(item)
        made = batches.fit(whole, plan.length, plan.num_runs)
        if not self.annotated_labels and _is_trained(whole) and not _is_trained(made):
            raise errors.SgqlmError(
                f"no answer is left in the first {plan.length} tokens",
                why=f"the record has {len(whole.tokens)}, and an image is not cut",
                fix="shorten it, or give longer data.buckets",
                code=errors.DATA,
            )
        return made

    def try_example(self, item: mixture.Item) -> batches.Example:
        """Return the example of an item, or raise what is wrong with the record."""
        source, offset = self.sources[item.source], self.offsets[item.source]
        sample = source.sample(
            item.index,
            epoch=item.epoch,
            want_image=self.with_images,
            want_entities=self.encoder.model.graph.enabled,
        )
        if not sample.has_image:
            return self.encoder.example(sample, epoch=item.epoch, nodes=None, pixels=None)
        row = offset + sample.row
        return self.encoder.example(
            sample,
            epoch=item.epoch,
            nodes=self._nodes_of(row, sample),
            pixels=self.pixels_of(row, sample) if self.with_images else None,
            row=row,
        )

    def pixels_of(self, row: int, sample: source_lib.Sample) -> np.ndarray:
        """Return the model's square of a sample's image."""
        pixels = self._pixels.get(row)
        if pixels is None:
            if sample.image is None:
                raise ValueError(f"{sample.record_key} came without its image")
            pixels = self.encoder.make_pixels(sample.image, sample.record_key)
            if self.cache:
                self._pixels[row] = pixels
        return pixels

    def entities_of(self, row: int, sample: source_lib.Sample) -> graphs.Entities | None:
        """Return a sample's entities with the labels that are asked for."""
        found = sample.entities
        labels = None if self.labels is None else self.labels[row]
        labels = sample.annotated if self.annotated_labels else labels
        if found is None or labels is None:
            return found
        return dataclasses.replace(found, labels=list(labels))

    def _nodes_of(self, row: int, sample: source_lib.Sample) -> graphs.Nodes | None:
        if not self.encoder.model.graph.enabled:
            return None
        nodes = self._nodes.get(row)
        if nodes is None:
            entities = self.entities_of(row, sample)
            if entities is None:
                return None
            nodes = self.encoder.make_nodes(entities)
            if self.cache:
                self._nodes[row] = nodes
        return nodes


class Loader:
    """Iterate over the batches of a mixture from global step `start`.

    `Batch.row` numbers the images of the mixture: the distinct image sets of the sources, one after
    the other in the order of the sources, so that it indexes an array over `images()`. It is 0 with
    `image_valid` False for text-only samples, `batch.FAULT` for a broken record (a dummy of weight
    zero) and `batch.PADDING` where the last batch of a pass is filled up. A sample whose pixels are
    blanked (`image_dropout`) keeps its row and image tokens with `image_valid` False.

    Args:
        sources: the data sets.
        model: sizes of the model.
        text: conversation settings.
        tokenizer: text to ids.
        data: buckets, workers, dropout, fault budget.
        batch_size: samples of a global batch.
        seed: of order and draws.
        weights: passes over each source in one epoch; 1 by default.
        template: conversation format; empty: `text.template`.
        self_questioning: probability of a self-asked turn; None: `text.self_questioning`.
        question_weight: factor of the loss of self-asked question tokens.
        buckets: lengths; empty: `data.buckets`.
        start: first step of the iteration.
        process_index: this host; it gets a contiguous slice of every global batch.
        process_count: number of hosts; divides `batch_size`.
        rows: the rows of every global batch that are made here, in place of that slice.
        num_workers: data processes; None: `data.num_workers`. 0: threads of this process.
        repeat: go on for ever; False: one pass in order, the last batch filled with padding.
        with_images: False leaves pixels out, for cached features.
        labels: predicted labels of the entities of each image row, in place of their own.
        annotated_labels: take the true labels instead, where these are the target.
    """

    def __init__(
        self,
        sources: Sequence[source_lib.Source],
        *,
        model: config.ModelConfig,
        text: config.TextConfig,
        tokenizer: Any,
        data: config.DataConfig,
        batch_size: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        template: str = "",
        self_questioning: float | None = None,
        question_weight: float = 1.0,
        buckets: Sequence[int] = (),
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        rows: Sequence[int] | None = None,
        num_workers: int | None = None,
        repeat: bool = True,
        with_images: bool = True,
        labels: Mapping[int, Sequence[str]] | Sequence[Sequence[str]] | None = None,
        annotated_labels: bool = False,
    ):
        """See the class."""
        rows = _share(batch_size, process_index, process_count) if rows is None else rows
        asked = text.self_questioning if self_questioning is None else self_questioning
        drop = data.graph_dropout, data.image_dropout, data.node_dropout, data.node_jitter
        encoder = batches.Encoder(
            model, text, tokenizer, template or text.template, asked, *drop, seed=seed
        )
        order = mixture.Mixture(
            [len(source) for source in sources],
            weights or [1.0] * len(sources),
            batch_size=batch_size,
            seed=seed,
            shuffle=data.shuffle and repeat,
            repeat=repeat,
            buckets=buckets or data.buckets,
            bounds=lengths.bounds(sources, encoder, needed=len(buckets or data.buckets) > 1),
            default_runs=lengths.default_runs(model),
        )
        offsets, self.num_image_rows = _offsets(sources)
        given = question_weight, with_images, labels, annotated_labels, data.cache_images
        self._maker = _Maker(sources, offsets, encoder, order, tuple(rows), *given)
        self._data, self._start = data, start
        self._workers = data.num_workers if num_workers is None else num_workers
        self.batch_size, self.num_records = batch_size, order.num_records
        self.num_steps = order.num_steps  # None: endless
        self.content = [source.content for source in sources]
        self.image_content = [source.image_content for source in sources]
        self.without_entities = [source.name for source in sources if source.lacks_entities]
        self.seen = self.faults = 0

    def batch(self, step: int) -> types.Batch:
        """Return this host's part of the batch of any step."""
        return self._maker(step)

    def records(self, step: int) -> list[str]:
        """Return the names of the records of a global batch, those of other hosts included."""
        items = self._maker.order.step(step).items
        names = [source.name for source in self._maker.sources]
        return [f"{names[i.source]} record {i.index}" if i.source >= 0 else "-" for i in items]

    def steps(self, epochs: float) -> int:
        """Return the number of steps in which `epochs` times all records pass, at least one."""
        return max(1, math.ceil(self.num_records * epochs / self.batch_size))

    def __iter__(self) -> Iterator[types.Batch]:
        """Iterate from step `start`.

        Raises:
            SgqlmError: broken records exceed the fault budget (exit code `DATA`).
        """
        stop = sys.maxsize if self.num_steps is None else self.num_steps
        steps = grain.MapDataset.range(self._start, stop).map(self._maker)
        threads = max(self._data.num_threads, 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        found = steps.to_iter_dataset(options)
        if self._workers:
            _parse_flags()
            found = found.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            )
        iterator = iter(found)
        try:
            for step, made in enumerate(iterator, start=self._start):
                made = _owned(made) if self._workers else made
                self._count(made, step)
                yield made
        finally:
            iterator.close()

    def images(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (image row, uint8[S, S, 3]) of every distinct image that can be read, in order."""
        for row, sample in self._image_samples():
            try:
                pixels = self._maker.pixels_of(row, sample)
            except _BROKEN as error:
                _LOG.warning("%s", error)
                continue
            yield row, pixels

    def regions(self) -> Iterator[tuple[int, np.ndarray, graphs.Entities]]:
        """Yield (image row, uint8[S, S, 3], entities) of every image with entities.

        Their labels are as in the batches; `labels` of another loader takes one list per row, in
        the order of these entities.
        """
        for row, sample in self._image_samples():
            entities = self._maker.entities_of(row, sample)
            if entities is None or not len(entities):
                continue
            try:
                pixels = self._maker.pixels_of(row, sample)
            except _BROKEN as error:
                _LOG.warning("%s", error)
                continue
            yield row, pixels, entities

    def _image_samples(self) -> Iterator[tuple[int, source_lib.Sample]]:
        seen = set()
        for source, offset in zip(self._maker.sources, self._maker.offsets, strict=True):
            if offset in seen or not source.num_images:
                continue
            seen.add(offset)
            for row in range(source.num_images):
                try:
                    yield offset + row, source.image(row)
                except _BROKEN as error:
                    _LOG.warning("%s", error)

    def _count(self, made: types.Batch, step: int) -> None:
        """Count broken records; over the budget, say which and stop."""
        self.seen += int(np.sum(made.row != batches.PADDING))
        broken = int(np.sum(made.row == batches.FAULT))
        if not broken:
            return
        self.faults += broken
        reasons = self._reasons(step)
        for reason in reasons:
            _LOG.warning("broken record: %s", reason)
        budget = self._data.fault_budget
        if self.faults > budget * max(self.seen, self.num_records):
            raise errors.SgqlmError(
                f"{self.faults} of {self.seen} records were broken, allowed are {budget:.2%}",
                where=f"step {step}",
                why="\n    ".join(reasons[:5]),
                fix="run `sgqlm data check`, remove the records, or raise data.fault_budget",
                code=errors.DATA,
            )

    def _reasons(self, step: int) -> list[str]:
        found, plan = [], self._maker.order.step(step)
        for item in self._maker.items(plan):
            try:
                if item.source >= 0:
                    self._maker.try_fitted(item, plan)
            except _BROKEN as error:
                source = self._maker.sources[item.source]
                text = " ".join(str(error).split())
                found.append(f"{source.name} record {item.index}: {text}")
        return found


def _offsets(found: Sequence[source_lib.Source]) -> tuple[list[int], int]:
    """Return the first image row of each source (equal for equal image sets), and all rows."""
    first: dict[str, int] = {}
    total = 0
    for source in found:
        if source.image_set not in first:
            first[source.image_set] = total
            total += source.num_images
    return [first[source.image_set] for source in found], total


def _share(batch_size: int, process_index: int, process_count: int) -> range:
    """Return the rows of one of several hosts."""
    if batch_size % process_count:
        raise errors.SgqlmError(
            f"{process_count} hosts cannot share batches of {batch_size} samples evenly",
            where="batch_size",
            fix=f"give a multiple of {process_count}",
        )
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)


def _is_trained(example: batches.Example) -> bool:
    return bool((example.labels != types.IGNORE).any())


def _owned(made: Any) -> Any:
    """Copy a batch out of the shared memory of a worker, which is reused."""
    if isinstance(made, tuple):
        return type(made)(*(_owned(part) for part in made))
    return None if made is None else np.array(made)


def _parse_flags() -> None:
    """Let grain start workers where no absl application parsed the command line."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
