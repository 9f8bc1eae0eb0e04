"""Detectors: prompts and spans, agreement with transformers itself, odd images and odd labels."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.entities import grounding_dino, interfaces, owlv2, pretrained, spans

torch = pytest.importorskip("torch", reason="the entities extra is not installed")
transformers = pytest.importorskip("transformers", reason="the entities extra is not installed")

LABELS = ["dog", "Red ball", "street sign", "a cat"]
ODD = [(1, 1), (1, 2000), (2000, 1), (3, 40), (40, 3), (7, 5)]  # width, height
DINOS = (grounding_dino.GroundingDino, grounding_dino.MMGroundingDino)


@pytest.fixture(scope="module")
def photos():
    """Return four images, of which two have the same size."""
    made = []
    for k, size in enumerate([(80, 60), (110, 60), (80, 60), (60, 90)]):
        image = Image.new("RGB", size, (200, 220, 180))
        ImageDraw.Draw(image).rectangle((10, 10, 30 + 10 * k, 40), fill=(200, 30, 60 * k))
        made.append(image)
    return made


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return pretrained.tokenizer(str(tiny / "grounding_dino"), "")


@pytest.fixture(scope="module")
def load(tiny):
    """Return a function that loads a detector once, with a threshold that keeps every box."""
    made = {}

    def one(kind, **settings):
        key = (kind.name, *sorted(settings.items()))
        if key not in made:
            settings = {"box_threshold": -1.0, "device": "cpu"} | settings
            made[key] = kind.load(tiny / kind.name, **settings)
        return made[key]

    return one


def near(one, other, atol=1e-4):
    """Tell whether two results have the same boxes, scores and labels in the same order."""
    assert list(one.labels) == list(other.labels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=atol)


def test_a_prompt_has_the_ids_of_the_processor(tiny, tokenizer):
    processor = transformers.GroundingDinoProcessor.from_pretrained(tiny / "grounding_dino")
    labels = sorted(label.lower() for label in [*LABELS, "zebra crossing", "t-shirt"])
    (prompt,) = spans.prompts(labels, tokenizer, budget=99)
    assert list(prompt.ids) == processor(text=[labels], return_tensors="pt").input_ids[0].tolist()
    words = tokenizer.convert_ids_to_tokens(prompt.ids)
    cut = ["".join(words[a:b]).replace("##", "") for a, b in prompt.spans]
    assert cut == [label.replace(" ", "") for label in labels] and list(prompt.labels) == labels


def test_a_prompt_by_hand(tokenizer):
    (prompt,) = spans.prompts(["dog", "Red ball"], tokenizer, budget=8)
    words = tokenizer.convert_ids_to_tokens(prompt.ids)
    assert words == ["[CLS]", "dog", ".", "red", "ball", ".", "[SEP]"]
    assert prompt.spans == [(1, 2), (3, 5)] and prompt.labels == ["dog", "Red ball"]
    (prompt,) = spans.prompts(["dog", "red, ball"], tokenizer, budget=8, separator=", ")
    words = tokenizer.convert_ids_to_tokens(prompt.ids)
    assert words == ["[CLS]", "dog", ",", "red", "ball", ".", "[SEP]"]
    assert prompt.spans == [(1, 2), (3, 5)]


def test_labels_are_cleaned_and_come_back_as_they_were(tokenizer):
    assert spans.clean("  St. Bernard [SEP] what?\n") == "st bernard sep what"
    assert spans.clean("a, b") == "a, b" and spans.clean("a, b", ",") == "a b"
    given = ["Dog.", "dog", "CAT [MASK]", "dog ?"]
    (prompt,) = spans.prompts(given, tokenizer, budget=99)
    assert list(prompt.labels) == ["CAT [MASK]", "Dog."]  # what reads the same is asked once
    marks = set(tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[MASK]", "[PAD]", ".", "?"]))
    inside = [i for a, b in prompt.spans for i in prompt.ids[a:b]]
    assert inside and not marks & set(inside)


@pytest.mark.parametrize("budget", [6, 7, 12, 31])
def test_prompts_keep_to_the_budget_and_lose_nothing(tokenizer, budget):
    labels = ["dog", "red ball", "cat", "tree", "blue box", "street sign", "bird", "the red table"]
    found = spans.prompts(labels, tokenizer, budget=budget)
    assert sorted(label for prompt in found for label in prompt.labels) == sorted(labels)
    sizes = [len(prompt.ids) for prompt in found]
    assert max(sizes) <= budget
    for prompt, following in itertools.pairwise(found):
        start, end = following.spans[0]
        assert len(prompt.ids) + end - start + 1 > budget  # no room was left for the next one
    assert found == spans.prompts(labels[::-1], tokenizer, budget=budget)
    assert spans.prompts([], tokenizer, budget=budget) == []


def test_labels_that_cannot_be_asked_for_are_refused(tokenizer):
    for label, what in (("...", "names nothing"), ("", "names nothing"), ("x" * 40, "too long")):
        with pytest.raises(errors.SgqlmError, match=what) as caught:
            spans.prompts(["dog", label], tokenizer, budget=32)
        assert caught.value.code == errors.DATA
    assert len(spans.prompts(["x" * 29], tokenizer, budget=32)[0].ids) == 32
    with pytest.raises(errors.SgqlmError, match="separator"):
        spans.prompts([], tokenizer, budget=32, separator="; ")


def test_the_best_label_by_hand():
    logits = np.array([[9, 1, 2, 9, 3, 0, 9], [9, 4, 5, 9, 5, 5, 9]], np.float32)
    top, label = spans.best(logits, [(1, 3), (4, 6)])  # 9 stands at marks that belong to none
    assert top.tolist() == [3, 5] and label.tolist() == [1, 0]


def _by_transformers(folder, model_class, image, labels):
    """Return boxes of all queries and their scores for each label, without any of our code."""
    model = model_class.from_pretrained(folder).eval()
    processor = transformers.GroundingDinoProcessor.from_pretrained(folder)
    inputs = processor(images=image, text=[labels], return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    (every,) = processor.post_process_grounded_object_detection(
        out, threshold=-1.0, target_sizes=[(image.height, image.width)]
    )
    ids, table, tokens = inputs.input_ids[0].tolist(), [], []
    for place, token in enumerate(ids[1:], 1):
        if token == 1012:  # "."
            table.append(out.logits[0, :, tokens].sigmoid().amax(-1))
            tokens = []
        else:
            tokens.append(place)
    return every["boxes"].numpy(), torch.stack(table, 1).numpy(), every["scores"].numpy()


@pytest.mark.parametrize("kind", DINOS)
def test_dino_agrees_with_transformers(tiny, load, photos, kind):
    model_class = getattr(transformers, kind.model_class)
    for image in photos[1], photos[3]:
        boxes, table, upper = _by_transformers(tiny / kind.name, model_class, image, LABELS)
        (found,) = load(kind).detect([image], [LABELS])
        assert isinstance(load(kind), interfaces.Detector) and len(found) == len(boxes) == 10
        order = np.argsort(-table.max(1), kind="stable")
        np.testing.assert_allclose(found.scores, table.max(1)[order], atol=1e-5)
        np.testing.assert_allclose(found.boxes, boxes[order], atol=1e-3)
        assert list(found.labels) == [LABELS[k] for k in table.argmax(1)[order]]
        assert (found.scores <= upper[order] + 1e-5).all()  # which also counts the marks
        assert len(set(found.labels)) > 1 and np.ptp(found.scores) > 0.1


@pytest.mark.parametrize("kind", DINOS)
def test_dino_keeps_what_exceeds_the_threshold(tiny, load, photos, kind):
    (every,) = load(kind).detect(photos[:1], [LABELS])
    limit = float(every.scores[4])
    (some,) = load(kind, box_threshold=limit).detect(photos[:1], [LABELS])
    assert 0 < len(some) <= 4 and (some.scores > limit).all()
    np.testing.assert_array_equal(some.boxes, every.boxes[: len(some)])
    (none,) = load(kind, box_threshold=1.0).detect(photos[:1], [LABELS])
    assert none.boxes.shape == (0, 4) and len(none.labels) == len(none.scores) == 0


@pytest.mark.parametrize("kind", [*DINOS, owlv2.Owlv2])
def test_an_image_has_the_same_boxes_in_any_company(load, photos, kind):
    detector = load(kind)
    labels = [LABELS, ["tree"], ["bird", "a green circle"], []]  # prompts of different lengths
    together = detector.detect(photos, labels)
    for image, some, found in zip(photos, labels, together, strict=True):
        (alone,) = detector.detect([image], [some])
        near(found, alone)
        assert set(found.labels) <= set(some)
    assert len(together[3]) == 0 and together[3].boxes.shape == (0, 4)
    assert detector.detect([], []) == []
    near(detector.detect(photos[::-1], labels[::-1])[-1], together[0])


@pytest.mark.parametrize("kind", [*DINOS, owlv2.Owlv2])
def test_the_order_of_labels_changes_nothing(load, photos, kind):
    (found,) = load(kind).detect(photos[:1], [LABELS])
    for labels in (LABELS[::-1], [*LABELS, *LABELS]):
        (other,) = load(kind).detect(photos[:1], [labels])
        near(other, found)


def test_more_labels_than_a_prompt_holds(load, photos):
    detector = load(grounding_dino.GroundingDino)
    labels = [f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in LABELS]
    prompts = spans.prompts(labels, detector._tokenizer, budget=32)
    assert len(prompts) > 1
    (found,) = detector.detect(photos[:1], [labels])
    parts = [detector.detect(photos[:1], [list(prompt.labels)])[0] for prompt in prompts]
    assert len(found) == sum(map(len, parts)) == 10 * len(prompts)
    assert (np.diff(found.scores) <= 0).all() and set(found.labels) <= set(labels)
    ours = {(*map(float, box), label) for box, label in zip(found.boxes, found.labels, strict=True)}
    theirs = {
        (*map(float, box), label)
        for part in parts
        for box, label in zip(part.boxes, part.labels, strict=True)
    }
    assert ours == theirs
    (twice, _) = detector.detect([photos[0], photos[2]], [labels, labels])
    near(twice, found)


@pytest.mark.parametrize("kind", [*DINOS, owlv2.Owlv2])
def test_odd_images_and_labels(load, kind):
    odd = [size for size in ODD if kind is not owlv2.Owlv2 or size != (2000, 1)]  # slow there
    images = [Image.new("RGB", size, (90, 20, 160)) for size in odd]
    labels = ["Mr. T [BIG]?", "naïve café", "ball"]
    for size, found in zip(odd, load(kind).detect(images, [labels] * len(odd)), strict=True):
        assert len(found) and np.isfinite(found.boxes).all()
        assert found.boxes.dtype == found.scores.dtype == np.float32
        assert set(found.labels) <= set(labels)
        centre = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        assert (centre >= -1e-3).all() and (centre <= max(*size, 128)).all()


def test_a_strip_keeps_the_places_of_its_pixels():
    strip = Image.new("RGB", (320, 5), "red")
    wide = grounding_dino.widen(strip, 20)
    assert wide.size == (320, 20) and wide.crop((0, 0, 320, 5)).tobytes() == strip.tobytes()
    assert grounding_dino.widen(wide, 20) is wide
    np.testing.assert_array_equal(
        grounding_dino.corners(np.array([[0.5, 0.5, 1, 0.5]], np.float32), (8, 4)), [[0, 1, 8, 3]]
    )


@pytest.mark.parametrize("kind", DINOS)
def test_bfloat16_and_the_other_separator_work(load, photos, kind):
    rough = load(kind, dtype="bfloat16").detect(photos[:2], [LABELS] * 2)
    exact = load(kind).detect(photos[:2], [LABELS] * 2)
    for one, other in zip(rough, exact, strict=True):
        assert len(one) == len(other) and one.boxes.dtype == np.float32
        # the scores of random weights are close together, so their order may change
        np.testing.assert_allclose(one.scores, other.scores, atol=0.2)
    (comma,) = load(kind, separator=", ").detect(photos[:1], [LABELS])
    (tight,) = load(kind, separator=",").detect(photos[:1], [LABELS])
    near(comma, tight)
    assert np.abs(comma.scores - exact[0].scores).max() > 1e-4  # the labels see one another


@pytest.mark.parametrize("kind", DINOS)
def test_weights_of_another_kind_or_not_whole_are_refused(tiny, tmp_path, kind):
    from safetensors import torch as safe

    for wrong in ("owlv2", {"grounding_dino": "mm_grounding_dino"}.get(kind.name, "ram")):
        with pytest.raises(errors.SgqlmError) as caught:
            kind.load(tiny / wrong)
        assert caught.value.code == errors.CHECKPOINT and caught.value.where == grounding_dino.FLAG
    folder = shutil.copytree(tiny / kind.name, tmp_path / "cut")
    tensors = safe.load_file(folder / "model.safetensors")
    gone = "model.text_projection.weight"
    del tensors[gone]
    safe.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.SgqlmError, match="not complete") as caught:
        kind.load(folder)
    assert gone in caught.value.why
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(errors.SgqlmError, match="cannot be loaded"):
        kind.load(folder)
    with pytest.raises(errors.SgqlmError, match="not named"):
        kind.load("")


@pytest.mark.parametrize("kind", [*DINOS, owlv2.Owlv2])
def test_settings_name_all_that_changes_the_boxes(tiny, load, tmp_path, kind):
    settings = json.loads(json.dumps(load(kind).settings()))
    assert settings["detector"] == kind.name and len(settings["weights"]["sha256"]) == 64
    moved = shutil.copytree(tiny / kind.name, tmp_path / kind.name)
    again = kind.load(moved, box_threshold=-1.0, device="cpu")
    assert again.settings() == settings
    own = {"template": "{}"} if kind is owlv2.Owlv2 else {"separator": ", "}
    for change in ({"box_threshold": 0.3}, {"dtype": "bfloat16"}, own):
        assert load(kind, **change).settings() != settings


def test_owlv2_agrees_with_transformers(tiny, photos):
    folder, limit = tiny / "owlv2", 0.4
    model = transformers.Owlv2ForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.Owlv2Processor.from_pretrained(folder)
    detector = owlv2.Owlv2.load(folder, box_threshold=limit, device="cpu")
    for image in photos:
        texts = [f"a photo of a {label}" for label in LABELS]
        inputs = processor(images=image, text=[texts], return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            out, threshold=limit, target_sizes=[(image.height, image.width)], text_labels=[LABELS]
        )
        order = np.argsort(-theirs["scores"].numpy(), kind="stable")
        (ours,) = detector.detect([image], [LABELS])
        assert 0 < len(ours) == len(order) < 16  # some of the 16 patches
        np.testing.assert_allclose(ours.scores, theirs["scores"].numpy()[order], atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs["boxes"].numpy()[order], atol=1e-2)
        assert list(ours.labels) == [theirs["text_labels"][k] for k in order]


def test_owlv2_embeds_a_vocabulary_once(tiny, photos):
    detector = owlv2.Owlv2.load(tiny / "owlv2", box_threshold=0.0, device="cpu")
    seen = {"texts": 0, "images": 0}

    def count(what):
        def hook(module, arguments, keywords):
            seen[what] += len(keywords.get("input_ids", keywords.get("pixel_values")))

        return hook

    towers = {"texts": detector._model.owlv2.text_model, "images": detector._model.owlv2}
    towers["images"] = towers["images"].vision_model
    for what, tower in towers.items():
        tower.register_forward_pre_hook(count(what), with_kwargs=True)
    labels = [f"{letter}{number}" for letter in "abcdef" for number in range(50)]
    (first,) = detector.detect(photos[:1], [labels])
    assert seen == {"texts": 300, "images": 1}
    detector.detect(photos[:2], [[*labels[:20], "new"], ["new", "a0"]])
    assert seen == {"texts": 301, "images": 3}
    detector.detect(photos, [[]] * len(photos))
    assert seen == {"texts": 301, "images": 3}  # nothing to look for, no look
    near(detector.detect(photos[:1], [labels])[0], first)


def test_owlv2_refuses_what_it_cannot_take(tiny, load):
    with pytest.raises(errors.SgqlmError, match="too long"):
        load(owlv2.Owlv2).detect([Image.new("RGB", (9, 9))], [["dog", "x" * 40]])
    with pytest.raises(errors.SgqlmError, match="another kind"):
        owlv2.Owlv2.load(tiny / "grounding_dino")


def test_owlv2_in_bfloat16_is_near(load, photos):
    (rough,) = load(owlv2.Owlv2, dtype="bfloat16").detect(photos[:1], [LABELS])
    (exact,) = load(owlv2.Owlv2).detect(photos[:1], [LABELS])
    np.testing.assert_allclose(rough.scores, exact.scores, atol=0.1)
    assert np.abs(rough.scores - exact.scores).max() > 0 and rough.boxes.dtype == np.float32


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*DINOS, owlv2.Owlv2])
def test_a_gpu_gives_the_same(load, photos, kind):
    labels = [LABELS] * len(photos)
    there = load(kind, device="cuda", dtype="float32").detect(photos, labels)
    for one, other in zip(there, load(kind).detect(photos, labels), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-2)
    assert all(map(len, load(kind, device="cuda", dtype="auto").detect(photos, labels)))
