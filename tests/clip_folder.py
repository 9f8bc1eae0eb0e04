"""A random CLIP in a Hugging Face folder, with a byte-pair tokenizer of a few merges."""

import atexit
import functools
import json
import pathlib
import shutil
import tempfile

import pytest

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "d o", "do g</w>", "i s</w>", "r e", "re d</w>"]


def _letters():
    from sgqlm.text import clip_bpe

    return list(clip_bpe._byte_letters().values())


def write_tokenizer(folder: pathlib.Path) -> int:
    """Write vocab.json and merges.txt; return the number of tokens."""
    letters = _letters()
    joined = ["".join(row.split()) for row in MERGES]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    return len(ids)


@functools.cache
def make() -> pathlib.Path:
    """Return the folder of a tiny CLIP, the same for all tests of a run."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tiny-clip-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    size = write_tokenizer(folder)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    text = {**tower, "hidden_size": 24, "vocab_size": size, "max_position_embeddings": 20}
    text |= {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    vision = {**tower, "hidden_size": 32, "image_size": 28, "patch_size": 14}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "logit_scale" not in name:
                weight.add_(0.1 * torch.randn_like(weight))  # also what starts at 0 or 1
    model.save_pretrained(folder)
    return folder
