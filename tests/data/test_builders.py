"""The TFDS builders of the stores: what is written is read back, byte for byte the same."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

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


def test_fields_of_a_record_are_sorted():
    names = [f"field_{k:02d}" for k in range(30)]
    records = []
    for order in (names, names[::-1]):
        example = tf_example_pb2.Example()
        for name in order:
            example.features.feature[name].int64_list.value.append(1)
        records.append(builders.StableWriter._stable(example.SerializeToString()))
    assert records[0] == records[1]
    places = [records[0].index(name.encode()) for name in names]
    assert places == sorted(places)


def test_nothing_is_written_without_rows(tmp_path):
    assert builders.write("entities", tmp_path, {"train": []}) == {"train": 0}
    assert not list(tmp_path.iterdir())
