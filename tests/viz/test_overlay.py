import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.viz import overlay


def two_entities():
    masks = np.zeros((2, 60, 100), bool)
    masks[0, 5:55, 5:95] = True
    masks[1, 20:40, 60:80] = True
    boxes = np.array([[5, 5, 95, 55], [60, 20, 80, 40]], np.float32)
    return graphs.Entities(
        masks=masks, boxes=boxes, labels=[], scores=np.ones(2, np.float32), size=(60, 100)
    )


def test_masks_take_the_colour_of_the_smallest_entity():
    picture = overlay.draw_entities(
        Image.new("RGB", (100, 60)), two_entities(), side=400, boxes=False, opacity=1.0
    )
    pixels = np.asarray(picture)
    outer, inner = overlay.colours(2)
    assert picture.size == (400, 240)
    assert tuple(pixels[210, 30]) == outer
    assert tuple(pixels[85, 245]) == inner
    assert tuple(pixels[3, 3]) == (0, 0, 0)


def test_boxes_are_drawn_where_they_are():
    entities = two_entities()
    picture = overlay.draw_entities(Image.new("RGB", (100, 60)), entities, side=100, masks=False)
    pixels = np.asarray(picture)
    assert tuple(pixels[40, 70]) == overlay.colours(2)[1]
    assert tuple(pixels[30, 70]) == (0, 0, 0)


def test_tags_stay_inside_and_nothing_is_drawn_of_nothing():
    image = Image.new("RGB", (50, 40), (9, 9, 9))
    none = overlay.draw_entities(image, graphs.Entities.empty((40, 50)), side=50)
    np.testing.assert_array_equal(np.asarray(none), np.asarray(image))
    corner = graphs.Entities(
        masks=np.ones((1, 40, 50), bool), boxes=np.array([[49, 39, 50, 40]], np.float32),
        labels=["lamp"], scores=np.ones(1, np.float32), size=(40, 50),
    )  # fmt: skip
    overlay.draw_entities(image, corner, side=50)
    overlay.draw_entities(image, corner, side=50, masks=False, names=["a name longer than 50 px"])


def test_colours_are_stable_and_differ():
    assert overlay.colours(32)[:5] == overlay.colours(5)
    assert len(set(overlay.colours(32))) == 32
