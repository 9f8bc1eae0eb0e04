"""Cards of the data sets that come with the repository, and checks against a folder."""

import hashlib
import json

import pytest

from sgqlm import errors
from sgqlm.data import cards
from tests import paths


def test_every_card_of_the_repository_loads():
    folders = sorted(p.parent for p in (paths.ROOT / "data").glob("*/card.json"))
    assert len(folders) >= 2
    for folder in folders:
        card = cards.load(folder)
        assert card.name == folder.name and card.licence and (folder / "README.md").is_file()


def test_missing_and_changed_files(tmp_path):
    good = hashlib.sha256(b"x").hexdigest()
    files = [
        {"path": "a.json", "required": True, "what": "text", "sha256": good},
        {"path": "images/*", "required": False, "what": "photographs"},
    ]
    values = {"name": "n", "title": "t", "source": "s", "licence": "l", "files": files, "more": 1}
    (tmp_path / "card.json").write_text(json.dumps(values))
    card = cards.load(tmp_path)
    assert card.rest == {"more": 1}
    assert cards.missing_files(card, tmp_path) == ["a.json: missing (text)"]
    (tmp_path / "a.json").write_text("y")
    assert cards.missing_files(card, tmp_path) == ["a.json: changed"]
    (tmp_path / "a.json").write_text("x")
    assert cards.missing_files(card, tmp_path) == []
    (tmp_path / "card.json").write_text('{"name": "n"}')
    with pytest.raises(errors.SgqlmError, match="no usable data set card"):
        cards.load(tmp_path)


def test_what_else_will_do_is_not_missing(tmp_path):
    card = cards.find("flickr30k")
    told = "dataset_flickr30k.json, flickr30k_test.json or results_20130124.token with test.txt"
    (tmp_path / "flickr30k-images").mkdir()
    (tmp_path / "results_20130124.token").write_text("")
    (line,) = cards.missing_files(card, tmp_path)
    assert line.startswith(f"{told}: missing (images, splits")
    (tmp_path / "test.txt").write_text("")
    assert cards.missing_files(card, tmp_path) == []
    assert cards.names({"path": "a.json"}) == "a.json"
    place = tmp_path / "conceptual"
    (place / "00000").mkdir(parents=True)
    (place / "Validation_GCC-1.1.0-Validation.tsv").write_text("")
    assert cards.missing_files(cards.find("conceptual"), place) == []
    values = {"name": "n", "title": "t", "source": "s", "licence": "l"}
    file = {"path": "a", "required": True, "what": "text", "or": "b"}
    (tmp_path / "card.json").write_text(json.dumps({**values, "files": [file]}))
    with pytest.raises(errors.SgqlmError, match="no usable data set card"):
        cards.load(tmp_path)


PUBLISHED = {  # card -> json, image root below the folder, records
    "llava_pretrain_558k": ("blip_laion_cc_sbu_558k.json", "images", 558128),
    "llava_v1_5_mix665k": ("llava_v1_5_mix665k.json", ".", 665298),
    "sharegpt4v_pretrain_1246k": ("share-captioner_coco_lcs_sam_1246k_1107.json", ".", None),
    "sharegpt4v_100k": ("sharegpt4v_instruct_gpt4-vision_cap100k.json", ".", None),
    "sharegpt4v_mix665k": (
        "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json", ".", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_cards_of_the_instruction_data(name):
    card = cards.find(name)
    json_name, images, records = PUBLISHED[name]
    assert (card.rest["json"], card.rest["images"]) == (json_name, images)
    assert card.rest.get("records") == records and card.reader == "llava_json"
    assert json_name in [file["path"] for file in card.files]
    for entry in ("source", "licence", "languages", "checksums", "defects", "leaks", "commands"):
        assert getattr(card, entry, None) or card.rest[entry]
    assert all({"evaluation", "why", "lists"} == set(leak) for leak in card.rest["leaks"])
    if "counts" in card.rest:
        assert sum(card.rest["counts"].values()) == records


def test_cards_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    assert [card.name for card in cards.every()] == sorted(card.name for card in cards.every())
    assert cards.find(paths.ROOT / "data" / "scenes").name == "scenes"
    assert cards.find(paths.ROOT / "data" / "scenes" / "card.json").name == "scenes"
    with pytest.raises(errors.SgqlmError, match="no card 'llava_mix665k'") as caught:
        cards.find("llava_mix665k")
    assert "did you mean llava_v1_5_mix665k?" in caught.value.fix
    monkeypatch.setattr(cards, "__file__", str(tmp_path / "site" / "sgqlm" / "data" / "cards.py"))
    with pytest.raises(errors.SgqlmError, match="no data set cards") as caught:
        cards.find("scenes")
    assert "not with the package" in caught.value.why


def test_the_json_is_found_where_the_published_trees_have_it(tmp_path):
    card = cards.find("sharegpt4v_100k")
    name = card.rest["json"]
    with pytest.raises(errors.SgqlmError, match=f"there is no {name}") as caught:
        cards.json_file(card, tmp_path)
    assert caught.value.code == errors.DATA and "ShareGPT4V" in caught.value.why
    (tmp_path / "sharegpt4v").mkdir()
    (tmp_path / "sharegpt4v" / name).write_text("[]")
    (tmp_path / "other.json").write_text("[]")
    found = cards.json_file(card, tmp_path)
    assert found == tmp_path / "sharegpt4v" / name
    assert cards.image_roots(card, tmp_path, found) == [tmp_path, tmp_path / "sharegpt4v"]
    missing = cards.missing_files(card, tmp_path)
    assert not any(name in line for line in missing)
    assert any(line.startswith("coco/train2017: missing") for line in missing)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / name).write_text("[]")
    with pytest.raises(errors.SgqlmError, match="there are several"):
        cards.json_file(card, tmp_path)
    (tmp_path / name).write_text("[]")  # what lies in the folder itself comes first
    assert cards.json_file(card, tmp_path) == tmp_path / name
