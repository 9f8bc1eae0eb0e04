"""Published data sets in small: their trees, what `check` and `build` say, evaluation images."""

import csv
import json

import pytest
from PIL import Image

from sgqlm.cli import data, data_relations, data_report, data_show, main
from sgqlm.data import cards, llava_json, records, sources

CARD = "llava_v1_5_mix665k"
NAME = "llava_v1_5_mix665k.json"


def talk(name, image=None, lead="<image>\n"):
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A ring."}]
    if image:
        turns[0]["value"] = lead + turns[0]["value"]
    return {"id": name, **({"image": image} if image else {"model": ""}), "conversations": turns}


IMAGES = {  # path in the json: file on the disk, if there is one
    "coco/train2017/000000000042.jpg": "coco/train2017/000000000042.jpg",
    "coco/train2017/000000000043.jpg": "coco/train2017/000000000043.jpg",
    "gqa/images/2345.jpg": "gqa/images/2345.jpg",
    "ocr_vqa/images/7.jpg": "ocr_vqa/images/7.gif",
    "ocr_vqa/images/8.jpg": "",
    "ocr_vqa/images/9.jpg": "",
    "textvqa/train_images/003a8ae2ef43b901.jpg": "textvqa/train_images/003a8ae2ef43b901.jpg",
    "vg/VG_100K/2346.jpg": "vg/VG_100K/2346.jpg",
    "vg/VG_100K_2/2347.jpg": "vg/VG_100K_2/2347.jpg",
}


@pytest.fixture
def tree(tmp_path):
    """The tree of the LLaVA mix, with another json in it as all users have."""
    root = tmp_path / "llava_data"
    for file in filter(None, IMAGES.values()):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), "red").save(root / file)
    found = [talk(f"r{i}", path) for i, path in enumerate(IMAGES)]
    found += [talk("again", "coco/train2017/000000000042.jpg"), talk("words")]
    (root / NAME).write_text(json.dumps(found))
    (root / "llava_instruct_80k.json").write_text("[]")
    return root


def sgqlm(capsys, *words):
    code = main.main(["data", *map(str, words)])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_check_counts_what_is_missing_by_folder(tree, tmp_path, capsys):
    code, out, err = sgqlm(capsys, "check", tree, f"--card={CARD}", "--no-decode")
    assert code == 3, err
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["ocr_vqa/images"][:3] == ["3", "1", "2"]
    assert "ocr_vqa/images/8.jpg," in rows["ocr_vqa/images"]
    assert rows["coco/train2017"] == ["2", "2", "0"]
    assert "r3      image suffix (note)" in out and "7.jpg is 7.gif" in out
    assert "11 records, 9 usable, images in" in out and "the card says 665298 records" in out
    assert "images were looked for and not decoded" in out
    assert "3 faults: image exists (2), image suffix (1)" in out
    code, out, err = sgqlm(capsys, "check", tree)
    assert code == 3 and "exactly one" in err  # without the card: which json?
    code, _, err = sgqlm(capsys, "check", tmp_path, f"--card={CARD}")
    assert code == 3 and f"there are no {NAME}" not in err  # found one folder below
    code, _, err = sgqlm(capsys, "check", tree / "coco", f"--card={CARD}")
    assert code == 3 and f"there is no {NAME}" in err
    code, _, err = sgqlm(capsys, "check", tree, "--card=llava_v15_mix665k")
    assert code == 2 and f"did you mean {CARD}?" in err


def test_a_missing_archive_is_named_as_what_to_get(tree, capsys):
    (tree / "vg").rename(tree / "visual genome")
    code, out, _ = sgqlm(capsys, "check", tree, f"--card={CARD}")
    assert code == 3 and "vg/VG_100K: missing (Visual Genome images.zip)" in out


def test_a_wrong_image_folder_is_guessed(tree, capsys):
    words = ("check", tree, f"--card={CARD}", "--images", tree / "vg")
    code, out, _ = sgqlm(capsys, *words)
    assert code == 3 and "no image was found: --images names the folder" in out


def test_reports_hold_everything(tree, tmp_path, capsys):
    found = json.loads((tree / NAME).read_text())
    found += [talk(f"x{i}", f"coco/train2017/{i:012}.jpg") for i in range(1000, 1130)]
    (tree / NAME).write_text(json.dumps(found))
    words = ("check", tree, f"--card={CARD}", "--no-decode")
    code, out, _ = sgqlm(capsys, *words)
    assert code == 3 and "and 112 more of `image exists` (--all, or --report=FILE)" in out
    assert "x1017 " in out and "x1018 " not in out
    code, out, _ = sgqlm(capsys, *words, "--all", "--report", tmp_path / "r" / "a.json")
    assert "x1129 " in out and "more of" not in out
    report = json.loads((tmp_path / "r" / "a.json").read_text())
    assert report["rules"] == {"image suffix": 1, "image exists": 132}
    assert report["records"] == 141 and report["usable"] == 9 and not report["decoded"]
    (coco,) = [row for row in report["folders"] if row["folder"] == "coco/train2017"]
    assert (coco["images"], coco["missing"]) == (132, 130)
    sgqlm(capsys, *words, "--report", tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == 133 and rows[-1]["record"] == "x1129"
    assert sgqlm(capsys, *words, "--report", tmp_path / "a.txt")[0] == 2


def test_build_by_card(tree, tmp_path, capsys):
    out = tmp_path / "set"
    words = ("build", tree, f"--card={CARD}", "--out", out)
    code, _, err = sgqlm(capsys, *words)
    assert code == 3 and "2 faults in the data: image exists (2)" in err and not out.exists()
    code, text, err = sgqlm(capsys, *words, "--drop-bad", "--budget", "0.2")
    assert code == 0, err
    assert "9 conversations, 7 images, 0 entities" in text and "sgqlm entities extract" in text
    assert not (out / "entities").exists()  # regions of 400,000 images would take days
    about = records.read_manifest(out / "conversations")["about"]
    assert about["card"] == CARD and about["dropped"] == {"image exists": 2}
    source = sources.StoreSource(out, "train")
    assert [source.sample(i).has_image for i in range(9)] == [True] * 8 + [False]
    keys = records.ImageStore(out / "images").keys()
    assert "ocr_vqa/images/7.gif" in keys


def test_evaluation_images_are_left_out(tree, tmp_path, capsys):
    pope = tmp_path / "coco_pope_random.json"
    rows = [{"question_id": i, "image": "COCO_val2014_000000000042.jpg"} for i in range(2)]
    pope.write_text("\n".join(map(json.dumps, rows)))
    same = tmp_path / "image_data.json"
    rows = [{"image_id": 2346, "coco_id": 42, "flickr_id": None, "url": ""}]
    same.write_text(json.dumps(rows))
    gqa = tmp_path / "gqa_testdev.json"
    gqa.write_text(json.dumps({"1": {"imageId": "n161313"}}))
    words = (tree, f"--card={CARD}", "--exclude", pope, same, "--exclude", gqa)
    code, out, _ = sgqlm(capsys, "check", *words, "--no-decode")
    assert f"to leave out: {pope}: 1 images (coco 1)" in out
    assert f"{same}: 1 images under their names in several sets; nothing by itself" in out
    assert f"left out: 3 records (2 images) for {pope}: r0 (coco/train2017/" in out
    assert f"left out: no record for {gqa}" in out and "11 records, 6 usable" in out
    target = tmp_path / "set"
    more = ("--out", target, "--drop-bad", "--budget", "0.2")
    code, out, err = sgqlm(capsys, "build", *words, *more)
    assert code == 0, err
    assert "6 conversations" in out and "left out: 2 of 11 records: image exists (2)" in out
    keys = records.ImageStore(target / "images").keys()
    assert not {"coco/train2017/000000000042.jpg", "vg/VG_100K/2346.jpg"} & set(keys)
    about = records.read_manifest(target / "conversations")["about"]
    assert about["excluded"] == {str(pope): 3, str(gqa): 0} and len(keys) == 5
    assert not sources.StoreSource(target, "train").sample(5).has_image  # text stays
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"question_id": 1, "text": "Yes"}')
    code, _, err = sgqlm(capsys, "check", tree, f"--card={CARD}", "--exclude", answers)
    assert code == 3 and "names no image" in err


def test_links_to_another_disk(tree, tmp_path, capsys):
    (tree / "coco").rename(tmp_path / "disk")
    (tree / "coco").symlink_to(tmp_path / "disk")
    words = ("check", tree, f"--card={CARD}")
    code, out, _ = sgqlm(capsys, *words)
    assert code == 3 and "image inside root (3)" in out and "--follow-links" in out
    code, out, _ = sgqlm(capsys, *words, "--follow-links")
    assert "image inside root" not in out and "9 usable" in out


def test_the_tree_of_llava_pretrain(tmp_path, capsys):
    for root in ("images", "."):  # unpacked beside the json, or as the page says
        folder = tmp_path / f"in {root}"
        (folder / root / "00453").mkdir(parents=True)
        Image.new("RGB", (12, 8)).save(folder / root / "00453" / "004539375.jpg")
        found = [talk("004539375", "00453/004539375.jpg", lead="Describe.\n<image>")]
        (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(found))
        (folder / "blip_laion_cc_sbu_558k_meta.json").write_text("[]")
        code, out, _ = sgqlm(capsys, "check", folder, "--card=llava_pretrain_558k")
        assert code == 0 and "1 records, 1 usable" in out and "no faults" in out


def test_cards_are_listed_with_what_is_missing(tree, capsys):
    code, out, _ = sgqlm(capsys, "cards")
    assert code == 0 and all(card.name in out for card in cards.every())
    code, out, _ = sgqlm(capsys, "cards", "--root", tree.parent)
    assert code == 0 and f"no {tree.parent / CARD}" in out
    tree.rename(tree.parent / CARD)
    code, out, _ = sgqlm(capsys, "cards", "--root", tree.parent)
    block = out.split(CARD, 1)[1].splitlines()
    assert block[1].strip() == "all files are there"
    code, out, _ = sgqlm(capsys, "cards", CARD)
    assert "licence: CC BY 4.0" in out and "llava_v1_5_mix665k.json: the records, 1.03 GB" in out


def test_benchmarks_lie_where_the_evaluation_looks(tmp_path, capsys):
    folder = tmp_path / "mm-vet"  # the card is called mmvet
    (folder / "images").mkdir(parents=True)
    code, out, _ = sgqlm(capsys, "cards", "mmvet", "--root", tmp_path)
    assert code == 0 and "mm-vet.jsonl: missing" in out
    for name in ("mm-vet.json", "llava-mm-vet.jsonl"):
        (folder / name).write_text("{}")
    for root in (tmp_path, folder):
        assert (
            f"all files are there: {folder}" in sgqlm(capsys, "cards", "mmvet", "--root", root)[1]
        )
    listed = sgqlm(capsys, "cards", "--root", tmp_path)[1]
    assert listed.split("mmvet ", 1)[1].splitlines()[1].strip() == "all files are there"


def test_help_tells_of_cards_and_lists(capsys):
    with pytest.raises(SystemExit):
        data.run(["build", "--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--card", "--exclude", "--max-per-predicate"))
    assert data_show.SCENES == "scenes" and not data_show.is_built(cards.folder())
    assert callable(data_relations.check)


def test_few_faults_are_all_shown():
    faults = [llava_json.Fault(f"r{i}", "image exists", "gone") for i in range(100)]
    assert data_report.table(faults, all_=False).count("gone") == 100
    text = data_report.table([*faults, faults[0]], all_=False)
    assert text.count("gone") == 20 and "81 more" in text


def test_a_file_without_records_fails_the_check_as_the_build(tmp_path, capsys):
    (tmp_path / "talks.json").write_text("[]")
    for words in (("check",), ("build", "--out", tmp_path / "out")):
        code, _, err = sgqlm(capsys, words[0], tmp_path / "talks.json", *words[1:])
        assert code == 3 and "there are no records" in err
