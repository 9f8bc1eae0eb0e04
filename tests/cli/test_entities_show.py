"""`sgqlm entities show` as a user types it."""

import argparse
import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import config, errors
from sgqlm.cli import entities_show, main
from sgqlm.data import graphs, records
from sgqlm.data.relations import annotations
from sgqlm.data.relations import types as relation_types
from sgqlm.train import checkpoint
from tests import tiny_model

SIZE = (80, 120)
BOXES = np.array([[10, 10, 60, 60], [70, 30, 110, 70]], np.float32)


def show(capsys, *words):
    code = main.main(["entities", "show", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def drawn(k):
    image = Image.new("RGB", SIZE[::-1], (220, 220, 210))
    ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill=(200, 40, 60 * k))
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A built data set of four images: two with entities, one without, one that failed."""
    folder = tmp_path_factory.mktemp("data")
    entities = graphs.Entities.from_boxes(
        BOXES, SIZE, labels=["disc", "поезд"], scores=np.array([0.9, 0.4], np.float32)
    ).with_coverage(4, "crop", image_size=56)
    keys = ["a/one.png", "two.png", "none.png", "failed.png"]
    data = [drawn(k) for k in range(4)]
    found = [entities, dataclasses.replace(entities, labels=[]), graphs.Entities.empty(SIZE), "no"]
    images = [records.Image(key, item, SIZE) for key, item in zip(keys, data, strict=True)]
    records.write_images(folder / "images", images)
    digests = [hashlib.sha256(item).hexdigest() for item in data]
    rows = list(zip(keys, found, digests, strict=True))
    records.write_entities(folder / "entities", rows, about={"extractor": "paper", "nms": 0.5})
    things = [
        relation_types.Object(n, tuple(map(float, b))) for n, b in zip("dt", BOXES, strict=True)
    ]
    known = [relation_types.Relation(0, "left of <it>", 1)]
    lines = [annotations.encode(relation_types.Annotated(key, SIZE, things, known)) for key in keys]
    (folder / annotations.FILE).write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tiny = tiny_model.make()
    meta = checkpoint.Meta(config.to_dict(tiny.config), "instruct", 0, 1, True)
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    return checkpoint.save(root, meta, tiny.params, tokenizer=tiny.tokenizer.model_bytes)


def test_a_data_set_becomes_a_page_and_pictures(dataset, capsys, tmp_path):
    code, text, err = show(capsys, dataset, "--out", tmp_path, "--side", "500")
    assert code == 0, err
    assert text.strip() == str(tmp_path / "entities.html")
    page = (tmp_path / "entities.html").read_text("utf-8")
    assert page.count("<article") == 4 and "4 of 4 images. Extractor: paper" in page
    assert "error: no" in page and "empty: no entity" in page and "nms" in page
    assert "left of &lt;it&gt;" in page and "поезд" in page
    assert "4 x 4 patches of the cropped square" in page  # the stored view
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["none-2.png", "one-0.png", "two-1.png"]
    picture = Image.open(tmp_path / "one-0.png")
    assert picture.width == 500 and round(picture.info["dpi"][0]) == 300
    assert np.asarray(picture).std() > 10


def test_rows_are_chosen_by_number_or_key(dataset, capsys, tmp_path):
    def shown(*words):
        assert show(capsys, dataset, "--out", tmp_path, "--side", "400", *words)[0] == 0
        page = (tmp_path / "entities.html").read_text("utf-8")
        return [key for key in ("a/one", "two", "none", "failed") if f"<h2>{key}.png<" in page]

    assert shown("--n", "1", "--start", "1") == ["two"]
    assert shown("--start", "2") == ["none", "failed"]
    assert shown("--keys", "failed.png, a/one.png") == ["a/one", "failed"]
    code, _, err = show(capsys, dataset, "--keys", "a/two.png")
    assert code == 2 and "near: " in err and "two.png" in err


def test_views_are_chosen(dataset, capsys, tmp_path):
    words = (dataset, "--n", "1", "--out", tmp_path, "--side", "400")
    assert show(capsys, *words, "--views", "8x8:pad,2x2:crop")[0] == 0
    page = (tmp_path / "entities.html").read_text("utf-8")
    assert "8 x 8 patches of the padded" in page and "2 x 2 patches of the cropped" in page
    code, _, err = show(capsys, *words, "--views", "8:pad")
    assert code == 2 and "8:pad" in err


def test_a_model_adds_its_graph_and_what_it_hears(dataset, model, capsys, tmp_path):
    words = ("--checkpoint", model, "--prompt", "what colour is the star ?", "--n", "2")
    code, _, err = show(capsys, dataset, *words, "--out", tmp_path, "--side", "400")
    assert code == 0, err
    page = (tmp_path / "entities.html").read_text("utf-8")
    assert page.count("scene graph of 2 nodes") == 4  # label and caption of two pictures
    grid = tiny_model.make().config.model.vision.grid
    assert f"{grid} x {grid} patches of the padded square" in page
    assert page.count(">colour</span>") == 4  # of each node
    assert "nodes they light: what colour is the star ?" in page


def test_a_photograph_is_shown_live(capsys, tmp_path):
    (tmp_path / "a.png").write_bytes(drawn(1))
    words = ("--image", tmp_path / "a.png", "--max-entities", "3", "--out", tmp_path / "page")
    code, _, err = show(capsys, *words, "--side", "400")
    assert code == 0, err
    page = (tmp_path / "page" / "entities.html").read_text("utf-8")
    assert "Extractor: regions" in page and "max_entities" in page and "24 x 24" in page
    assert show(capsys, "--image", tmp_path / "none.png")[0] == errors.DATA


def test_images_that_changed_are_told_from_those_that_fit(dataset, capsys, tmp_path):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    (photos / "a" / "one.png").write_bytes(drawn(3))
    Image.new("RGB", (30, 30)).save(photos / "two.png")
    words = (dataset / "entities", "--images", photos, "--out", tmp_path / "page", "--side", "400")
    code, _, err = show(capsys, *words)
    assert code == 0 and "note: 2 of 4 images cannot be shown: none.png, failed.png" in err
    page = (tmp_path / "page" / "entities.html").read_text("utf-8")
    assert page.count("not the one in which the entities were found") == 2
    assert "30 x 30 pixels, but its entities are those of one with 120 x 80" in page
    assert "error: the image file is missing" in page and "error: no" in page
    assert "masks, boxes and labels" in page  # of the first
    assert show(capsys, dataset / "entities")[0] == 2  # no images to be seen
    (tmp_path / "empty").mkdir()
    words = (dataset / "entities", "--images", tmp_path / "empty", "--out", tmp_path / "other")
    code, _, err = show(capsys, *words)
    assert code == errors.DATA and "none of the images can be shown" in err
    assert not (tmp_path / "other").exists()
    code, _, err = show(capsys, dataset, "--out", photos / "two.png")
    assert code == 2 and "the output is a file" in err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "not said what to show"),
        (["STORE", "--image", "x.png"], 2, "a store and an image"),
        (["STORE", "--prompt", "what?"], 2, "--checkpoint"),
        (["STORE", "--segmenter", "sam"], 2, "has its entities already"),
        (["STORE", "--extractor", "paper"], 2, "--extractor"),
        (["STORE", "--n", "0"], 2, "--n"),
        (["STORE", "--start", "4"], 2, "there are 4 images"),
        (["STORE", "--keys", " , "], 2, "there is no key"),
        (["STORE", "--side", "9"], 2, "400 to 8000"),
        (["STORE/none"], 3, "there is no entities store"),
        (["STORE/entities", "--images", "STORE/none"], 2, "no such folder"),
    ],
)
def test_wrong_words_are_answered(dataset, capsys, words, code, told):
    words = [word.replace("STORE", str(dataset)) for word in words]
    found, _, err = show(capsys, *words)
    assert found == code and told in err and "Traceback" not in err


def test_a_damaged_annotation_is_named(dataset, capsys, tmp_path):
    path = dataset / annotations.FILE
    whole = path.read_text("utf-8")
    try:
        path.write_text(json.dumps({"key": "a/one.png"}) + "\n", "utf-8")
        code, _, err = show(capsys, dataset, "--out", tmp_path)
    finally:
        path.write_text(whole, "utf-8")
    assert code == errors.DATA and "annotations.jsonl:1" in err


def test_help_names_the_flags_of_the_extractor_too(capsys):
    parser = argparse.ArgumentParser()
    entities_show.add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["show", "--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--checkpoint", "--keys", "--views", "--tagger-weights"))


def test_letters_that_no_font_has_are_said_once(capsys, tmp_path):
    found = graphs.Entities.from_boxes(BOXES, SIZE, labels=["disc", "\U0010fffe"])
    records.write_entities(tmp_path / "store", [("one.png", found)])
    (tmp_path / "one.png").write_bytes(drawn(0))
    words = (tmp_path / "store", "--images", tmp_path, "--out", tmp_path / "page", "--side", "400")
    code, _, err = show(capsys, *words)
    assert code == 0 and err.count("no font of this machine has") == 1
