"""Which records make up step s: a pure function of (seed, step)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from sgqlm import errors
from sgqlm.data import sources

WINDOW = 32  # steps whose records are sorted by length together


class Item(NamedTuple):
    """One record of a batch: source, index in it, pass over it; source -1 is padding."""

    source: int
    index: int
    epoch: int


PADDING_ITEM = Item(-1, 0, 0)


class Step(NamedTuple):
    """One global batch: its records, its length T and graph runs R."""

    items: Sequence[Item]
    length: int
    num_runs: int


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Upper bounds of the records of one source; None where they are not known beforehand.

    lengths: int32[n] tokens, image and graph tokens included; runs: int32[n] graph runs.
    """

    lengths: np.ndarray | None
    runs: np.ndarray | None


class Mixture:
    """The order of records: mixed by weight, shuffled anew in every pass, batched by length.

    Without `repeat` all sources are read once, one after the other, and the last batch is filled
    with padding. With several buckets, the records of `WINDOW` steps are sorted by length, cut into
    batches and the batches put in a random order, so that a batch needs little padding.

    Args:
        sizes: records of each source.
        weights: share of each source among the samples.
        batch_size: records of a global batch.
        seed: of the order.
        shuffle: whether to shuffle.
        repeat: whether to go on for ever.
        buckets: lengths T, ascending.
        bounds: of each source; only needed for several buckets.
        default_runs: R where `bounds` does not say it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        repeat: bool,
        buckets: Sequence[int],
        bounds: Sequence[Bounds],
        default_runs: int = 1,
    ):
        """See the class."""
        if not sizes or min(sizes) < 1:
            raise errors.SgqlmError("a data source is empty", where="sources", code=errors.DATA)
        if min(weights) <= 0:
            raise errors.SgqlmError("source weights must be positive", where="source.weight")
        self._sizes, self._seed, self._shuffle = tuple(sizes), seed, shuffle
        self._batch_size, self._buckets = batch_size, tuple(sorted(buckets))
        self._bounds, self._default_runs = tuple(bounds), default_runs
        self.num_records = sum(sizes)
        self.num_steps = None if repeat else -(-self.num_records // batch_size)
        self._order = self._endless(weights) if repeat else self._once()
        self._last_window = -1, np.zeros((0, 0), np.int64)
        self._by_length = shuffle and len(self._buckets) > 1 and self._known()

    def step(self, step: int) -> Step:
        """Return global batch `step`."""
        start = step * self._batch_size
        if self._by_length:
            window, place = divmod(step, WINDOW)
            positions = self._window(window)[place].tolist()
        else:
            positions = range(start, start + self._batch_size)
        items = [self._item(position) for position in positions]
        return Step(items, self._length(items), self._runs(items))

    def _endless(self, weights) -> grain.MapDataset:
        parts = [
            grain.MapDataset.range(size)
            .repeat()
            .map_with_index(functools.partial(self._pick, source))
            for source, size in enumerate(self._sizes)
        ]
        return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, list(weights))

    def _once(self) -> grain.MapDataset:
        parts = [
            grain.MapDataset.range(size).map_with_index(functools.partial(self._pick, source))
            for source, size in enumerate(self._sizes)
        ]
        return grain.MapDataset.concatenate(parts)

    def _pick(self, source: int, position: int, index: int) -> Item:
        epoch = position // self._sizes[source]
        if self._shuffle:
            index = int(_permutation(self._seed, source, self._sizes[source], epoch)[index])
        return Item(source, index, epoch)

    def _item(self, position: int) -> Item:
        if self.num_steps is not None and position >= self.num_records:
            return PADDING_ITEM
        item = self._order[position]
        return PADDING_ITEM if item is None else item

    def _known(self) -> bool:
        return all(bound.lengths is not None for bound in self._bounds)

    def _length(self, items: Sequence[Item]) -> int:
        if len(self._buckets) == 1 or not self._known():
            return self._buckets[-1]
        longest = max(self._bound(item) for item in items)
        return next((size for size in self._buckets if size >= longest), self._buckets[-1])

    def _bound(self, item: Item) -> int:
        known = None if item.source < 0 else self._bounds[item.source].lengths
        return 0 if known is None else int(known[item.index])

    def _runs(self, items: Sequence[Item]) -> int:
        most = 1
        for item in items:
            runs = None if item.source < 0 else self._bounds[item.source].runs
            if item.source >= 0:
                most = max(most, self._default_runs if runs is None else int(runs[item.index]))
        return 1 << (most - 1).bit_length()  # a power of two: few shapes

    def _window(self, window: int) -> np.ndarray:
        """Return [WINDOW, batch_size] positions: batches of like lengths in random order."""
        known, batches = self._last_window
        if known != window:
            first = window * WINDOW * self._batch_size
            positions = first + np.arange(WINDOW * self._batch_size)
            lengths = np.array([self._bound(self._item(int(p))) for p in positions])
            ranks = np.searchsorted(self._buckets, lengths)
            batches = positions[np.argsort(ranks, kind="stable")].reshape(WINDOW, -1)
            batches = batches[_permutation(self._seed, -1, WINDOW, window)]
            self._last_window = window, batches
        return batches


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, source: int, size: int, epoch: int) -> np.ndarray:
    key = sources.draw(seed, "order", source, epoch)
    return np.random.Generator(np.random.Philox(key=key)).permutation(size)
