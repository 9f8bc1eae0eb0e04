"""`generate`, `ask`, `chat` and `eval` as a user types them, on a saved tiny model."""

import io
import json
import sys

import pytest
from PIL import Image

from sgqlm import config, errors
from sgqlm.cli import main
from sgqlm.train import checkpoint
from tests import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model.make()
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    return checkpoint.save(root, meta, model.params, tokenizer=model.tokenizer.model_bytes)


def run(*words):
    return main.main([str(word) for word in words])


def test_generate_prints_the_answer(folder, capsys):
    words = [f"--checkpoint={folder}", "--scene=0", "--prompt=what is it?", "--max-new-tokens=4"]
    assert run("generate", *words) == errors.OK
    first = capsys.readouterr().out
    assert first.strip()
    assert run("generate", *words) == errors.OK
    assert capsys.readouterr().out == first


def test_generate_takes_a_photograph(folder, capsys, tmp_path):
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "a.png")
    words = [f"--checkpoint={folder}", "--prompt=what is it?", "--max-new-tokens=4"]
    assert run("generate", *words, f"--image={tmp_path / 'a.png'}") == errors.OK
    assert "entities (regions)" in capsys.readouterr().err
    assert run("generate", *words, "--image=none.png") == errors.DATA
    assert "there is no such picture" in capsys.readouterr().err


def test_ask_asks_and_answers(folder, capsys):
    words = [f"--checkpoint={folder}", "--num-questions=2", "--max-new-tokens=4"]
    assert run("ask", *words, "--scene=1") == errors.OK
    kinds = [line[:2] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["Q:", "A:"] * 2
    assert run("ask", *words) == errors.USAGE
    assert "--image or --scene" in capsys.readouterr().err


def test_chat_reads_a_pipe_and_survives_errors(folder, capsys, monkeypatch, tmp_path):
    page = tmp_path / "graph.html"
    lines = ["what is it?", "/nonsense", "/ask x", "", f"/graph {page}", "/ask"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    words = [f"--checkpoint={folder}", "--scene=2", "--max-new-tokens=3"]
    assert run("chat", *words) == errors.OK
    seen = capsys.readouterr()
    assert seen.err.count("error:") == 2
    assert "unknown command /nonsense" in seen.err
    assert "attention on the question" in seen.out
    assert "Q: " in seen.out
    assert "<svg" in page.read_text()
    assert not seen.out.startswith(">")


@pytest.mark.slow
def test_eval_prints_and_writes_every_arm(folder, capsys, tmp_path):
    out = tmp_path / "eval.json"
    small = ["--config.eval.num_scenes=2", "--config.eval.max_new_tokens=2"]
    assert run("eval", f"--checkpoint={folder}", f"--out={out}", *small) == errors.OK
    assert "edges_permuted" in capsys.readouterr().out
    assert json.loads(out.read_text())["asked"]["questions"] == 2


def test_eval_names_the_nearest_setting(folder, capsys):
    assert run("eval", f"--checkpoint={folder}", "--config.eval.num_scene=2") == errors.USAGE
    assert "num_scenes" in capsys.readouterr().err
    assert run("eval") == errors.USAGE
    assert run("eval", f"--checkpoint={folder}", "--nonsense") == errors.USAGE
