import pytest

from sgqlm import errors
from sgqlm.entities import benchmark, extract, inputs, parts
from tests.entities import drawn


def test_stages_add_up_and_nothing_stays(tmp_path):
    folder = drawn.draw(tmp_path / "photos", 10)
    (folder / "0002.png").write_bytes(b"no picture")
    sources, extractor, done = inputs.from_folder(folder), drawn.Counting(), []
    found = benchmark.measure(extractor, sources, batch_size=4, progress=done.append)
    assert found.images == 6 and extractor.batches == [3, 4, 2] and done == [4, 8, 10]
    assert list(found.stages) == ["decode", "segment", "other", "write"]
    assert min(found.stages.values()) >= 0 and found.stages["segment"] > 0
    assert found.images_per_second == pytest.approx(1000 / sum(found.stages.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    extract.run(drawn.Counting(), sources, tmp_path / "out")
    size = parts.row_bytes(tmp_path / "out") - found.record_bytes * 9
    assert 0 < size < 2000, "what is left is the row of the broken image and the digests"
    assert found.disk_bytes > 0 and found.host_peak_bytes > 10**7 and found.device_peak_bytes == 0


def test_without_an_image_there_is_no_time(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(errors.SgqlmError, match="no image could be decoded"):
        benchmark.measure(drawn.Counting(), inputs.from_folder(tmp_path))
