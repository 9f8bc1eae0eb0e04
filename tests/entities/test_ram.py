"""RAM and RAM++: the numbers of the original program, its files, and broken ones."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.entities import interfaces, ram, ram_checkpoint, tags
from tests import paths
from tests.entities import tiny_detectors

torch = pytest.importorskip("torch", reason="the entities extra is not installed")
pytest.importorskip("transformers", reason="the entities extra is not installed")


@pytest.fixture(scope="module")
def original():
    with np.load(paths.fixture("ram/ram_plus_tiny.npz")) as file:
        tensors = {k.removeprefix("param."): file[k] for k in file.files if k.startswith("param.")}
        return tensors, file["input"], file["logits"], json.loads(str(file["meta"]))


@pytest.fixture(scope="module")
def photos():
    made = []
    for k in range(3):
        image = Image.new("RGB", (80 + 30 * k, 60), (200, 220, 180))
        ImageDraw.Draw(image).rectangle((10, 10, 40, 40), fill=(200, 30, 90 * k))
        made.append(image)
    return [*made, Image.new("RGB", (1, 1), "red"), Image.new("RGB", (1, 2000), "blue")]


@pytest.fixture(scope="module")
def tagger(tiny):
    return ram.RamTagger.load(tiny / "ram_plus", device="cpu")


def test_the_original_program_gives_the_same_logits(original):
    tensors, pixels, logits, sizes = original
    model = ram.RamTagger.from_original(tensors, **sizes)
    found = model.logits(pixels)
    assert found.dtype == np.float32 and found.shape == (3, 37)
    # float32 against float32: either is 5e-6 from the same in float64
    np.testing.assert_allclose(found, logits, atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.logits(torch.from_numpy(pixels)), found, atol=1e-6)


def test_sizes_are_read_off_the_tensors(original):
    tensors, pixels, logits, sizes = original
    as_torch = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    model = ram.RamTagger.from_original(as_torch, num_class=37)
    assert vars(model.sizes) == sizes
    np.testing.assert_allclose(model.logits(pixels), logits, atol=1e-5, rtol=0)


def test_sizes_of_the_published_models():
    def shape(*sizes):
        return torch.empty(sizes, device="meta")

    heads = (6, 12, 24, 48)
    tensors = {
        f"visual_encoder.layers.{stage}.blocks.{block}.attn.relative_position_bias_table": shape(
            23 * 23, heads[stage]
        )
        for stage, depth in enumerate((2, 2, 18, 2))
        for block in range(depth)
    }
    tensors |= {
        f"tagging_head.encoder.layer.{k}.intermediate.dense.weight": shape(3072, 768)
        for k in range(2)
    }
    tensors |= {"visual_encoder.patch_embed.proj.weight": shape(192, 3, 4, 4)}
    tensors |= {"wordvec_proj.weight": shape(768, 512), "label_embed": shape(4585, 512)}
    swin = {
        "image_size": 384, "patch_size": 4, "embed_dim": 192, "depths": [2, 2, 18, 2],
        "num_heads": list(heads), "window_size": 12,
    }  # fmt: skip
    plain = ram_checkpoint.Sizes(swin, 4585, 1, 512, 768, 4, 3072, 2)
    assert ram_checkpoint.sizes(tensors) == plain
    plus = tensors | {"label_embed": shape(4585 * 51, 512), "reweight_scale": shape()}
    assert vars(ram_checkpoint.sizes(plus)) == vars(plain) | {"descriptions_per_class": 51}


def test_one_description_a_tag_makes_ram_of_ram_plus():
    plus = tiny_detectors.ram_tensors(descriptions=1)
    plain = {name: tensor for name, tensor in plus.items() if name != "reweight_scale"}
    pixels = np.random.default_rng(0).normal(size=(2, 3, 96, 96)).astype(np.float32)
    one = ram.RamTagger.from_original(plus, num_class=len(tiny_detectors.TAGS))
    other = ram.RamTagger.from_original(plain)
    assert (one.name, other.name) == ("ram_plus", "ram")
    np.testing.assert_allclose(one.logits(pixels), other.logits(pixels), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "label_embed",
        "fc.bias",
        "visual_encoder.norm.weight",
        "visual_encoder.layers.1.blocks.1.attn.qkv.bias",
        "visual_encoder.patch_embed.proj.weight",
        "tagging_head.encoder.layer.1.output.LayerNorm.bias",
    ],
)
def test_a_missing_tensor_is_named(name):
    tensors = tiny_detectors.ram_tensors(descriptions=0)
    del tensors[name]
    with pytest.raises(errors.SgqlmError) as caught:
        ram.RamTagger.from_original(tensors)
    assert caught.value.code == errors.CHECKPOINT
    assert name.rsplit(".", 1)[-1] in caught.value.why


@pytest.mark.parametrize(
    "name", ["tagging_head.pooler.weight", "visual_encoder.head.weight", "extra"]
)
def test_an_unexpected_tensor_is_named(name):
    tensors = tiny_detectors.ram_tensors(descriptions=0) | {name: torch.zeros(2)}
    with pytest.raises(errors.SgqlmError) as caught:
        ram.RamTagger.from_original(tensors)
    assert f"unexpected: {name}" in caught.value.why


def test_every_tensor_is_used_or_on_the_list_of_dropped_ones():
    tensors = tiny_detectors.ram_tensors(descriptions=5)
    used = ram_checkpoint.convert(tensors)
    dropped = [name for name in tensors if ram_checkpoint.DROPPED.fullmatch(name)]
    counted = sum(t.numel() for t in tensors.values()) - sum(tensors[k].numel() for k in dropped)
    assert sum(t.numel() for t in used.values()) == counted
    assert {name.split(".")[0] for name in dropped} == {
        *("tag_encoder", "text_decoder", "visual_encoder")
    }


def test_the_older_name_of_the_head_is_known():
    tensors = tiny_detectors.ram_tensors(descriptions=0)
    older = {k.replace("tagging_head", "vision_multi"): v for k, v in tensors.items()}
    assert set(ram_checkpoint.convert(older)) == set(ram_checkpoint.convert(tensors))
    with pytest.raises(errors.SgqlmError, match="twice"):
        ram_checkpoint.convert(tensors | older)


@pytest.mark.parametrize(
    "wrong", [{"num_class": 5}, {"query_dim": 31}, {"layers": 3}, {"swin": {"window_size": 4}}]
)
def test_sizes_that_disagree_are_refused(wrong):
    with pytest.raises(errors.SgqlmError):
        ram.RamTagger.from_original(tiny_detectors.ram_tensors(descriptions=0), **wrong)


def test_a_tensor_of_another_shape_is_refused():
    for name in ("image_proj.bias", "visual_encoder.norm.bias"):
        tensors = tiny_detectors.ram_tensors(descriptions=0)
        tensors[name] = torch.zeros(7)
        with pytest.raises(errors.SgqlmError) as caught:
            ram.RamTagger.from_original(tensors)
        assert caught.value.code == errors.CHECKPOINT


def test_tags_above_their_thresholds_best_first(tagger, photos):
    assert isinstance(tagger, interfaces.Tagger)
    logits = tagger.logits(np.stack([tagger.pixels(photo) for photo in photos]))
    scores = 1 / (1 + np.exp(-logits.astype(float)))
    limits = [0.15 if k % 3 else 0.2 for k in range(len(tiny_detectors.TAGS))]
    for found, row in zip(tagger.tag(photos), scores, strict=True):
        every = zip(tiny_detectors.TAGS, row, limits, strict=True)
        expected = [(tag, score) for tag, score, least in every if score > least]
        expected.sort(key=lambda pair: -pair[1])
        assert [tag for tag, _ in found] == [tag for tag, _ in expected] and found
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], atol=1e-6)
    assert len({len(found) for found in tagger.tag(photos)}) > 1  # images are told apart


def test_an_image_is_tagged_alike_in_any_company(tagger, photos):
    together = tagger.tag(photos)
    alone = [tagger.tag([photo])[0] for photo in photos]
    for one, other in zip(together, alone, strict=True):
        assert [tag for tag, _ in one] == [tag for tag, _ in other]
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], atol=1e-5)
    assert tagger.tag([]) == []


def test_pixels_are_squeezed_and_normalised(tagger):
    image = Image.new("RGB", (200, 20), (255, 0, 51))
    image.paste((0, 0, 0), (100, 0, 200, 20))
    pixels = tagger.pixels(image)
    assert pixels.shape == (3, 96, 96) and pixels.dtype == np.float32
    for channel, (value, mean, std) in enumerate(
        [(1, 0.485, 0.229), (0, 0.456, 0.224), (0.2, 0.406, 0.225)]
    ):
        np.testing.assert_allclose(pixels[channel, :, :40], (value - mean) / std, rtol=1e-5)
        np.testing.assert_allclose(pixels[channel, :, 56:], -mean / std, rtol=1e-5)


def test_excluded_tags_change_nothing_for_the_others(tagger, tiny, photos):
    fewer = ram.RamTagger.load(tiny / "ram_plus", exclude=tags.EXCLUDED, device="cpu")
    assert set(tagger.tags) - set(fewer.tags) == {"room", "photo"}
    for all_, some in zip(tagger.tag(photos), fewer.tag(photos), strict=True):
        left = [pair for pair in all_ if pair[0] not in tags.EXCLUDED]
        assert [tag for tag, _ in left] == [tag for tag, _ in some]
        np.testing.assert_allclose([s for _, s in left], [s for _, s in some], atol=1e-6)
    one = tagger.keep(["tree"])
    assert one.logits(one.pixels(photos[0])[None]).shape == (1, 1)
    assert len(tagger.tags) == len(tiny_detectors.TAGS)  # the first one is as it was
    for names, what in ((["unicorn"], "not in the tag list"), ([], "no tag is left")):
        with pytest.raises(errors.SgqlmError, match=what):
            tagger.keep(names)


@pytest.mark.parametrize("kind", ["ram", "ram_plus"])
def test_all_forms_of_a_checkpoint_tag_alike(tiny, tmp_path, photos, kind):
    from safetensors import torch as safe

    folder = tiny / kind
    file = next(folder.glob("*.pth"))
    tensors = torch.load(file, weights_only=True)["model"]
    (tmp_path / "st").mkdir()
    safe.save_file(tensors, tmp_path / "st/weights.safetensors")
    lists = {
        "tags": folder / "ram_tag_list.txt",
        "thresholds": folder / "ram_tag_list_threshold.txt",
    }
    saved = ram.save(file, tmp_path / "saved")
    assert sorted(p.name for p in saved.iterdir()) == [
        *("model.safetensors", "tags.txt", "thresholds.txt")
    ]
    expected = ram.RamTagger.load(folder, kind=kind, device="cpu").tag(photos)
    for source, given in ((file, {}), (saved, {}), (tmp_path / "st/weights.safetensors", lists)):
        assert ram.RamTagger.load(source, device="cpu", **given).tag(photos) == expected
    assert not [k for k in safe.load_file(saved / "model.safetensors") if "decoder" in k]
    with pytest.raises(errors.SgqlmError, match="weights already"):
        ram.save(file, saved)
    some = ram.save(file, tmp_path / "some", exclude=["dog"])
    without = [[pair for pair in found if pair[0] != "dog"] for found in expected]
    found = ram.RamTagger.load(some, device="cpu").tag(photos)
    assert [[t for t, _ in row] for row in found] == [[t for t, _ in row] for row in without]


def test_the_other_kind_is_refused(tiny):
    with pytest.raises(errors.SgqlmError, match="ram, not of ram_plus") as caught:
        ram.RamTagger.load(tiny / "ram", kind="ram_plus")
    assert "--tagger=ram" in caught.value.fix


def test_lists_that_are_missing_or_of_another_model_are_refused(tiny, tmp_path):
    file = shutil.copy(next((tiny / "ram").glob("*.pth")), tmp_path)
    with pytest.raises(errors.SgqlmError, match="needs --tags") as caught:
        ram.RamTagger.load(file)
    assert "ram_tag_list.txt" in caught.value.why
    shutil.copy(tiny / "ram/ram_tag_list.txt", tmp_path)
    with pytest.raises(errors.SgqlmError, match="needs --tag-thresholds"):
        ram.RamTagger.load(file)
    assert ram.RamTagger.load(file, thresholds="0.68").thresholds.tolist() == [
        pytest.approx(0.68)
    ] * len(tiny_detectors.TAGS)
    (tmp_path / "short.txt").write_text("dog\n" * 7)
    for kind in ("ram", "ram_plus"):
        with pytest.raises(errors.SgqlmError) as caught:
            ram.RamTagger.load(tiny / kind, tags=tmp_path / "short.txt", thresholds="0.5")
        assert caught.value.code in (errors.DATA, errors.CHECKPOINT)
        assert "tag" in caught.value.what
    with pytest.raises(errors.SgqlmError, match="thresholds"):
        (tmp_path / "limits.txt").write_text("0.5\n0.5\n")
        ram.RamTagger.load(file, thresholds=tmp_path / "limits.txt")


class _Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["harmful", "text", "cut", "list", "empty", "safetensors"])
def test_a_broken_file_is_refused_and_runs_nothing(tiny, tmp_path, content):
    file, trap = tmp_path / "ram.pth", tmp_path / "trap"
    good = next((tiny / "ram").glob("*.pth")).read_bytes()
    if content == "harmful":
        file.write_bytes(pickle.dumps({"model": _Harmful(trap)}, protocol=2))
    elif content == "list":
        torch.save({"model": [torch.zeros(2)]}, file)
    elif content == "safetensors":
        file = tmp_path / "ram.safetensors"
        file.write_bytes(b"\xff" * 100)
    else:
        file.write_bytes({"text": b"hello", "cut": good[:5000], "empty": b""}[content])
    with pytest.raises(errors.SgqlmError) as caught:
        ram.RamTagger.load(file, tags=tiny / "ram/ram_tag_list.txt", thresholds="0.5")
    assert caught.value.code == errors.CHECKPOINT and not trap.exists()


def test_the_file_of_weights_is_found_or_asked_for(tiny, tmp_path):
    with pytest.raises(errors.SgqlmError, match="no weights"):
        ram_checkpoint.locate(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(errors.SgqlmError) as caught:
        ram_checkpoint.locate(tmp_path)
    assert "a.pth, b.pth" in caught.value.why
    (tmp_path / "model.safetensors").touch()
    assert ram_checkpoint.locate(str(tmp_path)).name == "model.safetensors"
    for wrong in ("", tmp_path / "none.pth"):
        with pytest.raises(errors.SgqlmError) as caught:
            ram_checkpoint.locate(wrong)
        assert caught.value.where == "--tagger-weights"


def test_a_model_of_the_hub_is_taken_from_its_cache(tiny, tmp_path, monkeypatch, photos):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.SgqlmError, match="cannot be loaded") as caught:
        ram.RamTagger.load("owner/ram")
    assert "ram_plus_swin_large_14m.pth" in caught.value.fix
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--owner--ram"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(commit)
    shutil.copytree(tiny / "ram", cache / "snapshots" / commit)
    file = next((cache / "snapshots" / commit).glob("*.pth"))
    file.rename(file.with_name("ram_swin_large_14m.pth"))  # as it was published
    tagger = ram.RamTagger.load("owner/ram", device="cpu")
    assert tagger.tag(photos) == ram.RamTagger.load(tiny / "ram", device="cpu").tag(photos)
    assert tagger.settings()["weights"] == {"id": "owner/ram"}


def test_settings_name_all_that_changes_the_tags(tiny, tagger, tmp_path):
    settings = json.loads(json.dumps(tagger.settings()))
    moved = shutil.copytree(tiny / "ram_plus", tmp_path / "ram_plus")
    assert ram.RamTagger.load(moved, device="cpu").settings() == settings
    others = [
        ram.RamTagger.load(tiny / "ram_plus", device="cpu", thresholds="0.5"),
        ram.RamTagger.load(tiny / "ram_plus", device="cpu", exclude=["dog"]),
        ram.RamTagger.load(tiny / "ram_plus", device="cpu", dtype="bfloat16"),
        ram.RamTagger.load(tiny / "ram", device="cpu"),
    ]
    assert settings not in [json.loads(json.dumps(other.settings())) for other in others]


def test_bfloat16_is_near(tiny, tagger, photos):
    pixels = np.stack([tagger.pixels(photo) for photo in photos])
    rough = ram.RamTagger.load(tiny / "ram_plus", device="cpu", dtype="bfloat16").logits(pixels)
    exact = tagger.logits(pixels)
    assert rough.dtype == np.float32
    # 8 bits of mantissa through some twenty layers; the logits spread over 1
    assert 0 < np.abs(rough - exact).max() < 0.2


def test_a_tagger_without_names_gives_logits_only():
    model = ram.RamTagger.from_original(tiny_detectors.ram_tensors(descriptions=0))
    with pytest.raises(errors.SgqlmError, match="no tag list"):
        model.tag([Image.new("RGB", (9, 9))])


@pytest.mark.gpu
def test_a_gpu_gives_the_same(tiny, tagger, photos):
    pixels = np.stack([tagger.pixels(photo) for photo in photos])
    there = ram.RamTagger.load(tiny / "ram_plus", device="cuda", dtype="float32")
    np.testing.assert_allclose(there.logits(pixels), tagger.logits(pixels), atol=1e-2)
    assert "bfloat16" in ram.RamTagger.load(tiny / "ram_plus").settings()["dtype"]
