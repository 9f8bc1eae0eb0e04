import json

import pytest

from sgqlm.evals.metrics import mmbench
from tests import paths


@pytest.fixture(scope="module")
def official():
    return json.loads(paths.fixture("llava/mmbench_sample.json").read_text())


def test_matches_are_those_of_vlmevalkit(official):
    for case in official["can_infer"]:
        assert mmbench.match(case["text"], official["choices"]) == case["vlmevalkit"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A cat is what I see in this picture", "A"),  # by its text: the letter is too far ahead
        ("A or B", False),
        ("Sorry, I can't help with images of people yet.", "Z"),
        ("Failed to obtain answer via API", False),
        ("Z", "Z"),
        ("The correct answer is **b** and C", "C"),
        ("Correct answer is **b**, not A and not C", "B"),
        ("E", False),
        ("", False),
    ],
)
def test_rules_before_a_judge(text, letter, official):
    assert mmbench.match(text, official["choices"]) == letter


def test_an_item_needs_all_its_rolls(official):
    done = mmbench.circular(official["rows"])
    hits = {str(key): hit for key, hit in done["hits"].items()}
    assert official["circular_hit"].items() <= hits.items()
    assert done["accuracy"] == pytest.approx(0.6) and done["vanilla"] == pytest.approx(0.8)
    assert done["dimensions"]["CP"] == [1, 1] and done["dimensions"]["FP-S"] == [0, 1]
    assert done["categories"]["ocr"] == [0, 1] and done["unmatched"] == []
    rows = [row | {"prediction": None} for row in official["rows"]]
    assert mmbench.circular(rows)["accuracy"] == 0


def test_damaged_tables_are_refused(official):
    rows = official["rows"]
    with pytest.raises(ValueError, match="index 0 stands twice"):
        mmbench.circular([*rows, rows[0]])
    with pytest.raises(ValueError, match="item 0 lacks"):
        mmbench.circular(rows[1:])
