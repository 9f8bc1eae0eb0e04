"""The three stores: round trip, replacement, damage, byte-identical rebuild."""

import io
import os
import pathlib
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, records

_REBUILD = """
import sys, pathlib
sys.path.insert(0, {root!r})
from tests.data import test_records
test_records.write_small(pathlib.Path(sys.argv[1]))
assert "tensorflow" not in sys.modules
"""


def _picture(i, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), i * 20, np.uint8)).save(file, form)
    return file.getvalue()


def _entities(i):
    masks = np.zeros((i, 6, 8), bool)
    for k in range(i):
        masks[k, k:, : k + 2] = True
    masks = [graphs.encode_rle(mask) for mask in masks]
    found = graphs.Entities(
        masks,
        np.ones((i, 4)) * i,
        ["é"] * i,
        np.ones(i),
        (6, 8),
        alternatives=[[("ö", 0.25)] * k for k in range(i)],
        mask_scores=np.full(i, 0.5),
        tags=[("é", 0.75), ("sky", 0.5)],
    )
    return found.with_coverage(2, "pad").with_coverage(3, "crop", image_size=6)


def write_small(folder: pathlib.Path):
    images = [
        records.Image(f"a/{i}.png", _picture(i, "PNG" if i else "GIF"), (6, 8)) for i in range(3)
    ]
    records.write_images(folder / "images", images)
    entities = [(image.key, _entities(i)) for i, image in enumerate(images)]
    records.write_entities(folder / "entities", entities, about={"extractor": "test"})
    turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "Zoë"}]
    items = [records.Conversation(f"c{i}", turns * (i + 1), i, i) for i in range(3)]
    text = records.Conversation("t", turns[1:])
    records.write_conversations(
        folder / "conversations", {"train": [*items, text], "val": items[:1], "test": []}
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_small(folder)
    return folder


def test_round_trip(small):
    images = records.ImageStore(small / "images")
    entities = records.EntityStore(small / "entities")
    talks = records.ConversationStore(small / "conversations", "train")
    assert images.keys() == ["a/0.png", "a/1.png", "a/2.png"] == entities.keys()
    assert images[0].data == _picture(0, "GIF") and images[2] == records.Image(
        "a/2.png", _picture(2), (6, 8)
    )
    for i in range(3):
        got, want = entities[i], _entities(i)
        np.testing.assert_array_equal(got.dense_masks(), want.dense_masks())
        np.testing.assert_array_equal(got.boxes, want.boxes)
        assert got.labels == want.labels and got.size == (6, 8)
        assert got.alternatives == want.alternatives and got.tags == want.tags
        np.testing.assert_array_equal(got.mask_scores, want.mask_scores)
        assert sorted(got.coverage) == ["2x2:pad", "3x3:crop@6"]
        for name, rows in want.coverage.items():
            np.testing.assert_array_equal(got.coverage[name], rows)
    assert [entities.status(row) for row in range(3)] == ["empty", "ok", "ok"]
    assert [len(talks), talks[2].image_row, talks[3].image_row, talks[3].entity_row] == [
        4,
        2,
        -1,
        -1,
    ]
    assert talks[1].turns[3]["value"] == "Zoë" and talks[1].turns[2]["from"] == "human"
    assert len(records.ConversationStore(small / "conversations", "val")) == 1
    assert len(records.ConversationStore(small / "conversations", "test")) == 0
    assert pickle.loads(pickle.dumps(talks))[1] == talks[1]
    with pytest.raises(IndexError):
        images[3]
    with pytest.raises(errors.SgqlmError, match="no split 'dev'"):
        records.ConversationStore(small / "conversations", "dev")


def test_rebuild_in_another_process_is_byte_identical(small, tmp_path):
    root = str(pathlib.Path(__file__).resolve().parents[2])
    env = dict(os.environ, PYTHONHASHSEED="7")
    code = _REBUILD.format(root=root)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env)
    first = {p.relative_to(small): p.read_bytes() for p in small.rglob("*") if p.is_file()}
    second = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert first.keys() == second.keys() and len(first) > 10
    assert [str(k) for k in first if first[k] != second[k]] == []


def test_new_entities_leave_the_other_stores_alone(tmp_path):
    write_small(tmp_path)
    before = {
        p: p.read_bytes()
        for part in ("images", "conversations")
        for p in (tmp_path / part).iterdir()
    }
    found = [(f"a/{i}.png", "no picture" if i == 1 else _entities(3)) for i in range(3)]
    records.write_entities(tmp_path / "entities", found)
    store = records.EntityStore(tmp_path / "entities")
    assert [len(store[i]) for i in range(3)] == [3, 0, 3]
    assert store.status(1) == "error: no picture"
    assert all(p.read_bytes() == data for p, data in before.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["conversations", "entities", "images"]


def test_failed_build_leaves_nothing_and_keeps_the_old_store(tmp_path):
    write_small(tmp_path)

    def broken():
        yield "a/0.png", _entities(1)
        raise errors.SgqlmError("no", code=errors.DATA)

    with pytest.raises(errors.SgqlmError, match="no"):
        records.write_entities(tmp_path / "entities", broken())
    assert len(records.EntityStore(tmp_path / "entities")) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["conversations", "entities", "images"]
    with pytest.raises(errors.SgqlmError, match="a key occurs twice"):
        records.write_entities(tmp_path / "other", [("k", _entities(1))] * 2)
    assert not (tmp_path / "other").exists()


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    host = socket.gethostname()
    names = [f".s.building-{host}-{ended.pid}", f".s.building-{host}-{os.getppid()}"]
    names += [f".s.building-elsewhere-{ended.pid}", f".other.building-{host}-{ended.pid}"]
    for name in names:
        (tmp_path / name).mkdir()
    with records.staged(tmp_path / "s") as aside:
        assert aside.is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], "s"])


def test_damage_is_found(tmp_path):
    write_small(tmp_path)
    assert records.verify(tmp_path / "images") == []
    path = next((tmp_path / "images").glob("*array_record*"))
    data = bytearray(path.read_bytes())
    at = bytes(data).index(_picture(1)) + 5
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert records.verify(tmp_path / "images") == [f"{path.name}: changed"]
    store = records.ImageStore(tmp_path / "images")
    with pytest.raises(errors.SgqlmError, match="a record is damaged") as caught:
        store[1]
    assert caught.value.code == errors.DATA
    assert store[2].data == _picture(2)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(errors.SgqlmError, match="not whole"):
        records.ImageStore(tmp_path / "images")
    assert "bytes instead of" in records.verify(tmp_path / "images")[0]
    path.unlink()
    assert records.verify(tmp_path / "images") == [f"{path.name}: missing"]
    with pytest.raises(errors.SgqlmError, match="there is no images store"):
        records.ImageStore(tmp_path / "nowhere")


def test_store_without_rows(tmp_path):
    records.write_images(tmp_path / "images", [])
    assert len(records.ImageStore(tmp_path / "images")) == 0
