"""`sgqlm eval --tasks=relations` and `sgqlm eval score`, as a user types them."""

import json

import pytest

from sgqlm import config, errors
from sgqlm.cli import eval_relations, main
from sgqlm.train import checkpoint
from tests import tiny_model
from tests.evals import relation_data


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    model, folder = tiny_model.make(), tmp_path_factory.mktemp("eval")
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    words = model.tokenizer.model_bytes
    checkpoint.save(folder / "run" / "checkpoints", meta, model.params, tokenizer=words)
    relation_data.make(folder)
    return folder


def run(*words):
    return main.main(["eval", *map(str, words)])


@pytest.mark.slow
def test_the_task_is_measured_resumed_and_scored_again(place, capsys, tmp_path):
    words = [f"--checkpoint={place / 'run'}", f"--data={place / 'built'}", "--tasks=relations"]
    words += ["--pairs=annotated", f"--out={tmp_path}", "--config.eval.batch_size=2"]
    assert run(*words, "--limit=1") == errors.OK
    seen = capsys.readouterr()
    assert "predcls" in seen.out and "mR" in seen.out and "riding" in seen.out
    assert "not comparable with all pairs" in seen.out and "zR" in seen.out
    first = (tmp_path / eval_relations.ANSWERS).read_text()
    assert run(*words) == errors.OK
    seen = capsys.readouterr()
    assert "1 of 3 images have an answer" in seen.err and "3/3" in seen.err
    assert (tmp_path / eval_relations.ANSWERS).read_text().startswith(first)
    told = json.loads((tmp_path / eval_relations.REPORT).read_text())
    assert told["task"] == "relations" and told["images"] == 3 and 0 <= told["R@20"] <= 1
    assert run(*words, "--calibrate") == errors.USAGE
    assert "is_calibrated" in capsys.readouterr().err
    again = [f"--data={place / 'built'}", "--task", "relations", f"--out={tmp_path / 'b.json'}"]
    assert run("score", tmp_path / eval_relations.ANSWERS, *again) == errors.OK
    assert json.loads((tmp_path / "b.json").read_text()) == told


def test_texts_of_another_model_are_scored(place, capsys, tmp_path):
    line = {"key": "pictures/0.png", "text": "man -> riding -> horse; a man in a hat"}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(line) + "\n")
    words = [tmp_path / "theirs.jsonl", "--task=relations", f"--data={place / 'built'}"]
    assert run("score", *words) == errors.OK
    seen = capsys.readouterr().out
    assert "50.00" in seen and "50.0% of 2 pieces of text cannot be read" in seen


def test_mistakes_are_told(place, capsys, tmp_path):
    data = f"--data={place / 'built'}"
    words = ["--tasks=relations", f"--checkpoint={place / 'run'}", f"--out={tmp_path / 'out'}"]
    assert run(*words, f"--data={tmp_path}") == errors.DATA
    assert "no annotated relations" in capsys.readouterr().err
    assert run(*words, data, "--mode=sgdet") == errors.DATA
    assert "--entities" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*words, data, "--max-pair=3", "--nonsense=1") == errors.USAGE
    assert "--nonsense" in capsys.readouterr().err
    assert run(*words, data, "--limit=-1") == errors.USAGE
    assert run("score", tmp_path / "none", "--task=relations", data) == errors.USAGE
    assert "no such file of answers" in capsys.readouterr().err
    assert run("--tasks=gqa,relations", f"--root={tmp_path}", *words[1:]) == errors.USAGE
    assert "relations is measured alone" in capsys.readouterr().err
