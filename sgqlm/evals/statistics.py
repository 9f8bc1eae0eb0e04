"""How sure a score is: bootstrap intervals, and paired differences of two models.

Resampling n items with replacement is a multinomial draw over the different values that items
have, and flipping the signs of equal differences is a binomial draw; so both cost little even for
100,000 items, and the same seed gives the same numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from sgqlm import errors

RESAMPLES = 10_000
FEWEST, MANY = 5, 30  # independent units, see `Interval.doubt` and `Interval.caution`
_CELLS = 1 << 22  # of one block of draws
Combine = Callable[[np.ndarray], np.ndarray]  # float[r, c] column means -> float[r]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and its percentile bootstrap interval (Efron 1979).

    Attributes:
        value: of the items as they are.
        low: lower end.
        high: upper end.
        level: confidence.
        count: items.
        units: what was resampled: groups of items, items without groups.
    """

    value: float
    low: float
    high: float
    level: float
    count: int
    units: int = 0

    def doubt(self, noun: str = "questions") -> str:
        """Return why this is no interval, empty where it is one.

        Of g units, the resample that is the most extreme one g times has a chance of g^-g or more;
        for g up to 3 that is more than the 2.5 % of a tail, and a single unit is the end of the
        interval. The resampled variance is (g - 1) / g of the right one and the normal quantile
        stands for that of t, so 4 units would give an interval 1.9 times too short. Hence `FEWEST`.
        Where every resample gives the same value, as for 12 right answers of 12, resampling cannot
        tell the spread (Clopper and Pearson 1934 give 74 % as the lower limit there).

        Args:
            noun: what the units are.
        """
        if self.units < FEWEST:
            return f"fewer {noun} ({self.units}) than the {FEWEST} that an interval needs"
        if self.high - self.low <= 1e-12:
            return f"all {noun} score alike"
        return ""

    def caution(self, noun: str = "questions") -> str:
        """Return a warning where the units are few: the bootstrap's interval is then too short."""
        return f"from {self.units} {noun} only, rather too narrow" if self.units < MANY else ""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two models on the same items, second minus first.

    Attributes:
        interval: mean difference and its paired bootstrap interval.
        p_value: two-sided, of no difference.
        test: `McNemar, exact` where all scores are 0 or 1 and items are independent,
            `pair-swap permutation` of a ratio, else `sign-flip permutation`.
        wins: items where the second is better.
        losses: items where the first is better.
    """

    interval: Interval
    p_value: float
    test: str
    wins: int
    losses: int


def bootstrap(
    scores: Sequence | np.ndarray,
    *,
    combine: Combine | None = None,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a score with its bootstrap interval.

    Args:
        scores: float[n], one an item, for their mean; float[n, c] for a function of c means.
        combine: float[r, c] means of the columns -> float[r]; None for the mean of one column.
            F1 of (true positive, false positive, false negative) columns is
            `lambda m: 2 * m[:, 0] / (2 * m[:, 0] + m[:, 1] + m[:, 2])`, the ratio of LLaVA-Bench
            `lambda m: 100 * m[:, 1] / m[:, 0]`.
        groups: what items belong together, such as the image; groups are resampled as a whole.
            None: items are independent.
        level: confidence, between 0 and 1.
        resamples: number of resamples.
        seed: of the draws.

    Raises:
        SgqlmError: there are no items, a score is not finite, or the shapes do not fit.
    """
    table = _table(scores, combine)
    _check(level, resamples)
    sums = _grouped(table, groups)
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    share = counts / counts.sum()
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // len(kinds))
    drawn = [
        rng.multinomial(len(sums), share, size=min(block, resamples - start)) @ kinds
        for start in range(0, resamples, block)
    ]
    combine = combine or only
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.concatenate(drawn)
        values = combine(means[:, :-1] / means[:, -1:])
        value = float(combine(table.mean(0, keepdims=True))[0])
    values = values[np.isfinite(values)]  # a resample may lack what the ratio divides by
    if not len(values) or not np.isfinite(value):
        raise _wrong("the score is not defined on these items", f"{len(table)} items")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, len(table), len(sums))


def compare(
    first: Mapping[Hashable, float],
    second: Mapping[Hashable, float],
    *,
    groups: Mapping[Hashable, Hashable] | None = None,
) -> Difference:
    """Compare two models item by item, joined by id; ids of one alone are in no number.

    Args:
        first: id -> score.
        second: id -> score.
        groups: id -> what items belong together, such as the image; None: independent.

    Raises:
        SgqlmError: no id is in both, a score is not finite, or an id has no group.
    """
    keys = [key for key in first if key in second]
    if not keys:
        raise _wrong("the two have no item in common", f"{len(first)} and {len(second)} items")
    if groups is not None and any(key not in groups for key in keys):
        raise _wrong("an item has no group", str(next(k for k in keys if k not in groups)))
    a, b = (np.array([float(scores[key]) for key in keys]) for scores in (first, second))
    together = None if groups is None else [groups[key] for key in keys]
    interval = bootstrap(b - a, groups=together)
    wins, losses = int((b > a).sum()), int((b < a).sum())
    if groups is None and np.isin(np.concatenate([a, b]), (0, 1)).all():
        p_value, test = mcnemar(wins, losses), "McNemar, exact"
    else:
        sums = _grouped((b - a)[:, None], together)[:, 0]
        p_value, test = sign_flip(sums), "sign-flip permutation"
    return Difference(interval, p_value, test, wins, losses)


def mcnemar(wins: int, losses: int) -> float:
    """Return the exact two-sided p value of McNemar's test (binomial of the discordant items).

    Args:
        wins: items that only the second has right.
        losses: items that only the first has right.
    """
    count = wins + losses
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(min(wins, losses) + 1)
    ]
    tail = np.exp(np.array(logs) - count * math.log(2)).sum()
    return float(min(1.0, 2 * tail))


def sign_flip(
    differences: Sequence[float] | np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Return the two-sided p value of a permutation test of paired differences.

    Under no difference every sign is as likely as the other. The p value is (1 + number of
    permutations whose sum is as far from 0) / (1 + permutations), so it is never 0.

    Args:
        differences: float[n].
        resamples: number of permutations.
        seed: of the draws.
    """
    values = np.asarray(differences, float)
    # sums of floats that should be equal differ in their last digits, 0.3 - 0.1 and 0.7 - 0.5
    sizes, counts = np.unique(np.round(np.abs(values[values != 0]), 12), return_counts=True)
    if not len(sizes):
        return 1.0
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // len(sizes))
    far = 0
    for start in range(0, resamples, block):
        heads = rng.binomial(counts, 0.5, size=(min(block, resamples - start), len(sizes)))
        sums = (2 * heads - counts) @ sizes
        far += int((np.abs(sums) >= abs(values.sum()) - 1e-9).sum())
    return (1 + far) / (1 + resamples)


def swap_pairs(
    first: np.ndarray,
    second: np.ndarray,
    *,
    combine: Combine,
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Return the two-sided p value of a permutation test of two scores that are no plain means.

    Under no difference, what the two models have on an item could as well be the other way round.
    P value as in `sign_flip`.

    Args:
        first: float[n, c], columns of one model.
        second: float[n, c], those of the other on the same items.
        combine: float[r, c] means of the columns -> float[r].
        groups: as in `bootstrap`; swapped as a whole.
        resamples: number of permutations.
        seed: of the draws.
    """
    a, b = (_grouped(table, groups)[:, :-1] for table in (first, second))
    total, change, size = a.sum(0), b - a, len(first)
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // len(change))
    far = 0
    with np.errstate(divide="ignore", invalid="ignore"):

        def difference(moved: np.ndarray) -> np.ndarray:
            return combine((b.sum(0) - moved) / size) - combine((total + moved) / size)

        found = abs(float(difference(np.zeros((1, a.shape[1])))[0]))
        for start in range(0, resamples, block):
            heads = rng.integers(0, 2, size=(min(block, resamples - start), len(change)))
            far += int((np.abs(difference(heads @ change)) >= found - 1e-9).sum())
    return (1 + far) / (1 + resamples)


def _table(scores: Sequence | np.ndarray, combine: Combine | None) -> np.ndarray:
    table = np.asarray(scores, float)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size:
        raise _wrong("there are no scores", f"shape {np.shape(scores)}")
    if combine is None and table.shape[1] != 1:
        raise _wrong("several columns need a function of their means", f"shape {table.shape}")
    if not np.isfinite(table).all():
        raise _wrong("a score is not finite", f"item {int(np.argmax(~np.isfinite(table).all(1)))}")
    return table


def _grouped(table: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Return float[g, c + 1]: the sums of every group and its size."""
    rows = np.concatenate([table, np.ones((len(table), 1))], axis=1)
    if groups is None:
        return rows
    if len(groups) != len(table):
        raise _wrong("every item needs a group", f"{len(groups)} groups, {len(table)} items")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(numbers), rows.shape[1]))
    np.add.at(sums, [numbers[name] for name in groups], rows)
    return sums


def only(means: np.ndarray) -> np.ndarray:
    """Return the only column."""
    return means[:, 0]


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1 or resamples < 1:
        where = f"level {level}, resamples {resamples}"
        raise _wrong("level lies between 0 and 1, resamples from 1", where)


def _wrong(what: str, where: str) -> errors.SgqlmError:
    fix = "give finite scores of the same items"
    return errors.SgqlmError(what, where=where, fix=fix, code=errors.DATA)
