import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm.cli import entities, main
from sgqlm.data import records


def write_photos(folder):
    folder.mkdir()
    for k in range(3):
        image = Image.new("RGB", (120, 80), (220, 220, 210))
        ImageDraw.Draw(image).ellipse((10, 10, 60, 60), fill=(200, 40, 60 * k))
        image.save(folder / f"photo{k}.png")
    return folder


def sgqlm(capsys, *words):
    code = main.main(["entities", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_extract_tells_what_it_did_and_rests_when_done(tmp_path, capsys):
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "store"
    (photos / "photo1.png").write_bytes(b"no picture")
    code, text, err = sgqlm(capsys, "extract", "--images", photos, "--out", out)
    assert code == 0 and "3 images, 3 of them new" in text and "3/3" in err
    assert "without entities: photo1.png: the image cannot be decoded" in text
    assert records.EntityStore(out).keys() == ["photo0.png", "photo1.png", "photo2.png"]
    code, text, _ = sgqlm(capsys, "extract", "--images", photos, "--out", out)
    assert code == 0 and "0 of them new" in text


def test_show_writes_a_page_and_pictures(tmp_path, capsys):
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "store"
    sgqlm(capsys, "extract", "--images", photos, "--out", out)
    words = ("--images", photos, "--n", "2", "--out", tmp_path / "page")
    code, text, err = sgqlm(capsys, "show", out, *words)
    assert code == 0, err
    page = (tmp_path / "page" / "entities.html").read_text()
    assert page.count("data:image/") == 4 and "photo1.png" in page and "photo2.png" not in page
    assert text.strip().endswith("entities.html")
    pictures = sorted((tmp_path / "page").glob("*.png"))
    assert [p.name for p in pictures] == ["photo0-0.png", "photo1-1.png"]
    assert np.asarray(Image.open(pictures[0])).std() > 10


def test_show_needs_the_images_and_goes_on_without_one(tmp_path, capsys):
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "store"
    sgqlm(capsys, "extract", "--images", photos, "--out", out)
    code, _, err = sgqlm(capsys, "show", out)
    assert code == 2 and "--images" in err
    (photos / "photo0.png").unlink()
    words = ("show", out, "--images", photos, "--out", tmp_path / "page")
    assert sgqlm(capsys, *words)[0] == 0
    page = (tmp_path / "page" / "entities.html").read_text()
    assert page.count("data:image/") == 4 and "error" in page


def test_wrong_arguments(tmp_path, capsys):
    out = tmp_path / "out"
    assert sgqlm(capsys, "extract", "--images", tmp_path / "none", "--out", out)[0] == 2
    assert sgqlm(capsys, "extract", "--images", tmp_path, "--out", out)[0] == 3
    words = ("--extractor", "sam9", "--images", tmp_path, "--out", out)
    code, _, err = sgqlm(capsys, "extract", *words)
    assert code == 2 and "regions" in err
    assert sgqlm(capsys, "show", tmp_path / "none")[0] == 3


def test_help_names_the_verbs_and_a_missing_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        entities.run(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("extract", "show"))
    with pytest.raises(SystemExit) as stopped:
        entities.run([])
    assert stopped.value.code == 2
