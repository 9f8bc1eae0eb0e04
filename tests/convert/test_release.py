"""A whole released SQ-LLaVA: features, tokens, logits and loss of the official program."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safe_numpy

from sgqlm import errors, types
from sgqlm.convert import sq_llava
from sgqlm.models import vlm
from tests import paths
from tests.convert import release

pytest.importorskip("torch", reason="the release is a pickle, which torch reads")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = release.copy(tmp_path_factory.mktemp("release") / "all")
    return {name: root / name for name in ("base", "clip", release.NAME)}


@pytest.fixture(scope="module")
def expected():
    return np.load(paths.fixture("sq_llava/tiny_ckpt_forward.npz"))


def open_release(folders, **changes):
    args = {"base": folders["base"], "clip": folders["clip"]} | changes
    return sq_llava.open_release(folders["sqllava-lora-tiny"], **args)


def features(params, cfg, images):
    """Run the tower on pixels that are normalised already."""
    pixels = np.repeat(np.repeat(images, 7, axis=2), 7, axis=3).transpose(0, 2, 3, 1)
    model = vlm.Vlm(cfg)
    return model.apply({"params": params}, pixels, method=lambda m, x: m.vision(x))


@pytest.mark.parametrize("merge", [pytest.param(False, marks=pytest.mark.slow), True])
def test_forward_pass_equals_the_official_one(folders, expected, merge):
    with open_release(folders, merge=merge) as found:
        cfg, params = found.config, found.params()
    assert (cfg.llm_lora.rank, cfg.vision_lora.rank) == ((0, 0) if merge else (4, 2))
    seen = features(params, cfg, expected["images_lowres48"])
    with_image = [0, 2]
    assert np.abs(seen[np.array(with_image)] - expected["vision_features"]).max() < 2e-5
    visual = vlm.visual_tokens(params, cfg, seen)
    tokens = visual.tokens[np.array(with_image)]
    nearest = visual.responsibility[np.array(with_image)].argmax(-1)
    sure = expected["argmax_gap"] > 1e-5
    assert (nearest == expected["projected_argmax_center"])[sure].all()
    assert np.abs(np.where(sure[..., None], tokens - expected["projected"], 0)).max() < 1e-4
    # the official assignment of the few tied patches goes on from here
    full = np.array(visual.tokens)
    full[with_image] = expected["projected"]
    rows, labels = spliced(params, expected, full)
    hidden = vlm.Vlm(cfg).apply({"params": params}, rows, method=lambda m, x: m.llm(x))
    logits = np.asarray(vlm.head(params, cfg, hidden))
    lengths = expected["mm_attention_mask"].sum(1)
    assert (
        np.abs(logits[0, lengths[0] - 12 : lengths[0]] - expected["logits_tail_row0"]).max() < 1e-4
    )
    assert np.abs(logits[1, :10] - expected["logits_row1"]).max() < 1e-4
    losses = -jax.nn.log_softmax(jnp.asarray(logits[:, :-1]))
    counted = labels[:, 1:] >= 0
    picked = np.take_along_axis(np.asarray(losses), np.maximum(labels[:, 1:], 0)[..., None], 2)
    assert abs(float(picked[..., 0][counted].mean()) - float(expected["loss"])) < 1e-4


def spliced(params, expected, visual):
    """Put 576 visual rows where -200 stands, padded on the right."""
    table = np.asarray(params["llm"]["embed"]["embedding"])
    rows, labels = [], []
    for ids, kept, answers, image in zip(
        expected["input_ids"], expected["attention_mask"], expected["labels"], visual, strict=True
    ):
        parts, told = [], []
        for token, label in zip(ids[kept], answers[kept], strict=True):
            is_image = token == types.IMAGE_TOKEN_ID
            parts.append(image if is_image else table[[token]])
            told += [types.IGNORE] * len(image) if is_image else [label]
        rows.append(np.concatenate(parts))
        labels.append(told)
    size = max(map(len, rows))
    padded = np.stack([np.pad(row, ((0, size - len(row)), (0, 0))) for row in rows])
    filled = [told + [types.IGNORE] * (size - len(told)) for told in labels]
    return jnp.asarray(padded), np.array(filled)


def test_what_is_told_and_what_is_carried(folders):
    with open_release(folders) as found:
        (note,) = found.notes
        assert note.startswith("max |lora_B| of the vision tower's adapter: 0.")
        assert "never trained" not in note
        assert found.config.image_fit == "pad"
        assert str(folders["base"].parent) not in json.dumps(found.about)  # it is stored
        assert found.text.template == "v1_sq"
        behind = [name for name in found.carried if "encoder.layers.2." in name]
        assert len(behind) == 16 + 12  # the unused layer and its adapters
        assert len(found.carried) == 28 + 2


def test_a_tower_adapter_that_was_never_trained_is_told(folders, tmp_path):
    folder = shutil.copytree(folders["sqllava-lora-tiny"], tmp_path / "release")
    file = folder / "Vit-lora" / "adapter_model.safetensors"
    tensors = safe_numpy.load_file(file)
    safe_numpy.save_file({k: v * ("lora_B" not in k) for k, v in tensors.items()}, file)
    with open_release({**folders, "sqllava-lora-tiny": folder}) as found:
        assert "differ between adapter_model and Vit-lora" in found.notes[0]
        assert "0 (it was never trained" in found.notes[1]


def test_what_is_missing_is_named(folders, tmp_path):
    folder = shutil.copytree(folders["sqllava-lora-tiny"], tmp_path / "release")
    with pytest.raises(errors.SgqlmError, match="language model of this release is not") as caught:
        sq_llava.open_release(folder)
    assert "--base" in caught.value.fix
    shutil.rmtree(folder / "Vit-lora")
    changed = {**folders, "sqllava-lora-tiny": folder}
    with pytest.raises(errors.SgqlmError, match="no Vit-lora"):
        open_release(changed)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "mm_projector_type": "mlp2x_gelu"}))
    with pytest.raises(errors.SgqlmError, match="not a SQ-LLaVA"):
        open_release(changed)


@pytest.mark.slow
def test_pickles_give_the_same_and_folders_are_found_where_the_release_names_them(folders):
    with (
        sq_llava.open_release(release.original() / release.NAME) as found,
        open_release(folders) as x,
    ):
        assert found.config == x.config
        assert set(found.leaves) == set(x.leaves)
        for path in found.leaves:
            np.testing.assert_array_equal(found.leaves[path].load(), x.leaves[path].load())
