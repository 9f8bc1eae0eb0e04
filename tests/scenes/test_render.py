import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import config
from sgqlm.scenes import marks, render, shapes, world

CFG = config.SceneConfig()


@pytest.fixture(scope="module")
def scenes():
    return [world.make_scene(CFG, "train", i) for i in range(20)]


def pixels(scene):
    return np.asarray(render.draw(scene)[0]).astype(int)


def test_drawing_is_repeatable_and_has_the_right_form(scenes):
    image, ids = render.draw(scenes[0])
    again, ids_again = render.draw(scenes[0])
    assert image.mode == "RGB"
    assert image.size == (112, 112)
    assert ids.shape == (112, 112)
    assert ids.dtype == np.uint8
    assert image.tobytes() == again.tobytes()
    assert np.array_equal(ids, ids_again)
    assert set(np.unique(ids)) == set(range(len(scenes[0].objects) + 1))


def test_masks_are_where_the_ink_is(scenes):
    for scene in scenes:
        bare = dataclasses.replace(scene, relations=())
        image, ids = render.draw(bare)
        image = np.asarray(image).astype(int)
        for k, item in enumerate(scene.objects):
            near = np.abs(image[ids == k + 1] - render.INK[item.colour]).max(-1) < 30
            assert near.mean() > (0.45 if item.texture == "plain" else 0.15), item
        background = image[ids == 0]
        assert np.median(background.max(-1) - background.min(-1)) < 25


def test_relations_change_no_mask(scenes):
    for scene in scenes[:20]:
        bare = dataclasses.replace(scene, relations=())
        assert np.array_equal(render.draw(scene)[1], render.draw(bare)[1])


def test_the_frontmost_object_has_the_pixel():
    scene = world.make_scene(CFG, "train", 0)
    back = dataclasses.replace(scene.objects[0], shape="circle", x=50.0, y=50.0, radius=12.0)
    front = dataclasses.replace(back, x=58.0)
    _, ids = render.draw(dataclasses.replace(scene, objects=(back, front), relations=()))
    assert ids[50, 54] == 2
    assert ids[50, 42] == 1


def test_every_shape_covers_its_own_pixels():
    item = world.make_scene(CFG, "train", 0).objects[0]
    item = dataclasses.replace(item, x=30.0, y=30.0, radius=9.0, angle=0)
    drawn = {}
    for shape in world.SHAPES:
        mask, x0, y0 = shapes.silhouette(dataclasses.replace(item, shape=shape), 2, 224)
        whole = np.zeros((224, 224), bool)
        whole[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask > 0
        drawn[shape] = whole
        assert whole.sum() > 0.2 * np.pi * 18**2
        rows, columns = np.nonzero(whole)
        assert np.hypot(rows - 59.5, columns - 59.5).max() < 18 * 1.2
    assert not drawn["ring"][59, 59]
    for a in world.SHAPES:
        for b in world.SHAPES:
            if a < b:
                joint = (drawn[a] & drawn[b]).sum() / (drawn[a] | drawn[b]).sum()
                assert joint < 0.85, (a, b)


def test_textures_differ(scenes):
    item = dataclasses.replace(scenes[0].objects[0], shape="square", colour="green")
    spread = {}
    for texture in world.TEXTURES:
        objects = (dataclasses.replace(item, texture=texture),)
        scene = dataclasses.replace(scenes[0], objects=objects, relations=())
        image, ids = render.draw(scene)
        spread[texture] = np.asarray(image)[ids == 1][:, 1].std()
    assert spread["striped"] > 1.5 * spread["plain"]


def test_predicate_and_direction_show_at_both_ends_and_on_the_way(scenes):
    """Any other predicate, or the other direction, changes pixels at all three places."""
    base = scenes[0]
    left = dataclasses.replace(base.objects[0], shape="circle", x=25.0, y=56.0, radius=10.0)
    right = dataclasses.replace(left, x=87.0, colour="red")
    scene = dataclasses.replace(base, objects=(left, right))
    places = {
        "subject": np.s_[46:67, 32:44],
        "way": np.s_[50:62, 48:64],
        "partner": np.s_[46:67, 68:80],
    }
    drawn = {}
    for predicate in world.PREDICATES:
        for ends in ((0, 1), (1, 0)):
            relation = world.Relation(ends[0], predicate, ends[1])
            drawn[predicate, ends] = pixels(dataclasses.replace(scene, relations=(relation,)))
    for a, first in drawn.items():
        for b, second in drawn.items():
            for place, window in places.items():
                same_stroke = place == "way" and a[0] == b[0]
                if a < b and not same_stroke:
                    changed = np.abs(first[window] - second[window]).max(-1) > 50
                    least = 8 if place == "way" else 20
                    assert changed.sum() >= least, (a, b, place, changed.sum())


def test_marks_stay_near_their_stroke_and_turn_with_it():
    for predicate in world.PREDICATES:
        drawn = []
        for start, end in (((30.0, 60.0), (90.0, 60.0)), ((60.0, 30.0), (60.0, 90.0))):
            image = Image.new("RGB", (120, 120), (128, 128, 128))
            marks.draw(ImageDraw.Draw(image), predicate, start, end, 1)
            drawn.append((np.asarray(image) != 128).any(-1))
        level, upright = drawn
        assert level.any(1).sum() >= 8
        assert not level[:51].any()
        assert not level[70:].any()
        assert level[55:66, 30:91].any(0).sum() >= 35
        assert (level ^ upright.T).sum() <= 0.5 * level.sum()
