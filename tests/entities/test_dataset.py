import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.data import llava_json, records, sources
from sgqlm.entities import composite, dataset, extract, inputs, regions

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    found = []
    for k, name in enumerate(["b.png", "a.jpg"]):
        image = Image.new("RGB", (90, 60), (210, 210, 190))
        ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=(200, 40, 80 * k))
        image.save(folder / name)
        found.append(llava_json.Record(f"r{k}", folder / name, name, TURNS))
    found.append(llava_json.Record("again", folder / "b.png", "b.png", TURNS))
    talk = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello."}]
    found.append(llava_json.Record("talk", None, "", talk))
    return folder, found


def test_rows_join_and_images_are_stored_once(photos, tmp_path):
    folder, found = photos
    out = tmp_path / "set"
    made = dataset.build(found, out, entities=regions.RegionsExtractor(), about={"x": 1})
    assert (made.conversations, made.images, made.failed) == (4, 2, ())
    talks = records.ConversationStore(out / "conversations", "train")
    assert [(t.id, t.image_row, t.entity_row) for t in (talks[i] for i in range(4))] == [
        ("r0", 0, 0), ("r1", 1, 1), ("again", 0, 0), ("talk", -1, -1),
    ]  # fmt: skip
    assert records.ImageStore(out / "images")[1].data == (folder / "a.jpg").read_bytes()
    source = sources.StoreSource(out, "train")
    assert len(source[2].entities) > 0 and source[3].entities is None
    assert made.entities == sum(len(records.EntityStore(out / "entities")[i]) for i in (0, 1))
    assert records.read_manifest(out / "entities")["about"]["extractor"] == "regions"


def test_without_entities_there_is_no_entity_store(photos, tmp_path):
    dataset.build(photos[1], tmp_path / "set", entities=None)
    assert not (tmp_path / "set" / "entities").exists()
    assert sources.StoreSource(tmp_path / "set", "train")[0].entities is None


def test_a_finished_store_is_taken_by_key(photos, tmp_path):
    folder, found = photos
    store = tmp_path / "store"
    extract.run(regions.RegionsExtractor(), inputs.from_folder(folder), store)
    assert records.EntityStore(store).keys() == ["a.jpg", "b.png"]
    dataset.build(found, tmp_path / "set", entities=store)
    joined = records.EntityStore(tmp_path / "set" / "entities")
    assert joined.keys() == ["b.png", "a.jpg"]
    assert joined[0].masks == records.EntityStore(store)[1].masks


def test_a_store_of_other_images_is_refused_and_leaves_nothing(photos, tmp_path):
    folder, found = photos
    store, out = tmp_path / "store", tmp_path / "set"
    extract.run(regions.RegionsExtractor(), inputs.from_folder(folder), store)
    Image.new("RGB", (90, 60)).save(folder / "a.jpg")
    with pytest.raises(errors.SgqlmError, match="another image") as caught:
        dataset.build(found, out, entities=store)
    assert "contents differ" in caught.value.why
    Image.new("RGB", (30, 90)).save(folder / "a.jpg")
    with pytest.raises(errors.SgqlmError, match="another image"):
        dataset.build(found, out, entities=store)
    Image.new("RGB", (90, 60)).save(folder / "c.png")
    more = [*found, llava_json.Record("c", folder / "c.png", "c.png", TURNS)]
    with pytest.raises(errors.SgqlmError, match="lacks 1 of 3") as caught:
        dataset.build(more, out, entities=store)
    assert "c.png" in caught.value.why
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "store"]


def test_a_stopped_build_keeps_what_was_there(photos, tmp_path):
    out = tmp_path / "set"
    dataset.build(photos[1], out, entities=None)
    before = (out / "conversations" / records.MANIFEST).read_bytes()

    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.build(photos[1][:1], out, entities=regions.RegionsExtractor(), progress=stop)
    assert (out / "conversations" / records.MANIFEST).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "set"]


def test_the_output_replaces_nothing_but_a_data_set(photos, tmp_path):
    with pytest.raises(errors.SgqlmError, match="replace"):
        dataset.build(photos[1], photos[0], entities=None)
    assert (photos[0] / "a.jpg").exists()


def test_entities_of_a_rewritten_store_are_extracted_on(photos, tmp_path):
    folder, found = photos
    store, out = tmp_path / "store", tmp_path / "set"
    extract.run(regions.RegionsExtractor(), inputs.from_folder(folder), store, shard_size=1)
    dataset.build(found, out, entities=store)
    about = records.read_manifest(out / "entities")["about"]
    assert "shards" not in about and about["config"]
    images = inputs.from_store(out / "images")
    made = extract.run(regions.RegionsExtractor(), images, out / "entities", shard_size=1)
    assert made.reused == 2


def test_extracted_entities_survive_a_rebuild(photos, tmp_path):
    folder, found = photos
    out = tmp_path / "set"
    dataset.build(found, out, entities=None)
    other = regions.RegionsExtractor(regions.RegionsConfig(num_parts=9))
    extract.run(other, inputs.from_store(out / "images"), out / "entities")
    row = out / "entities" / "entities-rows.array_record-00000-of-00001"
    file = row.stat().st_ino
    usual = regions.RegionsExtractor()
    for source in (None, usual):
        keep = dataset.kept(out, source, is_chosen=False)
        assert keep == out / "entities"
        made = dataset.build(found, out, entities=source, keep=keep)
        assert made.entities > 0 and row.stat().st_ino == file
    assert records.ConversationStore(out / "conversations", "train")[1].entity_row == 1
    viewed = composite.WithCoverage(other, ["16x16:pad"])
    for same in (other, viewed):
        assert dataset.kept(out, same, is_chosen=True) is None  # it would make the same
    with pytest.raises(errors.SgqlmError, match="other entities"):
        dataset.kept(out, usual, is_chosen=True)
    dataset.build(found[1:2], out, entities=None, keep=out / "entities")
    assert records.EntityStore(out / "entities").keys() == ["a.jpg"]
    with pytest.raises(errors.SgqlmError, match="lacks 1 of 2") as caught:
        dataset.build(found, out, entities=None, keep=out / "entities")
    assert "--overwrite" in caught.value.fix
    Image.new("RGB", (90, 60)).save(folder / "a.jpg")
    with pytest.raises(errors.SgqlmError, match="another image"):
        dataset.build(found[1:2], out, entities=None, keep=out / "entities")
    assert len(records.EntityStore(out / "entities")) == 1
