"""Means of columns give the figures that single scores alone do not."""

import numpy as np
import pytest

from sgqlm.evals import columns, itemised, statistics
from sgqlm.evals.metrics import mme


def test_mean_f1_of_categories():
    wanted = {"random/1": "yes", "random/2": "no", "random/3": "yes", "popular/1": "yes"}
    items = {key: itemised.Item(wanted=text) for key, text in wanted.items()}
    scores = np.array([1.0, 0.0, 0.0, 1.0])  # tp, fp, fn; tp
    table, combine = columns.pope(list(wanted), scores, items)
    assert combine(table.mean(0, keepdims=True))[0] == pytest.approx((2 / 4 + 2 / 2) / 2)
    assert combine(np.zeros((1, 4)))[0] == 0  # a resample without a right yes


def test_points_of_images_with_two_questions():
    name = mme.PERCEPTION[0]
    scores = {f"{name}/1.jpg/a": 1.0, f"{name}/1.jpg/b": 1.0}
    scores |= {f"{name}/2.jpg/a": 1.0, f"{name}/2.jpg/b": 0.0}
    table, combine = columns.mme(scores)
    assert table.shape == (2, 3)
    assert combine(table.mean(0, keepdims=True))[0] == pytest.approx(75 + 50)


def test_a_share_of_a_part():
    means = np.array([[0.25, 0.5]])
    assert columns.ratio(means) == 0.5 and statistics.only(means) == 0.25
