import dataclasses

import numpy as np
import pytest
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import panels, sheet
from tests.viz import pictures


def test_a_sheet_has_the_width_and_all_panels():
    record = pictures.scene_record()
    whole = sheet.draw(record, side=500)
    less = sheet.draw(dataclasses.replace(record, attention=None, relations=None), side=500)
    assert whole.width == less.width == 500
    assert whole.height > 1.3 * less.height
    assert np.asarray(whole).std() > 10


@pytest.mark.parametrize("size", [(1, 1), (2000, 1), (1, 2000)])
def test_extreme_images(size):
    entities = graphs.Entities.from_boxes(np.array([[0, 0, *size]]), size[::-1], labels=["猫"])
    record = panels.Record("k", Image.new("RGB", size, (200, 20, 20)), entities)
    assert sheet.draw(record, side=400).width == 400


def test_an_image_without_entities_is_shown_alone():
    record = panels.Record(
        "k", Image.new("RGB", (40, 30), (200, 20, 20)), graphs.Entities.empty((30, 40)), "empty"
    )
    pixels = np.asarray(sheet.draw(record, side=400))
    assert tuple(pixels[pixels.shape[0] // 3, 200]) == pytest.approx((200, 20, 20), abs=3)
    with pytest.raises(ValueError, match="no image"):
        sheet.draw(dataclasses.replace(record, image=None))


def test_captions_are_broken_between_words():
    lines = sheet.wrap("one two three four", 10, 70)
    assert len(lines) > 1 and " ".join(lines) == "one two three four"
