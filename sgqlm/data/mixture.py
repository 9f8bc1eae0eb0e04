"""Which records make up step s: a pure function of (seed, step)."""

import dataclasses
import fractions
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

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

    A weight says how often an epoch passes over a source, so that the sizes of the sources count:
    with weights of 1 every record of 558,000 and of 5,000 comes once an epoch, and with 0.5 every
    record of that source once in two epochs. The records of a source are spread evenly.

    Without `repeat` all sources are read once, one after the other, and the last batch is filled
    with padding. With several buckets, the records of `WINDOW` steps are sorted by length, cut into
    batches and the batches put in a random order, so that a batch needs little padding.

    Args:
        sizes: records of each source.
        weights: passes over each source in one epoch.
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
        self.num_records = epoch_size(sizes, weights) if repeat else sum(sizes)
        self.num_steps = None if repeat else -(-self.num_records // batch_size)
        self._shares = _shares(sizes, weights) if repeat else ()
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

    def _item(self, position: int) -> Item:
        if self.num_steps is None:
            source, position = _interleaved(position, self._shares)
        elif position >= self.num_records:
            return PADDING_ITEM
        else:
            source = 0
            while position >= self._sizes[source]:
                position -= self._sizes[source]
                source += 1
        epoch, index = divmod(position, self._sizes[source])
        if self._shuffle:
            index = int(_permutation(self._seed, source, self._sizes[source], epoch)[index])
        return Item(source, index, epoch)

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


def epoch_size(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Return the records of one epoch: weight times size, over all sources, rounded up."""
    parts = (_exact(weight) * size for size, weight in zip(sizes, weights, strict=True))
    return math.ceil(sum(parts))


def _exact(weight: float) -> fractions.Fraction:
    """Return the weight that was written; 0.1 is a tenth."""
    return fractions.Fraction(str(weight))


def _shares(sizes: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Return the smallest whole numbers in the proportion of weight times size."""
    parts = [_exact(weight) * size for size, weight in zip(sizes, weights, strict=True)]
    whole = [int(part * math.lcm(*(p.denominator for p in parts))) for part in parts]
    return tuple(part // math.gcd(*whole) for part in whole)


def _interleaved(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """Return the source at a position of the endless order, and the position in that source.

    Each source takes its share of what those before it leave. Of the first k records, source 0 has
    k - floor(k (S - s_0) / S), with S the sum of all shares; so the counts are exact after every S.

    Example: shares (2, 1) give sources 0, 0, 1, 0, 0, 1, ...
    """
    rest, here, behind = sum(shares), position, position + 1
    for source, share in enumerate(shares):
        left_here, left_behind = here * (rest - share) // rest, behind * (rest - share) // rest
        if here - left_here != behind - left_behind:
            return source, here - left_here
        rest, here, behind = rest - share, left_here, left_behind
    raise AssertionError("the last source takes all that is left")


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, source: int, size: int, epoch: int) -> np.ndarray:
    key = sources.draw(seed, "order", source, epoch)
    return np.random.Generator(np.random.Philox(key=key)).permutation(size)
