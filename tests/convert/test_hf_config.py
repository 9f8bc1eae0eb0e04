"""Settings of towers apart, and of LLaVA as its authors wrote it."""

import json

import pytest

from sgqlm import errors
from sgqlm.convert import hf_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 8, "image_size": 28, "hidden_act": "gelu"}


@pytest.fixture
def write(tmp_path):
    def make(name, tree, file="config.json"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text(json.dumps(tree))
        return tmp_path / name

    return make


def test_towers(write):
    vision = hf_config.clip(write("clip", CLIP))
    assert (vision.width, vision.image_size, vision.activation) == (8, 28, "gelu")
    assert hf_config.clip(write("whole", {"model_type": "clip", "vision_config": CLIP})) == vision
    llm = hf_config.llama(write("llama", LLAMA))
    assert (llm.width, llm.num_kv_heads, llm.head_dim, llm.rope_theta) == (16, 4, 4, 10000.0)


def test_the_authors_spelling_of_a_llava(write):
    tree = {
        **LLAMA,
        "model_type": "llava",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "torch_dtype": "bfloat16",
    }
    found = hf_config.llava(write("llava", tree), vision=write("clip", CLIP))
    assert (found.llm.width, found.vision.width) == (16, 8)
    assert (found.image_fit, found.compute_dtype) == ("pad", "bfloat16")
    assert hf_config.llava(write("llava", {**tree, "image_aspect_ratio": None})).image_fit == "crop"


@pytest.mark.parametrize(
    ("reader", "tree", "message"),
    [
        ("clip", LLAMA, "not a CLIP model"),
        ("llama", CLIP, "not a LLaMA model"),
        ("llama", {**LLAMA, "model_type": "llava", "text_config": {}}, "whole LLaVA"),
        ("llava", {**LLAMA, "model_type": "llava", "mm_projector_type": "cluster"}, "SQ-LLaVA"),
        ("llava", {**LLAMA, "model_type": "llava", "mm_projector_type": "moe"}, "'moe' is not"),
        ("llava", [], "holds no settings"),
    ],
)
def test_other_models_are_refused(write, reader, tree, message):
    with pytest.raises(errors.SgqlmError, match=message) as caught:
        getattr(hf_config, reader)(write("x", tree))
    assert caught.value.code == errors.CHECKPOINT


def test_text_settings(write):
    folder = write("x", {"legacy": False}, "tokenizer_config.json")
    assert hf_config.text(folder)[0].legacy is False
    assert hf_config.text(folder)[1] == b""
    (folder / "tokenizer.model").write_bytes(b"abc")
    assert hf_config.text(folder)[1] == b"abc"
    assert hf_config.text(write("y", {}, "tokenizer_config.json"))[0].legacy is True
