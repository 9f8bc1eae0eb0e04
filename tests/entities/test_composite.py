import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import config, errors
from sgqlm.data import graphs, records
from sgqlm.entities import boxes_as_masks, composite, filters, interfaces, regions, settings, tags

VIEWS = ("24x24:pad", "16x16:crop@224")
PARTS = ("tagger", "detector", "segmenter")


class Fixed:
    """A detector and tagger with given answers, also wrong ones; counts its calls."""

    name = "fixed"

    def __init__(self, *, tags=(), boxes=(), short=0):
        self.tags, self.boxes, self.short, self.asked = tags, boxes, short, []

    def settings(self):
        return {"model": "fixed"}

    def tag(self, images):
        return [[(tag, 0.5) for tag in self.tags] for _ in images]

    def detect(self, images, labels):
        self.asked.append([list(some) for some in labels])
        rows = [np.array([row[:4] for row in self.boxes], np.float32).reshape(-1, 4)]
        scores = np.array([row[4] for row in self.boxes], np.float32)
        found = interfaces.Boxes(rows[0], scores, [row[5] for row in self.boxes])
        return [found for _ in images][self.short :]


def drawn(width=90, height=64):
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.5, height * 0.8), fill="red")
    draw.rectangle((width * 0.6, height * 0.3, width * 0.9, height * 0.95), fill="blue")
    return image


def noise(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def made(model, limits=filters.Limits(), **options):
    segmenter = boxes_as_masks.BoxSegmenter()
    return composite.CompositeExtractor(model, model, segmenter, limits, **options)


def test_labels_go_from_the_tagger_to_the_entities():
    boxes = [(5, 5, 40, 40, 0.4, "dog"), (50, 10, 80, 60, 0.9, "tree"), (0, 0, 9, 9, 0.8, "sky")]
    model = Fixed(tags=["dog", "tree", "Sky", "dog"], boxes=boxes)
    extractor = made(model, filters.Limits(exclude=frozenset({"sky"})), views=VIEWS)
    first, second = extractor.extract_batch([drawn(), drawn(64, 90)])
    assert model.asked == [[["dog", "tree"]] * 2]  # excluded ones are not asked for
    assert list(first.labels) == ["tree", "dog"] and [tag for tag, _ in first.tags] == model.tags
    assert set(first.coverage) == set(VIEWS) and second.size == (90, 64)
    assert extractor.dropped == {"label was not asked for": 2}
    assert set(extractor.seconds) == {"tag", "detect", "segment", "filter"}
    assert all(value > 0 for value in extractor.seconds.values())
    assert isinstance(extractor, interfaces.EntityExtractor)
    json.dumps(extractor.settings())


def test_without_a_tagger_the_vocabulary_is_looked_for():
    model = Fixed(boxes=[(5, 5, 40, 40, 0.4, "dog")])
    extractor = composite.CompositeExtractor(
        None, model, boxes_as_masks.BoxSegmenter(), vocabulary=["dog", "cat"]
    )
    found = extractor.extract(drawn())
    assert model.asked == [[["dog", "cat"]]] and list(found.labels) == ["dog"] and not found.tags


nan, inf = np.nan, np.inf
BROKEN = {
    "no boxes": [],
    "not a number": [(nan, 5, 40, 40, 0.4, "dog"), (5, 5, 40, 40, nan, "dog")],
    "infinite": [(-inf, 5, inf, 40, 0.4, "dog"), (5, 5, 40, 40, inf, "dog")],
    "negative width": [(40, 5, 5, 40, 0.4, "dog"), (5, 40, 40, 5, 0.4, "dog")],
    "outside": [(500, 5, 540, 40, 0.4, "dog"), (-40, -40, -5, -5, 0.4, "dog")],
    "not asked for": [(5, 5, 40, 40, 0.4, "horse"), (5, 5, 40, 40, 0.4, "")],
    "points and lines": [(5, 5, 5, 5, 0.4, "dog"), (5, 5, 40, 5, 0.4, "dog")],
    "the whole image": [(0, 0, 90, 64, 0.9, "dog")],
}


@pytest.mark.parametrize("size", [(90, 64), (1, 1), (1, 2000), (2000, 1)], ids=str)
@pytest.mark.parametrize("boxes", BROKEN.values(), ids=BROKEN)
def test_broken_detections_leave_a_defined_record(boxes, size, tmp_path):
    extractor = made(Fixed(tags=["dog"], boxes=boxes), views=VIEWS)
    found = extractor.extract(Image.new("RGB", size))
    records.write_entities(tmp_path / "store", [("a.png", found)])
    store = records.EntityStore(tmp_path / "store")
    assert len(found) == 0 and store.status(0) == "empty" and store[0].size == size[::-1]
    assert sum(extractor.dropped.values()) == len(boxes)


def test_good_detections_survive_among_broken_ones():
    boxes = [row for rows in BROKEN.values() for row in rows] + [(50, 10, 80, 60, 0.9, "dog")]
    found = made(Fixed(tags=["dog"], boxes=boxes[:-2] + boxes[-1:])).extract(drawn())
    assert found.boxes.tolist() == [[50, 10, 80, 60]] and np.isfinite(found.scores).all()


def test_without_tags_nothing_is_found():
    model = Fixed(tags=[], boxes=[(5, 5, 40, 40, 0.4, "dog")])
    assert len(made(model).extract(drawn())) == 0 and model.asked == [[[]]]
    assert made(model).extract_batch([]) == []


def test_images_of_other_modes_are_taken_as_rgb():
    extractor = made(Fixed(tags=["dog"], boxes=[(5, 5, 40, 40, 0.4, "dog")]))
    assert len(extractor.extract(drawn().convert("L"))) == 1


def test_a_part_that_loses_images_is_an_error():
    with pytest.raises(errors.SgqlmError, match="detector gave 1 results for 2 images"):
        made(Fixed(tags=["dog"], short=1)).extract_batch([drawn(), drawn()])


class Dense:
    """A segmenter of somebody else: whole masks only."""

    name = "dense"

    def settings(self):
        return {"model": "dense"}

    def segment(self, images, boxes):
        return boxes_as_masks.BoxSegmenter().segment(images, boxes)


def test_masks_of_another_size_are_an_error(monkeypatch):
    model = Fixed(tags=["dog"], boxes=[(5, 5, 40, 40, 0.4, "dog"), (50, 9, 80, 60, 0.9, "dog")])
    wrong = interfaces.Masks(np.ones((2, 30, 30), bool), np.ones(2, np.float32))
    monkeypatch.setattr(Dense, "segment", lambda self, images, boxes: [wrong])
    with pytest.raises(errors.SgqlmError, match="fit together"):
        composite.CompositeExtractor(model, model, Dense()).extract(drawn())


def test_any_segmenter_will_do():
    model = Fixed(tags=["dog"], boxes=[(5, 5, 40, 40, 0.4, "dog"), (50, 9, 80, 60, 0.9, "dog")])
    found = composite.CompositeExtractor(model, model, Dense()).extract(drawn())
    assert found.coded_masks() == made(model).extract(drawn()).coded_masks()


def test_presets_have_the_parts_their_names_promise():
    paper, fast = settings.preset("paper"), settings.preset("fast")
    parts = (paper.tagger, paper.detector, paper.segmenter)
    assert parts == ("ram_plus", "grounding_dino", "sam") and fast.segmenter == "sam2"
    assert (paper.box_threshold, paper.nms_iou, paper.max_entities) == (0.25, 0.5, 32)
    assert [settings.preset(name).name for name in settings.NAMES] == list(settings.NAMES)
    with pytest.raises(errors.SgqlmError, match="no extractor 'papr'") as caught:
        settings.preset("papr")
    assert "did you mean paper?" in caught.value.why and caught.value.code == errors.USAGE


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("name", "papers", "--extractor"),
        ("tagger", "ram++", "--tagger"),
        ("detector", "grounding-dino", "--detector"),
        ("segmenter", "sam_h", "--segmenter"),
        ("dtype", "bf16", "--dtype"),
        ("box_threshold", 1.5, "--box-threshold"),
        ("nms_iou", float("nan"), "--nms-iou"),
        ("max_area", -0.1, "--max-area"),
        ("min_side", float("inf"), "--min-side"),
        ("max_entities", 0, "--max-entities"),
        ("separator", "; ", "--separator"),
        ("views", ("24x25:pad",), "--views"),
        ("views", ("24x24:stretch",), "--views"),
    ],
)
def test_wrong_settings_are_refused_with_their_flag(field, value, flag):
    with pytest.raises(errors.SgqlmError) as caught:
        settings.ExtractorConfig(**{field: value})
    assert caught.value.where == flag and caught.value.fix and caught.value.code == errors.USAGE


@pytest.mark.parametrize("name", ["24x24:pad", "16x16:crop@224", "7x7:crop"])
def test_the_name_of_a_view_is_read_back(name):
    grid, fit, side = graphs.parse_view(name)
    assert graphs.view(grid, fit, image_size=side) == name


def test_every_setting_has_a_help_text():
    assert all(field.metadata["help"] for field in dataclasses.fields(settings.ExtractorConfig))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({}, "--tagger-weights"),
        ({"tagger": "fixed"}, "--tags"),
        ({"tagger": "none"}, "--tags"),
        ({"tagger_weights": "x"}, "--detector-weights"),
        ({"tagger_weights": "x", "detector_weights": "x"}, "--segmenter-weights"),
        ({"name": "sam3", "tagger_weights": "x"}, "--segmenter-weights"),
    ],
)
def test_missing_weights_are_named_by_their_flag(change, flag):
    with pytest.raises(errors.SgqlmError, match="needs") as caught:
        settings.make(settings.ExtractorConfig(**change))
    assert caught.value.where == flag and caught.value.fix.startswith(f"give {flag}=")


def test_a_segmenter_alone_needs_its_weights():
    with pytest.raises(errors.SgqlmError, match="sam_hq needs weights"):
        settings.make_segmenter(settings.ExtractorConfig(segmenter="sam_hq"))


def test_without_torch_regions_still_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    given = {f"{part}_weights": "x" for part in ("tagger", "detector", "segmenter")}
    with pytest.raises(errors.SgqlmError, match="torch") as caught:
        settings.make(dataclasses.replace(settings.preset("paper"), **given))
    assert "pip install -e '.[entities]'" in caught.value.fix
    with pytest.raises(errors.SgqlmError, match="sam needs torch"):
        settings.make_segmenter(settings.ExtractorConfig(segmenter_weights="x"))
    assert settings.make_segmenter(settings.ExtractorConfig(segmenter="box")).name == "box"
    extractor = settings.make(settings.ExtractorConfig("regions", max_entities=5, views=VIEWS))
    found = extractor.extract(noise(60, 40))
    plain = regions.RegionsExtractor(regions.RegionsConfig(max_entities=5)).extract(noise(60, 40))
    assert found.masks == plain.masks and 0 < len(found) <= 5 and set(found.coverage) == set(VIEWS)
    assert extractor.name == "regions" and extractor.settings()["views"] == list(VIEWS)
    assert extractor.extract_batch([noise(60, 40)])[0].masks == plain.masks
    assert extractor.seconds["segment"] > 0


def preset(tiny, name, **changes):
    found = dataclasses.replace(settings.preset(name), views=VIEWS)
    if name == "sam3":
        found = dataclasses.replace(found, box_threshold=0.02)  # of random weights
    found = dataclasses.replace(found, **changes)
    segmenter = "sam3" if name == "sam3" else found.segmenter
    return dataclasses.replace(
        found,
        tagger_weights=str(tiny / "ram_plus"),
        detector_weights=str(tiny / found.detector),
        segmenter_weights="" if segmenter == "box" else str(tiny / segmenter),
    )


@pytest.fixture(scope="module")
def paper(tiny):
    return settings.make(preset(tiny, "paper"))


IMAGES = (drawn(), drawn(64, 90), noise(120, 70), noise(57, 133))


@pytest.fixture(scope="module")
def found(paper):
    return paper.extract_batch(IMAGES)


def test_the_paper_preset_finds_entities(paper, found):
    assert sum(map(len, found)) > 4
    for image, entities in zip(IMAGES, found, strict=True):
        assert entities.size == (image.height, image.width) and len(entities.tags) > 2
        named = {tag for tag, _ in entities.tags}
        assert set(entities.labels) <= named - tags.EXCLUDED
        assert all(label in named for item in entities.alternatives for label, _ in item)
        assert len(entities.mask_scores) == len(entities) <= 32
        low, high = entities.boxes[:, :2], entities.boxes[:, 2:]
        assert (low >= 0).all() and (high <= image.size).all() and (high - low >= 2).all()
        areas = entities.dense_masks().sum((1, 2))
        assert (areas >= 25).all() and (areas <= 0.95 * image.width * image.height).all()
    assert paper.name == "paper" and all(value > 0 for value in paper.seconds.values())


def brute_force(mask, grid, fit, side):
    """Return coverage by a count of sixteen times sixteen points in every pixel."""
    height, width = mask.shape
    fine = 16
    dense = mask.repeat(fine, 0).repeat(fine, 1)
    rows, columns = ((np.arange(length * fine) + 0.5) / fine for length in mask.shape)
    if fit == "pad":
        scale = grid / max(height, width)
        top, left = ((max(height, width) - length) // 2 for length in (height, width))
        down, right = (rows + top) * scale, (columns + left) * scale
    else:
        short = min(height, width)
        new_height, new_width = (side * length // short for length in (height, width))
        down = (rows * new_height / height - (new_height - side) // 2) * grid / side
        right = (columns * new_width / width - (new_width - side) // 2) * grid / side
    total = np.zeros((grid, grid))
    y, x = np.nonzero(dense)
    y, x = np.floor(down[y]).astype(int), np.floor(right[x]).astype(int)
    inside = (y >= 0) & (y < grid) & (x >= 0) & (x < grid)
    np.add.at(total, (y[inside], x[inside]), 1)
    if fit == "pad":
        patch = (max(height, width) * fine / grid) ** 2
    else:
        patch = fine**2 * (side / grid) ** 2 * (height / new_height) * (width / new_width)
    return total.reshape(-1) / patch


@pytest.mark.parametrize("view", VIEWS)
def test_stored_coverage_is_a_count_over_pixels(found, view):
    grid, fit, side = graphs.parse_view(view)
    for entities in found:
        for mask, row in zip(entities.dense_masks(), entities.coverage[view], strict=True):
            expected = brute_force(mask, grid, fit, side)
            # all of a point at the border of a patch counts for one side
            np.testing.assert_allclose(row / 255, expected, atol=0.03)
            assert abs(row.sum() / 255 - expected.sum()) < 0.02 * max(expected.sum(), 5)


def test_an_image_gives_the_same_in_any_company(paper, found):
    for image, expected in zip(IMAGES[::-1], found[::-1], strict=True):
        alone = paper.extract(image)
        assert alone.masks == expected.masks and list(alone.labels) == list(expected.labels)
        np.testing.assert_allclose(alone.boxes, expected.boxes, atol=1e-3)


def test_entities_come_back_from_a_store_and_become_nodes(paper, found, tmp_path):
    rows = [(f"{k}.png", entities) for k, entities in enumerate(found)]
    records.write_entities(tmp_path / "store", rows, about=paper.settings())
    store = records.EntityStore(tmp_path / "store")
    model = config.ModelConfig(
        vision=config.VisionConfig(image_size=336, patch_size=14), image_fit="pad"
    )
    for k, entities in enumerate(found):
        back = store[k]
        assert store.status(k) == ("ok" if len(entities) else "empty")
        assert back.masks == entities.masks and list(back.labels) == list(entities.labels)
        np.testing.assert_array_equal(back.boxes, entities.boxes)
        np.testing.assert_array_equal(back.mask_scores, entities.mask_scores)
        assert [label for label, _ in back.tags] == [label for label, _ in entities.tags]
        nodes = graphs.make_nodes(back, model)
        plain = graphs.make_nodes(dataclasses.replace(back, coverage={}), model)
        np.testing.assert_array_equal(nodes.coverage, plain.coverage)
        assert len(nodes.boxes) == len(entities)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fast", {}),
        ("sam3", {}),
        ("custom", {"segmenter": "sam_hq"}),
        ("custom", {"segmenter": "box", "tagger": "fixed"}),
        ("custom", {"segmenter": "box", "tagger": "none", "detector": "mm_grounding_dino"}),
        ("custom", {"segmenter": "box", "tagger": "none", "detector": "owlv2"}),
    ],
    ids=str,
)
def test_other_extractors_run_on_tiny_weights(tiny, tmp_path, name, changes):
    (tmp_path / "tags.txt").write_text("dog\nred ball\nhouse\n")
    if "tagger" in changes:
        changes = changes | {"tags": str(tmp_path / "tags.txt"), "box_threshold": 0.0}
    made_of = preset(tiny, name, max_area=1.0, **changes)
    extractor = settings.make(made_of)
    images = [drawn(), Image.new("RGB", (1, 1)), Image.new("RGB", (1, 2000), "red")]
    found = extractor.extract_batch(images)
    assert len(found[0]) and len(found[1]) == 0 and found[2].size == (2000, 1)
    if changes.get("tagger") == "none":
        assert not found[0].tags and set(found[0].labels) <= {"dog", "red ball", "house"}
    segmenter = extractor.settings()["segmenter"]["model"]
    assert segmenter == ("sam3" if name == "sam3" else made_of.segmenter)


def test_settings_name_all_that_changes_the_result(tiny, paper):
    assert all("sha256" in paper.settings()[part]["weights"] for part in PARTS)
    changes = {"nms_iou": 0.6, "views": ("24x24:pad",), "box_threshold": 0.3}
    other = settings.make(preset(tiny, "paper", **changes)).settings()
    assert other["limits"]["nms_iou"] == 0.6 and other["views"] == ["24x24:pad"]
    assert other["detector"]["box_threshold"] == 0.3
    assert other["segmenter"] == paper.settings()["segmenter"]
