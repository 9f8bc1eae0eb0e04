import pytest

from sgqlm import errors
from sgqlm.evals import joining, tables


def answers(*pairs, prompt=""):
    return [(key, tables.Answer(key, text, prompt, None, {})) for key, text in pairs]


def test_faults_are_told_apart():
    given = answers(("3", "c"), ("1", "a"), ("1", "a"), ("9", "x"), ("4", " "))
    joined, faults = joining.join(given, dict.fromkeys("1234"), where="file")
    assert list(joined) == ["1", "3", "4"] and joined["3"].text == "c"
    assert faults == joining.Faults(missing=["2"], unknown=["9"], repeated=["1"], empty=["4"])
    assert faults.is_mismatch and not joining.Faults(repeated=["1"], empty=["4"]).is_mismatch
    assert faults.counts()["missing"] == {"count": 1, "ids": ["2"]}
    told = "\n".join(faults.lines())
    assert "count as wrong: 2" in told and "left out: 9" in told and "more than once: 1" in told
    faults.add(joining.Faults(missing=list("abc")))
    assert "4 annotated questions have no answer and count as wrong: 2, a, b ..." in faults.lines()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (answers(("1", "a"), ("1", "b")), "1 ids have two different answers"),
        (answers(("7", "a")), "do not fit together"),
        (answers(("1", "a"), prompt="Is it a cat?\nAnswer"), "do not fit together"),
    ],
)
def test_what_cannot_be_joined_is_refused(given, told):
    with pytest.raises(errors.SgqlmError, match=told) as found:
        joining.join(given, {"1": 0}, where="file", questions={"1": "Is it a dog?"})
    assert found.value.code == errors.DATA and found.value.where == "file"


def test_a_prompt_may_have_more_than_the_question():
    given = answers(("1", "a"), prompt="<image>\nIs  it a DOG?\nAnswer with a word.")
    joined, _ = joining.join(given, {"1": 0}, where="file", questions={"1": "Is it a dog?"})
    assert list(joined) == ["1"]
