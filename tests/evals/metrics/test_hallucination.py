import pytest

from sgqlm import config, errors
from sgqlm.evals.metrics import hallucination
from sgqlm.scenes import world


def test_objects_that_a_text_mentions():
    names = {"dog": "dog", "puppy": "dog", "hot dog": "hot dog", "wine glass": "wine glass"}
    names |= {"knife": "knife", "bus": "bus", "glass": "cup"}
    text = "Two puppies near a hot dog; the dog, a bus, Wine glasses, knives and a glass."
    assert hallucination.mentions(text, names) == [
        "dog", "hot dog", "dog", "bus", "wine glass", "knife", "cup",
    ]  # fmt: skip
    assert hallucination.mentions("a cell phone", ["cell", "cell phone"]) == ["cell phone"]
    assert hallucination.mentions("dogma, hotdog", names) == []
    assert hallucination.mentions("A red CAR", ["car"]) == ["car"]
    assert hallucination.mentions("", []) == []


def test_irregular_plurals():
    names = ("man", "woman", "person", "child", "mouse", "goose", "foot", "tooth", "policeman")
    text = "Men, women, people, grandchildren? No: children, mice, geese, feet, teeth, policemen."
    assert hallucination.mentions(text, names) == [
        "man", "woman", "person", "child", "mouse", "goose", "foot", "tooth", "policeman",
    ]  # fmt: skip
    assert hallucination.mentions("grandchildren and axes", ["grandchild", "axe"]) == [
        "grandchild", "axe",
    ]  # fmt: skip


def test_shares_of_what_is_not_there():
    said = {1: ["dog", "dog", "cat"], 2: ["car"], 3: [], 9: ["x"]}
    there = {1: {"dog", "tree"}, 2: ["car", "car"], 3: ["bus"], 4: ["cow"]}
    found = hallucination.score(said, there)
    assert found.chair_i == pytest.approx(1 / 4) and found.chair_s == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(2 / 4)
    assert found.hallucinated == {1: ["cat"]} and (found.mentions, found.texts) == (4, 3)
    silent = hallucination.score({1: []}, {1: []})
    assert silent.chair_i is None and silent.recall is None and silent.chair_s == 0
    with pytest.raises(errors.SgqlmError, match="no text has"):
        hallucination.score({1: []}, {2: []})


def test_scenes():
    scene = world.make_scene(config.SceneConfig(), "test", 0)
    there = {f"{thing.colour} {thing.shape}" for thing in scene.objects}
    names = [f"{colour} {shape}" for colour in world.COLOURS for shape in world.SHAPES]
    absent = next(name for name in names if name not in there)
    text = f"There is a {', a '.join(sorted(there))} and a {absent}."
    said = hallucination.mentions(text, names)
    found = hallucination.score({0: said}, {0: there})
    assert found.hallucinated == {0: [absent]} and found.recall == 1
    assert found.chair_i == pytest.approx(1 / (len(there) + 1))
