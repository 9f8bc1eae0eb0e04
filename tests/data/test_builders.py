"""The TFDS builders of the stores: what is written is read back, byte for byte the same."""

import io

import numpy as np
import pytest
from PIL import Image

from sgqlm.data import builders


def pictures(count):
    for k in range(count):
        stream = io.BytesIO()
        Image.new("RGB", (4 + k, 3), (10 * k, 0, 0)).save(stream, "png")
        yield {"key": f"p{k}", "image": stream.getvalue(), "size": np.array([3, 4 + k], np.int32)}


def talks(count):
    for k in range(count):
        turns = [{"from": "human", "value": f"what is {k}?"}, {"from": "gpt", "value": "ü"}]
        yield {"id": str(k), "image_row": k - 1, "entity_row": -1, "conversations": turns}


@pytest.mark.parametrize("num_shards", [0, 3])
def test_rows_come_back_in_order_and_in_any_order(tmp_path, num_shards):
    splits = {"train": talks(7), "val": talks(3), "test": talks(0)}
    counts = builders.write("conversations", tmp_path, splits, num_shards=num_shards)
    assert counts == {"train": 7, "val": 3, "test": 0}
    files = [p.name for p in tmp_path.iterdir() if "-train." in p.name]
    assert len(files) == (num_shards or 1)
    rows = builders.read(tmp_path, "train")
    assert [rows[i]["image_row"] for i in (6, 0, 3)] == [5, -1, 2]
    assert [rows[i]["id"].decode() for i in range(len(rows))] == list("0123456")
    texts = [value.decode() for value in rows[4]["conversations"]["value"]]
    assert texts == ["what is 4?", "ü"]
    assert len(builders.read(tmp_path, "val")) == 3


def test_images_stay_the_bytes_of_their_files(tmp_path):
    given = list(pictures(3))
    assert builders.write("images", tmp_path, {"train": given}) == {"train": 3}
    rows = builders.read(tmp_path, "train")
    assert [rows[i]["image"] for i in range(3)] == [row["image"] for row in given]
    assert rows[2]["size"].tolist() == [3, 6]


def test_the_order_of_fields_leaves_no_trace(tmp_path):
    written = []
    for turned in (False, True):
        folder = tmp_path / str(turned)
        folder.mkdir()
        rows = [dict(sorted(row.items(), reverse=turned)) for row in pictures(4)]
        builders.write("images", folder, {"train": rows})
        written.append({p.name: p.read_bytes() for p in folder.glob("*array_record*")})
    assert written[0]
    assert written[0] == written[1]


def test_nothing_is_written_without_rows(tmp_path):
    assert builders.write("entities", tmp_path, {"train": []}) == {"train": 0}
    assert not list(tmp_path.iterdir())
