import itertools
import math

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.evals import statistics


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    scores = np.random.default_rng(1).integers(0, 2, 2000)
    found = statistics.bootstrap(scores)
    error = 1.96 * scores.std() / math.sqrt(2000)
    assert found.value == scores.mean() and found.count == 2000
    # 10,000 resamples give an end of the interval to about 2 % of its width
    assert found.low == pytest.approx(scores.mean() - error, abs=0.04 * error)
    assert found.high == pytest.approx(scores.mean() + error, abs=0.04 * error)
    assert found == statistics.bootstrap(scores)
    assert found != statistics.bootstrap(scores, seed=1)
    wide = statistics.bootstrap(scores, level=0.99)
    assert wide.low < found.low and found.high < wide.high


def test_all_resamples_of_three_items():
    scores = [0.0, 1.0, 5.0]
    means = sorted(np.mean(draw) for draw in itertools.product(scores, repeat=3))
    found = statistics.bootstrap(scores, level=0.8, resamples=40_000)
    low, high = np.quantile(means, [0.1, 0.9])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_ratios_and_f1():
    pairs = np.array([[8, 6], [9, 9], [10, 5], [8, -1]], float)
    found = statistics.bootstrap(pairs, combine=lambda m: 100 * m[:, 1] / m[:, 0])
    assert found.value == pytest.approx(100 * 19 / 35) and found.low < found.value < found.high
    counts = [[1, 0, 0]] * 6 + [[0, 1, 0]] * 2 + [[0, 0, 1]] * 2 + [[0, 0, 0]] * 5
    f1 = statistics.bootstrap(
        counts, combine=lambda m: 2 * m[:, 0] / (2 * m[:, 0] + m[:, 1:].sum(1))
    )
    assert f1.value == pytest.approx(12 / 16) and 0.3 < f1.low < 0.75 < f1.high <= 1


def test_groups_are_resampled_as_a_whole():
    scores = np.repeat(np.random.default_rng(0).integers(0, 2, 50), 20)
    images = np.repeat(np.arange(50), 20).tolist()
    alone, together = statistics.bootstrap(scores), statistics.bootstrap(scores, groups=images)
    assert alone.value == together.value
    # 20 equal items an image: the interval is sqrt(20) as wide
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(20), rel=0.1)
    names = [f"image {n % 3}" for n in range(6)]
    uneven = statistics.bootstrap([1, 0, 1, 1, 0, 1], groups=names, resamples=200)
    assert uneven.value == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("scores", "options"),
    [
        ([], {}), ([1.0, float("nan")], {}), ([[1, 2]], {}), ([1.0], {"level": 1.0}),
        ([1.0], {"resamples": 0}), ([1.0, 2.0], {"groups": ["a"]}),
        ([[0.0, 1.0]], {"combine": lambda m: m[:, 1] / m[:, 0]}),
    ],
)  # fmt: skip
def test_scores_that_cannot_be_used(scores, options):
    with pytest.raises(errors.SgqlmError):
        statistics.bootstrap(scores, **options)


def test_mcnemar_is_the_binomial_test():
    for wins, losses in itertools.product(range(6), repeat=2):
        n, k = wins + losses, min(wins, losses)
        exact = 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        assert statistics.mcnemar(wins, losses) == pytest.approx(min(1, exact))
    assert statistics.mcnemar(15, 5) == pytest.approx(0.041389, abs=1e-6)
    assert 0 < statistics.mcnemar(5200, 4800) < 1e-4


def test_sign_flips_reach_the_exact_value():
    values = [0.2, -0.1, 0.4, 0.3, 0.4, -0.2]
    sums = [abs(np.dot(s, values)) for s in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.array(sums) >= abs(sum(values)) - 1e-9)
    # 40,000 permutations: a standard error of 0.002
    assert statistics.sign_flip(values, resamples=40_000) == pytest.approx(exact, abs=0.008)
    assert statistics.sign_flip([0.0, 0.0]) == 1
    assert statistics.sign_flip(np.ones(60)) == pytest.approx(1 / 10_001)


def test_two_models_on_the_same_items():
    first = {n: float(n % 4 == 0) for n in range(200)}
    second = first | dict.fromkeys(range(1, 200, 10), 1.0)
    found = statistics.compare(first | {"a": 1.0}, second | {"b": 0.0, "c": 1.0})
    assert found.interval.value == pytest.approx(20 / 200) and found.interval.low > 0
    assert (found.wins, found.losses, found.test) == (20, 0, "McNemar, exact")
    assert found.p_value == pytest.approx(2 / 2**20)
    assert found.interval.count == 200
    mirrored = statistics.compare(second, first)
    assert mirrored.interval.value == -found.interval.value and mirrored.losses == 20


def test_soft_scores_and_groups_are_tested_by_permutation():
    rng = np.random.default_rng(3)
    first = {n: float(rng.integers(0, 11) / 10) for n in range(300)}
    same = statistics.compare(first, dict(first))
    assert same.p_value == 1 and (same.interval.low, same.interval.high) == (0, 0)
    better = {n: min(1.0, value + 0.1 * (n % 3 == 0)) for n, value in first.items()}
    found = statistics.compare(first, better)
    assert found.test == "sign-flip permutation" and found.p_value < 0.001
    # all the difference in one image is no evidence
    images = {n: 0 if n % 3 == 0 else n for n in first}
    grouped = statistics.compare(first, better, groups=images)
    assert grouped.p_value == 1 and grouped.interval.low == 0
    with pytest.raises(errors.SgqlmError, match="no group"):
        statistics.compare(first, better, groups={0: 1})
    with pytest.raises(errors.SgqlmError, match="in common"):
        statistics.compare({1: 1.0}, {2: 1.0})


def test_large_sets_are_quick():
    scores = np.random.default_rng(0).integers(0, 4, 100_000) / 3
    found = statistics.bootstrap(scores)
    assert found.high - found.low == pytest.approx(2 * 1.96 * scores.std() / 316.2, rel=0.05)


def test_few_units_give_no_interval():
    images = [n // 5 for n in range(20)]
    few = statistics.bootstrap([0.0, 1.0] * 10, groups=images)
    assert few.units == 4 and "fewer images (4) than the 5" in few.doubt("images")
    enough = statistics.bootstrap([0.0, 1.0] * 10)
    assert enough.units == 20 and not enough.doubt() and "20 questions only" in enough.caution()
    assert not statistics.bootstrap([0.0, 1.0] * 15).caution()
    alike = statistics.bootstrap([1.0] * 12)
    assert alike.low == alike.high and alike.doubt() == "all questions score alike"


def test_the_bound_of_units_is_where_the_end_of_an_interval_is_one_unit():
    for count in (2, 3, 5):
        units = [0.0] * (count - 1) + [1.0]
        found = statistics.bootstrap(units, resamples=20_000)
        assert (found.high == 1.0) == (count < statistics.FEWEST)


def test_pairs_are_swapped_as_every_way_to_swap_them():
    first = np.array([[8, 4], [9, 5], [7, 6], [8, 8], [6, 3], [9, 2]], float)
    second = first + np.array([[0, 2], [-1, 1], [0, 0], [1, 1], [0, 3], [0, 4]])
    ways = [np.array(way)[:, None] for way in itertools.product([False, True], repeat=6)]

    def ratio(means):
        return means[:, 1] / means[:, 0]

    def change(way):
        a, b = np.where(way, second, first), np.where(way, first, second)
        return ratio(b.mean(0)[None])[0] - ratio(a.mean(0)[None])[0]

    exact = np.mean([abs(change(way)) >= change(ways[0]) - 1e-9 for way in ways])
    found = statistics.swap_pairs(first, second, combine=ratio, resamples=40_000)
    assert found == pytest.approx(exact, abs=0.01) and exact < 0.2
    assert statistics.swap_pairs(first, second, combine=ratio, groups=["one"] * 6) == 1.0
    assert statistics.swap_pairs(first, first, combine=ratio) == 1.0
