"""CLIP's tokenizer gives the ids of transformers."""

import json

import pytest

from sgqlm import errors
from sgqlm.text import clip_bpe
from tests import clip_folder

TEXTS = [
    "The cat's red dog.",
    "  What IS\n the cat,\t12 dogs & 3½ cats?!'s ",
    "they'll 'tis don't \u2019s",
    "\u00e9t\u00e9 e\u0301te\u0301 \u56fe\u4e2d \U0001f600 \u00e4\u00df_x",
    "",
]


def test_ids_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    clip_folder.write_tokenizer(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = clip_bpe.load(tmp_path)
    for text in TEXTS:
        ids, is_cut = ours.encode(text)
        assert ids == theirs(text).input_ids, text
        assert not is_cut
    theirs.save_pretrained(tmp_path / "whole")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "whole" / name).unlink(missing_ok=True)
    again = clip_bpe.load(tmp_path / "whole")
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_merges_and_the_cut(tmp_path):
    size = clip_folder.write_tokenizer(tmp_path)
    words = clip_bpe.load(tmp_path)
    known = json.loads((tmp_path / "vocab.json").read_text())
    inside = [known["the</w>"], known["cat</w>"]]
    assert words.encode("the cat") == ([size - 2, *inside, size - 1], False)
    assert words.encode("the cat", 4) == ([size - 2, *inside, size - 1], False)
    assert words.encode("the cat red", 4) == ([size - 2, *inside, size - 1], True)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(errors.SgqlmError, match="missing"):
        clip_bpe.load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(errors.SgqlmError, match="not CLIP's"):
        clip_bpe.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        clip_bpe.load(tmp_path)
