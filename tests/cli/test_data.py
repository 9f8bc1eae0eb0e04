import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import config, errors
from sgqlm.cli import data, main
from sgqlm.data import graphs, records, sources
from sgqlm.models import presets


def picture(mode="RGB", size=(96, 64)):
    image = Image.new("RGB", size, (214, 208, 190))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, size[0] // 2, size[1] - 8), fill=(180, 40, 30))
    draw.rectangle((size[0] // 2 + 6, 20, size[0] - 8, size[1] - 14), fill=(30, 60, 170))
    return image.convert(mode)


def talk(name, image=None, question="What colour is the circle?"):
    lead = "<image>\n" if image else ""
    turns = [{"from": "human", "value": lead + question}, {"from": "gpt", "value": "Red."}]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def write_photos(folder):
    """Write one photograph of each awkward kind; return the records that name them."""
    images = folder / "images"
    (images / "deep").mkdir(parents=True)
    picture().save(images / "plain.jpg")
    picture("L").save(images / "grey.png")
    picture("CMYK").save(images / "cmyk.jpg")
    picture("P").save(images / "palette.gif")
    picture("RGBA").save(images / "alpha.webp")
    exif = Image.Exif()
    exif[274] = 6
    picture().save(images / "deep" / "turned.jpg", exif=exif)
    frames = [picture(), Image.new("RGB", (96, 64), "green")]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:])
    picture(size=(5200, 3100)).save(images / "huge.jpg")
    deep = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 20
    Image.fromarray(deep).save(images / "sixteen.png")
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.*"))
    return [talk(name, name) for name in names] + [talk("words only")]


def write_json(folder, found, name="talks.json"):
    (folder / name).write_text(found if isinstance(found, str) else json.dumps(found))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    write_json_target = write_photos(path)
    write_json(path, write_json_target)
    return path


def sgqlm(capsys, *words):
    code = main.main(["data", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_kind_of_picture_passes_and_is_built(folder, tmp_path, capsys):
    code, out, _ = sgqlm(capsys, "check", folder)
    assert code == 0 and "10 records, 10 usable" in out and "no faults" in out
    code, out, err = sgqlm(capsys, "build", folder, "--out", tmp_path / "set")
    assert code == 0, err
    assert "10 conversations, 9 images" in out
    source = sources.StoreSource(tmp_path / "set", "train")
    found = {source[i].record_key.split()[-1]: source[i] for i in range(len(source))}
    sizes = {key: value.entities.size for key, value in found.items() if value.entities}
    assert sizes["deep/turned.jpg"] == (96, 64) and sizes["huge.jpg"] == (3100, 5200)
    seen = [key for key, value in found.items() if value.entities and len(value.entities)]
    assert set(seen) >= {"plain.jpg", "grey.png", "cmyk.jpg", "palette.gif", "moving.gif"}
    assert not found["only"].has_image
    assert names_in(tmp_path) == ["photos", "set"]
    assert sgqlm(capsys, "check", tmp_path / "set")[0] == 0


BROKEN = {
    "truncated": "image decodes",
    "missing": "image exists",
    "outside": "image inside root",
    "absolute": "image inside root",
    "no picture": "<image> has image",
    "no placeholder": "image has <image>",
    "text file": "image decodes",
}


def break_it(folder):
    """Add a record for each fault; return all records."""
    images = folder / "images"
    data = (images / "plain.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(data[: len(data) // 2])
    (images / "words.jpg").write_text("these are words")
    picture().save(folder / "secret.png")
    bad = [
        talk("truncated", "cut.jpg"), talk("missing", "gone.jpg"), talk("outside", "../secret.png"),
        talk("absolute", str(folder / "secret.png")), talk("no picture", question="<image>\nWhat?"),
        talk("no placeholder", "plain.jpg"), talk("text file", "words.jpg"),
    ]  # fmt: skip
    bad[5]["conversations"][0]["value"] = "What?"
    found = [*json.loads((folder / "talks.json").read_text()), *bad]
    write_json(folder, found)
    return found


def test_check_names_every_record_and_rule_in_one_report(folder, capsys):
    break_it(folder)
    code, out, _ = sgqlm(capsys, "check", folder)
    assert code == 3
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert rows[0] == ["record", "rule", "message"]
    assert {row[0]: row[1] for row in rows if row[0] in BROKEN} == BROKEN
    assert "17 records, 10 usable" in out and "7 faults" in out


def test_build_stops_with_the_faults_and_leaves_nothing(folder, tmp_path, capsys):
    break_it(folder)
    code, _, err = sgqlm(capsys, "build", folder, "--out", tmp_path / "set")
    assert code == 3
    for name, rule in BROKEN.items():
        assert f"{name}: {rule}" in err
    assert names_in(tmp_path) == ["photos"]


def test_bad_records_are_dropped_up_to_a_budget(folder, tmp_path, capsys):
    break_it(folder)
    out = tmp_path / "set"
    code, _, err = sgqlm(capsys, "build", folder, "--out", out, "--drop-bad", "--budget", "0.3")
    assert code == 3 and "7 of 17 records" in err and "--budget=0.41" in err
    assert not out.exists()
    words = ("--out", out, "--drop-bad", "--budget", "0.42", "--entities", "none")
    code, text, _ = sgqlm(capsys, "build", folder, *words)
    assert code == 0 and "left out: 7 of 17 records" in text and "image decodes (2)" in text
    about = records.read_manifest(out / "conversations")["about"]
    assert sum(about["dropped"].values()) == 7 and about["records"] == 17
    assert len(sources.StoreSource(out, "train")) == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"id": "a", "conversations": [}]', "line 1, column 32"),
        ('{"id": "a"}', "not a list"),
        ('[{"id": "a"}, 7]', "#1"),
        ("[]", "there are no records"),
        ("", "line 1, column 1"),
    ],
)
def test_malformed_json_is_told_and_nothing_is_built(content, said, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    write_json(photos, content)
    words = ("build", photos, "--out", tmp_path / "set", "--drop-bad", "--budget", "1")
    code, _, err = sgqlm(capsys, *words)
    assert code == 3 and said in err
    assert names_in(tmp_path) == ["photos"]


def test_which_json_and_which_images(folder, tmp_path, capsys):
    write_json(folder, [talk("one", "turned.jpg")], "other.json")
    code, _, err = sgqlm(capsys, "check", folder)
    assert code == 3 and "other.json, talks.json" in err
    assert sgqlm(capsys, "check", folder, "--json", "talks.json")[0] == 0
    code, out, _ = sgqlm(capsys, "check", folder / "other.json")
    assert code == 3 and "image exists" in out
    words = ("--json", folder / "other.json", "--images", folder / "images" / "deep")
    assert sgqlm(capsys, "check", folder, *words)[0] == 0
    code, _, err = sgqlm(
        capsys, "check", folder, "--json", "talks.json", "--images", tmp_path / "x"
    )
    assert code == 2 and "--images" in err


def test_a_repeated_id_is_noted_but_no_reason_to_stop(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    write_json(photos, [talk("twice"), talk("twice")])
    code, out, _ = sgqlm(capsys, "check", photos)
    assert code == 0 and "unique id (note)" in out and "2 usable" in out


def test_the_output_is_never_the_folder_of_the_photographs(folder, capsys):
    code, _, err = sgqlm(capsys, "build", folder, "--out", folder)
    assert code == 2 and "replace" in err
    assert (folder / "talks.json").exists()


def test_show_draws_a_page_of_a_folder_and_of_a_built_set(folder, tmp_path, capsys):
    words = ("--out", tmp_path / "folder.html", "--n", "3", "--self-questioning", "1")
    code, out, err = sgqlm(capsys, "show", folder, *words)
    assert code == 0, err
    page = pathlib.Path(out.strip()).read_text()
    assert page.count('class="card"') == 3 and page.count("data:image/") == 3
    assert '<span class="question"> What</span>' in page and "answer: trained" in page
    assert "the best become" in page or "entities" in page
    sgqlm(capsys, "build", folder, "--out", tmp_path / "set", "--entities", "none")
    code, out, _ = sgqlm(capsys, "show", tmp_path / "set", "--text", "--n", "20")
    assert code == 0 and out.count("== set/train/") == 10
    assert out.count("[answer: Red.</s>]") == 10 and "0 graph" in out


def test_show_takes_the_settings_of_a_configuration(folder, tmp_path, capsys):
    settings = {
        "model": config.to_dict(presets.get("tiny")),
        "text": {"system": "", "self_questioning": 1.0, "vocab_size": 400},
        "train": {"stages": [{"sources": [{"name": "mine", "path": str(folder)}]}]},
    }
    write_json(tmp_path, settings, "config.json")
    words = ("show", folder, "--text", "--n", "1", "--config", tmp_path / "config.json")
    code, out, err = sgqlm(capsys, *words)
    assert code == 0, err
    assert out.startswith("== mine/0 ") and "<s> USER: <image x 16>" in out
    assert "[question: What colour is the circle?</s>]" in out
    code, out, _ = sgqlm(capsys, *words, "--config.text.template=plain")
    assert code == 0 and "ASSISTANT" not in out and "Red." in out
    code, out, _ = sgqlm(capsys, *words, "--self-questioning", "0")
    assert code == 0 and "[question:" not in out
    assert sgqlm(capsys, "check", folder, "--config.text.system=")[0] == 2


def test_show_names_what_is_wrong(folder, tmp_path, capsys):
    assert sgqlm(capsys, "show", tmp_path / "nowhere")[0] == 3
    assert sgqlm(capsys, "show", folder, "--template", "v2")[0] == 2
    found = [talk("two turns"), talk("four turns")]
    found[1]["conversations"] *= 2
    write_json(tmp_path, found)
    code, _, err = sgqlm(capsys, "show", tmp_path / "talks.json", "--template", "plain")
    assert code == 3 and "talks/1 four turns" in err
    code, _, err = sgqlm(capsys, "show", folder, "--start", "99")
    assert code == 2 and "10" in err


def test_a_changed_store_is_noticed(folder, tmp_path, capsys):
    sgqlm(capsys, "build", folder, "--out", tmp_path / "set", "--entities", "none")
    shard = next((tmp_path / "set" / "images").glob("*.array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, out, _ = sgqlm(capsys, "check", tmp_path / "set")
    assert code == 3 and f"{shard.name}: changed" in out


def test_scenes_are_built_and_shown(tmp_path, capsys):
    counts = ("--num-train", "6", "--num-val", "1", "--num-test", "1", "--workers", "1")
    code, out, err = sgqlm(capsys, "build", "scenes", "--out", tmp_path / "scenes", *counts)
    assert code == 0, err
    assert "train 6, val 1, test 1" in out
    code, out, err = sgqlm(capsys, "show", tmp_path / "scenes", "--out", tmp_path / "page.html")
    assert code == 0, err
    assert (tmp_path / "page.html").read_text().count('class="card"') == 6
    code, _, err = sgqlm(capsys, "build", "scenes", "--out", tmp_path / "x", "--num-train", "-1")
    assert code == 2


def test_help_names_the_verbs_and_a_missing_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        data.run(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("check", "build", "show"))
    with pytest.raises(errors.SgqlmError, match="required: "):
        data.run([])


def test_a_single_store_is_no_data_set(capsys, tmp_path):
    records.write_entities(tmp_path / "found", [("a.png", graphs.Entities.empty((4, 4)))])
    code, _, err = sgqlm(capsys, "show", tmp_path / "found")
    assert code == errors.USAGE and "a store of entities" in err
    assert f"sgqlm entities show {tmp_path / 'found'}" in err


def test_a_rebuild_keeps_extracted_entities_and_tells_what_changed(folder, tmp_path, capsys):
    out = tmp_path / "set"
    words = ("build", folder, "--out", out)
    assert sgqlm(capsys, *words, "--entities", "none")[0] == 0
    extracted = ["--data", out, "--out", out / "entities", "--max-entities=2"]
    assert main.main(["entities", "extract", *map(str, extracted)]) == 0
    code, text, _ = sgqlm(capsys, *words)
    assert code == 0 and "kept as it was" in text and "not as it was" not in text
    code, _, err = sgqlm(capsys, *words, "--entities", "regions")
    assert code == 2 and "other entities" in err and "--overwrite" in err
    write_json(folder, [talk("one", "plain.jpg")])
    code, text, _ = sgqlm(capsys, *words)
    assert code == 0 and "records 10, now 1; the json has changed" in text
    assert records.EntityStore(out / "entities").keys() == ["plain.jpg"]
    write_json(folder, [talk("one", "plain.jpg"), talk("two", "grey.png")])
    code, _, err = sgqlm(capsys, *words)
    assert code == 3 and "lacks 1 of 2 images" in err and "grey.png" in err
    code, text, _ = sgqlm(capsys, *words, "--entities", "regions", "--overwrite")
    assert code == 0 and len(records.EntityStore(out / "entities")) == 2 and "kept" not in text
