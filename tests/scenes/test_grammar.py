import pytest

from sgqlm import config
from sgqlm.scenes import grammar, world


def place(words, x):
    size, colour, texture, shape = words.split()
    return world.SceneObject(size, colour, texture, shape, x, 50.0, 10.0, 0)


@pytest.fixture
def scene():
    objects = (
        place("large red plain star", 20.0),
        place("small blue striped circle", 50.0),
        place("small red plain circle", 80.0),
    )
    relations = (world.Relation(0, "pointing at", 1), world.Relation(2, "chasing", 1))
    return world.Scene("train", 0, 112, objects, relations)


def test_every_template_parses_back():
    first, second = (
        grammar.Noun(colour="orange", shape="cross"),
        grammar.Noun(size="large", shape="arrow"),
    )
    for family, texts in grammar.TEMPLATES.items():
        for style in range(len(texts)):
            text = grammar.write(
                family,
                style,
                attribute="colour",
                first=first,
                second=second,
                predicate="looking at",
            )
            parsed = grammar.parse(text)
            assert parsed is not None, text
            assert parsed.family == family.removesuffix("_back")
            assert parsed.is_back == family.endswith("_back")
            spoken = (*parsed.nouns, parsed.kind)
            assert (first in spoken) == ("{first}" in texts[style] or family in ("exist", "count"))
            assert (second in spoken) == ("{second}" in texts[style])
            assert parsed.predicate == ("looking at" if "{predicate}" in texts[style] else "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "what colour is the star",
        "what colour is the the star?",
        "what colour is star?",
        "what colour is the thing?",
        "what colour is the red?",
        "what colour is the star red?",
        "what taste is the star?",
        "is there an star?",
        "is there a arrow?",
        "how many star are there?",
        "how many things are there?",
        "what shape is the thing the star is eating?",
        "what shape is the thing pointing at?",
        "is the star left of the circle?",
        "what colour is the star? red",
        "what colour is the green and red star?",
    ],
)
def test_nonsense_is_refused(text):
    assert grammar.parse(text) is None


def test_case_spacing_and_the_image_do_not_matter():
    parsed = grammar.parse("<image>\n What  colour is the large star ?")
    assert parsed == grammar.Parsed(
        "attribute", "colour", (grammar.Noun(size="large", shape="star"),)
    )


def test_well_formed_means_parsed_and_present(scene):
    assert grammar.is_well_formed("what colour is the star?", scene)
    assert grammar.is_well_formed("what shape is the red thing?", scene)  # two of them: still there
    assert not grammar.is_well_formed("what colour is the ring?", scene)
    assert not grammar.is_well_formed("what colour is the large circle?", scene)
    assert not grammar.is_well_formed("is the star left or right of the green circle?", scene)
    assert grammar.is_well_formed("is there a ring?", scene)  # asks for presence, claims none
    assert grammar.is_well_formed("what shape is the thing guarding the star?", scene)
    assert not grammar.is_well_formed("what shape is the thing guarding the bar?", scene)
    assert not grammar.is_well_formed("star the is what", scene)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("what colour is the star?", "red"),
        ("tell me the size of the blue thing.", "small"),
        ("what is the texture of the blue circle?", "striped"),
        ("what shape is the red thing?", None),
        ("what colour is the thing the star is pointing at?", "blue"),
        ("what shape is the thing chasing the blue thing?", "circle"),
        ("what shape is the thing the blue thing is chasing?", None),
        ("is there a red circle?", "yes"),
        ("is there a striped star?", "no"),
        ("how many red things are there?", "two"),
        ("count the crosses.", "zero"),
        ("is the star left or right of the blue circle?", "left"),
        ("is the red circle to the left or to the right of the star?", "right"),
        ("describe the star.", None),
        ("nonsense", None),
    ],
)
def test_answers_by_hand(scene, text, answer):
    assert grammar.answer(text, scene) == answer


def test_nouns_are_written_with_article_and_plural():
    assert grammar.Noun(colour="orange").some == "an orange thing"
    assert grammar.Noun(shape="bar").some == "a bar"
    assert grammar.Noun(shape="cross").plural == "crosses"
    assert grammar.Noun(size="small", texture="plain").plural == "small plain things"


def test_the_vocabulary_is_small_and_lower_case():
    words = grammar.words()
    assert len(words) <= 100
    assert all(word.islower() and word.isalpha() for word in words)
    assert config.TextConfig().vocab_size > len(words)
