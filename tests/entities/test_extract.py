import json
import os

import numpy as np
import pytest
from PIL import Image

from sgqlm import errors
from sgqlm.data import records
from sgqlm.entities import extract, inputs, parts, regions
from tests.entities import drawn


@pytest.fixture
def photos(tmp_path):
    folder = drawn.draw(tmp_path / "photos", 4)
    (folder / "b").mkdir()
    drawn.picture(4).save(folder / "b" / "c.JPG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(photos, out, extractor=None, **options):
    sources = inputs.from_folder(photos)
    return extract.run(extractor or drawn.Counting(), sources, out, **options)


def test_one_row_per_image_in_order_of_keys(photos, tmp_path):
    states = []
    summary = run(photos, tmp_path / "out", shard_size=2, progress=states.append)
    store = records.EntityStore(tmp_path / "out")
    assert store.keys() == ["0000.png", "0001.png", "0002.png", "0003.png", "b/c.JPG"]
    assert summary.images == 5 and summary.reused == 0 and summary.failed == ()
    assert summary.entities == sum(len(store[row]) for row in range(5)) >= 5
    direct = drawn.Counting().extract(Image.open(photos / "0002.png"))
    np.testing.assert_array_equal(store[2].boxes, direct.boxes)
    np.testing.assert_array_equal(store[2].dense_masks(), direct.dense_masks())
    done = [state.done for state in states]
    assert done == sorted(done) and (done[-1], states[-1].total) == (5, 5)
    assert states[-1].extracted == 5 and states[-1].seconds["segment"] > 0
    assert summary.seconds["segment"] == states[-1].seconds["segment"] < summary.wall_seconds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
    assert records.verify(tmp_path / "out") == []
    about = records.read_manifest(tmp_path / "out")["about"]
    assert about["status"] == {"ok": 5} and about["shards"][0]["versions"]["numpy"]
    assert [entry["lengths"] for entry in about["shards"]] == [[2], [2], [1]]


def test_a_stopped_run_goes_on_and_a_finished_one_rests(photos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, drawn.Counting(stop_at=3), shard_size=2)
    assert not out.exists()
    second = drawn.Counting()
    assert run(photos, out, second, shard_size=2).reused == 2 and second.seen == 3
    third = drawn.Counting()
    assert run(photos, out, third, shard_size=2).reused == 5 and third.seen == 0


def test_what_is_made_in_pieces_equals_what_is_made_at_once(tmp_path):
    photos, out = drawn.draw(tmp_path / "photos", 9), tmp_path / "out"
    (photos / "0001.png").write_bytes(b"no picture")
    run(photos, out, shard_size=4)
    Image.new("RGB", (30, 30), "navy").save(photos / "0003.png")  # changed, and empty
    (photos / "0005.png").unlink()
    drawn.picture(50).save(photos / "0000a.png")
    with pytest.raises(errors.SgqlmError, match="1 images of the output are not among") as caught:
        run(photos, out, shard_size=4)
    assert caught.value.why == "0005.png"
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, drawn.Counting(stop_at=0), shard_size=4, overwrite=True)
    assert len(records.EntityStore(out)) == 9  # as it was before
    changed = drawn.Counting()
    summary = run(photos, out, changed, shard_size=4, overwrite=True)
    assert changed.seen == 2 and summary.reused == 7 and summary.images == 9
    whole = tmp_path / "whole"
    run(photos, whole, shard_size=4)
    assert drawn.files(out) == drawn.files(whole)
    assert len(records.EntityStore(out)[4]) == 0


def test_images_whose_times_change_are_read_but_not_worked_on(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, shard_size=2)
    before = drawn.files(out)
    os.utime(photos / "0002.png")
    again = drawn.Counting()
    assert run(photos, out, again, shard_size=2).reused == 5 and again.seen == 0
    assert {name for name, d in drawn.files(out).items() if before[name] != d} == {parts.STAMPS}
    (photos / "0002.png").chmod(0)  # changes ctime; root reads it all the same
    (photos / "0002.png").chmod(0o644)
    unread = [source for source in inputs.from_folder(photos) if source.key != "0002.png"]
    for source in unread:  # the other shards are known by their stamps
        assert isinstance(source, inputs.File)
    (out / parts.STAMPS).unlink()  # as after copying the store without it
    assert run(photos, out, again, shard_size=2).reused == 5 and again.seen == 0
    assert (out / parts.STAMPS).is_file()


def test_a_content_of_the_same_size_and_time_is_noticed(photos, tmp_path):
    out, file = tmp_path / "out", photos / "0000.png"
    file.write_bytes(b"x" * 500)
    before = file.stat()
    run(photos, out)
    file.write_bytes(b"y" * 500)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    first = records.EntityStore(out).image_digest(0)
    run(photos, out)
    assert records.EntityStore(out).image_digest(0) != first


def test_other_settings_are_worked_on_and_keep_the_others_until_then(photos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, drawn.Counting(stop_at=4), shard_size=2)
    other = regions.RegionsConfig(num_parts=9)
    with pytest.raises(KeyboardInterrupt):  # a wrong flag must not cost what is finished
        run(photos, out, drawn.Counting(other, stop_at=2), shard_size=2)
    first = drawn.Counting()
    assert run(photos, out, first, shard_size=2).reused == 4 and first.seen == 1
    config = records.read_manifest(out)["about"]["config"]
    changed = drawn.Counting(other)
    with pytest.raises(errors.SgqlmError, match="other settings") as caught:
        run(photos, out, changed, shard_size=2)
    assert "num_parts" in caught.value.why and "max_entities" not in caught.value.why
    run(photos, out, changed, shard_size=2, overwrite=True)
    assert changed.seen == 5 and records.read_manifest(out)["about"]["config"] != config
    assert len(records.EntityStore(out)) == 5


def test_other_shard_sizes_reuse_every_image(photos, tmp_path):
    run(photos, tmp_path / "out", shard_size=2)
    again = drawn.Counting()
    run(photos, tmp_path / "out", again, shard_size=3)
    run(photos, tmp_path / "whole", shard_size=3)
    assert again.seen == 0 and drawn.files(tmp_path / "out") == drawn.files(tmp_path / "whole")


def test_a_damaged_store_or_shard_is_made_again(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, shard_size=2)
    whole = drawn.files(out)
    record = next(out.glob("*array_record-00001*"))
    record.write_bytes(record.read_bytes()[:-9])
    again = drawn.Counting()
    assert run(photos, out, again, shard_size=2).reused == 3 and again.seen == 2
    assert drawn.files(out) == whole
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "new", drawn.Counting(stop_at=4), shard_size=2)
    record = sorted((tmp_path / ".new.parts").glob("*/*array_record*"))[0]
    data = bytearray(record.read_bytes())
    data[100] ^= 1
    record.write_bytes(data)
    last = drawn.Counting()
    assert run(photos, tmp_path / "new", last, shard_size=2).reused == 2 and last.seen == 3
    assert drawn.files(tmp_path / "new") == whole


def test_the_images_of_a_store_and_a_list_are_worked_on_in_their_order(photos, tmp_path):
    names = ["b/c.JPG", "0001.png"]
    rows = (records.Image(n, (photos / n).read_bytes(), (48, 65)) for n in names)
    records.write_images(tmp_path / "images", rows)
    out = tmp_path / "entities"
    extract.run(drawn.Counting(), inputs.from_store(tmp_path / "images"), out)
    store = records.EntityStore(out)
    assert store.keys() == names
    again = drawn.Counting()
    extract.run(again, inputs.from_store(tmp_path / "images"), out)
    assert again.seen == 0
    file = tmp_path / "list.txt"
    file.write_text("\ufeffb/c.JPG\n\n 0001.png\nb/c.JPG\nnone.png\n0\0.png\nb\n", "utf-8")
    sources = inputs.from_list(file, photos)
    assert [source.key for source in sources] == [*names, "none.png", "0\0.png", "b"]
    extract.run(again, sources, out)
    store = records.EntityStore(out)
    assert again.seen == 0 and store.keys()[:2] == names  # their content is known
    assert [store.status(row).split(":")[0] for row in range(5)] == ["ok"] * 2 + ["error"] * 3
    assert "a directory" in store.status(4).lower()


def test_no_images_and_unknown_extractors_are_told(tmp_path):
    with pytest.raises(errors.SgqlmError) as caught:
        run(tmp_path, tmp_path / "out")
    assert caught.value.code == errors.DATA
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.SgqlmError, match="extractor 'magic'"):
        extract.make("magic")
    twice = [inputs.File("a", "a.png"), inputs.File("a", "b.png")]
    with pytest.raises(errors.SgqlmError, match="twice"):
        extract.run(drawn.Counting(), twice, tmp_path / "out")


def test_the_output_replaces_nothing_but_an_entity_store(photos, tmp_path):
    for place in (photos, photos / "notes.txt"):
        with pytest.raises(errors.SgqlmError, match="replace"):
            run(photos, place)
    assert (photos / "0000.png").exists()
    images = tmp_path / "images"
    records.write_images(images, [records.Image("a", b"a", (1, 1))])
    with pytest.raises(errors.SgqlmError, match="a store of images"):
        run(photos, images)
    assert len(records.ImageStore(images)) == 1
    old = tmp_path / "old"
    old.mkdir()
    (old / records.MANIFEST).write_text(json.dumps({"format": 1, "kind": "entities"}))
    assert run(photos, old).images == 5  # an earlier format cannot be read any more


def test_very_many_files_are_refused_and_very_many_images_get_larger_ones(photos, tmp_path):
    assert extract._shard_size(131_072, 0) == 256
    assert extract._shard_size(131_073, 0) == 512
    assert extract._shard_size(930_000, 0) == 2048
    with pytest.raises(errors.SgqlmError, match="93000 files") as caught:
        extract._shard_size(930_000, 10)
    assert "1817 or more" in caught.value.fix


def test_names_that_are_no_utf8_have_a_key(tmp_path):
    folder = os.fsencode(tmp_path)
    with open(folder + b"/a\xff.png", "wb") as file:
        file.write(b"x")
    (source,) = inputs.from_folder(tmp_path)
    assert source.key == "a\\xff.png" and source.read() == b"x"


def test_a_broken_image_may_go_and_annotated_nodes_may_not(photos, tmp_path):
    out = tmp_path / "out"
    (photos / "0001.png").write_bytes(b"no picture")
    run(photos, out)
    (photos / "0001.png").unlink()
    assert run(photos, out).images == 4
    rows = [(key, "none") for key in parts.keys(out)]
    records.write_entities(out, rows, about={"extractor": extract.ANNOTATED})
    before = drawn.files(out)
    with pytest.raises(errors.SgqlmError, match="annotated nodes"):
        run(photos, out)
    assert drawn.files(out) == before
    assert run(photos, out, overwrite=True).entities > 0


def test_a_store_written_in_one_go_is_reused_as_one_shard(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, shard_size=2)
    whole, store = drawn.files(out), records.EntityStore(out)
    rows = [(key, store[i], store.image_digest(i)) for i, key in enumerate(store.keys())]
    for about in (store.manifest["about"], parts.settings(store.manifest["about"])):
        records.write_entities(out, rows, about=about)
        again = drawn.Counting()
        assert run(photos, out, again, shard_size=2).reused == 5 and again.seen == 0
        assert drawn.files(out) == whole


def test_pictures_without_a_suffix_are_known_by_their_first_bytes(tmp_path):
    for name, kind in (("1454426_2591111986", "JPEG"), ("d1", "PNG"), ("d2", "WEBP")):
        drawn.picture(1).save(tmp_path / name, kind)
    (tmp_path / "LICENSE").write_text("words")
    os.mkfifo(tmp_path / "pipe")
    found = inputs.from_folder(tmp_path)
    assert [source.key for source in found] == ["1454426_2591111986", "d1", "d2"]
