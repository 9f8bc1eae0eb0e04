"""The picture, scene and entities that `generate`, `ask` and `chat` are given."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.cli import picture
from sgqlm.entities import extract, inputs, regions
from sgqlm.evals import scenes
from tests import tiny_model


@pytest.fixture
def photo(tmp_path):
    image = Image.new("RGB", (90, 60), (225, 222, 214))
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill="red")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    return tmp_path / "a.jpg"


def opened(*words):
    args = picture.parser("generate", None).parse_args(["--checkpoint=x", *map(str, words)])
    return picture.open_picture(tiny_model.make(), args)


def test_a_photograph_is_upright_and_has_regions(photo, capsys):
    image, entities = opened(f"--image={photo}")
    assert image.size == (60, 90)
    assert entities.size == (90, 60)
    assert len(entities) >= 1
    assert f"{len(entities)} entities (regions)" in capsys.readouterr().err
    _, none = opened(f"--image={photo}", "--entities=none")
    assert none is None


def test_the_extractor_of_the_flags_is_taken(photo, tmp_path):
    most, few = opened(f"--image={photo}")[1], opened(f"--image={photo}", "--max-entities=1")[1]
    assert len(few) == 1 < len(most)
    with pytest.raises(errors.SgqlmError, match="needs weights") as caught:
        opened(f"--image={photo}", "--extractor=paper")
    assert caught.value.where.startswith("--")
    # nothing is loaded where nothing is to be found
    assert opened(f"--image={photo}", "--extractor=paper", "--entities=none")[1] is None


def test_a_scene_is_that_of_the_test_split():
    image, entities = opened("--scene=3")
    case = scenes.make_case(tiny_model.SCENES, "test", 3)
    np.testing.assert_array_equal(image, case.image)
    np.testing.assert_array_equal(entities.boxes, case.entities.boxes)
    assert opened("--scene=3", "--entities=none")[1] is None
    assert opened() == (None, None)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(errors.SgqlmError, match="no such picture") as caught:
        opened(f"--image={tmp_path / 'b.jpg'}")
    assert caught.value.code == errors.DATA
    with pytest.raises(errors.SgqlmError, match="from 0 on"):
        opened("--scene=-1")
    with pytest.raises(errors.SgqlmError, match="not allowed with"):
        opened("--scene=1", "--image=a.jpg")


def test_entities_of_a_store_belong_to_the_content_of_the_picture(photo, tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "other.png")
    store = tmp_path / "store"
    extract.run(regions.RegionsExtractor(), inputs.from_folder(tmp_path), store)
    photo = photo.rename(tmp_path / "moved.jpg")
    wanted = opened(f"--image={photo}")[1]
    found = opened(f"--image={photo}", f"--entities={store}")[1]
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    assert str(store) in capsys.readouterr().err
    Image.new("RGB", (30, 20)).save(tmp_path / "new.png")
    with pytest.raises(errors.SgqlmError, match="lacks the picture") as caught:
        opened(f"--image={tmp_path / 'new.png'}", f"--entities={store}")
    assert caught.value.code == errors.DATA
    with pytest.raises(errors.SgqlmError, match="no entities store"):
        opened(f"--image={photo}", "--entities=extrct")
