"""Question, right answer, given answer and image behind every scored item of a benchmark."""

import base64
import binascii
import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm.evals import questions, scored, scoring, tables, yes_no
from sgqlm.evals.metrics import mmbench, scienceqa

Files = Sequence[pathlib.Path]
_LETTERS = scienceqa.OPTIONS
_SUFFIXES = {"mmbench": questions.LETTER, "mmbench_cn": questions.LETTER_CN}


@dataclasses.dataclass(frozen=True)
class Item:
    """What a reader needs to judge one answer.

    Attributes:
        question: as it was asked; empty where no file tells.
        wanted: the right answer; of several people, each with its number.
        given: what the model said; None where it has no answer.
        image: name of the image, empty where none is known.
        pixels: the encoded image, in benchmarks that have it in their table.
        kinds: names of the figures that the item counts in.
        asked: the whole prompt, where it is known and is not the question alone.
    """

    question: str = ""
    wanted: str = ""
    given: str | None = None
    image: str = ""
    pixels: bytes = dataclasses.field(default=b"", repr=False)
    kinds: tuple[str, ...] = ()
    asked: str = ""


def read(task: str, answers: Files, annotations: Files) -> dict[str, Item]:
    """Return id -> item; the ids are those of `scored.Scored.items`.

    Args:
        task: of `scoring.TASKS`.
        answers: the files that were scored.
        annotations: the files they were scored against; empty where the answers hold the truth.

    Returns:
        The items; none for another task.

    Raises:
        SgqlmError: a file is missing or damaged.
    """
    if task == "mme":
        return dict(_mme(answers, annotations))
    if task == "pope":
        return dict(
            _pope(answers, [p for path in annotations for p in _files(path, "coco_pope_*")])
        )
    if task in ("mmbench", "mmbench_cn"):
        return dict(_mmbench(task, answers, annotations))
    readers = {
        "gqa": _gqa,
        "seed": _seed,
        "scienceqa": _scienceqa,
        "textvqa": _textvqa,
        "vqav2": _vqa,
        "vizwiz": _vqa,
    }
    if task not in readers:
        return {}
    if not annotations:
        return {key: _plain(task, answer) for key, answer in _own(answers)}
    said = [answer for path in answers for answer in tables.answers(path)]
    return dict(readers[task](said, [p for path in annotations for p in _files(path, "p*s.json")]))


def _files(path: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    return sorted(path.glob(pattern)) if path.is_dir() else [path]


def _own(answers: Files) -> Iterator[tuple[str, tables.Answer]]:
    for path in answers:
        found = tables.answers(path)
        for key, at in scored.numbered(found, [float(at) for at in range(len(found))]).items():
            yield key, found[int(at)]


def _plain(task: str, answer: tables.Answer) -> Item:
    kinds = []
    if task == "scienceqa" and scienceqa.has_image({**answer.record, "prompt": answer.prompt}):
        kinds = ["IMG accuracy"]
    if task == "seed":
        kinds = ["video" if answer.key.startswith("v") else "image"]
    return _item(answer.prompt, answer.truth or "", answer, answer.record, kinds)


def _item(
    question: str,
    wanted: str,
    answer: tables.Answer | None,
    record: Mapping[str, Any],
    kinds: Sequence[Any] = (),
) -> Item:
    names = ("image", "imageId", "image_id", "data_id")
    image = next((str(record[name]) for name in names if record.get(name) is not None), "")
    given = None if answer is None else answer.text
    told = tuple(str(kind) for kind in kinds if kind is not None)
    asked = "" if answer is None else answer.prompt
    return Item(str(question), str(wanted), given, image, kinds=told, asked=asked)


def _by_id(said: Sequence[tables.Answer]) -> dict[str, tables.Answer]:
    return {answer.key: answer for answer in reversed(said)}


def _gqa(said: Sequence[tables.Answer], files: Files) -> Iterator[tuple[str, Item]]:
    found = _by_id(said)
    for file in files:
        for key, item in scoring.objects(file, "GQA questions").items():
            types = item.get("types", {})
            kinds = [
                "open" if types.get("structural") == "query" else "binary",
                f"structural {types.get('structural')}",
                f"semantic {types.get('semantic')}",
            ]
            yield key, _item(item["question"], item["answer"], found.get(key), item, kinds)


def _seed(said: Sequence[tables.Answer], files: Files) -> Iterator[tuple[str, Item]]:
    value, found = tables.load(files[0]), _by_id(said)
    data = value if isinstance(value, Mapping) else {"questions": value}
    names = {number: name for name, number in data.get("question_type", {}).items()}
    for item in data["questions"]:
        key, number = str(item["question_id"]), item.get("question_type_id")
        options = [
            f"{x}. {item['choice_' + x.lower()]}" for x in "ABCD" if f"choice_{x.lower()}" in item
        ]
        question = "\n".join([str(item.get("question", "")), *options])
        kinds = (item.get("data_type"), names.get(number, number))
        yield key, _item(question, item["answer"], found.get(key), item, kinds)


def _scienceqa(said: Sequence[tables.Answer], files: Files) -> Iterator[tuple[str, Item]]:
    found, problems = _by_id(said), {}
    for file in files:
        value = scoring.objects(file, "ScienceQA problems or splits")
        problems |= {key: item for key, item in value.items() if isinstance(item, Mapping)}
    for key, item in problems.items():
        answer, options = found.get(key), list(zip(_LETTERS, item["choices"], strict=False))
        lines = [str(item.get("hint") or ""), str(item.get("question", ""))]
        lines += [f"{letter}. {text}" for letter, text in options]
        is_image = answer and scienceqa.has_image({**answer.record, "prompt": answer.prompt})
        kinds = ["IMG accuracy"] if is_image else []
        kinds += scienceqa.groups(item)
        where = {"image": f"{key}/{item['image']}"} if item.get("image") else {}
        wanted = ". ".join(options[item["answer"]]) if item["answer"] < len(options) else ""
        yield key, _item("\n".join(filter(None, lines)), wanted, answer, where, kinds)


def _textvqa(said: Sequence[tables.Answer], files: Files) -> Iterator[tuple[str, Item]]:
    found = _by_id(said)
    for answer in reversed(said):  # LLaVA's answers have the id of the image
        found[scoring.image_key(answer.key, scoring.question_of(answer.prompt))] = answer
    for file in files:
        for item in tables.items(file):
            question, wanted = item["question"], _voted(item["answers"])
            keys = [scoring.image_key(item["image_id"], question)]
            keys += [str(item["question_id"])] if "question_id" in item else []
            for key in keys:
                yield key, _item(question, wanted, found.get(key), item)


def _vqa(said: Sequence[tables.Answer], files: Files) -> Iterator[tuple[str, Item]]:
    known = [item for file in files for item in tables.items(file)]
    asked = {str(item["question_id"]): item for item in known if "question_id" in item}
    asked |= {str(item["image"]): item for item in known if "image" in item}
    found = {}
    for answer in reversed(said):
        image = answer.record.get("image") or asked.get(answer.key, {}).get("image", answer.key)
        found |= {answer.key: answer, str(image): answer}
    texts = {
        str(item["question_id"]): item
        for item in known
        if "question" in item and "question_id" in item
    }
    for item in known:
        if "answers" in item:
            key = str(item.get("question_id", item.get("image")))
            question = item.get("question", texts.get(key, {}).get("question", ""))
            kinds = (item.get("answer_type"), item.get("question_type"))
            answer = found.get(key)
            shown = question or (answer.prompt if answer else "")
            yield key, _item(shown, _voted(item["answers"]), answer, item, kinds)


def _voted(answers: Sequence) -> str:
    texts = [str(a["answer"] if isinstance(a, Mapping) else a) for a in answers]
    counts = collections.Counter(texts).most_common()
    return ", ".join(f"{text} ({n})" if n > 1 else text for text, n in counts)


def _mmbench(task: str, answers: Files, annotations: Files) -> Iterator[tuple[str, Item]]:
    rows = [row for path in annotations or answers for row in tables.items(path)]
    found = _by_id(tables.answers(answers[0])) if annotations else {}
    said = {
        index: found[index].text if index in found else None if annotations else row["prediction"]
        for row in rows
        for index in [str(row["index"])]
    }
    copies = collections.defaultdict(list)
    for row in rows:
        copies[int(row["index"]) % mmbench.ROLL].append(row)
    short = {name: key for key, name in mmbench.DIMENSIONS.items()}
    for base, part in copies.items():
        part = sorted(part, key=lambda row: int(row["index"]))
        head, letters = part[0], mmbench.choices_of(part[0])
        options = [f"{letter}. {text}" for letter, text in letters.items()]
        lines = [head.get("hint") or "", head.get("question") or "", *options]
        texts = [said[str(row["index"])] for row in part]
        wanted = f"{head['answer']}. {letters.get(head['answer'], '')}"
        if len(part) > 1:
            wanted += f" (rotated: {', '.join(row['answer'] for row in part)})"
        given = " | ".join("no answer" if text is None else text for text in texts)
        first = found.get(str(head["index"]))
        asked = first.prompt + _SUFFIXES[task] if first and first.prompt else ""
        kinds = (short.get(head.get("l2-category"), head.get("l2-category")), head.get("category"))
        told = tuple(kind for kind in kinds if kind)
        yield (
            str(base),
            Item(
                "\n".join(filter(None, lines)),
                wanted,
                given,
                f"{base}.jpg",
                _pixels(head),
                told,
                asked,
            ),
        )


def _pixels(row: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(row.get("image") or "", validate=True)
    except (binascii.Error, ValueError):
        return b""  # the table names a file, or another row that has the image


def _pope(answers: Files, annotations: Files) -> Iterator[tuple[str, Item]]:
    if not annotations:
        for path in answers:
            category = yes_no.pope_category(path)
            for key, answer in _own([path]):
                kinds = [category]
                item = _item(answer.prompt, answer.truth or "", answer, answer.record, kinds)
                yield f"{category}/{key}", item
        return
    groups, labels = yes_no.pope_groups(answers, annotations)
    for category, truth in labels.items():
        found = dict(reversed(groups.get(category, [])))
        for key, item in truth.items():
            shown = _item(item["text"], item["label"], found.get(key), item, [category])
            yield f"{category}/{key}", shown


def _mme(answers: Files, annotations: Files) -> Iterator[tuple[str, Item]]:
    truth = list(yes_no.mme_rows(annotations or answers, 3 if annotations else 4))
    said = {}
    for answer in (a for path in answers for a in tables.answers(path)) if annotations else ():
        category, _, image = answer.key.partition("/")
        said.setdefault(yes_no.mme_key(category, image, answer.prompt), answer.text)
    for key, category, row in truth:
        given = said.get(key) if annotations else row[3]
        item = Item(row[1], row[2], given, f"{category}/{row[0]}", kinds=(category,), asked=row[1])
        yield f"{category}/{row[0]}/{row[1]}", item
