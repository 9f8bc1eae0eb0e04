import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.viz import canvas, coverage, overlay, placing


def left_half(size=(20, 40)):
    masks = np.zeros((1, *size), bool)
    masks[0, :, : size[1] // 2] = True
    box = np.array([[0, 0, size[1] / 2, size[0]]], np.float32)
    return graphs.Entities(masks, box, [], np.ones(1, np.float32), size)


def test_names_of_views():
    assert coverage.parse(" 24x24:pad ") == ("24x24:pad", 24, "pad", None)
    assert coverage.parse("16x16:crop@224").image_size == 224
    with pytest.raises(errors.SgqlmError):
        coverage.parse("24x16:pad")


def test_a_heat_cell_is_the_coverage():
    view = coverage.parse("4x4:pad")
    values = view.of(left_half())[0]
    picture = coverage.heat(values, np.array((1, 2, 3)))
    assert picture.size == (4, 4)
    np.testing.assert_array_equal(np.asarray(picture)[..., 3].reshape(-1), values)
    assert set(values.tolist()) == {0, 255}
    assert np.asarray(picture)[1, 0, 3] == 255 and np.asarray(picture)[0, 0, 3] == 0


def test_stored_coverage_is_shown_as_it_is():
    made_up = np.arange(16, dtype=np.uint8)[None]
    found = left_half()
    object.__setattr__(found, "coverage", {"4x4:pad": made_up})
    np.testing.assert_array_equal(coverage.parse("4x4:pad").of(found), made_up)
    assert coverage.parse("4x4:crop").of(found).max() == 255


def test_the_overview_shows_the_smallest_that_covers_half():
    values = np.array([[255, 255, 100, 0], [0, 200, 90, 0]], np.uint8)
    picture = np.asarray(coverage.overview(values, overlay.colours(2))).reshape(4, 4)
    first, second = overlay.colours(2)
    assert tuple(picture[0]) == (*first, 255)
    assert tuple(picture[1]) == (*second, 200)
    assert tuple(picture[2]) == (*first, 100)
    assert picture[3, 3] == 0


def painted(view, size):
    frame = placing.frame(view.plane(size), margin=0.01)
    photo = canvas.Picture(Image.new("RGB", (40, 20), (0, 200, 0)), frame.rect(0, 0, *size[::-1]))
    shapes = [*coverage.ground(frame, size, view), photo]
    shapes += coverage.grid_lines(frame, size, view, 1.5)
    pixels = np.asarray(canvas.to_image(shapes, (frame.width, frame.height), side=400), int)

    def at(x, y):
        column, row = frame.place(np.array([x, y])) * 400 / frame.width
        return pixels[int(row), int(column)]

    return at


def test_padding_is_grey_and_the_image_is_not():
    at = painted(coverage.parse("4x4:pad"), (20, 40))
    assert np.ptp(at(18, -6)) < 40 and at(18, -6).mean() > 120
    assert np.ptp(at(18, 26)) < 40
    assert at(18, 7)[1] - at(18, 7)[0] > 100


def test_what_a_crop_cuts_off_is_dark():
    at = painted(coverage.parse("4x4:crop"), (20, 40))
    assert at(3, 7)[1] < 100 and at(37, 7)[1] < 100
    assert at(18, 7)[1] > 150
