import io
import os
import struct
import zlib

import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs, records
from sgqlm.entities import extract, inputs, shards
from tests.entities import drawn


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb():
    """A PNG of 400 million pixels in a few bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def odd_images():
    """Return name -> (content, expected status, expected size)."""
    plain = drawn.picture(1)
    turned = Image.Exif()
    turned[274] = 6  # a quarter turn
    frames = [plain.convert("P"), Image.new("P", plain.size)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    jpeg = encoded(plain, "JPEG")
    return {
        "animated.gif": (animated, "ok", (48, 65)),
        "bomb.png": (bomb(), "error: the image is too large", (1, 1)),
        "cmyk.jpg": (encoded(plain.convert("CMYK"), "JPEG"), "ok", (48, 65)),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "error: the image cannot be decoded", (1, 1)),
        "deep.png": (encoded(Image.new("I;16", (40, 30), 40_000)), "empty", (30, 40)),
        "empty.png": (b"", "error: the image cannot be decoded", (1, 1)),
        "page.jpg": (b"<html>gone</html>", "error: the image cannot be decoded", (1, 1)),
        "point.png": (encoded(Image.new("RGB", (1, 1))), "empty", (1, 1)),
        "turned.jpg": (encoded(plain, "JPEG", exif=turned), "ok", (65, 48)),
        "z.png": (encoded(plain), "ok", (48, 65)),
    }  # fmt: skip


def test_every_kind_of_file_has_its_row(tmp_path):
    folder, expected = tmp_path / "photos", odd_images()
    folder.mkdir()
    for name, (content, *_) in expected.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()  # no file
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")  # reading it would never end
    expected["link.jpg"] = (b"", "error: the image file cannot be read: No such file", (1, 1))
    expected["pipe.jpg"] = (b"", "error: the image file cannot be read: it is no file", (1, 1))
    sources = inputs.from_folder(folder)
    summary = extract.run(drawn.Counting(), sources, tmp_path / "out", shard_size=3)
    store = records.EntityStore(tmp_path / "out")
    assert store.keys() == sorted(expected)
    for row, key in enumerate(store.keys()):
        assert store.status(row).startswith(expected[key][1]), (key, store.status(row))
        assert store[row].size == expected[key][2], key
        assert (len(store[row]) > 0) == (store.status(row) == "ok")
        assert bool(store.image_digest(row)) == (key not in ("link.jpg", "pipe.jpg"))
    assert [key for key, _ in summary.failed] == [
        key for key in sorted(expected) if expected[key][1].startswith("error")
    ]
    assert all(reason and "\n" not in reason for _, reason in summary.failed)
    about = records.read_manifest(tmp_path / "out")["about"]
    assert about["status"] == {"empty": 2, "error": 6, "ok": 4}
    (folder / "nowhere.jpg").write_bytes(encoded(drawn.picture(3)))  # what was missing has come
    again = drawn.Counting()
    extract.run(again, sources, tmp_path / "out", shard_size=3)
    assert again.seen == 1
    row = store.keys().index("link.jpg")
    assert records.EntityStore(tmp_path / "out").status(row) == "ok"


def test_one_bad_image_costs_its_batch_nothing(tmp_path):
    folder = drawn.draw(tmp_path / "photos", 30)
    (folder / "0003.png").write_bytes(b"no picture")
    failing = drawn.Failing(width=66)  # six of the thirty
    sources = inputs.from_folder(folder)
    rows = list(shards.extract_rows(failing, sources, batch_size=4))
    assert [row.key for row in rows] == [source.key for source in sources]
    bad = [row.key for row in rows if isinstance(row.found, str)]
    assert bad == [f"{k:04d}.png" for k in (2, 3, 7, 12, 17, 22, 27)]
    assert rows[2].found == "the extractor failed: ValueError: no such label"
    assert max(failing.batches) == 4 and failing.batches[:5] == [4, 1, 1, 1, 1]
    assert all(isinstance(mask, dict) for row in rows[:1] for mask in row.found.masks)
    with pytest.raises(errors.SgqlmError, match="7 of 30 images") as caught:
        extract.run(drawn.Failing(width=66), sources, tmp_path / "out", shard_size=30)
    assert caught.value.code == errors.DATA and "0002.png" in caught.value.where
    assert not (tmp_path / "out").exists()
    lenient = {"fault_budget": 0.25, "shard_size": 30}
    made = extract.run(drawn.Failing(width=66), sources, tmp_path / "out", **lenient)
    assert len(made.failed) == 7
    mended = drawn.Counting()  # what an extractor failed on is tried again, broken files are not
    assert len(extract.run(mended, sources, tmp_path / "out", **lenient).failed) == 1
    assert mended.seen == 6


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


def test_out_of_memory_halves_the_batch_and_remembers_it(tmp_path):
    class Small(drawn.Counting):
        def extract_batch(self, images):
            self.batches.append(len(images))
            if len(images) > 3:
                raise OutOfMemoryError("CUDA out of memory")
            return [self.extract(image) for image in images]

    small = Small()
    sources = inputs.from_folder(drawn.draw(tmp_path / "photos", 20))
    rows = list(shards.extract_rows(small, sources, batch_size=8))
    assert all(isinstance(row.found, graphs.Entities) for row in rows)
    assert small.seen == 20 and small.batches == [8, 4, 2, 2, 4, 2, 2, *[2] * 6]


def test_an_extractor_that_never_works_stops_soon(tmp_path):
    folder = drawn.draw(tmp_path / "photos", 60)
    failing = drawn.Failing(0)
    with pytest.raises(errors.SgqlmError, match="fails on every image") as caught:
        extract.run(failing, inputs.from_folder(folder), tmp_path / "out", fault_budget=1.0)
    assert caught.value.code == errors.DATA and "no such label" in caught.value.why
    assert len(failing.batches) <= 3 * 9  # three batches, each image by image, of sixty images
    few = inputs.from_folder(folder)[:3]
    with pytest.raises(errors.SgqlmError, match="fails on every image"):
        extract.run(drawn.Failing(0), few, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    wrong = errors.SgqlmError("no such weights", where="--x", code=errors.CHECKPOINT)
    failing = drawn.Failing(0, wrong)
    with pytest.raises(errors.SgqlmError, match="no such weights"):
        extract.run(failing, few, tmp_path / "out")
    assert failing.batches == [3]


def test_too_many_failures_over_the_run_stop_it_and_keep_what_is_finished(tmp_path):
    folder = drawn.draw(tmp_path / "photos", 40)
    for k in (1, 2, 21, 22):
        (folder / f"{k:04d}.png").write_bytes(b"no picture")
    sources, out, first = inputs.from_folder(folder), tmp_path / "out", drawn.Counting()
    with pytest.raises(errors.SgqlmError, match=r"4 of 25 images .* budget of 15\.0%"):
        extract.run(first, sources, out, shard_size=5, fault_budget=0.15)  # at 5 of 40 no share yet
    second = drawn.Counting()
    assert len(extract.run(second, sources, out, shard_size=5, fault_budget=0.5).failed) == 4
    assert first.seen + second.seen == 36


@pytest.mark.parametrize("kind", ["count", "size"])
def test_wrong_answers_of_an_extractor_are_failures(tmp_path, kind):
    class Wrong(drawn.Counting):
        def extract_batch(self, images):
            found = super().extract_batch(images)
            return found[1:] if kind == "count" else [graphs.Entities.empty((7, 7)) for _ in found]

    sources = inputs.from_folder(drawn.draw(tmp_path / "photos", 2))
    rows = list(shards.extract_rows(Wrong(), sources))
    assert all(str(row.found).startswith("the extractor failed: ValueError") for row in rows)


def test_a_worker_with_other_settings_is_refused(tmp_path):
    job = shards.Job(drawn.Counting, str(tmp_path), shards.describe(extract.make("regions")))
    with pytest.raises(errors.SgqlmError, match="other entities") as caught:
        shards.Worker(job)
    assert "num_parts: 20 and here 4" in caught.value.why
