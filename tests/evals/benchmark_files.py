"""A folder with small benchmarks: genuine excerpts where they are at hand, else items of ours."""

import base64
import csv
import io
import json
import shutil

from PIL import Image

from tests import paths

OURS = ("mmbench", "mmbench_cn", "seed", "llava_wild", "vqav2", "vizwiz", "pope")
GENUINE = ("gqa", "vizwiz_test", "scienceqa", "textvqa", "pope_llava", "mmvet", "vqav2_testdev")
CAPTIONS = ("coco_caption", "flickr30k", "nocaps", "conceptual")
_COUNT = 4


def picture(number: int = 0) -> bytes:
    """Return a drawn picture as a PNG file."""
    out = io.BytesIO()
    Image.new("RGB", (40 + 4 * (number % 5), 40), (20, 60 * number % 255, 90)).save(out, "PNG")
    return out.getvalue()


def draw(folder, names):
    """Draw pictures of these names; what they show and the kind of the file do not matter."""
    for number, name in enumerate(dict.fromkeys(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def lines(path, items):
    """Write json lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def value(path, content):
    """Write json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def sample(name, count=_COUNT):
    """Return the first records of a genuine file of json lines, or skip the test."""
    text = paths.shared(f"samples/{name}").read_text()
    return [json.loads(line) for line in text.splitlines()[:count]]


def gqa(root):
    """GQA: excerpts of LLaVA's questions and the official file."""
    asked = sample("gqa/llava_gqa_testdev_balanced.jsonl", 5)
    whole = json.loads(paths.shared("samples/gqa/testdev_balanced_questions.json").read_text())
    lines(root / "gqa" / "llava_gqa_testdev_balanced.jsonl", asked)
    official = {q["question_id"]: whole[q["question_id"]] for q in asked}
    value(root / "gqa" / "data" / "testdev_balanced_questions.json", official)
    draw(root / "gqa" / "data" / "images", [q["image"] for q in asked])


def vizwiz_test(root):
    """VizWiz test: an excerpt of LLaVA's questions."""
    asked = sample("vizwiz/llava_test.jsonl")
    lines(root / "vizwiz" / "llava_test.jsonl", asked)
    draw(root / "vizwiz" / "test", [q["image"] for q in asked])


def scienceqa(root):
    """ScienceQA: short genuine problems; two of them get LLaVA's conversation of their own."""
    folder = root / "scienceqa"
    problems = json.loads(paths.shared("samples/scienceqa/problems.json").read_text())
    short = sorted(problems, key=lambda key: len(problems[key]["question"] + problems[key]["hint"]))
    chosen = [key for key in short if problems[key]["image"]][:2]
    chosen += [key for key in short if not problems[key]["image"]][:2]
    value(folder / "problems.json", {key: problems[key] for key in chosen})
    value(folder / "pid_splits.json", {"train": [], "test": chosen})
    draw(folder / "images" / "test", [f"{key}/image.png" for key in chosen[:2]])


def textvqa(root):
    """TextVQA: an excerpt of LLaVA's questions, human answers of ours."""
    asked = sample("textvqa/llava_textvqa_val_v051_ocr.jsonl", 3)
    asked.append({**asked[0], "text": "What colour?\nReference OCR token: A\nAnswer shortly."})
    lines(root / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", asked)
    truth = [
        {
            "image_id": q["question_id"],
            "question_id": at,
            "question": q["text"].split("\n")[0],
            "answers": ["stop"] * 10,
        }
        for at, q in enumerate(asked)
    ]
    value(root / "textvqa" / "TextVQA_0.5.1_val.json", {"data": truth})
    draw(root / "textvqa" / "train_images", [q["image"] for q in asked])


def pope_llava(root):
    """POPE: genuine labels of three categories, and the questions with LLaVA's ids."""
    asked = []
    for block, name in enumerate(("adversarial", "random", "popular")):
        part = sample(f"pope/coco_pope_{name}.json", 1 if block else 2)
        lines(root / "pope" / "coco" / f"coco_pope_{name}.json", part)
        short = "\nAnswer the question using a single word or phrase."
        asked += [
            {
                "question_id": block * 10_000_000 + q["question_id"],
                "image": q["image"],
                "text": q["text"] + short,
                "category": name,
            }
            for q in part
        ]
    lines(root / "pope" / "llava_pope_test.jsonl", asked)
    draw(root / "pope" / "val2014", [q["image"] for q in asked])


def mmvet(root):
    """MM-Vet: an excerpt of LLaVA's questions."""
    asked = sample("mmvet/llava-mm-vet.jsonl")
    lines(root / "mm-vet" / "llava-mm-vet.jsonl", asked)
    draw(root / "mm-vet" / "images", [q["image"] for q in asked])


def vqav2_testdev(root):
    """VQAv2 test-dev: an excerpt of the questions; the whole test has one more."""
    asked = sample("vqav2/bunny_vqav2_mscoco_test-dev2015.jsonl")
    lines(root / "vqav2" / "llava_vqav2_mscoco_test-dev2015.jsonl", asked)
    lines(
        root / "vqav2" / "llava_vqav2_mscoco_test2015.jsonl",
        [*asked, {**asked[0], "question_id": 7}],
    )
    draw(root / "vqav2" / "test2015", [q["image"] for q in asked])


def vqav2(root):
    """VQAv2 val in the official layout."""
    asked = [
        {"image_id": 9, "question": f"Is it {word}?", "question_id": 9000 + at}
        for at, word in enumerate(("red", "a cat", "far"))
    ]
    about = {"task_type": "Open-Ended", "data_subtype": "val2014", "questions": asked}
    value(root / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json", about)
    truth = [
        {
            **{key: q[key] for key in ("image_id", "question_id")},
            "question_type": "is it",
            "answer_type": "yes/no",
            "multiple_choice_answer": "yes",
            "answers": [{"answer": "yes", "answer_id": k + 1} for k in range(10)],
        }
        for q in asked
    ]
    value(root / "vqav2" / "v2_mscoco_val2014_annotations.json", {"annotations": truth})
    draw(root / "vqav2" / "val2014", ["COCO_val2014_000000000009.jpg"])


def vizwiz(root):
    """VizWiz val in the official layout."""
    names = [f"VizWiz_val_{at:08d}.jpg" for at in range(3)]
    answers = [{"answer": "red", "answer_confidence": "yes"}] * 10
    asked = [{"image": name, "question": "What is it?", "answers": answers} for name in names]
    value(root / "vizwiz" / "val.json", asked)
    draw(root / "vizwiz" / "val", names)


def pope(root):
    """POPE in the official layout, one category."""
    names = [f"COCO_val2014_{at:012d}.jpg" for at in (1, 1, 2)]
    asked = [
        {"question_id": at + 1, "image": name, "text": f"Is there a dog {at}?", "label": "no"}
        for at, name in enumerate(names)
    ]
    lines(root / "pope" / "coco" / "coco_pope_random.json", asked)
    draw(root / "pope" / "val2014", names)


def mmbench(root, name="mmbench", file="mmbench_dev_20230712.tsv"):
    """MMBench: three items with all rolls, pictures inside; the last one's picture is broken."""
    columns = "index question hint A B C D answer category image source l2-category split comment"
    code = [base64.b64encode(picture(at)).decode() for at in range(2)] + ["bm8gcGljdHVyZQ=="]
    rows = []
    for item in range(3):
        options = ["a cat", "a dog", "a bus"][: 2 + item % 2]
        for roll in range(len(options)):
            turned = options[roll:] + options[:roll]
            row = dict.fromkeys(columns.split(), "") | {"index": item + roll * 1_000_000}
            row |= dict(zip("ABCD", turned, strict=False))
            row |= {"question": "What is it?", "answer": "ABCD"[turned.index("a cat")]}
            row |= {"hint": "Look." if item else "nan", "category": "image_scene", "split": "dev"}
            row |= {"l2-category": "coarse_perception"}
            # a short number stands for the picture of another row
            rows.append(row | {"image": str(item) if roll and item < 2 else code[item]})
    (root / name).mkdir(parents=True, exist_ok=True)
    with (root / name / file).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns.split(), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def mmbench_cn(root):
    """MMBench-CN."""
    mmbench(root, "mmbench_cn", "mmbench_dev_cn_20231003.tsv")


def seed(root):
    """SEED-Bench in the official layout: two images and a video."""
    asked = [
        {
            "question_id": number,
            "question_type_id": kind,
            "data_type": "video" if kind == 10 else "image",
            "data_id": f"d{number}",
            "question": "What is there?",
            "answer": "A",
            **{f"choice_{c}": f"a {c}" for c in "abcd"},
        }
        for number, kind in (("1", 1), ("2", 1), ("v3", 10))
    ]
    types = {"Scene Understanding": 1, "Action Recognition": 10}
    value(root / "seed_bench" / "SEED-Bench.json", {"question_type": types, "questions": asked})
    names = ["SEED-Bench-image/d1", "SEED-Bench-image/d2", "SEED-Bench-video-image/10_v3.png"]
    draw(root / "seed_bench", names)


def llava_wild(root):
    """LLaVA-Bench (In-the-Wild)."""
    folder = root / "llava-bench-in-the-wild"
    asked = [
        {"question_id": at, "image": f"00{at}.jpg", "text": text, "category": "conv"}
        for at, text in enumerate(("What is this?", "Describe this photo in detail.", "Why?"))
    ]
    lines(folder / "questions.jsonl", asked)
    draw(folder / "images", [q["image"] for q in asked])


TEXTS = (
    ("A man riding a wave on top of a surfboard.", "a surfer rides a large wave"),
    ("Two dogs playing in the snow", "A pair of dogs in the snow."),
    ("A red double-decker bus on a city street.", "The red bus is stopped."),
    ("A plate of food with broccoli and rice.", "A meal on a table."),
    ("A cat laying on a laptop keyboard", "A cat sleeps on a laptop."),
)


def karpathy(name, numbers, split="test"):
    """Return images of Karpathy's files; of COCO they have a folder and a number."""
    images = []
    for at, number in enumerate(numbers):
        said = [{"raw": text, "imgid": at, "sentid": 2 * at + k} for k, text in
                enumerate(TEXTS[at % len(TEXTS)])]  # fmt: skip
        about = {"imgid": at, "split": split, "filename": f"{number}.jpg", "sentences": said}
        if name == "coco":
            about |= {"filename": f"COCO_val2014_{number:012d}.jpg", "filepath": "val2014"}
            about |= {"cocoid": number}
        images.append(about)
    return images


def coco_caption(root):
    """COCO in Karpathy's file: five images of the test split, one of another."""
    numbers = [391895, 60623, 483108, 384213, 42]
    images = karpathy("coco", numbers) + karpathy("coco", [7], "restval")
    value(root / "coco_caption" / "dataset_coco.json", {"dataset": "coco", "images": images})
    names = [f"COCO_val2014_{number:012d}.jpg" for number in numbers]
    draw(root / "coco_caption" / "val2014", names)


def flickr30k(root):
    """Flickr30k: the token file with the list of the split beside it."""
    folder, names = root / "flickr30k", ["1007129816", "1009434119", "101362133", "102617084"]
    told = [
        f"{name}.jpg#{k}\t{text}\n"
        for at, name in enumerate([*names, "36979"])
        for k, text in enumerate(TEXTS[at])
    ]
    folder.mkdir(parents=True)
    (folder / "results_20130124.token").write_text("".join(told))
    (folder / "test.txt").write_text("\n".join(names) + "\n")
    draw(folder / "flickr30k-images", [f"{name}.jpg" for name in names])


def nocaps(root):
    """NoCaps validation: two images of each of two domains."""
    names = ["0013ea2087020901", "004e21eb2e686f40", "00a159a661a2f5aa", "00c9e1d1a8a2b5dd"]
    images = [
        {
            "id": at,
            "file_name": f"{name}.jpg",
            "open_images_id": name,
            "domain": ("near-domain", "out-domain")[at % 2],
        }
        for at, name in enumerate(names)
    ]
    told = [
        {"image_id": at, "id": 10 * at + k, "caption": text}
        for at in range(len(names))
        for k, text in enumerate(TEXTS[at])
    ]
    whole = {"info": {}, "licenses": [], "images": images, "annotations": told}
    value(root / "nocaps" / "nocaps_val_4500_captions.json", whole)
    draw(root / "nocaps" / "val", [f"{name}.jpg" for name in names])


def conceptual(root):
    """Conceptual Captions: the tsv without a header, one of four pictures was not to be had."""
    folder = root / "conceptual"
    folder.mkdir(parents=True)
    rows = [f"{texts[0]}\thttp://example.org/{at}.jpg\n" for at, texts in enumerate(TEXTS[:4])]
    (folder / "Validation_GCC-1.1.0-Validation.tsv").write_text("".join(rows))
    draw(folder, [f"00000/{at:09d}.jpg" for at in (0, 1, 3)])


def make(root, names):
    """Write benchmarks by the names of the functions above."""
    for name in names:
        globals()[name](root)
    return root


def copy(root, target):
    """Copy a folder of benchmarks, to break it."""
    shutil.copytree(root, target)
    return target
