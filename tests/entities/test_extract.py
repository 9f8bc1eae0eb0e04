import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.data import records
from sgqlm.entities import extract, regions


class Counting(regions.RegionsExtractor):
    """Counts the images it sees, and can be stopped at one of them."""

    def __init__(self, config=regions.RegionsConfig(), stop_at=None):
        super().__init__(config)
        self.seen, self.stop_at = 0, stop_at

    def extract(self, image):
        if self.seen == self.stop_at:
            raise KeyboardInterrupt
        self.seen += 1
        return super().extract(image)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for k, name in enumerate(["a.png", "b/c.jpg", "b/d.png", "e.PNG", "f.jpg"]):
        image = Image.new("RGB", (80 + 10 * k, 60), (200, 220, 180))
        ImageDraw.Draw(image).rectangle((10, 10, 40, 40), fill=(200, 30, 40 * k))
        image.save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_one_row_per_image_in_order_of_keys(photos, tmp_path):
    calls = []
    summary = extract.run(
        regions.RegionsExtractor(), extract.from_folder(photos), tmp_path / "out",
        shard_size=2, progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    store = records.EntityStore(tmp_path / "out")
    assert store.keys() == ["a.png", "b/c.jpg", "b/d.png", "e.PNG", "f.jpg"]
    assert summary.images == 5 and summary.reused == 0 and summary.failed == ()
    assert summary.entities == sum(len(store[row]) for row in range(5)) >= 5
    direct = regions.RegionsExtractor().extract(Image.open(photos / "b/d.png"))
    np.testing.assert_array_equal(store[2].boxes, direct.boxes)
    np.testing.assert_array_equal(store[2].dense_masks(), direct.dense_masks())
    assert calls[-1] == (5, 5) and calls == sorted(calls)
    assert not (tmp_path / ".out.parts").exists()
    assert records.verify(tmp_path / "out") == []


def test_a_stopped_run_goes_on_and_a_finished_one_rests(photos, tmp_path):
    sources, out = extract.from_folder(photos), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        extract.run(Counting(stop_at=3), sources, out, shard_size=2)
    assert not out.exists()
    second = Counting()
    summary = extract.run(second, sources, out, shard_size=2)
    assert summary.reused == 2 and second.seen == 3
    third = Counting()
    assert extract.run(third, sources, out, shard_size=2).reused == 5 and third.seen == 0


def test_new_content_or_settings_are_worked_on(photos, tmp_path):
    out = tmp_path / "out"
    extract.run(regions.RegionsExtractor(), extract.from_folder(photos), out)
    first = records.read_manifest(out)["about"]["config"]
    Image.new("RGB", (30, 30), "navy").save(photos / "a.png")
    changed = Counting()
    extract.run(changed, extract.from_folder(photos), out)
    assert changed.seen == 5 and len(records.EntityStore(out)[0]) == 0
    other = Counting(regions.RegionsConfig(num_parts=4))
    extract.run(other, extract.from_folder(photos), out)
    assert other.seen == 5 and records.read_manifest(out)["about"]["config"] != first


def test_broken_images_keep_their_rows(photos, tmp_path):
    whole = (photos / "b/c.jpg").read_bytes()
    (photos / "b/c.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "e.PNG").write_bytes(b"no picture at all")
    sources = extract.from_folder(photos)
    (photos / "f.jpg").unlink()
    summary = extract.run(regions.RegionsExtractor(), sources, tmp_path / "out", shard_size=2)
    store = records.EntityStore(tmp_path / "out")
    assert len(store) == 5 and [key for key, _ in summary.failed] == ["b/c.jpg", "e.PNG", "f.jpg"]
    assert [store.status(row).split(":")[0] for row in range(5)] == [
        "ok",
        "error",
        "ok",
        *["error"] * 2,
    ]
    assert len(store[1]) == 0 and len(store[2]) > 0
    assert all(reason and "\n" not in reason for _, reason in summary.failed)


def test_the_images_of_a_store_are_worked_on_in_its_order(photos, tmp_path):
    names = ["f.jpg", "a.png"]
    rows = (records.Image(n, (photos / n).read_bytes(), (60, 80)) for n in names)
    records.write_images(tmp_path / "images", rows)
    out = tmp_path / "entities"
    extract.run(regions.RegionsExtractor(), extract.from_store(tmp_path / "images"), out)
    assert records.EntityStore(out).keys() == names


def test_no_images_and_unknown_extractors_are_told(tmp_path):
    with pytest.raises(errors.SgqlmError) as caught:
        extract.run(regions.RegionsExtractor(), extract.from_folder(tmp_path), tmp_path / "out")
    assert caught.value.code == errors.DATA
    with pytest.raises(errors.SgqlmError, match="extractor 'magic'"):
        extract.make("magic")


def test_the_output_replaces_nothing_but_a_store(photos):
    with pytest.raises(errors.SgqlmError, match="replace"):
        extract.run(regions.RegionsExtractor(), extract.from_folder(photos), photos)
    assert (photos / "a.png").exists()
