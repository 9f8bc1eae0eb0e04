"""Measures of asked questions, against values worked out by hand."""

import math

import pytest

from sgqlm.evals.metrics import questions


def test_distinct_counts_different_over_all_ngrams():
    assert questions.distinct(["A b a?", "a b"], 1) == pytest.approx(2 / 5)
    assert questions.distinct(["A b a?", "a b"], 2) == pytest.approx(2 / 3)
    assert questions.distinct(["a"], 2) == 0


def test_bleu_is_clipped_smoothed_and_brief():
    assert questions.bleu("what is on the table", ["what is on the table"]) == pytest.approx(1)
    assert questions.bleu("red", ["blue"]) == 0
    # 1-grams: "the" counts at most twice, 2 of 3; 2-grams: none of 2, smoothed to 0.1
    wanted = math.sqrt(2 / 3 * 0.1 / 2)
    assert questions.bleu("the the the", ["the cat the dog"], max_n=2) == pytest.approx(
        wanted * math.exp(1 - 4 / 3)
    )
    # of two references the nearer length counts, the shorter one in a tie: no penalty
    wanted = math.sqrt(1 * 1)
    assert questions.bleu("a b c", ["a b", "a b c d"], max_n=1) == pytest.approx(wanted)


def test_self_bleu_averages_over_texts():
    assert questions.self_bleu(["is it red?"] * 3, max_n=3) == pytest.approx(1)
    # each has 2 of 3 words and 1 of 2 pairs of the other
    assert questions.self_bleu(["is it red", "is it blue"], max_n=2) == pytest.approx(
        math.sqrt(2 / 3 * 1 / 2)
    )
    with pytest.raises(ValueError, match="two"):
        questions.self_bleu(["one"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("What is the man holding?", "what"),
        ("In the image, what is the man or woman doing?", "what"),
        ("Where's the cat?", "where"),
        ("On which side is the cup?", "which"),
        ("How many people are there?", "how many"),
        ("How is the weather?", "how"),
        ("Why is she smiling?", "why"),
        ("Whose dog is it?", "who"),
        ("When was it taken?", "when"),
        ("Is there a dog?", "yes/no"),
        ("Aren't they cold?", "yes/no"),
        ("Are there two or more cats?", "yes/no"),
        ("Is the bus red or blue?", "choice"),
        ("What colour is the bus, red or blue?", "choice"),
        ("Which is larger, the cat or the dog?", "choice"),
        ("What is shown?\nA. a cat\nB. a dog", "choice"),
        ("What might happen next?", "reasoning"),
        ("What can be inferred about the weather?", "reasoning"),
        ("What is the likely purpose of the tool?", "reasoning"),
        ("Can you describe the image in detail?", "instruction"),
        ("Please describe the image.", "instruction"),
        ("blue blue sky", "other"),
        ("", "other"),
    ],
)
def test_kinds(text, kind):
    assert questions.kind(text) == kind
    assert kind in questions.KINDS


def test_well_formed_questions():
    good = ["What is it?", "In the picture, is the bus red?", "Which?? no"]
    assert [questions.is_well_formed(text) for text in good] == [True, True, False]
    assert questions.is_well_formed("Which is it?\nA. a cat\nB. a dog")
    bad = ["", "?", "Is it", "What?", "is is is it?", "sky blue green?", "What is\nit here?"]
    assert not [text for text in bad if questions.is_well_formed(text)]
    assert not questions.is_well_formed("what is " + "so " + "a b " * 40 + "?")


def test_agreement_is_the_mean_f1_of_pairs():
    assert questions.agreement(["Red.", "the red", "blue"]) == pytest.approx(1 / 3)
    assert questions.agreement(["a red bus", "red car"]) == pytest.approx(1 / 2)
    assert questions.agreement(["", ""]) == 0
    with pytest.raises(ValueError, match="two"):
        questions.agreement(["one"])


def test_measures_of_images_with_many_one_and_no_question():
    found = questions.measure([["What is it?", "what is it", "Is it red?"], ["Why is it?"], []])
    assert found["images"] == 3
    assert found["questions"] == 4
    assert found["distinct_questions"] == 3 / 4
    assert found["well_formed"] == 3 / 4
    assert found["mean_words"] == 3
    assert found["kinds"] | {"what": 0.5, "yes/no": 0.25, "why": 0.25} == found["kinds"]
    assert sum(found["kinds"].values()) == 1
    assert found["self_bleu"] == questions.self_bleu(["What is it?", "what is it", "Is it red?"])
    assert questions.measure([])["self_bleu"] is None
    assert "4 questions about 3 images" in questions.lines(found)[0]
    assert questions.lines(questions.measure([]))
