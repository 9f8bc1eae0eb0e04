from sgqlm.evals import prior
from sgqlm.scenes import questions


def question(family, argument, answer):
    return questions.Question(family, argument, "", answer, ())


TRAIN = [
    question("attribute", "colour", "red"),
    question("attribute", "colour", "red"),
    question("attribute", "colour", "blue"),
    question("attribute", "size", "small"),
    question("attribute", "size", "large"),
    question("exist", "star", "no"),
]


def test_the_prior_knows_the_most_frequent_answer_of_each_argument():
    known = prior.fit(TRAIN)
    assert prior.answer(known, question("attribute", "colour", "?")) == "red"
    assert prior.answer(known, question("attribute", "size", "?")) == "large"  # tie: the alphabet
    assert prior.answer(known, question("attribute", "texture", "?")) == "red"  # of the family
    assert prior.answer(known, question("count", "star", "?")) == "red"  # of all
    assert prior.fit(reversed(TRAIN)) == known


def test_scores_are_shares_of_exact_matches():
    asked = [TRAIN[0], TRAIN[2], TRAIN[5]]
    found = prior.score(asked, [" Red. ", "red", "no"])
    assert found["accuracy"] == 0.6667
    assert found["by_family"] == {
        "attribute": 0.5,
        "one_hop": None,
        "exist": 1.0,
        "count": None,
        "left_right": None,
    }


def test_an_answer_must_match_whole():
    (one,) = [TRAIN[0]]
    assert prior.score([one], ["red thing"])["accuracy"] == 0.0
    assert prior.score([one], [""])["accuracy"] == 0.0
