import numpy as np
import pytest

from sgqlm.viz import placing


def overlap(a, b):
    return (
        a[0] < b[0] + b[2] - 1e-9
        and b[0] < a[0] + a[2] - 1e-9
        and a[1] < b[1] + b[3] - 1e-9
        and b[1] < a[1] + a[3] - 1e-9
    )


def test_a_frame_places_pixels_and_keeps_the_shape_of_the_image():
    frame = placing.frame((0.0, 0.0, 400.0, 200.0))
    assert frame.box[2] / frame.box[3] == pytest.approx(2)
    np.testing.assert_allclose(frame.place(np.array([0, 0, 400, 200])), [0, 0, 800, 400])
    assert frame.rect(100, 50, 300, 150) == pytest.approx((200, 100, 400, 200))
    padded = placing.frame((0, -100, 400, 300))
    assert padded.rect(0, 0, 400, 200) == pytest.approx((0, 200, 800, 400))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1), (6000, 4000)])
def test_extreme_images_stay_visible_on_a_bounded_canvas(size):
    frame = placing.frame((0, 0, *size))
    assert min(frame.box[2:]) >= 20
    assert 0.29 < frame.height / frame.width < 1.26
    assert frame.box[0] >= 0 and frame.box[0] + frame.box[2] <= frame.width + 1e-6
    assert frame.box[1] >= 0 and frame.box[1] + frame.box[3] <= frame.height + 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_32_labels_never_cover_each_other(seed):
    rng = np.random.default_rng(seed)
    area = (0.0, 0.0, 800.0, 530.0)
    corners = rng.random((32, 2, 2)) * (800, 530)
    low, high = corners.min(1), corners.max(1)
    anchors = [(*a, *b) for a, b in zip(low.tolist(), (high - low).tolist(), strict=True)]
    wide, short = (float(rng.integers(120, 320)), 38.0), (45.0, 38.0)  # a telephone's labels
    found = placing.place_labels([[wide, short]] * 32, anchors, area)
    boxes = [place[1] for place in found if place is not None]
    assert len(boxes) == 32
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    for x, y, w, h in boxes:
        assert x >= 0 and y >= 0 and x + w <= 800 and y + h <= 530
    assert any(place is not None and place[0] == 0 for place in found)


def test_labels_keep_off_what_is_taken_and_give_up_where_nothing_is_free():
    area, size = (0.0, 0.0, 100.0, 40.0), (30.0, 20.0)
    taken = [(0.0, 0.0, 100.0, 18.0)]
    (place,) = placing.place_labels([[size]], [(10.0, 20.0, 20.0, 10.0)], area, taken=taken)
    assert place is not None and place[1][1] >= 18
    assert placing.place_labels([[(200.0, 20.0)]], [area], area) == [None]


def test_crowded_circles_part_and_lonely_ones_stay():
    rng = np.random.default_rng(3)
    points = np.concatenate([rng.normal((400, 250), 15, (31, 2)), [[60.0, 60.0]]])
    radii = np.full(32, 26.0)
    moved = placing.spread(points, radii, (0, 0, 800, 500))
    gaps = np.hypot(*np.moveaxis(moved[:, None] - moved[None], -1, 0)) + 1e9 * np.eye(32)
    assert gaps.min() > 50  # two radii, less what is no longer seen
    np.testing.assert_array_equal(moved[31], points[31])
    assert (moved >= 26 - 1e-9).all() and (moved <= (774 + 1e-9, 474 + 1e-9)).all()
    same = placing.spread(np.full((3, 2), 200.0), np.full(3, 10.0), (0, 0, 800, 500))
    assert len({tuple(row) for row in same.round(3).tolist()}) == 3


def test_long_texts_end_in_an_ellipsis():
    assert placing.shorten("dog", 10, 100) == "dog"
    short = placing.shorten("a very long label of a thing", 10, 80)
    assert short.endswith("…") and placing.measure(short, 10) <= 80
    assert placing.measure("猫猫", 10) > placing.measure("il", 10)
    assert placing.shorten("word", 10, 1) == "…"
