import collections
import dataclasses

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.data import graphs
from sgqlm.scenes import layout, render, shapes, world

CFG = config.SceneConfig()


@pytest.fixture(scope="module")
def scenes(many):
    return many[0][:250]


def test_a_scene_is_a_function_of_split_and_index(scenes):
    assert world.make_scene(CFG, "train", 7) == scenes[7]
    others = [world.make_scene(CFG, split, i) for split in ("val", "test") for i in range(20)]
    plain = {(scene.objects, scene.relations) for scene in [*scenes, *others]}
    assert len(plain) == len(scenes) + len(others)


def test_objects_are_distinct_enough_to_be_spoken_of(scenes):
    assert {len(s.objects) for s in scenes} == {5, 6, 7, 8}
    for scene in scenes:
        assert len({o.colour for o in scene.objects}) >= 5
        assert len({o.shape for o in scene.objects}) >= 5
        assert len({(o.colour, o.shape) for o in scene.objects}) == len(scene.objects)
        for item in scene.objects:
            assert item.radius <= item.x <= scene.image_size - item.radius
            assert np.float32(item.x) == item.x
            assert np.float32(item.y) == item.y


def test_sizes_are_three_bands_of_the_radius(scenes):
    radii = {s: [o.radius for x in scenes for o in x.objects if o.size == s] for s in world.SIZES}
    assert min(radii["small"]) >= 0.08 * 112 - 0.1
    assert max(radii["small"]) < min(radii["medium"])
    assert max(radii["medium"]) < min(radii["large"])
    assert max(radii["large"]) <= 0.14 * 112 + 0.1


def test_half_the_subjects_stand_in_two_relations(scenes):
    numbers = collections.Counter(len(scene.relations) for scene in scenes)
    assert set(numbers) == {3, 4, 5}
    assert min(numbers.values()) > 0.15 * len(scenes)
    for scene in scenes:
        partners = collections.defaultdict(set)
        for relation in scene.relations:
            partners[relation.subject].add(relation.object)
        assert 2 * sum(len(p) == 2 for p in partners.values()) >= len(partners)
        roles = [(r.subject, r.predicate) for r in scene.relations]
        roles += [(r.predicate, r.object) for r in scene.relations]
        assert len(set(roles)) == len(roles)
        pairs = {frozenset((r.subject, r.object)) for r in scene.relations}
        assert len(pairs) == len(scene.relations)


def test_predicates_do_not_depend_on_geometry(scenes):
    lengths = collections.defaultdict(list)
    for scene in scenes:
        for r in scene.relations:
            a, b = scene.objects[r.subject], scene.objects[r.object]
            lengths[r.predicate].append(np.hypot(a.x - b.x, a.y - b.y))
    assert set(lengths) == set(world.PREDICATES)
    means = [np.mean(v) for v in lengths.values()]
    assert max(means) - min(means) < 0.1 * np.mean(means)


def test_strokes_pass_third_objects_and_each_other(scenes):
    for scene in scenes:
        centres = np.array([(o.x, o.y) for o in scene.objects])
        clear = layout.clear_pairs(centres, np.array([o.radius for o in scene.objects]))
        lines = [(r.subject, r.object) for r in scene.relations]
        assert all(clear[line] for line in lines)
        for i, (a, b) in enumerate(lines):
            assert not any(layout.crosses(*centres[[a, b, c, d]].tolist()) for c, d in lines[:i])


def test_clear_pairs_by_hand():
    centres = np.array([[10.0, 10.0], [60.0, 10.0], [35.0, 14.0], [10.0, 60.0]])
    clear = layout.clear_pairs(centres, np.full(4, 5.0))
    assert not clear[0, 1]  # the third disc is in the way
    assert clear[0, 3]
    assert clear[3, 0]
    assert not clear.diagonal().any()


def test_little_overlap_and_many_centres_near_patch_borders(scenes):
    near = []
    for scene in scenes[:40]:
        _, ids = render.draw(scene)
        for k, item in enumerate(scene.objects):
            whole, _, _ = shapes.silhouette(item, 2, 2 * scene.image_size)
            assert 4 * (ids == k + 1).sum() >= 0.6 * (whole > 0).sum()
            rest = np.array([item.x, item.y]) % layout.PATCH
            near.append((np.minimum(rest, layout.PATCH - rest) <= 0.2 * layout.PATCH + 0.1).all())
    assert np.mean(near) >= 0.5


def test_spatial_relations_have_a_margin(scenes):
    def item(x, y):
        return dataclasses.replace(scenes[0].objects[0], x=x, y=y)

    objects = (item(20.0, 20.0), item(60.0, 22.0), item(62.0, 80.0))
    scene = dataclasses.replace(scenes[0], objects=objects)
    assert world.spatial(scene, 0, 1) == ("left of",)
    assert world.spatial(scene, 1, 0) == ("right of",)
    assert world.spatial(scene, 1, 2) == ("above",)
    assert world.spatial(scene, 2, 0) == ("right of", "below")


def test_impossible_numbers_of_objects_are_refused():
    for low, high in ((0, 3), (6, 5), (5, 40)):
        cfg = config.SceneConfig(min_objects=low, max_objects=high)
        with pytest.raises(errors.SgqlmError, match="cannot have"):
            world.make_scene(cfg, "train", 0)


def test_few_objects_still_make_a_scene():
    for number in (1, 2, 3):
        cfg = config.SceneConfig(min_objects=number, max_objects=number)
        scene = world.make_scene(cfg, "train", 0)
        assert len(scene.objects) == number
        render.draw(scene)


def test_the_detector_is_noisy_at_the_configured_rates(scenes):
    wanted = found = spurious = 0
    for scene in scenes[:80]:
        _, ids = render.draw(scene)
        entities, truth = world.detect(scene, ids, CFG)
        assert len(entities) == len(truth)
        wanted += len(scene.objects)
        found += (truth >= 0).sum()
        spurious += (truth < 0).sum()
        for mask, box, k in zip(entities.dense_masks(), entities.boxes, truth, strict=True):
            assert np.array_equal(box, world.mask_box(mask))
            if k >= 0:
                shift = np.abs(box - world.mask_box(ids == k + 1))
                assert shift.max() <= 0.25 * 2 * scene.objects[k].radius + 1
    assert 0.9 <= found / wanted <= 0.98
    assert 0.02 <= spurious / wanted <= 0.1


def test_a_perfect_detector_gives_the_modal_masks_in_a_random_order(scenes):
    cfg = config.SceneConfig(missed=0.0, spurious=0.0, box_jitter=0.0)
    orders = set()
    for scene in scenes[:20]:
        _, ids = render.draw(scene)
        entities, truth = world.detect(scene, ids, cfg)
        assert sorted(truth) == list(range(len(scene.objects)))
        for mask, k in zip(entities.dense_masks(), truth, strict=True):
            assert np.array_equal(mask, ids == k + 1)
        orders.add(tuple(truth[:3]))
        assert list(entities.labels) == []
        assert entities.size == (scene.image_size, scene.image_size)
    assert len(orders) > 10
    blind = dataclasses.replace(cfg, missed=1.0)
    entities, truth = world.detect(scenes[0], ids, blind)
    assert len(entities) == len(truth) == 0
    assert isinstance(entities, graphs.Entities)
