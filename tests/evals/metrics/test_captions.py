import collections
import json
import math
import os
import shutil

import pytest

from sgqlm import errors
from sgqlm.evals.metrics import captions
from tests import paths
from tests.evals import caption_library


def golden():
    return json.loads(paths.fixture("llava/caption.json").read_text())


@pytest.fixture
def library(monkeypatch):
    caption_library.use(monkeypatch)


def assert_official(data, found, names):
    official = {f"bleu_{n + 1}": (data["Bleu"][n], data["Bleu_per"][n]) for n in range(4)}
    for name, key in (("rouge_l", "ROUGE_L"), ("cider", "CIDEr"), ("meteor", "METEOR")):
        official[name] = data[key], data[f"{key}_per"]
    assert set(found.values) == set(names)
    for name in names:
        value, each = official[name]
        # the same program on another numpy: sums in another order
        assert found.values[name] == pytest.approx(value, rel=1e-9), name
        assert list(found.per_item[name].values()) == pytest.approx(each, rel=1e-9), name


def cider_d(said, true):
    """Return id -> CIDEr-D of tokenised captions, by formula 2 of Vedantam et al. 2015, sigma 6."""

    def grams(text, n):
        words = text.split()
        return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    found = {}
    for key, text in said.items():
        parts = []
        for n in range(1, 5):
            seen = collections.Counter(
                gram for refs in true.values() for gram in set().union(*(grams(r, n) for r in refs))
            )

            def weighted(counts, seen=seen):
                common = math.log(len(true))
                return {g: c * (common - math.log(max(1, seen[g]))) for g, c in counts.items()}

            mine = weighted(grams(text, n))
            for reference in true[key]:
                theirs = weighted(grams(reference, n))
                dot = sum(min(v, theirs[g]) * theirs[g] for g, v in mine.items() if g in theirs)
                norms = math.hypot(*mine.values()) * math.hypot(*theirs.values())
                gap = len(text.split()) - len(reference.split())
                parts.append((dot / norms if norms else 0.0) * math.exp(-(gap**2) / (2 * 6**2)))
        found[key] = 10 * sum(parts) / len(parts)
    return found


def test_the_cider_of_the_program_is_the_d_variant_of_the_paper():
    data = golden()
    said = {key: texts[0] for key, texts in data["ptb_predictions"].items()}
    ours = cider_d(said, data["ptb_references"])
    assert list(ours.values()) == pytest.approx(data["CIDEr_per"], rel=1e-6)
    assert sum(ours.values()) / len(ours) == pytest.approx(data["CIDEr"], rel=1e-6)


WITHOUT_JAVA = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")


def test_captions_are_prepared_as_sq_llava_does():
    text = 'A "big"  Dog* (brown): runs; it\'s #1 ~ fast!\n'
    assert captions.pre_caption(text) == "a big dog brown runs it's 1 fast"
    long = " ".join(f"w{n}" for n in range(60))
    assert len(captions.pre_caption(long).split()) == 50
    cut = captions.pre_caption(long, captions.MAX_WORDS_PREDICTION)
    assert cut == " ".join(f"w{n}" for n in range(20))
    assert captions.pre_caption("two, three-way & four") == "two, three-way & four"
    assert captions.pre_caption("") == captions.pre_caption("...") == ""


def test_the_simple_tokeniser_agrees_on_plain_captions():
    data = golden()
    for key, texts in data["references"].items():
        assert [captions.simple_tokens(text) for text in texts] == data["ptb_references"][key]
    for key, text in data["predictions"].items():
        assert [captions.simple_tokens(text)] == data["ptb_predictions"][key]
    assert captions.simple_tokens('He can\'t say "12.5"') == "he ca n't say 12.5"


def test_scores_of_text_that_is_cut_into_words(library, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    data = golden()
    said = {key: texts[0] for key, texts in data["ptb_predictions"].items()}
    found = captions.score(said, data["ptb_references"], tokeniser="none")
    assert_official(data, found, WITHOUT_JAVA)
    assert set(found.left_out) == {"meteor"} and "java" in found.left_out["meteor"]


def test_without_java_what_is_left_out_is_told(library, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    data = golden()
    found = captions.score(data["predictions"], data["references"])
    assert_official(data, found, WITHOUT_JAVA)  # these captions are plain ones
    assert found.tokeniser == "simple" and set(found.left_out) == {"meteor", "ptb"}


def test_ids_are_joined(library):
    data = golden()
    said = {"9": "nobody asked", "1": "", "0": data["predictions"]["0"]}
    found = captions.score(said, data["references"], metrics=["cider"], tokeniser="simple")
    assert list(found.per_item["cider"]) == ["1", "0"] and found.per_item["cider"]["1"] == 0
    for predictions, references, told in (
        ({"a": "x"}, {"b": ["x"]}, "no prediction has a reference"),
        ({"a": "x"}, {"a": []}, "no reference"),
    ):
        with pytest.raises(errors.SgqlmError, match=told):
            captions.score(predictions, references)
    for options in ({"metrics": ["spice"]}, {"tokeniser": "moses"}):
        with pytest.raises(errors.SgqlmError, match="no such metric"):
            captions.score(said, data["references"], **options)


def test_a_package_that_is_missing_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(captions.importlib, "import_module", absent)
    with pytest.raises(errors.SgqlmError, match=r"'.\[caption\]'"):
        captions.score({"a": "x"}, {"a": ["x"]})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_the_published_program_with_java(library):
    data = golden()
    found = captions.score(data["predictions"], data["references"])
    assert_official(data, found, (*WITHOUT_JAVA, "meteor"))
    assert found.tokeniser == "ptb" and not found.left_out
    # empty and odd text keeps its line; other letters do not depend on the locale
    odd = ["", "a ||| b", "two\nlines\r\nand\u2028three", "Ein Café (groß)", " ", "日本"]
    cut = captions._tokenise([captions._line(text) for text in odd], "ptb")
    assert cut[0] == "" and cut[1] == "a b" and cut[2] == "two lines and three"
    assert cut[3] == "ein café -lrb- groß -rrb-" and cut[5] == "日本"
    said = dict(enumerate(odd))
    scores = captions.score(said, {n: ["a b", "two lines"] for n in said}, metrics=["meteor"])
    assert scores.per_item["meteor"][0] == 0 and scores.per_item["meteor"][1] > 0.5


@pytest.mark.slow
def test_a_java_that_fails_is_told(library, tmp_path, monkeypatch):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho no heap >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(errors.SgqlmError, match="no heap"):
        captions.score({"a": "x"}, {"a": ["x"]})
    with pytest.raises(errors.SgqlmError, match="METEOR"):
        captions.score({"a": "x"}, {"a": ["x"]}, tokeniser="none", metrics=["meteor"])


def test_files_of_captions():
    records = [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b", "id": 7}]
    assert captions.read_references(records) == {1: ["a", "b"]}
    assert captions.read_references({"annotations": records, "images": []}) == {1: ["a", "b"]}
    for value in ({"images": []}, "text", None, [1], [{"image_id": 1}]):
        with pytest.raises(errors.SgqlmError, match="record"):
            captions.read_references(value)
    lines = ["a.jpg#0\tOne dog .\n", "a.jpg#1\tA dog .\n", "\n", "b#c.jpg#0\tA cat .\n"]
    assert captions.read_flickr(lines) == {
        "a.jpg": ["One dog .", "A dog ."],
        "b#c.jpg": ["A cat ."],
    }
    with pytest.raises(errors.SgqlmError, match="line 1"):
        captions.read_flickr(["no tab"])


def test_genuine_files_of_captions():
    folder = paths.shared("samples/captions")
    true = captions.read_references(json.loads((folder / "coco/coco_data_refs.json").read_text()))
    assert sum(map(len, true.values())) == 60 and 393569 in true
