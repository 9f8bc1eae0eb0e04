import json

import numpy as np
import pytest
from PIL import Image

from sgqlm import model as model_lib
from sgqlm.data import sources
from sgqlm.evals import memorised
from tests import tiny_model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LONG = "word " * 600


class Reader(model_lib.VisionLanguageModel):
    """Tells the colour of the picture it is given, or, where blind, what the question says."""

    is_blind = False

    def respond(self, rows, *, max_new_tokens, batch_size):
        return [self._answer(row) for row in rows]

    def _answer(self, row):
        if row.image is None or self.is_blind:
            return row.turns[-1]["value"].split()[-1]
        seen = np.asarray(row.image)[28, 28]
        return next(name for name, colour in COLOURS.items() if np.array_equal(seen, colour))


class Blind(Reader):
    is_blind = True


@pytest.fixture
def source(tmp_path):
    records = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (80, 80), colour).save(tmp_path / f"{name}.png")
        turns = [
            {"from": "human", "value": f"<image>\nIs it {name}"},
            {"from": "gpt", "value": f" {name} "},
            {"from": "human", "value": f"Is it really {name}"},
            {"from": "gpt", "value": name},
        ]
        records.append({"id": name, "image": f"{name}.png", "conversations": turns})
    talk = [{"from": "human", "value": "Say one"}, {"from": "gpt", "value": "one"}]
    records.append({"id": "talk", "conversations": talk})
    return _open(tmp_path, records)


def _open(folder, records):
    (folder / "talks.json").write_text(json.dumps(records))
    return sources.JsonSource(folder / "talks.json")


def _make(kind):
    tiny = tiny_model.make()
    return kind(tiny.config, tiny.params, tiny.tokenizer)


def test_every_answer_is_asked_for_after_its_true_history(source):
    found = memorised.collect(source, 500)
    assert [len(item.turns) for item in found] == [1, 3, 1, 3, 1, 3, 1]
    assert [item.answer for item in found[:2]] == ["red", "red"]
    assert found[1].turns[1]["value"] == " red "
    assert [item.image_row for item in found] == [0, 0, 1, 1, 2, 2, -1]
    assert len(memorised.collect(source, 2)) == 4


def test_swapped_images_tell_who_looks_from_who_does_not(source):
    found = memorised.evaluate(_make(Reader), source)
    assert found["answers"] == {"count": 7, "exact": 7, "accuracy": 1.0, "wrong": []}
    assert found["swapped"]["count"] == 6 and found["swapped"]["exact"] == 0
    assert memorised.evaluate(_make(Blind), source)["swapped"]["exact"] == 6


def test_what_was_wrong_is_told(source):
    found = memorised.evaluate(tiny_model.make(), source, batch_size=8)
    assert found["answers"]["count"] == 7 and found["answers"]["exact"] == 0
    miss = found["answers"]["wrong"][-1]
    assert (miss["question"], miss["wanted"]) == ("Say one", "one") and miss["given"] != "one"
    lines = memorised.lines(found)
    assert lines[0] == "all answers       0.000   0 of 7 exactly"
    assert "wanted 'red'" in lines[3] and len(lines) == 2 + 2 * memorised.SHOWN


@pytest.mark.slow
def test_one_image_cannot_be_swapped_and_a_prompt_too_long_counts_as_wrong(tmp_path):
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat"}, {"from": "gpt", "value": "that"}]
    talk = [{"from": "human", "value": LONG}, {"from": "gpt", "value": "one"}]
    records = [{"image": "a.png", "conversations": turns}, {"conversations": talk}]
    found = memorised.evaluate(tiny_model.make(), _open(tmp_path, records))
    assert found["swapped"] == {"count": 0, "exact": 0, "accuracy": None, "wrong": []}
    assert found["answers"]["wrong"][-1]["given"] == ""
    assert memorised.lines(found)[1] == "images swapped        -   0 of 0 exactly"


def test_a_broken_image_is_named_and_the_others_are_measured(tmp_path, source):
    (tmp_path / "green.png").write_bytes((tmp_path / "green.png").read_bytes()[:40])
    found = memorised.evaluate(_make(Reader), source)
    assert found["answers"]["count"] == 5 and found["answers"]["exact"] == 5
    assert found["swapped"] == found["swapped"] | {"count": 4, "exact": 0}
    assert len(found["broken"]) == 1 and "green" in found["broken"][0]
    assert any("green" in line for line in memorised.lines(found))
