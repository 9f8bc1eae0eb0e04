import re

import pytest

from sgqlm.viz import curves


def test_a_chart_places_its_points():
    svg = curves.lines({"loss": [(0, 4.0), (10, 2.0), (20, 0.0)]})
    points = re.search(r'<polyline points="([^"]*)"', svg)[1].split()
    xs, ys = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1)
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.1)
    assert ys[0] < ys[2]  # a high loss stands high


def test_what_is_not_finite_is_left_out_and_nothing_is_said():
    svg = curves.lines({"loss": [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 0.5)]})
    assert len(re.search(r'points="([^"]*)"', svg)[1].split()) == 2
    assert "nothing was recorded" in curves.lines({"loss": []})


def test_only_several_lines_need_a_key():
    one = curves.lines({"a<b": [(0, 1.0)]})
    assert "a&lt;b" not in one
    assert "a&lt;b" in curves.lines({"a<b": [(0, 1.0)], "c": [(0, 2.0)]})


@pytest.mark.parametrize(("low", "high"), [(0, 3.7), (0, 0.004), (-2, 9), (5, 5), (0, 0)])
def test_ticks_enclose_the_range_with_round_numbers(low, high):
    found = curves.ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 7
    assert found == sorted(found)


def test_bars_are_as_long_as_their_values():
    svg = curves.bars({"a": 0.5, "b": 1.0, "c": None, "d": 2.0})
    lengths = [float(w) for w in re.findall(r'width="([\d.]+)" height="17" rx="3" fill="#', svg)]
    full = lengths[0]
    assert lengths[1::2] == [full / 2, full, 0.0, full]
    assert "–" in svg
