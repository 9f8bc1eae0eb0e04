"""Decoding images in this process and in others finds the same problems."""

import concurrent.futures
import os

import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import decode_check


@pytest.fixture
def files(tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "words.png").write_text("words")
    names = ["a.png", "cut.jpg", "b.jpg", "words.png", "gone.png", "a.png"]
    return [tmp_path / name for name in names]


def test_processes_find_what_one_finds(files, monkeypatch):
    seen = []
    alone = decode_check.problems(files, progress=lambda *at: seen.append(at))
    assert sorted(alone) == [1, 3, 4]
    assert alone[1].startswith("cut.jpg: the image cannot be decoded")
    assert alone[4] == "gone.png: the image file is missing"
    assert seen[-1] == ("images", 6, 6)
    monkeypatch.setattr(decode_check, "_FEW", 1)
    monkeypatch.setattr(decode_check, "_BATCH", 2)
    assert decode_check.problems(files, workers=2) == alone


def _die(names):
    os._exit(1)


def test_a_process_that_dies_is_told(files, monkeypatch):
    monkeypatch.setattr(decode_check, "_FEW", 1)
    monkeypatch.setattr(decode_check, "_decode", _die)
    with pytest.raises(errors.SgqlmError, match="a process that decodes images died") as caught:
        decode_check.problems(files, workers=2)
    assert caught.value.code == errors.RESOURCES
    assert isinstance(caught.value.__cause__, concurrent.futures.BrokenExecutor)
