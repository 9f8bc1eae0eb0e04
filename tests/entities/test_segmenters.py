import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.entities import boxes_as_masks, filters, pixels, sam, sam2, sam3

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

BOXES = np.array([[5, 4, 40, 30], [30, 10, 75.5, 44.25], [0, 0, 20, 47]], np.float32)
KINDS = {"sam": sam.SamSegmenter, "sam_hq": sam.SamHqSegmenter, "sam2": sam2.Sam2Segmenter}
# every box and mask of the model becomes an entity
ALL = filters.Limits(
    nms_iou=1.0, mask_iou=1.0, min_side=0.0, min_area=0, max_area=1.0, max_entities=9999
)


def picture(width, height, seed=0):
    image = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )
    ImageDraw.Draw(image).ellipse((4, 4, max(width // 2, 5), max(height - 4, 5)), fill="red")
    return image


@pytest.fixture(scope="module")
def segmenters(tiny):
    return {name: kind(tiny / name) for name, kind in KINDS.items()}


@pytest.fixture(params=KINDS)
def segmenter(request, segmenters):
    return segmenters[request.param]


@pytest.mark.parametrize("size", [(80, 48), (48, 80), (64, 64), (90, 52)], ids=str)
@pytest.mark.parametrize("name", ["sam", "sam_hq"])
def test_sam_is_what_transformers_makes_of_it(tiny, segmenters, name, size):
    image = picture(*size)
    boxes = BOXES.clip(0, [*size, *size])
    kind = {"sam": transformers.SamModel, "sam_hq": transformers.SamHQModel}[name]
    model = kind.from_pretrained(tiny / name)
    images = transformers.SamImageProcessorPil.from_pretrained(tiny / name)
    inputs = transformers.SamProcessor(images)(
        images=image, input_boxes=[boxes.tolist()], return_tensors="pt"
    )
    with torch.inference_mode():
        out = model(
            pixel_values=inputs["pixel_values"],
            input_boxes=inputs["input_boxes"].float(),
            multimask_output=False,
        )
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    expected = images.post_process_masks(out.pred_masks, *sizes)[0][:, 0].numpy()
    (found,) = segmenters[name].segment([image], [boxes])
    assert found.masks.shape == (3, size[1], size[0]) and 0 < expected.mean() < 1
    np.testing.assert_array_equal(found.masks, expected)
    np.testing.assert_allclose(found.scores, out.iou_scores[0, :, 0].numpy(), rtol=1e-5)


def stretched(image, side, mean, std):
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255
    return ((values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


@pytest.mark.parametrize("size", [(80, 48), (33, 90)], ids=str)
def test_sam2_stretches_images_and_boxes_and_scales_logits_back(tiny, segmenters, size):
    width, height = size
    image, boxes = picture(*size), BOXES.clip(0, [*size, *size])
    model = transformers.Sam2Model.from_pretrained(tiny / "sam2").eval()
    values = stretched(image, 64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    scaled = boxes * np.array([64 / width, 64 / height] * 2, np.float32)
    with torch.inference_mode():
        out = model(
            pixel_values=values, input_boxes=torch.from_numpy(scaled)[None], multimask_output=False
        )
        logits = torch.nn.functional.interpolate(
            out.pred_masks[0], (height, width), mode="bilinear", align_corners=False
        )
    (found,) = segmenters["sam2"].segment([image], [boxes])
    # a logit of nearly zero may fall on either side: inputs are rounded in another order
    sure = logits[:, 0].abs().numpy() > 1e-4
    assert sure.mean() > 0.99 and 0 < found.masks.mean() < 1
    np.testing.assert_array_equal(found.masks[sure], (logits[:, 0] > 0).numpy()[sure])
    np.testing.assert_allclose(found.scores, out.iou_scores[0, :, 0].numpy(), rtol=1e-4)


def test_a_batch_gives_the_masks_of_single_images(tiny, segmenter):
    images = [picture(80, 48), picture(50, 50, 1), picture(30, 70, 2)]
    boxes = [BOXES, BOXES[:0], BOXES[1:] / 3]
    together = type(segmenter)(tiny / segmenter.name, encode_batch=3)
    for one in (segmenter, together):
        found = one.segment(images, boxes)
        for image, prompts, masks in zip(images, boxes, found, strict=True):
            (alone,) = segmenter.segment([image], [prompts])
            if one is segmenter:  # encodes one by one on a CPU
                np.testing.assert_array_equal(masks.masks, alone.masks)
                np.testing.assert_array_equal(masks.scores, alone.scores)
            else:  # a batch is rounded in another way: a pixel at an outline may differ
                assert (masks.masks != alone.masks).sum() <= 2
                np.testing.assert_allclose(masks.scores, alone.scores, rtol=1e-4)
    assert [len(masks.masks) for masks in found] == [3, 0, 2]


def test_images_without_boxes_are_not_encoded(segmenter, monkeypatch):
    seen = []
    encode = segmenter._embeddings
    monkeypatch.setattr(segmenter, "_embeddings", lambda x: seen.append(len(x)) or encode(x))
    images = [picture(20, 10), picture(10, 20), picture(10, 10)]
    found = segmenter.segment(images, [BOXES[:0], BOXES[:1], np.zeros((0, 4), np.float32)])
    assert sum(seen) == 1 and found[0].masks.shape == (0, 10, 20) and found[0].masks.dtype == bool
    assert segmenter.segment_coded(images[:1], [BOXES[:0]])[0][0] == []


def test_many_boxes_are_worked_on_in_pieces(segmenter, monkeypatch):
    image = picture(80, 48)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 40, (70, 2))
    boxes = np.concatenate([low, low + rng.uniform(3, 30, (70, 2))], 1).astype(np.float32)
    (whole,) = segmenter.segment([image], [boxes])
    (last,) = segmenter.segment([image], [boxes[64:]])
    np.testing.assert_array_equal(whole.masks[64:], last.masks)
    monkeypatch.setattr(sam, "_LOGITS", 3 * 80 * 48)
    sizes = [len(masks) for masks, _ in next(segmenter._images([image], [boxes]))]
    assert max(sizes) == 3 and sum(sizes) == 70
    ((codes, scores),) = segmenter.segment_coded([image], [boxes])
    np.testing.assert_array_equal([graphs.decode_rle(code) for code in codes], whole.masks)
    np.testing.assert_array_equal(scores, whole.scores)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (3000, 1)], ids=str)
def test_strips_and_single_pixels_have_masks(segmenter, size):
    image = Image.new("RGB", size, "red")
    boxes = np.array([[0, 0, *size], [0, 0, 0, 0]], np.float32)
    (found,) = segmenter.segment([image], [boxes])
    assert found.masks.shape == (2, size[1], size[0]) and np.isfinite(found.scores).all()


def test_half_precision_is_for_the_encoder_alone(tiny, segmenter):
    half = type(segmenter)(tiny / segmenter.name, dtype="bfloat16")
    assert half.settings() == {**segmenter.settings(), "dtype": "bfloat16"}
    image = picture(80, 48)
    masks, other = (one.segment([image], [BOXES])[0] for one in (segmenter, half))
    same = (masks.masks & other.masks).sum() / (masks.masks | other.masks).sum()
    assert same > 0.9  # bfloat16 keeps 8 bits: some logits near zero change their sign
    assert not np.array_equal(masks.scores, other.scores)
    assert {weight.dtype for weight in half._model.parameters()} == {torch.float32}


def test_the_weights_are_named_by_their_content(tiny, segmenters, tmp_path):
    shutil.copytree(tiny / "sam", tmp_path / "sam")
    assert sam.SamSegmenter(tmp_path / "sam").settings() == segmenters["sam"].settings()
    assert len(segmenters["sam"].settings()["weights"]["sha256"]) == 64


def change(folder, file, **values):
    text = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(text | values))


def test_wrong_weights_are_refused(tiny, tmp_path):
    for source, word in (("", "not named"), ("nothing/here/at-all", "no weights")):
        with pytest.raises(errors.SgqlmError, match=word) as caught:
            sam.SamSegmenter(source)
        assert caught.value.where == "--segmenter-weights"
    for kind, name in ((sam.SamSegmenter, "sam2"), (sam2.Sam2Segmenter, "sam")):
        with pytest.raises(errors.SgqlmError, match="another kind") as caught:
            kind(tiny / name)
        assert caught.value.code == errors.CHECKPOINT and name in caught.value.why
    shutil.copytree(tiny / "sam", tmp_path / "sam")
    side = {"size": {"longest_edge": 1024}}
    change(tmp_path / "sam", "preprocessor_config.json", **side)
    with pytest.raises(errors.SgqlmError, match="fit together"):
        sam.SamSegmenter(tmp_path / "sam")
    change(tmp_path / "sam", "preprocessor_config.json", size={"height": 64, "width": 32})
    with pytest.raises(errors.SgqlmError, match="image settings"):
        sam.SamSegmenter(tmp_path / "sam")
    (tmp_path / "sam" / "preprocessor_config.json").unlink()
    with pytest.raises(errors.SgqlmError, match="cannot be loaded"):
        sam.SamSegmenter(tmp_path / "sam")


def test_image_settings_may_lie_in_the_file_of_the_processor(tiny, tmp_path):
    shutil.copytree(tiny / "sam2", tmp_path / "sam2")
    old = tmp_path / "sam2" / "preprocessor_config.json"
    (old.parent / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(old.read_text())})
    )
    old.unlink()
    one, other = (pixels.load(str(f), "", keeps_ratio=False) for f in (old.parent, tiny / "sam2"))
    assert one == other and one.side == 64


def test_sam2_is_read_from_the_folder_of_the_video_model(tmp_path):
    from tests.entities import tiny_segmenters

    folder = tiny_segmenters.sam2(tmp_path, video=True)
    model = sam2.Sam2Segmenter(folder)
    assert len(model.segment([picture(40, 30)], [BOXES])[0].masks) == 3


def test_boxes_are_masks_without_a_segmenter():
    image, boxes = Image.new("RGB", (10, 6)), np.array([[1, 2, 4, 5], [7.2, 0, 7.3, 6]], np.float32)
    found, none = boxes_as_masks.BoxSegmenter().segment([image] * 2, [boxes, boxes[:0]])
    expected = np.zeros((2, 6, 10), bool)
    expected[0, 2:5, 1:4] = expected[1, :, 7] = True
    np.testing.assert_array_equal(found.masks, expected)
    assert found.scores.tolist() == [1, 1] and none.masks.shape == (0, 6, 10)


CONCEPTS = ["dog", "a red circle", "tree", *(f"thing {k}" for k in range(7))]  # two batches


def concepts(folder, limits=ALL, threshold=0.005, labels=CONCEPTS):
    return sam3.Sam3Extractor(None, folder, limits, box_threshold=threshold, vocabulary=labels)


def sam3_reference(folder, image, threshold):
    """Return what transformers makes of one concept after the other, in one list of tuples."""
    model = transformers.Sam3Model.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    values, extent = stretched(image, 56, [0.5] * 3, [0.5] * 3), [image.width, image.height] * 2
    rows = []
    for label in CONCEPTS:
        text = tokenizer(label, return_tensors="pt", padding="max_length", max_length=32)
        with torch.inference_mode():
            out = model(pixel_values=values, **text)
        scores = out.pred_logits[0].sigmoid() * out.presence_logits[0].sigmoid()
        masks = torch.nn.functional.interpolate(
            out.pred_masks.sigmoid(), (image.height, image.width), mode="bilinear"
        )[0]
        boxes = (out.pred_boxes[0] * torch.tensor(extent)).numpy()
        for i in range(len(scores)):
            if scores[i] > threshold:
                rows.append((scores[i].item(), label, boxes[i], masks[i].numpy()))
    return sorted(rows, key=lambda row: -row[0])


def test_sam3_finds_what_the_model_finds_concept_by_concept(tiny):
    image = picture(70, 40)
    expected = sam3_reference(tiny / "sam3", image, 0.005)
    found = concepts(tiny / "sam3").extract(image)
    big = [row for row in expected if np.ptp(row[2].clip(0, [70, 40] * 2).reshape(2, 2), 0).min()]
    assert len(found) == len(big) > 20 and list(found.labels) == [row[1] for row in big]
    np.testing.assert_allclose(found.scores, [row[0] for row in big], rtol=1e-4)
    boxes = np.stack([row[2] for row in big]).clip(0, [70, 40, 70, 40])
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    for mask, row in zip(found.dense_masks(), big, strict=True):
        sure = np.abs(row[3] - 0.5) > 1e-4
        np.testing.assert_array_equal(mask[sure], (row[3] > 0.5)[sure])
    assert not len(found.mask_scores) and not found.tags


def test_sam3_encodes_an_image_once(tiny, monkeypatch):
    extractor = concepts(tiny / "sam3")
    seen = []
    look = extractor._model.get_vision_features
    monkeypatch.setattr(
        extractor._model,
        "get_vision_features",
        lambda pixel_values: seen.append(len(pixel_values)) or look(pixel_values=pixel_values),
    )
    batch = extractor.extract_batch([picture(40, 30), picture(30, 40, 1)])
    assert seen == [1, 1]
    alone = extractor.extract(picture(30, 40, 1))
    np.testing.assert_array_equal(batch[1].boxes, alone.boxes)
    assert batch[1].masks == alone.masks and len(alone)
    assert extractor.seconds["detect"] > 0 < extractor.seconds["segment"]


def test_sam3_drops_by_threshold_and_survives_odd_images(tiny):
    assert len(concepts(tiny / "sam3", threshold=1.0).extract(picture(40, 30))) == 0
    few = concepts(tiny / "sam3", filters.Limits(), labels=["dog"])
    for size in ((1, 1), (1, 2000), (2000, 1)):
        assert few.extract(Image.new("RGB", size, "blue")).size == size[::-1]
    with pytest.raises(errors.SgqlmError, match="too long"):
        concepts(tiny / "sam3", labels=["dog", "x" * 60]).extract(picture(20, 20))
    with pytest.raises(errors.SgqlmError, match="another kind"):
        concepts(tiny / "sam")


def test_sam3_is_read_from_the_folder_of_the_video_model(tiny, tmp_path):
    from tests.entities import tiny_segmenters

    folder = tiny_segmenters.sam3(tmp_path, video=True)
    one, other = (
        concepts(f, labels=["dog"]).extract(picture(50, 40)) for f in (folder, tiny / "sam3")
    )
    assert len(one) and one.masks == other.masks
