"""`sgqlm ask` over a folder of pictures, as a user types it."""

import json

import pytest
from PIL import Image

from sgqlm import config, errors
from sgqlm.cli import main
from sgqlm.evals.metrics import questions
from sgqlm.train import checkpoint
from tests import clip_folder, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_model.make()
    meta = checkpoint.Meta(config.to_dict(model.config), "instruct", 0, 1, True)
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    return checkpoint.save(root, meta, model.params, tokenizer=model.tokenizer.model_bytes)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.jpg"):
        Image.effect_noise((60, 40), 90).convert("RGB").save(root / name)
    return root


def run(*words):
    return main.main([str(word) for word in words])


@pytest.fixture
def ask(folder, photos, tmp_path):
    def call(*words, images=photos):
        small = ["--num-questions=2", "--max-new-tokens=4", "--batch-size=2"]
        small.append(f"--out={tmp_path / 'q.jsonl'}")
        return run("ask", f"--checkpoint={folder}", f"--images={images}", *small, *words)

    return call


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]


def test_folder_is_asked_about_measured_and_resumed(ask, photos, tmp_path, capsys):
    words = ["--flow=official", "--consistency=2", f"--report={tmp_path / 'r.json'}"]
    assert ask(*words) == errors.OK
    seen = capsys.readouterr()
    assert "4 questions about 2 images" in seen.out
    assert "images 2/2" in seen.err
    first = lines(tmp_path)
    assert [line["image"] for line in first] == ["a.png", "more/b.jpg"]
    assert all(len(line["questions"]) == len(line["answers"]) == 2 for line in first)
    report = json.loads((tmp_path / "r.json").read_text())
    wanted = questions.measure([line["questions"] for line in first])
    assert report["measures"] | wanted == report["measures"]
    assert report["settings"]["sampling"] == [1.2, 300, 0.95]
    Image.new("RGB", (30, 30), "red").save(photos / "c.png")
    assert ask(*words) == errors.OK
    assert "2 of 3 images are in" in capsys.readouterr().err
    assert lines(tmp_path)[:2] == first
    assert ask(*words, "--temperature=1") == errors.USAGE
    assert "another evaluation" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 3


def test_batch_and_rest_of_the_folder_change_no_question(ask, photos, tmp_path):
    words = ("--entities=none", "--flow=official")
    assert ask(*words) == errors.OK
    both = lines(tmp_path)
    assert both[0]["questions"] != both[1]["questions"]
    for path in tmp_path.glob("q.jsonl*"):
        path.unlink()
    (photos / "a.png").unlink()
    assert ask(*words, "--batch-size=1") == errors.OK
    assert lines(tmp_path) == both[1:]


def test_broken_pictures_are_left_out_and_told(ask, photos, tmp_path, capsys):
    (photos / "a.png").write_bytes(b"no picture")
    words = ["--entities=none", f"--report={tmp_path / 'r.json'}"]
    assert ask(*words) == errors.DATA
    assert "left out a.png: the image cannot be decoded" in capsys.readouterr().err
    assert [line["image"] for line in lines(tmp_path)] == ["more/b.jpg"]
    assert list(json.loads((tmp_path / "r.json").read_text())["failed"]) == ["a.png"]


@pytest.mark.slow
def test_questions_are_scored_by_clip(ask, tmp_path, capsys):
    assert ask("--entities=none", f"--clip={clip_folder.make()}") == errors.OK
    assert "CLIPScore" in capsys.readouterr().out
    assert all(len(line["clip_score"]) == len(line["questions"]) for line in lines(tmp_path))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--image=a.png", "--out=q"], "beside one picture"),
        ([], "--out=FILE.jsonl"),
        (["--out=q", "--num-questions=0"], "--num-questions"),
        (["--out=q", "--top-p=0"], "--top-p"),
        (["--out=q", "--top-k=-1"], "--top-k"),
        (["--out=q", "--temperature=-1"], "--temperature"),
        (["--out=q", "--consistency=1"], "2 or more"),
        (["--out=q", "--batch-size=-1"], "--batch-size"),
        (["--out=.", "--entities=none"], "--out is a folder"),
    ],
)
def test_wrong_flags_are_refused_before_the_model_is_loaded(words, told, photos, capsys):
    assert run("ask", "--checkpoint=none", f"--images={photos}", *words) == errors.USAGE
    assert told in capsys.readouterr().err


def test_lengths_that_do_not_fit_are_told(ask, tmp_path, capsys):
    assert ask("--entities=none", "--max-new-tokens=400") == errors.USAGE
    assert "give a smaller --max-new-tokens" in capsys.readouterr().err
    assert not (tmp_path / "q.jsonl").exists()


def test_wrong_folders_are_refused(ask, tmp_path, capsys):
    assert ask(images=tmp_path / "none") == errors.DATA
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert ask(images=tmp_path / "empty") == errors.DATA
    assert "there are no images" in capsys.readouterr().err


def test_flags_of_a_folder_need_one(capsys):
    assert run("ask", "--checkpoint=none", "--scene=1", "--out=q") == errors.USAGE
    assert "--out needs a folder" in capsys.readouterr().err
