import pytest

from sgqlm.evals.metrics import pope
from tests import paths


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("No, there is not.", "no"),
        ("There is not a dog", "no"),
        ("Yes. No", "yes"),
        ("No,", "no"),
        ("", "yes"),
        ("NO", "yes"),
        ("nope", "yes"),
        ("None", "yes"),
        ("No\n", "yes"),
    ],
)
def test_only_three_words_mean_no(text, answer):
    assert pope.parse(text) == answer


def test_yes_is_the_positive_class():
    done = pope.score(["Yes", "Yes", "No", "no", "yes"], ["yes", "no", "no", "yes", "yes"])
    assert [done[name] for name in ("tp", "fp", "tn", "fn", "count")] == [2, 1, 1, 1, 5]
    assert done["precision"] == done["recall"] == done["f1"] == pytest.approx(2 / 3)
    assert (done["accuracy"], done["yes_ratio"]) == pytest.approx((0.6, 0.6))
    assert pope.score(["No"], ["no"])["f1"] == 0  # nothing said yes: no division by zero


def test_records_are_joined_by_id_not_by_position():
    labels = [{"question_id": 1, "label": "yes"}, {"question_id": 2, "label": "no"}]
    said = [{"question_id": 10_000_002, "text": "No"}, {"question_id": 10_000_001, "text": "Yes"}]
    assert pope.score(said, labels)["accuracy"] == 1
    assert pope.score({2: "No", 1: "Yes"}, {1: "yes", 2: "no"})["accuracy"] == 1
    assert pope.score(iter(said), iter(labels))["accuracy"] == 1
    assert pope.score(iter(["Yes", "No"]), iter(["yes", "no"]))["accuracy"] == 1
    with pytest.raises(ValueError, match="1 answers and 2 labels, 1 with the same id"):
        pope.score(said[:1], labels)
    with pytest.raises(ValueError, match="more than one category"):
        pope.score([*said, {"question_id": 1, "text": "Yes"}], labels)


def test_other_numbers_are_another_revision():
    with pytest.raises(ValueError, match="2 answers and 3 labels: another revision"):
        pope.score(["Yes", "No"], ["yes", "no", "no"])
    with pytest.raises(ValueError, match="'Yes'"):
        pope.score(["Yes"], ["Yes"])


@pytest.mark.parametrize(("name", "f1"), [("random", 87.136), ("popular", 86.246)])
def test_the_published_answers_have_their_score(name, f1):
    file = paths.shared(f"samples/pope/full_{name}.tsv")
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    done = pope.score([row[2] for row in rows], [row[1] for row in rows])
    assert round(100 * done["f1"], 3) == f1
