"""Columns of items whose means make up the headline figure of a benchmark, for the bootstrap."""

from collections.abc import Mapping, Sequence

import numpy as np

from sgqlm.evals import itemised, statistics

Items = Mapping[str, itemised.Item]


def ratio(means: np.ndarray) -> np.ndarray:
    """Return the first column over the second."""
    return means[:, 0] / means[:, 1]


def pope(
    keys: Sequence[str], scores: np.ndarray, items: Items
) -> tuple[np.ndarray, statistics.Combine]:
    """Return columns (true positive, wrong) of each category of POPE, and their mean F1.

    F1 = 2 tp / (2 tp + fp + fn).

    Args:
        keys: ids, `category/...`.
        scores: f64[n], 1 for a right answer.
        items: id -> item with the right answer.

    Returns:
        f64[n, 2 * categories], and the function of their means.
    """
    names = list(dict.fromkeys(key.split("/")[0] for key in keys))
    table = np.zeros((len(keys), 2 * len(names)))
    for row, key in enumerate(keys):
        at = 2 * names.index(key.split("/")[0])
        table[row, at] = scores[row] and items[key].wanted == "yes"
        table[row, at + 1] = 1 - scores[row]

    def mean_f1(means: np.ndarray) -> np.ndarray:
        hits, wrong = 2 * means[:, ::2], means[:, 1::2]
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(hits / (hits + wrong)).mean(1)

    return table, mean_f1


def mme(scores: Mapping[str, float]) -> tuple[np.ndarray, statistics.Combine]:
    """Return columns (share right, both right, 1) of each category of MME, and their points.

    Args:
        scores: id -> 1 for a right answer; ids are `category/image/...`.

    Returns:
        f64[images, 3 * categories], and the function of their means.
    """
    pairs: dict[tuple[str, str], list[float]] = {}
    for key, score in scores.items():
        category, image, _ = key.split("/", 2)
        pairs.setdefault((category, image), []).append(score)
    names = list(dict.fromkeys(category for category, _ in pairs))
    table = np.zeros((len(pairs), 3 * len(names)))
    for row, ((category, _), found) in enumerate(pairs.items()):
        at = 3 * names.index(category)
        table[row, at : at + 3] = sum(found) / len(found), all(found), 1

    def points(means: np.ndarray) -> np.ndarray:
        return (100 * (means[:, ::3] + means[:, 1::3]) / means[:, 2::3]).sum(1)

    return table, points
