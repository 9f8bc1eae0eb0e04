"""CLIP in JAX against transformers, the score made of it, and the study as a user runs it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.convert import clip
from sgqlm.evals import clip_score
from sgqlm.models import clip_text
from tests import clip_folder

TOLERANCE = 1e-4  # float32 sums in another order


@pytest.fixture(scope="module")
def folder():
    return clip_folder.make()


@pytest.fixture(scope="module")
def scorer(folder):
    return clip_score.Scorer(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    return model, transformers.CLIPTokenizer.from_pretrained(folder)


def picture(seed, size=(28, 28)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(pixels)


def expected(theirs, image, texts):
    """Return 2.5 * max(cos, 0) of transformers' model."""
    import torch

    from sgqlm.models import clip_vit

    model, words = theirs
    pixels = (np.asarray(image, np.float32) / 255 - clip_vit.MEAN) / np.array(clip_vit.STD)
    ids = words(texts, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        pixels = torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32)
        found = model(pixel_values=pixels, **ids)
    cosines = (found.image_embeds @ found.text_embeds.T)[0].numpy()
    return 2.5 * np.maximum(cosines, 0)


def test_scores_are_those_of_transformers(scorer, theirs):
    texts = [f"{'the cat ' * n}red dog {n}?" for n in range(20)]
    before = scorer.num_cut
    for seed in range(2):
        found = scorer.score(picture(seed), texts)
        wanted = expected(theirs, picture(seed), texts)
        assert np.ptp(wanted) > 100 * TOLERANCE
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    assert scorer.num_cut - before == 2 * 12  # 2 n + 6 tokens are more than 20 from 8 on


@pytest.mark.parametrize("end", [2, 49407])  # of old configurations; of no token of this folder
def test_the_end_of_a_text_is_where_transformers_takes_it(folder, tmp_path, end, capsys):
    transformers = pytest.importorskip("transformers")
    other = shutil.copytree(folder, tmp_path / "clip")
    about = json.loads((other / "config.json").read_text())
    about["text_config"]["eos_token_id"] = end
    (other / "config.json").write_text(json.dumps(about))
    loaded = transformers.CLIPModel.from_pretrained(other).eval()
    theirs = loaded, transformers.CLIPTokenizer.from_pretrained(other)
    texts = ["what is it?", "a red dog", "the cat " * 20]
    for seed in range(2):  # with one of them all cosines may be below 0
        found = clip_score.Scorer(other).score(picture(seed), texts)
        np.testing.assert_allclose(found, expected(theirs, picture(seed), texts), atol=TOLERANCE)
    assert ("all are alike" in capsys.readouterr().err) == (end != 2)


def test_embeddings_are_unit_vectors_and_padding_has_no_part(folder):
    found = clip.load(folder)
    ids = np.array([[5, 6, 7, 0, 0], [5, 6, 7, 9, 9]], np.int32)
    out = clip_text.embed_texts(found.params, ids, np.array([2, 2]), config=found.text)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out[0], out[1])


def test_empty_texts_have_no_score(scorer):
    assert scorer.score(picture(0), ["", "  "]) == [None, None]
    assert scorer.score(picture(0), ["", "the dog"])[0] is None


def test_prefix_is_part_of_the_text(folder, scorer):
    (found,) = clip_score.Scorer(folder, prefix="A photo depicts").score(picture(0), ["the cat"])
    assert [found] == scorer.score(picture(0), ["A photo depicts the cat"])


def test_other_folders_are_refused(folder, tmp_path):
    broken = tmp_path / "clip"
    shutil.copytree(folder, broken)
    tree = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**tree, "model_type": "clip_vision_model"}))
    with pytest.raises(errors.SgqlmError, match="no text tower"):
        clip.load(broken)
    tree["text_config"]["num_hidden_layers"] = 3
    (broken / "config.json").write_text(json.dumps(tree))
    with pytest.raises(errors.SgqlmError, match="do not fit") as caught:
        clip.load(broken)
    assert "text_model.encoder.layers.2" in caught.value.why
    tree["text_config"] |= {"num_hidden_layers": 2, "max_position_embeddings": 21}
    (broken / "config.json").write_text(json.dumps(tree))
    with pytest.raises(errors.SgqlmError, match="do not fit") as caught:
        clip.load(broken)
    assert "text/pos" in caught.value.why


def turn(role, text):
    return {"from": role, "value": text}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four records: two whole, one without its image, one without any image."""
    root = tmp_path_factory.mktemp("data")
    (root / "photos").mkdir()
    for seed in range(2):
        picture(seed).save(root / "photos" / f"{seed}.png")
    long = "the cat " * 30
    turns = [
        turn("human", "<image>\nis the cat red?"),
        turn("gpt", long),
        turn("human", "where is the dog?"),
        turn("gpt", "red"),
    ]
    records = [
        {"id": str(n), "image": f"{n}.png", "conversations": turns[: 2 + 2 * n]} for n in range(2)
    ]
    records.append({"id": "2", "image": "gone.png", "conversations": turns[:2]})
    text = [turn("human", "hello"), turn("gpt", "hello")]
    records.append({"id": "3", "conversations": text})
    (root / "train.json").write_text(json.dumps(records))
    return root


def run(*words):
    return main.main([str(word) for word in words])


def test_study_compares_questions_and_answers(data, folder, theirs, tmp_path, capsys):
    out = tmp_path / "report.json"
    words = [f"--data={data / 'train.json'}", f"--images={data / 'photos'}", f"--clip={folder}"]
    assert run("study", "clipscore", *words, f"--out={out}") == errors.OK
    seen = capsys.readouterr()
    found = json.loads(out.read_text())
    assert "questions less answers" in seen.out
    assert found["data"] == {"records": 4, "without_image": 1, "image exists": 1}
    first, second = "is the cat red?", "where is the dog?"
    asked = [
        *expected(theirs, picture(0), [first]),
        *expected(theirs, picture(1), [first, second]),
    ]
    assert found["questions"]["mean"] == pytest.approx(np.mean(asked), abs=TOLERANCE)
    assert found["questions"] | {"count": 3, "cut": 0} == found["questions"]
    given = [
        *expected(theirs, picture(0), ["the cat " * 30]),
        *expected(theirs, picture(1), ["the cat " * 30, "red"]),
    ]
    assert found["answers"]["mean"] == pytest.approx(np.mean(given), abs=TOLERANCE)
    assert found["answers"] | {"count": 3, "cut": 2} == found["answers"]
    difference = np.mean([asked[0] - given[0], np.mean(asked[1:]) - np.mean(given[1:])])
    assert found["difference"]["mean"] == pytest.approx(difference, abs=TOLERANCE)
    assert run("study", "clipscore", *words, "--n=1", f"--out={out}") == errors.OK
    assert json.loads(out.read_text())["images"] == 1


def test_study_says_what_is_wrong(data, folder, tmp_path, capsys):
    words = ["study", "clipscore", f"--data={data / 'train.json'}"]
    assert run(*words, f"--clip={tmp_path / 'none'}") == errors.USAGE
    assert run(*words, f"--clip={folder}", "--n=-1") == errors.USAGE
    assert run(*words, f"--clip={folder}", f"--images={tmp_path}") == errors.DATA
    assert "no record has an image that is there" in capsys.readouterr().err
    assert run(*words, f"--clip={tmp_path}", f"--images={data / 'photos'}") == errors.CHECKPOINT


def test_study_leaves_out_pictures_that_cannot_be_read(data, folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(data / "photos", photos)
    (photos / "1.png").write_bytes(b"no picture")
    words = [f"--data={data / 'train.json'}", f"--images={photos}", f"--clip={folder}"]
    assert run("study", "clipscore", *words) == errors.OK
    seen = capsys.readouterr()
    assert "over 1 records" in seen.out
    assert "left out 1: the image cannot be decoded" in seen.err
