import json
import os
import signal

import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.cli import entities, extractor_flags, main
from sgqlm.data import records
from sgqlm.entities import extract, settings
from tests.entities import drawn


def sgqlm(capsys, *words):
    code = main.main(["entities", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.fixture
def photos(tmp_path):
    return drawn.draw(tmp_path / "photos", 3)


def test_extract_tells_what_it_did_and_rests_when_done(photos, tmp_path, capsys):
    out, report = tmp_path / "store", tmp_path / "reports" / "run.json"
    (photos / "0001.png").write_bytes(b"no picture")
    words = ("extract", "--images", photos, "--out", out, "--report", report)
    code, text, err = sgqlm(capsys, *words)
    assert code == 0 and "3 images, 3 of them new" in text and err.count("3/3") == 1
    assert "images/s" in text and "segment" in err
    assert "without entities: 0001.png: the image cannot be decoded" in text
    assert records.EntityStore(out).keys() == ["0000.png", "0001.png", "0002.png"]
    assert set(records.EntityStore(out)[0].coverage) == {"24x24:pad"}
    told = json.loads(report.read_text())
    assert told["images"] == 3 and told["failed"][0][0] == "0001.png" and told["wall_seconds"] > 0
    code, text, _ = sgqlm(capsys, *words)
    assert code == 0 and "0 of them new" in text


def test_images_of_a_list_and_of_a_data_set(photos, tmp_path, capsys):
    file = tmp_path / "some.txt"
    file.write_text("0002.png\n0000.png\n")
    words = ("extract", "--list", file, "--out", tmp_path / "listed")
    code, _, err = sgqlm(capsys, *words)  # beside the list there are no such files
    assert code == errors.DATA and "2 of 2 images have no entities" in err
    assert "0002.png: the image file cannot be read: No such file" in err
    assert sgqlm(capsys, *words, "--images", photos)[0] == 0
    assert records.EntityStore(tmp_path / "listed").keys() == ["0002.png", "0000.png"]
    rows = [records.Image(p.name, p.read_bytes(), (48, 64)) for p in sorted(photos.glob("*"))]
    records.write_images(tmp_path / "set" / "images", rows)
    for data in ("set", "set/images"):
        out = tmp_path / data.replace("/", "-")
        words = ("--data", tmp_path / data, "--out", tmp_path / "of" / out.name)
        assert sgqlm(capsys, "extract", *words)[0] == 0
        assert len(records.EntityStore(tmp_path / "of" / out.name)) == 3


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--images=none"], 2, "there is no such folder"),
        (["--images=empty"], 3, "there are no images"),
        ([], 2, "the images are not named"),
        (["--images=photos", "--data=photos"], 2, "the images are named twice"),
        (["--images=photos", "--shard-size=0"], 2, "--shard-size"),
        (["--images=photos", "--views="], 2, "--views"),
        (["--images=photos", "--device=tpu"], 2, "--device"),
        (["--images=photos", "--benchmark", "--out=e1"], 2, "--report=FILE.json"),
        (["--data=photos"], 3, "there is no images store"),
        (["--list=photos"], 2, "the list of images cannot be read"),
        (["--images=photos", "--extractor=papre"], 2, "did you mean paper?"),
        (["--images=photos", "--extractor=paper"], 2, "--tagger-weights"),
        (["--images=photos", "--box-threshold=0.3"], 2, "makes no use of --box-threshold"),
        (["--images=photos", "--max-area=7"], 2, "--max-area"),
        (["--images=photos", "--views=24x25:pad"], 2, "--views"),
        (["--images=photos", "--batch-size=0"], 2, "--batch-size"),
        (["--images=photos", "--shard-size=-1"], 2, "--shard-size"),
        (["--images=photos", "--fault-budget=5"], 2, "--fault-budget"),
        (["--images=photos", "--workers=2"], 2, "add --engine=ray"),
        (["--images=photos", "--out=photos"], 2, "replace something else"),
        (["--images=photos", "--benchmark", "--engine=ray"], 2, "measures one worker"),
    ],
)
def test_wrong_arguments(photos, tmp_path, monkeypatch, capsys, words, code, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    named = [] if any(word.startswith("--out") for word in words) else ["--out=out"]
    found, _, err = sgqlm(capsys, "extract", *named, *words)
    assert (found, told in err) == (code, True), err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]


def test_an_output_must_be_named(photos, capsys):
    code, _, err = sgqlm(capsys, "extract", "--images", photos)
    assert code == 2 and "--out" in err


def test_a_flag_for_every_setting(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    words = ["--extractor=sam3", "--tags=0000.png", "--max-entities=5", "--fill-holes"]
    words += ["--views=16x16:crop, 24x24:pad", "--tagger-weights=owner/name"]
    code, text, _ = sgqlm(capsys, "extract", *words, "--print-settings")
    shown = json.loads(text)
    assert code == 0 and shown["name"] == "sam3" and shown["box_threshold"] == 0.5
    assert shown["tags"] == str(photos / "0000.png") and shown["tagger_weights"] == "owner/name"
    assert shown["max_entities"] == 5 and shown["fill_holes"] is True
    assert shown["views"] == ["16x16:crop", "24x24:pad"]
    with pytest.raises(SystemExit):
        entities.run(["extract", "--help"])
    told = capsys.readouterr().out
    for field in settings.ExtractorConfig.__dataclass_fields__:
        if field != "name":
            assert extractor_flags._flag(field) in told


def test_the_settings_of_regions_are_kept_with_the_store(photos, tmp_path, capsys):
    words = ("extract", "--images", photos, "--out", tmp_path / "out", "--max-entities=1")
    assert sgqlm(capsys, *words)[0] == 0
    about = records.read_manifest(tmp_path / "out")["about"]
    assert about["settings"]["max_entities"] == 1 and about["entities"] == 3


def test_benchmark_prints_stages_and_writes_no_store(photos, tmp_path, capsys):
    words = ("extract", "--images", photos, "--benchmark", "--n=2", "--batch-size=1")
    code, text, _ = sgqlm(capsys, *words)
    assert code == 0 and "ms an image" in text and "bytes a record" in text
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    file = tmp_path / "made" / "speed.json"
    assert sgqlm(capsys, *words, "--out", file)[0] == 0
    told = json.loads(file.read_text())
    assert told["images"] == 2 and told["stages"]["segment"] > 0
    assert sgqlm(capsys, *words, "--out", photos)[0] == 2
    assert sgqlm(capsys, *words, "--report", file.with_name("other.json"))[0] == 0
    assert file.with_name("other.json").is_file()


def test_images_in_which_nothing_is_found_are_told(photos, tmp_path, capsys):
    Image.new("RGB", (40, 40)).save(photos / "0001.png")
    words = ("extract", "--images", photos, "--out", tmp_path / "out")
    _, text, _ = sgqlm(capsys, *words)
    assert "nothing was found in 1 images" in text and "threshold" not in text
    for path in photos.iterdir():
        Image.new("RGB", (40, 40)).save(path)
    assert "thresholds too high" in sgqlm(capsys, *words)[1]


def test_other_settings_need_overwrite(photos, tmp_path, capsys):
    words = ("extract", "--images", photos, "--out", tmp_path / "out")
    assert sgqlm(capsys, *words)[0] == 0
    code, _, err = sgqlm(capsys, *words, "--max-entities=1")
    assert code == 2 and "max_entities: 32, now 1" in err and "--overwrite" in err
    assert sgqlm(capsys, *words, "--views=16x16:pad", "--shard-size=1")[0] == 0
    assert sgqlm(capsys, *words, "--max-entities=1", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, errors.INTERRUPTED), (signal.SIGTERM, errors.PREEMPTED)]
)
def test_a_signal_becomes_an_exit_code(photos, tmp_path, capsys, monkeypatch, number, code):
    handler = signal.getsignal(signal.SIGTERM)
    run = extract.run

    def stopped(*args, **options):
        progress = options["progress"]

        def stop(state):
            progress(state)
            os.kill(os.getpid(), number)

        return run(*args, **(options | {"progress": stop}))

    monkeypatch.setattr(extract, "run", stopped)
    words = ("extract", "--images", photos, "--out", tmp_path / "out")
    found, _, err = sgqlm(capsys, *words)
    assert found == code and "the same command goes on" in err
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_note_of_progress_has_the_rate_of_each_stage():
    state = extract.State(30, 100, 10, 20, 1, {"tag": 2.0, "detect": 10.0, "filter": 0.0})
    assert entities._note(state, 1.25) == "images/s: in all 1.25, tag 10, detect 2; 1 failed"


def test_help_names_the_verbs_and_a_missing_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        entities.run(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("extract", "show"))
    with pytest.raises(errors.SgqlmError, match="required: "):
        entities.run([])
