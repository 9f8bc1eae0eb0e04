import pytest

from sgqlm.evals.metrics import mme
from tests import paths


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("a yes", "other"),
        ("Not", "no"),
        ("", "other"),
        ("K no", "no"),
    ],
)
def test_the_first_four_letters_tell(text, answer):
    assert mme.parse(text) == answer


def test_both_questions_of_an_image_count_twice():
    rows = [("a", "q1", "Yes", "Yes"), ("b", "q1", "Yes", "?"), ("a", "q2", "No", "No")]
    rows.append(("b", "q2", "No", "no"))
    done = mme.score({"count": rows, "code_reasoning": rows[:1] + rows[2:3]})
    assert done["by_category"]["count"]["accuracy"] == 0.75
    assert done["by_category"]["count"]["other"] == 1
    assert done["perception"] == 125 and done["cognition"] == 200
    assert "existence" in done["missing"] and done["items"]["count/b/q1"] == 0
    assert mme.score({"count": rows})["cognition"] is None


def test_damaged_rows_are_refused():
    with pytest.raises(ValueError, match="a has not two questions"):
        mme.score({"count": [("a", "q", "Yes", "Yes")]})
    with pytest.raises(ValueError, match="'Maybe'"):
        mme.score({"count": [("a", "q", "Maybe", "Yes")] * 2})


def test_the_published_answers_have_their_score():
    files = paths.shared("samples/mme").glob("*.txt")
    rows = {f.stem: [line.split("\t") for line in f.read_text().splitlines()] for f in files}
    assert round(mme.score(rows)["perception"], 3) == 1531.319
