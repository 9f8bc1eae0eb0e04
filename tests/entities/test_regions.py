import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from sgqlm.entities import interfaces, regions


def picture(width=300, height=200):
    image = Image.new("RGB", (width, height), (225, 225, 220))
    draw = ImageDraw.Draw(image)
    shapes = {"red": (20, 30, 90, 100), "blue": (180, 40, 270, 90), "green": (90, 130, 150, 185)}
    for colour, box in shapes.items():
        draw.ellipse(box, fill=colour)
    return image, shapes


def iou(a, b):
    return np.sum(a & b) / np.sum(a | b)


def test_finds_what_stands_out_with_its_box_and_outline():
    image, shapes = picture()
    entities = regions.RegionsExtractor().extract(image)
    masks = entities.dense_masks()
    assert len(masks) == len(entities.boxes) == len(entities.scores) <= 32
    assert entities.labels == [] and entities.size == (200, 300)
    for box in shapes.values():
        truth = Image.new("1", image.size)
        ImageDraw.Draw(truth).ellipse(box, fill=1)
        best = max(range(len(masks)), key=lambda i: iou(masks[i], np.asarray(truth)))
        assert iou(masks[best], np.asarray(truth)) > 0.9
        np.testing.assert_allclose(entities.boxes[best], box, atol=4)
        assert entities.scores[best] > 0.5


def test_scores_fall_and_boxes_bound_the_masks():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    entities = regions.RegionsExtractor().extract(
        noise.resize((640, 480), Image.Resampling.BICUBIC)
    )
    masks = entities.dense_masks()
    assert 8 <= len(entities.boxes) <= 32
    assert np.all(np.diff(entities.scores) <= 0) and np.all(
        (entities.scores > 0) & (entities.scores < 1)
    )
    for k, box in enumerate(entities.boxes):
        rows, columns = np.nonzero(masks[k])
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(box, edges)
        assert 0.002 <= len(rows) / masks[k].size <= 0.951
    nested = [
        (i, j) for i in range(len(masks)) for j in range(len(masks))
        if i != j and not np.any(masks[i] > masks[j])
    ]  # fmt: skip
    assert nested, "groups hold the regions they were made of"


def test_is_deterministic():
    image, _ = picture()
    first, second = (regions.RegionsExtractor().extract(image.copy()) for _ in range(2))
    assert first.masks == second.masks
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (40, 40), (4000, 12)])
def test_pictures_without_regions_give_none(size):
    entities = regions.RegionsExtractor().extract(Image.new("RGB", size, "teal"))
    assert len(entities.boxes) == len(entities.scores) == len(entities.masks) == 0
    assert entities.boxes.shape == (0, 4) and entities.size == size[::-1]


def test_large_pictures_keep_their_own_pixels():
    image, shapes = picture()
    large = image.resize((4200, 2800), Image.Resampling.NEAREST)
    entities = regions.RegionsExtractor().extract(large)
    assert all(tuple(mask["size"]) == (2800, 4200) for mask in entities.masks)
    distance = np.abs(entities.boxes - 14 * np.array(shapes["blue"])).max(axis=1)
    assert distance.min() < 14 * 4


def test_scaled_run_lengths_equal_those_of_the_scaled_mask():
    rng = np.random.default_rng(1)
    for _ in range(200):
        h, w, height, width = (int(v) for v in rng.integers(1, 9, 4) * [1, 1, 3, 3])
        mask = rng.random((h, w)) < rng.random()
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        dense = np.asfortranarray(mask[np.ix_(rows, columns)].astype(np.uint8))
        assert regions.scale_to_rle(mask, (height, width)) == coco.encode(dense)


def test_is_an_extractor_whose_settings_tell_runs_apart():
    plain = regions.RegionsExtractor()
    other = regions.RegionsExtractor(regions.RegionsConfig(num_parts=8))
    assert isinstance(plain, interfaces.EntityExtractor)
    assert plain.settings() != other.settings()
