"""Lists of tags: files as people write and publish them, and what is wrong with others."""

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.entities import interfaces, tags


def test_a_list_is_read_in_its_order(tmp_path):
    file = tmp_path / "tags.txt"
    file.write_bytes("\ufeffdog\r\n  red   ball \r\n\r\nCafé\r\n".encode())
    assert tags.read_tags(file) == ["dog", "red ball", "Café"]
    assert tags.read_tags(str(file)) == tags.read_tags(file)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b"\n \n", "empty"), (b"dog\n?!\n", "names nothing"), (b"\xff\xfe", "text")],
)
def test_a_bad_list_is_refused(tmp_path, content, what):
    file = tmp_path / "tags.txt"
    file.write_bytes(content)
    with pytest.raises(errors.SgqlmError, match=what) as caught:
        tags.read_tags(file)
    assert caught.value.code == errors.DATA


def test_the_bad_line_is_named(tmp_path):
    (tmp_path / "tags.txt").write_text("dog\n...\n")
    with pytest.raises(errors.SgqlmError) as caught:
        tags.read_tags(tmp_path / "tags.txt")
    assert caught.value.where.endswith("tags.txt:2")


@pytest.mark.parametrize("given", ["", "no/such.txt"])
def test_no_list_is_an_error_that_names_the_flag(given, tmp_path):
    with pytest.raises(errors.SgqlmError) as caught:
        tags.read_tags(given, "--tags")
    assert caught.value.where == "--tags"
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        tags.read_tags(tmp_path)  # a folder


def test_thresholds_are_one_a_tag_or_one_for_all(tmp_path):
    file = tmp_path / "thresholds.txt"
    file.write_text("0.65\n.8\n 1e-1 \n\n")
    np.testing.assert_allclose(tags.read_thresholds(file, 3), [0.65, 0.8, 0.1], rtol=1e-6)
    np.testing.assert_allclose(tags.read_thresholds("0.5", 2), [0.5, 0.5])
    file.write_text("0.7\n")
    values = tags.read_thresholds(file, 2)
    np.testing.assert_allclose(values, [0.7, 0.7], rtol=1e-6)
    values[0] = 0  # a copy of its own


@pytest.mark.parametrize("text", ["0.5\nhigh", "0.5\n1.5", "0.5\nnan", "0.5\n-1"])
def test_a_bad_threshold_is_refused_with_its_line(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(errors.SgqlmError, match="threshold") as caught:
        tags.read_thresholds(tmp_path / "t.txt", 2)
    assert caught.value.where.endswith("t.txt:2")
    with pytest.raises(errors.SgqlmError, match="threshold"):
        tags.read_thresholds("68", 2)  # percent


def test_another_number_of_thresholds_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("0.5\n0.5\n")
    with pytest.raises(errors.SgqlmError) as caught:
        tags.read_thresholds(tmp_path / "t.txt", 3)
    assert "2 thresholds and 3 tags" in caught.value.why


def test_what_is_left_out(tmp_path):
    assert {"room", "kitchen", "photo", "blue", "freedom", "wall lamp"} <= tags.EXCLUDED
    assert not {"dog", "person", "table", "tree", "window", "door", "car"} & tags.EXCLUDED
    assert all(word == " ".join(word.split()).lower() for word in tags.EXCLUDED)
    assert tags.read_exclude("") == tags.EXCLUDED and tags.read_exclude("none") == frozenset()
    (tmp_path / "out.txt").write_text("Dog\n")
    own = tags.read_exclude(str(tmp_path / "out.txt"))
    assert tags.without(["DOG", "dog", "dogs"], own) == ["dogs"]
    with pytest.raises(errors.SgqlmError) as caught:
        tags.read_exclude("no/such.txt")
    assert caught.value.where == "--tags-exclude"


def test_a_vocabulary_answers_every_image_alike(tmp_path):
    (tmp_path / "v.txt").write_text("dog\nroom\nDog\ndog\n")
    tagger = tags.FixedVocabulary.load(tmp_path / "v.txt")
    assert isinstance(tagger, interfaces.Tagger)
    found = tagger.tag([Image.new("RGB", (1, 1)), Image.new("RGB", (5, 9))])
    assert found == [[("dog", 1.0), ("room", 1.0), ("Dog", 1.0)]] * 2
    assert tagger.tag([]) == []
    found[0].clear()  # a caller's list
    assert len(tagger.tag([Image.new("RGB", (1, 1))])[0]) == 3


def test_a_vocabulary_is_known_by_its_words():
    one, other = tags.FixedVocabulary(["a", "b"]), tags.FixedVocabulary(["b", "a"])
    assert one.settings() != other.settings()
    assert one.settings() == tags.FixedVocabulary(["a", "b", "c"], exclude=["C"]).settings()
    for labels, why in (([], "empty"), (["a"], "excluded")):
        with pytest.raises(errors.SgqlmError) as caught:
            tags.FixedVocabulary(labels, exclude=["a"])
        assert why in caught.value.why
