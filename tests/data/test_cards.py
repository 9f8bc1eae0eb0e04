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
