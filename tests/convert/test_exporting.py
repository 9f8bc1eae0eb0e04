"""Models out and in again: the identical tree, and what transformers makes of the folders."""

import dataclasses
import json
import pathlib
import warnings

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from sgqlm import config, errors, types
from sgqlm import model as model_lib
from sgqlm.cli import main
from sgqlm.convert import exporting, importing, own, stream
from sgqlm.decode import generate
from sgqlm.models import clip_vit, lora, vlm
from sgqlm.train import bundle, checkpoint
from tests import tiny_model
from tests.convert import other_python
from tests.models import helpers, test_llava

QUIET = exporting.Options(check_text=False)


@pytest.fixture(scope="module")
def tiny():
    """Return a model with every part; its projector takes patch by patch, as LLaVA's does."""
    made = tiny_model.make()
    model = dataclasses.replace(
        made.config.model, projector=dataclasses.replace(made.config.model.projector, merge=1)
    )
    return random_model(dataclasses.replace(made.config, model=model), made.tokenizer)


def random_model(whole, tokenizer, seed=1):
    rng = np.random.default_rng(seed)
    params = lora.map_with_path(
        lambda path, leaf: rng.normal(path.endswith("scale"), 0.15, leaf.shape).astype(np.float32),
        vlm.param_shapes(whole.model),
    )
    return model_lib.VisionLanguageModel.from_parts(whole, params, tokenizer)


@pytest.fixture(scope="module", params=[(False, "quick_gelu", -2), (True, "gelu", -1)])
def theirs(request, tmp_path_factory):
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("theirs")
    is_tied, activation, layer = request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = test_llava.make(folder, torch, is_tied=is_tied, activation=activation, layer=layer)
    return torch, folder, model


def same(a, b):
    """Compare two opened models bit for bit, what they carry included."""
    for ours, others in ((a.leaves, b.leaves), (a.carried, b.carried)):
        assert set(ours) == set(others)
        for path in ours:
            x, y = ours[path].load(), others[path].load()
            assert (x.dtype, x.shape) == (y.dtype, y.shape), path
            assert x.tobytes() == y.tobytes(), path


def run(*words) -> int:
    return main.main([str(word) for word in words])


def test_a_llava_comes_back_bit_for_bit(theirs, tmp_path, capsys):
    torch, folder, model = theirs
    assert run("import", "llava", folder, "--out", tmp_path / "a") == 0
    assert run("export", "llava", tmp_path / "a", "--out", tmp_path / "b", "--no-check-text") == 0
    assert run("import", "llava", tmp_path / "b", "--out", tmp_path / "c") == 0
    assert "wrote" in capsys.readouterr().out
    first, again = (bundle.open_model(tmp_path / name)[1] for name in "ac")
    assert first.config == again.config
    same(first, again)
    transformers = pytest.importorskip("transformers")
    loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "b", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.tensor([[1, 7, *[test_llava.IMAGE] * test_llava.PATCHES, 9, 11, 5]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (m.eval()(input_ids=ids, pixel_values=pixels).logits for m in (model, loaded))
    assert torch.equal(a, b[..., : a.shape[-1]])


@pytest.mark.slow  # tests/convert/test_parity.py has the gate itself
def test_verification_against_transformers(theirs, tmp_path, capsys):
    _, folder, _ = theirs
    assert run("import", "llava", folder, "--out", tmp_path / "a", "--verify") == 0
    out = capsys.readouterr().out
    assert "compared with torch, float32" in out
    assert "100.0%" in out


def test_parts_that_llava_cannot_hold_are_named(tiny, tmp_path):
    with pytest.raises(errors.SgqlmError, match="3 parts that 'llava' cannot hold") as caught:
        tiny.save_pretrained(tmp_path / "x", "llava", options=QUIET)
    for part in ("prototypes (paper)", "scene graph", "region classifier"):
        assert part in caught.value.what
    assert caught.value.code == errors.CHECKPOINT
    assert 'format="sgqlm"' in caught.value.fix and "--drop-extras" in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_an_export_without_the_extras_is_a_llava(tiny, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options = dataclasses.replace(QUIET, drop_extras=True)
    report = tiny.save_pretrained(tmp_path / "x", "llava", options=options)
    assert report.manifest["dropped"] == ["prototypes (paper)", "scene graph", "region classifier"]
    assert "prototypes" in (tmp_path / "x" / "README.md").read_text()
    loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    assert not any(info.values()), info
    read = model_lib.load(tmp_path / "x")
    assert read.config.model.llm_lora.rank == 0
    rng = np.random.default_rng(0)
    vocab = read.config.model.llm.vocab_size
    ids = rng.integers(3, vocab, (1, 12))
    token = loaded.config.image_token_id
    pixels = rng.integers(0, 256, (56, 56, 3)).astype(np.uint8)
    placed = np.concatenate([ids[:, :3], [[-200]], ids[:, 3:]], 1)
    ours = read.logits([Image.fromarray(pixels)], placed)
    normal = np.asarray(clip_vit.normalise(pixels[None], np.float32)).transpose(0, 3, 1, 2)
    expanded = np.concatenate([ids[:, :3], np.full((1, 16), token), ids[:, 3:]], 1)
    with torch.no_grad():
        found = loaded.eval()(
            input_ids=torch.tensor(expanded), pixel_values=torch.tensor(normal)
        ).logits
    assert np.abs(found[..., :vocab].numpy() - ours).max() < 1e-4
    best = found[..., :vocab].max(-1).values
    assert (found[..., vocab:].max(-1).values <= best).all()  # fillers are never said


@pytest.fixture(scope="module")
def greedy(tiny, tmp_path_factory):
    """Export a LLaVA and let ours answer four rows; return the folder, inputs, logits and ids."""
    root = tmp_path_factory.mktemp("greedy")
    options = dataclasses.replace(QUIET, drop_extras=True)
    tiny.save_pretrained(root / "x", "llava", options=options)
    read = model_lib.load(root / "x")
    cfg, params = read.config.model, read.params
    token = json.loads((root / "x" / "config.json").read_text())["image_token_index"]
    rng = np.random.default_rng(0)
    lengths = np.array([31, 20, 27, 24], np.int32)  # 16 of them are the image
    batch = helpers.batch(cfg, num_nodes=(0,) * 4, length=32)
    images = rng.integers(0, 256, batch.images.shape).astype(np.uint8)
    ids = rng.integers(3, cfg.llm.vocab_size, (4, 32))
    ids[:, 1:17] = types.IMAGE_TOKEN_ID
    ids = np.where(np.arange(32) < lengths[:, None], ids, 0).astype(np.int32)
    batch = batch._replace(images=images, tokens=ids, lengths=lengths, graph=None)
    logits = np.asarray(vlm.head(params, cfg, vlm.forward(params, cfg, batch)[0]))
    never = cfg.llm.vocab_size
    ours = generate.Generator(cfg, params, eos_id=never).generate(batch, max_new_tokens=64)
    assert len(set(map(tuple, ours))) == 4
    size = lengths.max()
    left = np.stack([np.roll(row[:size], size - n) for row, n in zip(ids, lengths, strict=True)])
    given = {
        "ids": np.where(left == types.IMAGE_TOKEN_ID, token, left).astype(np.int64),
        "mask": (np.arange(size) >= size - lengths[:, None]).astype(np.int64),
        "pixels": np.asarray(clip_vit.normalise(images, np.float32)).transpose(0, 3, 1, 2).copy(),
    }
    np.savez(root / "given.npz", **given)
    last = logits[np.arange(4), lengths - 1]
    return root, last, ours


def equal_greedy(python, greedy, major):
    root, last, ours = greedy
    program = pathlib.Path(__file__).parent / "run_llava.py"
    other_python.run(python, program, root / "x", root / "given.npz", root / f"{major}.npz")
    found = np.load(root / f"{major}.npz")
    report = json.loads(str(found["report"]))
    assert report["version"].startswith(major)
    assert report["lost"] == 0
    assert np.abs(found["logits"][:, -1, : last.shape[1]] - last).max() < 1e-4
    assert found["several"].tolist() == ours
    assert found["one"].tolist() == ours[:1]


@pytest.mark.slow
def test_greedy_answers_equal_alone_and_padded_on_the_left(greedy):
    equal_greedy(other_python.having("transformers"), greedy, "5.")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_greedy_answers_equal_in_transformers_4(greedy, transformers_4):
    equal_greedy(transformers_4, greedy, "4.57")


@pytest.mark.parametrize("mode", [pytest.param("paper", marks=pytest.mark.slow), "released"])
def test_the_whole_model_comes_back_bit_for_bit(tiny, tmp_path, mode):
    prototypes = dataclasses.replace(tiny.config.model.prototypes, mode=mode)
    cfg = dataclasses.replace(tiny.config.model, prototypes=prototypes)
    model = random_model(dataclasses.replace(tiny.config, model=cfg), tiny.tokenizer)
    model.save_pretrained(tmp_path / "x", "sgqlm", options=QUIET)
    read = model_lib.load(tmp_path / "x")
    assert read.config.model == cfg
    assert read.config.text == model.config.text
    assert read.tokenizer.model_bytes == model.tokenizer.model_bytes
    a, b = (traverse_util.flatten_dict(m.params, sep="/") for m in (model, read))
    assert set(a) == set(b)
    assert all((a[path] == b[path]).all() for path in a)
    # and through a checkpoint
    assert run("import", "sgqlm", tmp_path / "x", "--out", tmp_path / "c") == 0
    with importing.open_any(tmp_path / "x") as first:
        same(first, bundle.open_model(tmp_path / "c")[1])


def test_adapters_come_back_onto_their_base(tiny, tmp_path, capsys):
    plain = dataclasses.replace(
        tiny.config.model,
        prototypes=config.PrototypeConfig(),
        graph=config.GraphConfig(enabled=False),
        region_words=0,
    )
    model = random_model(dataclasses.replace(tiny.config, model=plain), tiny.tokenizer)
    options = dataclasses.replace(QUIET, base="me/base")
    model.save_pretrained(tmp_path / "adapter", "peft", options=options)
    flat = traverse_util.flatten_dict(model.params, sep="/")
    none = dataclasses.replace(plain, llm_lora=config.LoraConfig(), vision_lora=config.LoraConfig())
    kept = {path: leaf for path, leaf in flat.items() if "lora_" not in path}
    bare = model_lib.VisionLanguageModel(
        dataclasses.replace(model.config, model=none),
        traverse_util.unflatten_dict(kept, sep="/"),
        model.tokenizer,
    )
    bare.save_pretrained(tmp_path / "base", "sgqlm", options=QUIET)
    words = ("import", "peft", tmp_path / "adapter", "--onto", tmp_path / "base")
    assert run(*words, "--out", tmp_path / "c") == 0
    found = bundle.open_model(tmp_path / "c")[1]
    assert found.config == plain
    assert all((found.leaves[path].load() == np.asarray(flat[path])).all() for path in flat)
    with pytest.raises(errors.SgqlmError, match="nothing says what the adapters belong to"):
        model.save_pretrained(tmp_path / "other", "peft", options=QUIET)
    capsys.readouterr()
    assert run("export", "peft", tmp_path / "base", "--out", tmp_path / "y") == errors.CHECKPOINT


def test_bfloat16_is_kept_and_made(tiny, tmp_path):
    options = dataclasses.replace(QUIET, dtype="bfloat16")
    tiny.save_pretrained(tmp_path / "x", "sgqlm", options=options)
    tree = json.loads((tmp_path / "x" / "config.json").read_text())
    assert tree["dtype"] == tree["torch_dtype"] == tree["text_config"]["dtype"] == "bfloat16"
    with own.open_export(tmp_path / "x") as found:
        assert {leaf.dtype for leaf in found.leaves.values()} == {np.dtype(ml_dtypes.bfloat16)}
        whole = config.Config(model=found.config, text=found.text)
        meta = checkpoint.Meta(config.to_dict(whole), "import", 0, 0, is_final=True)
        bundle.write(tmp_path / "c", meta, found)
        same(found, bundle.open_model(tmp_path / "c")[1])
    flat = traverse_util.flatten_dict(tiny.params, sep="/")
    with own.open_export(tmp_path / "x") as found:
        path = "graph/round_0/send/kernel"
        expected = np.asarray(flat[path]).astype(ml_dtypes.bfloat16)
        assert found.leaves[path].load().tobytes() == expected.tobytes()


@pytest.mark.slow
def test_merging_is_what_the_adapters_did(tiny, tmp_path):
    model = dataclasses.replace(tiny.config.model, region_words=0)
    plain = random_model(dataclasses.replace(tiny.config, model=model), tiny.tokenizer)
    plain.save_pretrained(tmp_path / "x", "sgqlm", options=dataclasses.replace(QUIET, merge=True))
    read = model_lib.load(tmp_path / "x")
    assert read.config.model.llm_lora.rank == read.config.model.vision_lora.rank == 0
    ids = np.random.default_rng(0).integers(3, 100, (2, 9))
    assert np.abs(read.logits([None] * 2, ids) - plain.logits([None] * 2, ids)).max() < 1e-4
    with pytest.raises(errors.SgqlmError, match="cannot be merged"):
        tiny.save_pretrained(
            tmp_path / "y", "sgqlm", options=dataclasses.replace(QUIET, merge=True)
        )


def test_one_flipped_byte_is_found_and_named(tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "x", "sgqlm", options=QUIET)
    assert run("import", "sgqlm", tmp_path / "x", "--out", tmp_path / "c") == 0
    assert run("ckpt", "verify", tmp_path / "x") == 0
    assert run("ckpt", "verify", tmp_path / "c") == 0
    capsys.readouterr()
    for folder, pattern in ((tmp_path / "x", "model.safetensors"), (tmp_path / "c", "params/**/*")):
        file = max((p for p in folder.glob(pattern) if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert run("ckpt", "verify", folder) == errors.CHECKPOINT
        out = capsys.readouterr().out
        assert f"{file.relative_to(folder)} has changed" in out
    with pytest.raises(errors.SgqlmError, match="damaged in 1 files"):
        model_lib.load(tmp_path / "x")
    assert run("ckpt", "verify", tmp_path) == errors.CHECKPOINT
    assert "nothing to verify" in capsys.readouterr().err
    assert run("import", "sgqlm", tmp_path, "--out", tmp_path / "z") == errors.CHECKPOINT
    assert "not an export of sgqlm" in capsys.readouterr().err


def test_targets_that_exist_are_refused(tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "x", "sgqlm", options=QUIET)
    before = json.loads((tmp_path / "x" / stream.MANIFEST).read_text())
    with pytest.raises(errors.SgqlmError):
        tiny.save_pretrained(tmp_path / "x", "sgqlm", options=QUIET)
    assert json.loads((tmp_path / "x" / stream.MANIFEST).read_text()) == before
    again = dataclasses.replace(QUIET, overwrite=True, dtype="float16")
    tiny.save_pretrained(tmp_path / "x", "sgqlm", options=again)
    assert json.loads((tmp_path / "x" / stream.MANIFEST).read_text())["dtype"] == "float16"
    (tmp_path / "c").mkdir()
    words = ("import", "sgqlm", tmp_path / "x", "--out", tmp_path / "c")
    assert run(*words) == errors.USAGE
    assert "exists already" in capsys.readouterr().err
