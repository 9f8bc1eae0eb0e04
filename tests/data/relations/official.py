"""Tiny data sets in the official file formats, written by hand, with drawn images."""

import json

import h5py
import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

from sgqlm.data.relations import readers, types


def picture(path, width, height, colour=(90, 120, 60)):
    """Write an image with some texture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(width * 1000 + height)
    pixels = np.full((height, width, 3), colour) + rng.integers(0, 60, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_json(path, value):
    """Write json as official files have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def read(name, folder, **options):
    """Return all images of a data set by key, and the report."""
    report = types.Report()
    found = list(readers.read(name, folder, report=report, **options))
    return {item.image_id: item for item in found}, report


def triples(item):
    """Return the relations as (name, predicate, name)."""
    names = [thing.name for thing in item.objects]
    return [(names[r.subject], r.predicate, names[r.object]) for r in item.relations]


def thing(number, name, x, y, w, h, *, key="name"):
    """Return an object of Visual Genome."""
    value = [name] if key == "names" else name
    return {"object_id": number, key: value, "x": x, "y": y, "w": w, "h": h, "synsets": []}


def visual_genome(folder, *, images=True):
    """Write two images: 1 in VG_100K, 2 in VG_100K_2."""
    man, racket = thing(11, "man", 10, 10, 30, 60), thing(12, "racket", 35, 20, 20, 10)
    ball = thing(13, "Ball", 90, 20, 30, 10, key="names")  # leaves the image, 100 wide
    twin = thing(14, "man", 10, 11, 30, 60)  # the same man, annotated twice
    sky = thing(21, "sky", 0, 0, 60, 20)
    kite = thing(22, "kite", 20, 5, 10, 10)
    flat = thing(23, "wire", 5, 5, 30, 0)

    def relation(number, subject, predicate, target):
        return {
            "relationship_id": number, "predicate": predicate, "synsets": [],
            "subject": subject, "object": target,
        }  # fmt: skip

    relationships = [
        {
            "image_id": 1,
            "relationships": [
                relation(1, man, "HOLDING ", racket),
                relation(2, twin, "holding", racket),  # the same again, by the twin
                relation(3, racket, "next to", ball),
                relation(4, man, "", ball),
                relation(5, man, "near", twin),
            ],
        },
        {
            "image_id": 2,
            "relationships": [relation(6, kite, "in", sky), relation(7, kite, "has", flat)],
        },
    ]
    write_json(folder / "relationships.json", relationships)
    bush = thing(15, "bush", 60, 60, 30, 15, key="names")
    attributes = [
        {"image_id": 1, "attributes": [
            thing(11, "man", 10, 10, 30, 60, key="names") | {"attributes": ["tall", "Tall "]},
            bush | {"attributes": ["green"]},
        ]},
        {"image_id": 2, "attributes": [thing(22, "kite", 20, 5, 10, 10, key="names")]},
    ]  # fmt: skip
    write_json(folder / "attributes.json", attributes)
    address = "https://cs.stanford.edu/people/rak248"
    data = [
        {"image_id": 1, "url": f"{address}/VG_100K/1.jpg", "width": 100, "height": 80},
        {"image_id": 2, "url": f"{address}/VG_100K_2/9.jpg", "width": 60, "height": 40},
    ]
    write_json(folder / "image_data.json", data)
    if images:
        picture(folder / "images/VG_100K/1.jpg", 100, 80)
        picture(folder / "images/VG_100K_2/2.jpg", 60, 40)


def vg150(folder):
    """Write four images, one of them damaged in Visual Genome and so without a row."""
    labels = ["man", "horse", "hat"]
    predicates = ["on", "riding", "wearing"]
    table = {
        "idx_to_label": {str(i): word for i, word in enumerate(labels, 1)},
        "label_to_idx": {word: i for i, word in enumerate(labels, 1)},
        "idx_to_predicate": {str(i): word for i, word in enumerate(predicates, 1)},
        "predicate_to_idx": {word: i for i, word in enumerate(predicates, 1)},
        "idx_to_attribute": {"1": "brown"},
    }
    write_json(folder / "VG-SGG-dicts-with-attri.json", table)
    sizes = {"7": (200, 100), "1592": (9, 9), "8": (100, 200), "9": (64, 64)}
    data = [
        {"image_id": int(i), "width": w, "height": h, "url": f"https://host/VG_100K/{i}.jpg"}
        for i, (w, h) in sizes.items()
    ]
    write_json(folder / "image_data.json", data)
    for i, (w, h) in sizes.items():
        if i != "1592":
            picture(folder / f"images/VG_100K/{i}.jpg", w, h)
    with h5py.File(folder / "VG-SGG-with-attri.h5", "w") as file:
        # centre x, centre y, width, height at 1024 pixels on the longest side
        file["boxes_1024"] = np.array(
            [[512, 256, 256, 128], [512, 384, 512, 256], [256, 512, 128, 256], [256, 128, 64, 64]],
            np.int32,
        )
        file["boxes_512"] = np.array(file["boxes_1024"]) // 2
        file["labels"] = np.array([[1], [2], [1], [3]], np.int32)
        file["attributes"] = np.array([[0] * 10, [1] + [0] * 9, [0] * 10, [0] * 10], np.int32)
        file["img_to_first_box"] = np.array([0, 2, -1], np.int32)
        file["img_to_last_box"] = np.array([1, 3, -1], np.int32)
        file["img_to_first_rel"] = np.array([0, 2, -1], np.int32)
        file["img_to_last_rel"] = np.array([1, 2, -1], np.int32)
        file["relationships"] = np.array([[0, 1], [0, 1], [2, 3]], np.int32)
        file["predicates"] = np.array([[2], [1], [3]], np.int32)
        file["split"] = np.array([0, 2, 0], np.int32)


def open_images(folder, *, quoted=False):
    """Write two train images and one of validation, their rows mixed."""
    quote = '"' if quoted else ""
    head = "" if quoted else "LabelName,DisplayName\n"
    names = {"/m/04yx4": "Man", "/m/0342h": "Guitar", "/m/01mzpv": "Chair"}
    names["/m/019nj4"] = "(made of)Wood"
    lines = "".join(f"{quote}{mid}{quote},{quote}{name}{quote}\n" for mid, name in names.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "oidv6-class-descriptions.csv").write_text(head + lines)
    header = (
        "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,"
        "XMin2,XMax2,YMin2,YMax2,RelationshipLabel\n"
    )
    man, guitar = "0.1,0.5,0.2,0.9", "0.3,0.8,0.4,0.6"
    rows = [
        f"aa01,/m/04yx4,/m/0342h,{man},{guitar},holds",
        f"bb02,/m/04yx4,/m/01mzpv,{man},0.0,1.0,0.5,1.0,at",
        f"aa01,/m/04yx4,/m/019nj4,{man},{man},is",
        f"aa01,/m/04yx4,/m/999,{man},{guitar},holds",
        f"aa01,/m/04yx4,/m/0342h,x,0.5,0.2,0.9,{guitar},holds",
        f"aa01,/m/04yx4,/m/0342h,{man},{guitar},inside_of",
    ]
    (folder / "oidv6-train-annotations-vrd.csv").write_text(header + "\n".join(rows) + "\n")
    row = f"cc03,/m/04yx4,/m/0342h,{man},{guitar},plays\n"
    (folder / "oidv6-validation-annotations-vrd.csv").write_text(header + row)
    picture(folder / "images/train/aa01.jpg", 200, 100)
    picture(folder / "images/bb02.jpg", 50, 80)
    picture(folder / "images/validation/cc03.jpg", 40, 40)


def psg(folder):
    """Write one train image with its panoptic PNG and one test image without."""
    ids = np.zeros((30, 40), np.int64)
    ids[:12] = 70_000  # sky
    ids[10:25, 5:15] = 300  # man
    ids[20:30, 12:35] = 9  # horse
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    path = folder / "panoptic_train2017/000000000139.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(rgb).save(path)
    train = {
        "file_name": "train2017/000000000139.jpg", "height": 30, "width": 40, "image_id": "139",
        "pan_seg_file_name": "panoptic_train2017/000000000139.png",
        "segments_info": [
            {"id": 300, "category_id": 0, "iscrowd": 0, "isthing": 1, "area": 1},
            {"id": 9, "category_id": 1, "iscrowd": 0, "isthing": 1, "area": 1},
            {"id": 70_000, "category_id": 2, "iscrowd": 0, "isthing": 0, "area": 1},
            {"id": 4242, "category_id": 3, "iscrowd": 0, "isthing": 0, "area": 1},
        ],
        "annotations": [
            {"bbox": [5, 10, 15, 25], "bbox_mode": 0, "category_id": 0},
            {"bbox": [12, 20, 35, 30], "bbox_mode": 0, "category_id": 1},
            {"bbox": [0, 0, 40, 12], "bbox_mode": 0, "category_id": 2},
            {"bbox": [0, 0, 4, 4], "bbox_mode": 0, "category_id": 3},
        ],
        "relations": [[0, 1, 1], [2, 1, 0], [0, 3, 0], [0, 1, 99]],
    }  # fmt: skip
    test = train | {
        "image_id": "785", "file_name": "val2017/000000000785.jpg",
        "pan_seg_file_name": "panoptic_val2017/000000000785.png", "relations": [[0, 1, 1]],
    }  # fmt: skip
    value = {
        "thing_classes": ["person", "horse"],
        "stuff_classes": ["sky-other-merged", "wall-brick"],
        "predicate_classes": ["over", "riding"],
        "test_image_ids": ["785"],
        "data": [train, test],
    }
    write_json(folder / "psg.json", value)
    picture(folder / "images/train2017/000000000139.jpg", 40, 30)
    picture(folder / "images/val2017/000000000785.jpg", 40, 30)


def gqa(folder, *, as_list=False):
    """Write one image for train and one for val."""
    objects = {
        "271881": {
            "name": "chair", "x": 5, "y": 5, "w": 10, "h": 20, "attributes": ["brown"],
            "relations": [
                {"name": "to the left of", "object": "275312"},
                {"name": "on", "object": "1"},
            ],
        },
        "275312": {
            "name": "table", "x": 20, "y": 5, "w": 20, "h": 20, "attributes": [],
            "relations": [{"name": "to the right of", "object": "271881"}],
        },
        "275313": {
            "name": "chair", "x": 42, "y": 5, "w": 7, "h": 20, "attributes": [], "relations": [],
        },
    }  # fmt: skip
    graph = {"width": 50, "height": 40, "location": "kitchen", "objects": objects}
    train = {"2407890": graph}
    if as_list:
        listed = []
        for key, value in objects.items():
            numbered = {str(i): relation for i, relation in enumerate(value["relations"])}
            listed.append({"objectId": key, **value, "relations": numbered})
        train = [{"imageId": "2407890", "width": 50, "height": 40, "objects": listed}]
    write_json(folder / "train_sceneGraphs.json", train)
    write_json(folder / "val_sceneGraphs.json", {"77": graph})
    picture(folder / "images/2407890.jpg", 50, 40)
    picture(folder / "images/77.jpg", 50, 40)


def vrd(folder):
    """Write three train images, one without annotation, and a test image."""
    write_json(folder / "objects.json", ["person", "bike", "street"])
    write_json(folder / "predicates.json", ["on", "next to"])

    def end(category, *box):
        return {"category": category, "bbox": list(box)}  # ymin, ymax, xmin, xmax

    person, bike, street = end(0, 10, 60, 20, 40), end(1, 30, 70, 15, 50), end(2, 50, 80, 0, 100)
    entries = [
        {"predicate": 0, "subject": person, "object": bike},
        {"predicate": 0, "subject": bike, "object": street},
        {"predicate": 7, "subject": person, "object": street},
        {"predicate": 1, "subject": person, "object": {"category": 1}},
    ]
    train = {"12_a.jpg": entries, "empty.jpg": [], "34_b.jpg": entries[:1]}
    write_json(folder / "annotations_train.json", train)
    write_json(folder / "annotations_test.json", {"56_c.jpg": entries[:1]})
    picture(folder / "sg_train_images/12_a.jpg", 100, 80)
    picture(folder / "sg_train_images/34_b.png", 100, 80)  # the name says jpg
    picture(folder / "sg_test_images/56_c.jpg", 100, 80)


CAPTION = "A man riding a brown horse near the old barn, and a dog"


def grit(folder, *, without_size=False):
    """Write two captions; only the first has its image."""

    def chunk(phrase, *box):
        start = CAPTION.index(phrase)
        return [float(start), float(start + len(phrase)), *box]

    chunks = [
        chunk("A man", 0.1, 0.1, 0.5, 0.8, 0.9),
        chunk("a brown horse", 0.2, 0.4, 0.9, 1.0, 0.8),
        chunk("a brown horse", 0.0, 0.0, 0.1, 0.1, 0.3),  # a second, less sure box
        chunk("the old barn", 0.5, 0.0, 1.0, 0.5, 0.7),
        chunk("a dog", 0.0, 0.8, 0.1, 1.0, 0.6),
    ]
    columns = {
        "key": ["000000012", "000000013"],
        "id": [1, 2],
        "url": ["http://host/a.jpg", "http://host/b.jpg"],
        "caption": [CAPTION, "a cat"],
        "width": [None if without_size else 100, 50],
        "height": [None if without_size else 60, 50],
        "clip_similarity_vitb32": [0.3, 0.3],
        "noun_chunks": [chunks, []],
        "ref_exps": [chunks[:1], []],
    }
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), folder / "coyo_0_snappy.parquet")
    picture(folder / "images/00000/000000012.jpg", 100, 60)


WRITERS = {
    "visual_genome": visual_genome,
    "vg150": vg150,
    "open_images_vrd": open_images,
    "psg": psg,
    "gqa_scene_graphs": gqa,
    "vrd": vrd,
    "grit": grit,
}
