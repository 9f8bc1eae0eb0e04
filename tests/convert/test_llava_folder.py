"""Files of a LLaVA folder beside its weights: what transformers reads is what was trained."""

import dataclasses
import io
import json
import random

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from sgqlm import config, errors
from sgqlm.convert import hf, hf_tokenizer, llava_folder, probe
from sgqlm.data import images
from sgqlm.models import clip_vit
from sgqlm.text import tokenizer as tokenizers
from tests import paths, tiny_model
from tests.convert import other_python

PROGRAM = paths.ROOT / "tests" / "convert" / "read_folder.py"
# the running transformers, and the older one in an environment of its own
MAJORS = ["", pytest.param("4", marks=other_python.MARKS)]
SHAPES = ((48, 64, 3), (64, 43, 3), (33, 35, 3), (35, 33, 3), (28, 28, 3), (4, 50, 3), (97, 101))


def settings(**model) -> config.Config:
    """Return a small configuration that LLaVA can hold."""
    made = tiny_model.make().config
    small = dataclasses.replace(
        made.model,
        vision=dataclasses.replace(made.model.vision, image_size=28),
        projector=config.ProjectorConfig(activation="quick_gelu"),
        llm=dataclasses.replace(made.model.llm, rope_theta=5e5, num_kv_heads=2),
    )
    return dataclasses.replace(made, model=dataclasses.replace(small, **model))


def write(folder, whole, tokenizer, image_token_id=None):
    """Write a folder as an export does, without weights."""
    rows = llava_folder.embedding_rows(whole, tokenizer, image_token_id=image_token_id)
    made = llava_folder.side_files(
        whole, tokenizer, vocab_size=rows, dtype="bfloat16", image_token_id=image_token_id
    )
    folder.mkdir(exist_ok=True)
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return folder


def texts():
    """Return many texts: prose, code, scripts, runs of one character, noise."""
    found = [turn["value"] for item in probe.prompts() for turn in item.turns]
    found = [text.replace("<image>", "") for text in found]
    for file in ("README.md", "setup.py", "sgqlm/convert/names.py"):
        content = (paths.ROOT / file).read_text()
        found += [content[:3000], *content.splitlines()]
    for count in range(1, 40):
        found += [f"{char * count}{end}" for char in " -=\n\t.▁" for end in ("", "x")]
    letters = "abcdeKLMNO0123456789     \n\t.,:;!?-_=+()[]<>/\\'\"éüß中文日本🙂▁"
    rng = random.Random(0)
    found += ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(1000)]
    found += ["USER: a", "VUSER:", ": b", " USER: c", "</s>USER: d</s>USER: e", "USER: f </s>"]
    return [text for text in found if text]


def pictures():
    rng = np.random.default_rng(0)
    made = {}
    for number, shape in enumerate(SHAPES):
        y, x = np.mgrid[: shape[0], : shape[1]]
        smooth = (x * 3 + y * 5).reshape(shape[:2] + (1,) * (len(shape) - 2))
        made[f"p{number}"] = np.uint8((smooth + rng.integers(0, 40, shape)) % 256)
    return made


def check(python, folder, whole, tokenizer, tmp_path):
    """Let transformers read a folder and compare everything; return its report."""
    request, answer = tmp_path / "request.npz", tmp_path / "answer.npz"
    words, given = texts(), pictures()
    np.savez(request, texts=json.dumps(words), **given)
    other_python.run(python, PROGRAM, folder, request, answer)
    found = np.load(answer)
    report = json.loads(str(found["report"]))
    different = [
        text
        for text, ids in zip(words, report["ids"], strict=True)
        if ids != tokenizer.encode(text)
    ]
    assert len(words) > 2000
    assert not different, (len(different), different[:5])
    assert report["decoded"] == words[0]
    assert report["inputs"] == ["attention_mask", "input_ids"]  # what `generate` takes
    assert report["placeholders"] == [whole.model.vision.num_patches] * len(given)
    for name, array in given.items():
        square = images.to_square(
            images.open_image(Image.fromarray(array)),
            whole.model.vision.image_size,
            whole.model.image_fit,
        )
        wanted = (square / np.float32(255) - np.float32(clip_vit.MEAN)) / np.float32(clip_vit.STD)
        # the last bit of float32 depends on the order of the divisions
        np.testing.assert_allclose(found[name], wanted.transpose(2, 0, 1), rtol=0, atol=1e-6)
    return report


EXPECTED = {
    ".projector_hidden_act": "quick_gelu",
    ".tie_word_embeddings": True,
    ".vision_feature_layer": -2,
    "text_config.model_type": "llama",
    "text_config.head_dim": 12,
    "text_config.num_key_value_heads": 2,
    "text_config.tie_word_embeddings": True,
    "text_config.rms_norm_eps": 1e-5,
    "vision_config.model_type": "clip_vision_model",
    "vision_config.image_size": 28,
    "vision_config.hidden_act": "quick_gelu",
    "rope_theta": 5e5,
    "dtype": "torch.bfloat16",
    "class": "LlavaConfig",
}


def check_settings(report, tokenizer):
    found, first = report["settings"], tokenizer.vocab_size
    assert {key: found[key] for key in EXPECTED} == EXPECTED
    assert found["text_config.vocab_size"] == -(-(first + 2) // 64) * 64
    assert found["text_config.pad_token_id"] == first + 1
    assert {found[k] for k in (".image_token_id", ".image_token_index") if k in found} == {first}
    assert report["specials"] == [first, first + 1]
    assert report["length"] == first + 2
    assert report["generation"] == {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": first + 1,
    } | {
        k: v for k, v in report["generation"].items() if k in ("transformers_version", "do_sample")
    }


@pytest.mark.parametrize("major", MAJORS)
def test_a_tokenizer_made_here(major, python_with, tmp_path):
    python = python_with(major)
    whole, tokenizer = settings(), tiny_model.words()
    folder = write(tmp_path / "folder", whole, tokenizer)
    check_settings(check(python, folder, whole, tokenizer, tmp_path), tokenizer)


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize(
    "rule", ["4.31", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("4.37", "legacy"))]
)
def test_the_tokenizer_of_llama(major, rule, python_with, tmp_path):
    python = python_with(major)
    model = paths.fixture("llama_tokenizer.model")
    legacy = rule == "legacy"
    tokenizer = tokenizers.load(model, legacy, rule="4.37" if rule == "4.37" else "4.31")
    whole = settings(image_fit="crop")
    folder = write(tmp_path / "folder", whole, tokenizer)
    check(python, folder, whole, tokenizer, tmp_path)


def test_our_own_reader_gives_the_same_model(tmp_path):
    whole = settings()
    folder = write(tmp_path / "folder", whole, tiny_model.words())
    found = hf.read_config(folder)
    rows = llava_folder.embedding_rows(whole, tiny_model.words())
    assert found.vision == whole.model.vision
    assert found.llm == dataclasses.replace(whole.model.llm, vocab_size=rows)
    assert found.projector == whole.model.projector


def test_every_value_stands_in_both_spellings(tmp_path):
    folder = write(tmp_path / "folder", settings(), tiny_model.words())
    tree = json.loads((folder / "config.json").read_text())
    assert tree["dtype"] == tree["torch_dtype"] == "bfloat16"
    assert tree["image_token_id"] == tree["image_token_index"] == tiny_model.words().vocab_size
    text = tree["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 5e5
    processor = json.loads((folder / "processor_config.json").read_text())
    picture = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["image_processor"].items() <= picture.items()
    assert picture["do_pad"]
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    assert kept["legacy"] is False
    assert (folder / "tokenizer.model").read_bytes() == tiny_model.words().model_bytes


def llama_of(rows):
    whole = settings()
    llm = dataclasses.replace(whole.model.llm, vocab_size=rows)
    return dataclasses.replace(whole, model=dataclasses.replace(whole.model, llm=llm))


def test_rows_for_the_added_tokens():
    tokenizer = tokenizers.load(paths.fixture("llama_tokenizer.model"))
    assert llava_folder.embedding_rows(llama_of(32000), tokenizer) == 32064
    # a hub folder has them already
    assert llava_folder.embedding_rows(llama_of(32064), tokenizer, image_token_id=32000) == 32064
    assert llava_folder.embedding_rows(llama_of(32002), tokenizer) == 32002
    assert llava_folder.embedding_rows(llama_of(32001), tokenizer) == 32064
    assert llava_folder.embedding_rows(llama_of(32000), None) == 32064
    assert llava_folder.embedding_rows(llama_of(320), None, image_token_id=300) == 320
    with pytest.raises(errors.SgqlmError, match="is a piece of the tokenizer"):
        llava_folder.embedding_rows(llama_of(32064), tokenizer, image_token_id=31999)


def test_an_id_further_behind_is_kept(tmp_path):
    tokenizer = tiny_model.words()
    wanted = tokenizer.vocab_size + 5
    folder = write(tmp_path / "folder", settings(), tokenizer, image_token_id=wanted)
    tree = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in tree["added_tokens"]}
    assert (added["<image>"], added["<pad>"]) == (wanted, wanted + 1)
    assert sorted(tree["model"]["vocab"].values()) == list(range(wanted + 2))
    assert tree["model"]["vocab"]["<image>"] == wanted


def test_special_tokens_of_the_tokenizer_keep_their_ids():
    tokenizer = tiny_model.words().with_token("[vusr]").with_token("<image>")
    ids = hf_tokenizer.extra_ids(tokenizer, vocab_size=tokenizer.vocab_size)
    assert ids == (tokenizer.vocab_size - 1, tokenizer.vocab_size)
    tree = hf_tokenizer.tokenizer_json(tokenizer, ids)
    added = {token["content"]: token["id"] for token in tree["added_tokens"]}
    assert added["[vusr]"] == tokenizer.vocab_size - 2


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        (config.ProjectorConfig(kind="linear"), "no projector of kind 'linear'"),
        (config.ProjectorConfig(merge=2), "does not join 2 x 2 patches"),
    ],
)
def test_projectors_of_another_form_are_refused(projector, message):
    with pytest.raises(errors.SgqlmError, match=message) as caught:
        llava_folder.side_files(
            settings(projector=projector), None, vocab_size=512, dtype="float32"
        )
    assert caught.value.code == errors.CHECKPOINT
    assert "sgqlm" in caught.value.fix


def test_too_few_rows_are_refused():
    with pytest.raises(errors.SgqlmError, match="no room for <image>"):
        llava_folder.side_files(settings(), tiny_model.words(), vocab_size=400, dtype="float32")


def test_a_tokenizer_of_another_kind_is_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sat on a mat"] * 9),
        model_writer=model,
        model_type="unigram",
        vocab_size=12,
        minloglevel=2,
    )
    other = tokenizers.load(model.getvalue())
    with pytest.raises(errors.SgqlmError, match="fast Hugging Face tokenizer") as caught:
        llava_folder.side_files(settings(), other, vocab_size=512, dtype="float32")
    assert "no BPE model" in caught.value.why
    assert "joins runs of spaces" in caught.value.why


def test_without_a_tokenizer_the_rest_is_written():
    made = llava_folder.side_files(settings(), None, vocab_size=512, dtype="float32")
    assert "config.json" in made.files
    assert "tokenizer.json" not in made.files
    assert any("without a tokenizer" in note for note in made.notes)


def test_notes_name_the_way_images_are_fitted():
    def notes(fit):
        whole = settings(image_fit=fit)
        return llava_folder.side_files(whole, None, vocab_size=512, dtype="float32").notes

    assert "do_pad" in notes("pad")[0]
    assert "cropped" in notes("crop")[0]
    assert any("vuser" in note for note in notes("pad"))  # the tiny model learned to ask
