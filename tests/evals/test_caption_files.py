"""Captions in the layouts in which they are published: every one gives the same images."""

import json

import pytest

from sgqlm import errors
from sgqlm.evals import caption_files, submissions, tasks
from tests import paths
from tests.evals import benchmark_files as files

COCO = [391895, 60623, 483108, 384213, 42]


def name(number):
    return f"COCO_val2014_{number:012d}.jpg"


def records():
    return [
        {"image_id": number, "id": 9 * at + k, "caption": text}
        for at, number in enumerate(COCO)
        for k, text in enumerate(files.TEXTS[at])
    ]


def read(task, *given):
    return caption_files.read(task, given)


def told(found):
    return [(item.id, item.image, item.captions) for item in found.items]


@pytest.fixture
def coco(tmp_path):
    files.coco_caption(tmp_path)
    return tmp_path / "coco_caption"


def test_layouts_of_coco_give_the_same_images(coco):
    wanted = [(n, name(n), files.TEXTS[at]) for at, n in enumerate(COCO)]
    assert told(read("coco_caption", coco / "dataset_coco.json")) == wanted  # restval is left out
    blip = [
        {"image": f"val2014/{name(n)}", "caption": list(files.TEXTS[at])}
        for at, n in enumerate(COCO)
    ]
    files.value(coco / "coco_karpathy_test.json", blip)
    assert told(read("coco_caption", coco / "coco_karpathy_test.json")) == wanted
    truth = {"annotations": records(), "images": [{"id": n} for n in COCO]}
    files.value(coco / "coco_karpathy_test_gt.json", truth)
    found = read("coco_caption", coco / "coco_karpathy_test_gt.json")
    assert told(found) == wanted and not found.is_pool
    files.value(coco / "refs.json", records())  # the annotations alone
    assert told(read("coco_caption", coco / "refs.json")) == wanted


def test_the_whole_of_coco_needs_a_list_of_the_split(coco):
    whole = coco / "captions_val2014.json"
    images = [{"id": n, "file_name": name(n)} for n in (*COCO, 7)]
    more = {"image_id": 7, "id": 99, "caption": "A bird."}
    files.value(whole, {"images": images, "annotations": [*records(), more]})
    found = read("coco_caption", whole)
    assert found.is_pool and len(found.items) == 6
    listed = coco / "split.txt"
    listed.write_text(f"val2014/{name(42)} 42\n{name(391895)}\n")
    assert [item.id for item in read("coco_caption", whole, listed).items] == [42, 391895]
    for path in coco.glob("dataset*"):
        path.unlink()
    place = tasks.locate(tasks.get("coco_caption"), coco.parent)
    with pytest.raises(errors.SgqlmError, match="nothing says which are meant") as caught:
        tasks.read(place)
    assert "karpathy_test_images.txt" in caught.value.fix
    with pytest.raises(errors.SgqlmError, match="nothing says which"):
        submissions.write("coco_caption", _answers(coco, ["42"]), coco / "out.json", whole)
    listed.rename(coco / "karpathy_test_images.txt")
    asked = tasks.read(place)
    assert [q.id for q in asked] == [42, 391895]
    assert {q.text for q in asked} == {tasks.CAPTION}
    (coco / "karpathy_test_images.txt").write_text("COCO_val2014_000000000008.jpg\n")
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        tasks.read(place)
    assert "lack 1 of its images" in str(caught.value)


def test_layouts_of_flickr30k_give_the_same_images(tmp_path):
    files.flickr30k(tmp_path)
    folder = tmp_path / "flickr30k"
    names = (folder / "test.txt").read_text().split()
    wanted = [(f"{n}.jpg", f"{n}.jpg", files.TEXTS[at]) for at, n in enumerate(names)]
    token = folder / "results_20130124.token"
    assert told(read("flickr30k", token)) == wanted
    images = files.karpathy("flickr30k", names) + files.karpathy("flickr30k", ["9"], "val")
    files.value(folder / "k.json", {"dataset": "flickr30k", "images": images})
    assert told(read("flickr30k", folder / "k.json")) == wanted
    blip = [{"image": f"flickr30k-images/{n}", "caption": texts} for n, _, texts in wanted]
    files.value(folder / "b.json", blip)
    assert told(read("flickr30k", folder / "b.json")) == wanted
    texts = [
        {"image_id": int(n), "caption": text, "id": k}
        for at, n in enumerate(names)
        for k, text in enumerate(files.TEXTS[at])
    ]
    files.value(
        folder / "c.json", {"images": [{"id": int(n)} for n in names], "annotations": texts}
    )
    assert told(read("flickr30k", folder / "c.json")) == wanted
    (folder / "test.txt").unlink()
    assert read("flickr30k", token).is_pool
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        read("coco_caption", folder / "k.json")
    assert "it is of flickr30k" in str(caught.value)


def test_nocaps_with_and_without_captions(tmp_path):
    files.nocaps(tmp_path)
    official = tmp_path / "nocaps" / "nocaps_val_4500_captions.json"
    found = read("nocaps", official)
    assert [(item.id, item.domain) for item in found.items][:2] == [
        (0, "near-domain"),
        (1, "out-domain"),
    ]
    blip = [{"image": f"val/{item.image}", "img_id": item.id} for item in found.items[:3]]
    bare = tmp_path / "nocaps" / "nocaps_val.json"
    files.value(bare, blip)
    assert all(not item.captions for item in read("nocaps", bare).items)
    both = read("nocaps", bare, official)  # the images of one with the captions of the other
    assert both.items[0] == found.items[0]
    official.rename(tmp_path / "elsewhere.json")
    assert tasks.locate(tasks.get("nocaps"), tmp_path).annotations == ()
    files.value(bare, [{"image": "val/a.jpg"}])
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        read("nocaps", bare)
    assert "a.jpg has no id" in str(caught.value)


def test_conceptual_captions_of_the_tsv_and_of_img2dataset(tmp_path):
    files.conceptual(tmp_path)
    folder = tmp_path / "conceptual"
    tsv = folder / "Validation_GCC-1.1.0-Validation.tsv"
    wanted = [(f"00000/{at:09d}.jpg",) * 2 + (files.TEXTS[at][:1],) for at in (0, 1, 3)]
    assert told(read("conceptual", tsv)) == wanted
    tsv.write_text("caption\turl\n" + tsv.read_text())  # as img2dataset wants it
    assert told(read("conceptual", tsv)) == wanted
    for at in (0, 1, 2, 3):  # the third has no picture
        about = {"caption": files.TEXTS[at][0], "url": "u", "key": f"{at:09d}", "status": "success"}
        files.value(folder / "00000" / f"{at:09d}.json", about)
    files.value(folder / "00000_stats.json", {"count": 4, "successes": 3})
    assert told(read("conceptual", folder)) == wanted
    place = tasks.locate(tasks.get("conceptual"), tmp_path)
    assert place.files == (folder / "00000_stats.json",)
    asked = tasks.read(place)
    assert [q.id for q in asked] == [item[0] for item in wanted]
    assert all(place.image(q).is_file() for q in asked)
    files.lines(folder / "own.jsonl", [{"image": "a/1.png", "caption": "A dog."}])
    assert told(read("conceptual", folder / "own.jsonl")) == [("a/1.png", "a/1.png", ("A dog.",))]
    tsv.write_text("no address\n")
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        read("conceptual", tsv)
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        read("conceptual", tmp_path)


def test_a_question_file_keeps_its_ids_and_meets_the_official_images(coco):
    asked = [
        {"question_id": at, "image": f"val2014/{name(n)}", "text": "<image>\nDescribe it."}
        for at, n in enumerate(COCO[:3])
    ]
    files.lines(coco / "q.jsonl", asked)
    place = tasks.locate(tasks.get("coco_caption"), coco.parent, [coco / "q.jsonl"])
    assert place.annotations == (coco / "q.jsonl", coco / "dataset_coco.json")
    found = tasks.read(place)
    assert [(q.id, q.image, q.text) for q in found] == [
        (at, name(n), "Describe it.") for at, n in enumerate(COCO[:3])
    ]
    known = read("coco_caption", *place.annotations)
    assert [known.key(str(at)) for at in range(3)] == [str(n) for n in COCO[:3]]
    assert known.key("42", is_image=True) == "42"
    for alias in ("42", name(42), f"val2014/{name(42)}", "000000000042.jpg", "000000000042"):
        assert known.key(alias) == "42"
    assert known.key("8") == "8"
    out = coco / "out.json"
    submissions.write("coco_caption", _answers(coco, ["0", "1", "2"]), out, coco / "q.jsonl")
    assert json.loads(out.read_text())[0] == {"image_id": 391895, "caption": "a red bus"}


def test_submissions_have_the_official_ids(tmp_path):
    files.make(tmp_path, ("nocaps", "flickr30k"))
    for task, path, ids in (
        ("nocaps", "nocaps_val_4500_captions.json", [0, 1, 2, 3]),
        ("flickr30k", "results_20130124.token", None),
    ):
        source = tmp_path / task / path
        items = read(task, source).items
        ids = ids or [item.id for item in items]
        said = _answers(tmp_path, [str(item.id) for item in items])
        submissions.write(task, said, tmp_path / "out.json", source)
        sent = json.loads((tmp_path / "out.json").read_text())
        assert sent == [{"image_id": key, "caption": "a red bus"} for key in ids]
    said = _answers(tmp_path, ["0", "1"])
    with pytest.raises(errors.SgqlmError, match="2 questions have no answer"):
        submissions.write(
            "nocaps", said, tmp_path / "x.json", tmp_path / "nocaps/nocaps_val_4500_captions.json"
        )
    files.lines(tmp_path / "q.jsonl", [{"question_id": "a", "image": "a.jpg", "text": "?"}])
    with pytest.raises(errors.SgqlmError, match="no number"):
        submissions.write("nocaps", said, tmp_path / "x.json", tmp_path / "q.jsonl")
    assert not (tmp_path / "x.json").exists()


def _answers(folder, keys):
    files.lines(
        folder / "said.jsonl", [{"question_id": key, "text": "a red\nbus "} for key in keys]
    )
    return folder / "said.jsonl"


@pytest.mark.parametrize(
    "content",
    [
        '{"images": [{"split": "test", "sentences": [{"raw": "a"}]}], "dataset": "coco"}',
        '{"annotations": [{"image_id": 1}]}',
        '[{"caption": "a"}]',
        '{"pictures": []}',
        "[1, 2]",
        '[{"image": "a.jpg", "caption": "x"}]',
        "not json",
    ],
)
def test_damaged_files_are_refused_with_their_name(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(errors.SgqlmError) as caught:
        read("coco_caption", path)
    assert caught.value.code == errors.DATA


def test_genuine_captions_and_lists(tmp_path):
    refs = paths.shared("samples/captions/coco/coco_data_refs.json")
    found = read("coco_caption", refs)
    assert len(found.items) == 60 and found.items[0].image == "COCO_val2014_000000393569.jpg"
    names = paths.shared("samples/flickr30k/test.txt")
    texts = [f"{n}.jpg#0\tA dog .\n" for n in [*names.read_text().split(), "1"]]
    (tmp_path / "results_20130124.token").write_text("".join(texts))
    found = read("flickr30k", tmp_path / "results_20130124.token", names)
    assert len(found.items) == 50 and found.items[0].id == "1016887272.jpg"


def test_results_of_the_coco_program_and_answers_of_llava(tmp_path):
    said = [{"image_id": 42, "caption": None}, {"image_id": 7, "caption": "A dog."}]
    path = tmp_path / "results.json"
    for value in (said, {"imgToEval": {"a": said[0], "b": said[1]}}):
        path.write_text(json.dumps(value))
        assert [(one.key, one.text) for one in caption_files.results(path)] == [
            ("42", ""),
            ("7", "A dog."),
        ]
    path.write_text(json.dumps({"42": "A cat."}))
    assert [one.text for one in caption_files.results(path)] == ["A cat."]
    path.write_text(json.dumps([*said, {"image_id": 9}]))
    with pytest.raises(errors.SgqlmError, match="`caption`"):
        caption_files.results(path)
