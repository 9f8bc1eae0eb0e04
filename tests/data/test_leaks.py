"""Lists of evaluation images as they are published, and the training images that they name."""

import json

import pytest

from sgqlm import errors
from sgqlm.data import leaks
from tests import paths

# one image under the names that data sets give it
SAME = [
    (
        "coco",
        "310196",
        [
            "COCO_val2014_000000310196.jpg",
            "coco/train2017/000000310196.jpg",
            "000000310196",
            "val2017/000000310196.jpg",
            "coco/train2014/COCO_train2014_000000310196.jpg",
        ],
    ),
    (
        "vg",
        "2397582",
        ["vg/VG_100K/2397582.jpg", "VG_100K_2/2397582.jpg", "gqa/images/2397582.jpg"],
    ),
    ("gqa", "n161313", ["n161313", "gqa/images/n161313.jpg"]),
    (
        "openimages",
        "003a8ae2ef43b901",
        ["textvqa/train_images/003a8ae2ef43b901.jpg", "003a8ae2ef43b901"],
    ),
    ("flickr", "1016887272", ["flickr30k-images/1016887272.jpg", "data/flickr30k/1016887272.jpg"]),
    ("scienceqa", "1974", ["1974/image.png", "train/1974/choice_0.png"]),
    ("vizwiz", "test_200", ["VizWiz_test_00000200.jpg", "vizwiz/test/VizWiz_test_00000200.jpg"]),
    ("lcs", "4539375", ["00453/004539375.jpg", "llava/llava_pretrain/images/00453/004539375.jpg"]),
    ("sam", "223750", ["sam/images/sa_223750.jpg", "sa_223750.jpg"]),
    ("ocr_vqa", "1571201661", ["ocr_vqa/images/1571201661.jpg", "ocr_vqa/images/1571201661.gif"]),
]


@pytest.mark.parametrize(("space", "number", "names"), SAME, ids=[row[0] for row in SAME])
def test_one_image_under_its_names(space, number, names):
    assert {leaks.identify(name) for name in names} == {leaks.Name(space, number)}


def test_numbers_of_different_spaces_are_different_images():
    names = ["coco/train2017/000000000123.jpg", "vg/VG_100K/123.jpg", "ocr_vqa/images/123.jpg"]
    names += ["00000/000000123.jpg", "flickr30k/123.jpg", "123/image.png", "sa_123.jpg", "123.jpg"]
    assert len({leaks.identify(name) for name in names}) == len(names)
    # folders of these names may hold photographs of another kind
    assert leaks.identify("coco_party/alice.jpg").space == leaks.ANY


def _list(tmp_path, value, name="list.json"):
    file = tmp_path / name
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return leaks.load(file)


def test_pope_finds_its_images_in_train2017(tmp_path):
    rows = [{"question_id": i, "image": "COCO_val2014_000000310196.jpg", "text": "?", "label": "no"}
            for i in range(6)]  # fmt: skip
    lines = "\n".join(map(json.dumps, rows))
    found = leaks.Leaks([_list(tmp_path, lines, "coco_pope_random.json")])
    assert found.find("coco/train2017/000000310196.jpg") == (
        str(tmp_path / "coco_pope_random.json"),
    )
    assert not found.find("coco/train2017/000000310197.jpg")
    assert not found.find("vg/VG_100K/310196.jpg")
    assert leaks.Leaks([_list(tmp_path, lines)], "train2017").find("000000310196.jpg")


FORMS = {  # text of a list: training images it leaves out; 5 is always left in
    "questions.json": (
        {"data_type": "mscoco", "questions": [{"image_id": 42, "question_id": 420}]},
        "coco/train2017/000000000042.jpg",
    ),
    "captions_val.json": (
        {
            "images": [{"id": 9, "file_name": "COCO_val2014_000000000042.jpg"}],
            "annotations": [{"image_id": 5}],
        },
        "train2017/000000000042.jpg",
    ),
    "captions_results.json": ([{"image_id": 42, "caption": "a"}], "coco/val2017/000000000042.jpg"),
    "gqa_val.json": ({"00": {"imageId": "2345", "question": "?"}}, "vg/VG_100K/2345.jpg"),
    "scene_graphs.json": (
        {"2345": {"width": 3, "height": 2, "objects": {}}},
        "gqa/images/2345.jpg",
    ),
    "vg_relations.json": ([{"image_id": 2345, "relationships": []}], "VG_100K_2/2345.jpg"),
    "vg_splits.json": ({"train": [5], "val": [2345], "test": [2346]}, "VG_100K/2346.jpg"),
    "pid_splits.json": (
        {"train": ["5"], "val": [], "test": ["1974"], "minitrain": ["5"]},
        "1974/image.png",
    ),
    "problems.json": (
        {
            "5": {"choices": [], "image": "image.png", "split": "train"},
            "1974": {"choices": [], "image": "image.png", "split": "test"},
        },
        "1974/image.png",
    ),
    "dataset_flickr30k.json": (
        {
            "images": [
                {"filename": "777001.jpg", "split": "test"},
                {"filename": "5.jpg", "split": "train"},
            ]
        },
        "flickr30k-images/777001.jpg",
    ),
    "dataset_coco.json": (
        {
            "images": [
                {"cocoid": 42, "filename": "COCO_val2014_000000000042.jpg", "split": "restval"},
                {"cocoid": 43, "split": "test"},
            ]
        },
        "train2017/000000000043.jpg",
    ),
    "flickr_test.txt": ("777000\n777001\n", "flickr/777001.jpg"),
    "flickr.token": ("777001.jpg#0\tTwo men.\n777001.jpg#1\tMen.\n", "flickr30k/777001.jpg"),
    "flickr_cn.csv": ("image,caption\n777001.jpg,a man\n", "flickr30k/777001.jpg"),
    "vrd.csv": (
        "ImageID,LabelName1\n003a8ae2ef43b901,/m/04yx4\n",
        "textvqa/train_images/003a8ae2ef43b901.jpg",
    ),
    "textvqa.json": (
        {"data": [{"image_id": "003a8ae2ef43b901", "question": "?"}]},
        "train_images/003a8ae2ef43b901.jpg",
    ),
    "nocaps.json": (
        {"images": [{"id": 0, "file_name": "003a8ae2ef43b901.jpg"}]},
        "003a8ae2ef43b901.jpg",
    ),
    "psg.json": (
        {
            "data": [
                {"image_id": "1", "file_name": "val2017/000000000042.jpg"},
                {"image_id": "2", "file_name": "train2017/000000000005.jpg"},
            ],
            "test_image_ids": ["1"],
        },
        "train2017/000000000042.jpg",
    ),
    "vizwiz_val.json": (
        [{"image": "VizWiz_val_00000042.jpg", "question": "?"}],
        "VizWiz_val_00000042.jpg",
    ),
    "mm-vet.json": ({"v1_0": {"imagename": "v1_0.png", "question": "?"}}, "mm-vet/images/v1_0.png"),
    "urls.json": (
        [{"image_url": "https://cs.stanford.edu/people/rak248/VG_100K_2/2345.jpg"}],
        "vg/VG_100K_2/2345.jpg",
    ),
    "keys.txt": ("\n".join(["mine/day 1/a, b #1.JPG", "b.png"]), "mine/day 1/a, b #1.JPG"),
    "llava.json": (
        [{"id": "1", "image": "coco/train2017/000000000042.jpg", "conversations": []}],
        "000000000042.jpg",
    ),
}
KEPT = ["coco/train2017/000000000005.jpg", "vg/VG_100K/5.jpg", "flickr30k/5.jpg", "5/image.png"]


@pytest.mark.parametrize("name", FORMS)
def test_every_published_form_is_read(tmp_path, name):
    value, image = FORMS[name]
    found = leaks.Leaks([_list(tmp_path, value, name)])
    assert found.find(image) == (str(tmp_path / name),)
    assert not [key for key in KEPT if found.find(key)]


def test_visual_genome_is_matched_by_way_of_its_table(tmp_path):
    table = [
        {"image_id": 2345, "coco_id": 42, "flickr_id": 777001, "url": "x/VG_100K/2345.jpg"},
        {"image_id": 2346, "coco_id": None, "flickr_id": 777002, "url": "x/VG_100K/2346.jpg"},
        {"image_id": 2347, "coco_id": 43, "flickr_id": None, "url": "x/VG_100K/2347.jpg"},
    ]
    pope = _list(tmp_path, '{"image": "COCO_val2014_000000000042.jpg"}', "pope.json")
    flickr = _list(tmp_path, "777001\n777002\n", "flickr_test.txt")
    same = _list(tmp_path, table, "image_data.json")
    assert same.count == 0 and len(same.same) == 3
    alone = leaks.Leaks([pope, flickr])
    assert not alone.find("vg/VG_100K/2345.jpg")
    found = leaks.Leaks([pope, same, flickr])
    assert found.find("vg/VG_100K/2345.jpg") == (pope.label, flickr.label)
    assert found.find("gqa/images/2346.jpg") == (flickr.label,)
    assert found.find("coco/train2017/000000000042.jpg") == (pope.label, flickr.label)
    assert not found.find("vg/VG_100K/2347.jpg")


def test_coco_annotations_carry_the_flickr_number(tmp_path):
    url = "http://farm3.staticflickr.com/2253/1755223462_fabbeb8dc3_z.jpg"
    row = {"id": 42, "file_name": "000000000042.jpg", "flickr_url": url, "coco_url": "x"}
    found = leaks.Leaks([_list(tmp_path, {"images": [row]}, "captions_val2017.json")])
    assert found.find("flickr30k-images/1755223462.jpg") and found.find(
        "train2017/000000000042.jpg"
    )


def test_a_space_may_be_given_and_unknown_numbers_match_any(tmp_path):
    (tmp_path / "ids.txt").write_text("12345\n")
    given = leaks.Leaks([leaks.load(f"vg={tmp_path}/ids.txt")])
    assert given.find("VG_100K/12345.jpg") and not given.find("flickr30k/12345.jpg")
    free = leaks.Leaks([leaks.load(tmp_path / "ids.txt")])
    assert free.find("VG_100K/12345.jpg") and free.find("flickr30k/12345.jpg")
    assert free.find("own/12345.png") and not free.find("own/1234.png")
    with pytest.raises(errors.SgqlmError, match="no space 'x'"):
        leaks.load(f"x={tmp_path}/ids.txt")


def test_short_file_names_do_not_match_numbers_elsewhere(tmp_path):
    found = leaks.Leaks([_list(tmp_path, "0001.png\nOCR/0002.jpg\n", "mme.txt")])
    assert not found.find("vg/VG_100K/1.jpg") and not found.find("flickr30k/2.jpg")
    assert found.find("mme/0001.jpg") and found.find("mme/OCR/0002.jpg")
    assert not found.find("mme/colour/0002.jpg")


def test_reason_uses_the_id_of_the_data_set_only_where_the_path_tells_nothing(tmp_path):
    found = leaks.Leaks([_list(tmp_path, "2345\n", "vg.txt")])
    assert found.reason("VG_100K/2345.jpg") == f"in {tmp_path / 'vg.txt'}"
    assert found.reason("pictures/x.jpg", "2345") and not found.reason("pictures/x.jpg", "7")
    assert found.reason("VG_100K/1.jpg", "2345") is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("answers.jsonl", '{"question_id": 1, "text": "Yes"}', "names no image"),
        ("results.json", '{"v1_0": "a text"}', "names no image"),
        ("table.tsv", "question_id\tlabel\nx\ty\n", "names no image"),
        ("empty.txt", "\n", "names no image"),
        ("cut.json", '[{"image": "a.jpg"}', "cannot be read"),
        ("vizwiz.json", '[{"image_id": 23431, "caption": "a"}]', "do not tell the image files"),
    ],
)
def test_lists_that_name_no_image_are_refused(tmp_path, name, content, said):
    with pytest.raises(errors.SgqlmError, match=said) as caught:
        _list(tmp_path, content, name)
    assert caught.value.code == errors.DATA
    with pytest.raises(errors.SgqlmError, match="cannot be read"):
        leaks.load(tmp_path / "nowhere.json")


GENUINE = {  # file among the samples: images, and one that is in it
    "pope/coco_pope_adversarial.json": (12, "coco/train2017/000000310196.jpg"),
    "gqa/testdev_balanced_questions.json": (40, "gqa/images/n161313.jpg"),
    "gqa/llava_gqa_testdev_balanced.jsonl": (40, "gqa/images/n513100.jpg"),
    "gqa/val_sceneGraphs_excerpt.json": (1, "vg/VG_100K/2397582.jpg"),
    "captions/coco/coco_data_refs.json": (60, "coco/train2017/000000393569.jpg"),
    "flickr30k/test.txt": (50, "flickr30k-images/1016887272.jpg"),
    "flickr30k/flickr30k_cn_test.txt": (10, "flickr30k/1009692167.jpg"),
    "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": (4, "train2017/000000262148.jpg"),
    "vqav2/bunny_vqav2_mscoco_test-dev2015.jsonl": (
        40,
        "coco/test2015/COCO_test2015_000000262144.jpg",
    ),
    "textvqa/llava_textvqa_val_v051_ocr.jsonl": (40, "textvqa/train_images/003a8ae2ef43b901.jpg"),
    "vizwiz/llava_test.jsonl": (40, "vizwiz/VizWiz_test_00000200.jpg"),
    "visual_genome/vg_splits.json": (80, "VG_100K/10.jpg"),
    "visual_genome/relationships.json": (2, "VG_100K_2/1.jpg"),
    "scienceqa/pid_splits.json": (32, "4/image.png"),
    "llava_bench_coco/qa90_questions.jsonl": (30, "train2017/000000441147.jpg"),
}


@pytest.mark.parametrize("name", GENUINE)
def test_genuine_files(name):
    count, image = GENUINE[name]
    found = leaks.load(paths.shared("samples") / name)
    assert found.count == count
    assert leaks.Leaks([found]).find(image)
    train = "VG_100K/11.jpg" if "vg_splits" in name else "1/image.png"
    assert not leaks.Leaks([found]).find(train)
