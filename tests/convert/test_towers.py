"""CLIP and LLaMA apart, a LLaVA of its authors without its tower, and an adapter on CLIP alone."""

import json
import warnings

import numpy as np
import pytest
from safetensors import numpy as safe_numpy

from sgqlm import config, errors
from sgqlm.cli import main
from sgqlm.convert import hf, importing, names, parity, peft, source, tensors
from sgqlm.models import vlm
from sgqlm.train import bundle
from tests import paths

torch = pytest.importorskip("torch", reason="towers are made with torch")
transformers = pytest.importorskip("transformers", reason="towers are made with transformers")


def saved(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    text = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 50}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 7, "hidden_act": "gelu"}
    llama = transformers.LlamaConfig(
        vocab_size=70,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        rms_norm_eps=3e-6,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision))
        whole = transformers.CLIPConfig(text_config=text, vision_config=vision)
        return {
            "clip": saved(tower, root / "clip"),
            "whole": saved(transformers.CLIPModel(whole), root / "whole"),
            "llama": saved(transformers.LlamaForCausalLM(llama), root / "llama"),
        }


@pytest.mark.parametrize("clip", ["clip", pytest.param("whole", marks=pytest.mark.slow)])
def test_both_towers_equal_transformers(folders, clip):
    with hf.open_towers(folders[clip], folders["llama"]) as found:
        importing.add_projector(found, seed=0)
        job = parity.make_job("clip", found, {"source": folders[clip], "llama": folders["llama"]})
        gaps = parity.compare(found, job)
        assert {gap.name for gap in gaps} == {"features", "logits"}
        for gap in gaps:
            assert gap.is_equal, gap
        assert len(found.carried) == 18  # the layer behind the feature layer and the last norm


def test_either_tower_may_come_first(folders, tmp_path, capsys):
    words = {
        "a": ("clip", folders["clip"], "--llama", folders["llama"]),
        "b": ("llama", folders["llama"], "--clip", folders["clip"]),
    }
    for name, rest in words.items():
        assert main.main(["import", *map(str, rest), "--out", str(tmp_path / name)]) == 0
    out = capsys.readouterr().out
    assert "the projector is fresh" in out
    assert "no tokenizer.model" in out
    a, b = (bundle.open_model(tmp_path / name)[1] for name in "ab")
    assert a.config == b.config
    for path, leaf in a.leaves.items():
        assert leaf.load().tobytes() == b.leaves[path].load().tobytes(), path
    assert main.main(["import", "clip", str(folders["clip"]), "--out", "x", "--llama", "y"]) == 4


@pytest.mark.slow
def test_a_llava_of_its_authors_takes_its_tower_from_elsewhere(folders, tmp_path):
    llama = safe_numpy.load_file(folders["llama"] / "model.safetensors")
    rng = np.random.default_rng(0)
    for index, shape in (("0", (24, 16)), ("2", (24, 24))):
        llama[f"model.mm_projector.{index}.weight"] = rng.normal(size=shape).astype(np.float32)
        llama[f"model.mm_projector.{index}.bias"] = rng.normal(size=24).astype(np.float32)
    safe_numpy.save_file(llama, tmp_path / "model.safetensors")
    tree = json.loads((folders["llama"] / "config.json").read_text())
    tree |= {"model_type": "llava", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with hf.open_llava(tmp_path, clip=folders["clip"]) as found:
        fc1 = found.leaves["projector/fc1/kernel"].load()
        np.testing.assert_array_equal(fc1, llama["model.mm_projector.0.weight"].T)
        given = {"source": tmp_path, "clip": folders["clip"]}
        job = parity.make_job("llava", found, given)
        assert job["kind"] == "towers"
        assert all(gap.is_equal for gap in parity.compare(found, job))
    with pytest.raises(errors.SgqlmError, match="do not fit"):
        hf.open_llava(tmp_path)


def test_an_adapter_on_clip_alone_equals_the_official_features(tmp_path):
    fixture = np.load(paths.fixture("sq_llava/vit_lora_tiny.npz"))
    meta = json.loads(str(fixture["meta"]))
    held = {"base.": {}, "lora.": {}}
    for name in fixture:
        for prefix, tree in held.items():
            if name.startswith(prefix):
                tree[name.removeprefix(prefix)] = fixture[name]
    for name, stem in (("clip", "model"), ("adapter", "adapter_model")):
        (tmp_path / name).mkdir()
        tree = held["base." if name == "clip" else "lora."]
        safe_numpy.save_file(tree, tmp_path / name / f"{stem}.safetensors")
    (tmp_path / "clip" / "config.json").write_text(json.dumps(meta["config"]))
    settings = {"peft_type": "LORA", "r": meta["r"], "lora_alpha": meta["alpha"]}
    llm = config.LlmConfig(vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1,
                           head_dim=8, mlp_dim=8)  # fmt: skip
    cfg = config.ModelConfig(
        vision=hf.hf_config.clip(tmp_path / "clip"),
        llm=llm,
        graph=config.GraphConfig(enabled=False),
        compute_dtype="float32",
    )
    pixels = fixture["input"].transpose(0, 2, 3, 1)
    with source.Source(cfg, config.TextConfig(), {}) as found:
        given = found.files.enter_context(tensors.open_folder(tmp_path / "clip"))
        rows = names.vision_entries()
        hf.add(found, given, rows, canonical=names.of_clip, where=tmp_path)
        assert np.abs(features(found, pixels) - fixture["features_base"]).max() < 2e-5
        adapter = found.files.enter_context(
            tensors.open_folder(tmp_path / "adapter", "adapter_model")
        )
        peft.attach(found, adapter, settings, sides=("vision",), where=tmp_path)
        assert np.abs(features(found, pixels) - fixture["features_lora"]).max() < 2e-5
        assert np.abs(fixture["features_lora"] - fixture["features_base"]).max() > 1e-2


def features(found, pixels):
    params = {"params": found.params()}
    return np.asarray(vlm.Vlm(found.config).apply(params, pixels, method=lambda m, x: m.vision(x)))
