"""Questions of the benchmarks: official files, with the prompts of LLaVA's programs.

Where a question file of LLaVA holds whole prompts they are taken as they are.
"""

import base64
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sgqlm.evals import human_answers, tables, yes_no
from sgqlm.evals.metrics import mmbench as mmbench_metric
from sgqlm.evals.metrics import pope
from sgqlm.evals.metrics import seed as seed_metric

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT
)
_POINTER = 64  # longest number of a row; MMBench has it in place of a picture that stands there
_IMAGE = "<image>"
_NOTHING = ("", "nan", "none")  # what LLaVA's program takes for no hint and no option


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: as it stands in the file.
        text: what the user says, without `<image>`.
        prompt: what the answers name as prompt; LLaVA leaves the last line out of some.
        image: path of the picture below a folder of images; empty for text only.
        label: name of its annotation, see `Task.label`.
        data: the encoded picture, where the question file holds it.
        more: further fields of the answer.
    """

    id: int | str
    text: str
    prompt: str
    image: str = ""
    label: str = ""
    data: bytes | None = dataclasses.field(default=None, repr=False)
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Found = Iterable[tuple[Mapping[str, Any], Question]]  # records with their questions


def digest(questions: Iterable[Question]) -> str:
    """Return the SHA-256 of what is asked, to tell revisions of a file apart."""
    total = hashlib.sha256()
    for question in questions:
        total.update(json.dumps([question.id, question.image, question.text]).encode())
        total.update(question.data or b"")
    return total.hexdigest()


def id_label(record: Mapping[str, Any], path: pathlib.Path) -> str:
    """Return the id of a question or an annotation."""
    return str(next((record[k] for k in ("question_id", "index", "id") if k in record), ""))


def image_label(record: Mapping[str, Any], path: pathlib.Path) -> str:
    """Return the image by which VizWiz names questions and annotations."""
    return str(record.get("image", ""))


def textvqa_label(record: Mapping[str, Any], path: pathlib.Path) -> str:
    """Return image and question of a record of LLaVA's file or the official one."""
    if "image_id" in record:
        return f"{record['image_id']}: {record['question'].strip().lower()}"
    return f"{record['question_id']}: {human_answers.question_of(record['text']).strip().lower()}"


def pope_label(record: Mapping[str, Any], path: pathlib.Path) -> str:
    """Return category and number: of LLaVA's file by its id, of an official one by its name."""
    blocks, number = list(yes_no.POPE_LINES), int(record["question_id"])
    told = str(record.get("category", ""))
    if told not in blocks:
        named = [name for name in blocks if name in path.name] if "label" in record else []
        block = number // pope.CATEGORY_IDS
        told = named[0] if named else blocks[block] if block < len(blocks) else told
    return f"{told} {number % pope.CATEGORY_IDS}"


def _prompts(
    files: Sequence[pathlib.Path], official: Callable[[int, Mapping], Question], fields: Sequence
) -> Found:
    """Read a question file of LLaVA, or an official one whose records have these fields."""
    (path,) = files
    value = tables.load(path)
    if isinstance(value, dict) and "questions" in value:
        shared = {key: value[key] for key in ("data_subtype",) if key in value}
        value = [{**shared, **record} for record in value["questions"]]
    elif isinstance(value, dict):
        value = [{"question_id": key, **record} for key, record in value.items()]
    if value and "text" in value[0]:
        tables.need(value, ("question_id", "image", "text"), path)
        for record in value:
            text = str(record["text"]).replace(_IMAGE, "").strip()
            yield record, Question(record["question_id"], text, text, str(record["image"]))
        return
    tables.need(value, fields, path)
    for at, record in enumerate(value):
        question = official(at, record)
        yield {**record, "question_id": question.id}, question


def vqav2(files: Sequence[pathlib.Path]) -> Found:
    """Read VQAv2: LLaVA's file, or v2_OpenEnded_mscoco_*_questions.json."""

    def official(at: int, record: Mapping[str, Any]) -> Question:
        subset = record["data_subtype"].replace("test-dev", "test")
        image = f"COCO_{subset}_{int(record['image_id']):012d}.jpg"
        return _asked(record["question_id"], record["question"] + SHORT, image)

    return _prompts(files, official, ("question_id", "image_id", "question", "data_subtype"))


def gqa(files: Sequence[pathlib.Path]) -> Found:
    """Read GQA: LLaVA's file, or testdev_balanced_questions.json."""

    def official(at: int, record: Mapping[str, Any]) -> Question:
        return _asked(record["question_id"], record["question"] + SHORT, f"{record['imageId']}.jpg")

    return _prompts(files, official, ("question", "imageId"))


def vizwiz(files: Sequence[pathlib.Path]) -> Found:
    """Read VizWiz: LLaVA's file, or test.json."""

    def official(at: int, record: Mapping[str, Any]) -> Question:
        return _asked(at, record["question"] + UNANSWERABLE, record["image"])  # LLaVA's ids

    return _prompts(files, official, ("question", "image"))


def llavas(why: str) -> Callable[[Sequence[pathlib.Path]], Found]:
    """Return what reads LLaVA's file alone; `why` no other will do."""

    def asked(files: Sequence[pathlib.Path]) -> Found:
        def official(at: int, record: Mapping[str, Any]) -> Question:
            raise tables.damaged(files[0], why)

        return _prompts(files, official, ())

    return asked


def mmvet(files: Sequence[pathlib.Path]) -> Found:
    """Read MM-Vet: LLaVA's file, or mm-vet.json."""

    def official(at: int, record: Mapping[str, Any]) -> Question:
        number = int(str(record["question_id"]).removeprefix("v1_"))
        return _asked(number, record["question"], record["imagename"])

    return _prompts(files, official, ("question", "imagename"))


def seed(files: Sequence[pathlib.Path]) -> Found:
    """Read SEED-Bench: LLaVA's file, or SEED-Bench.json."""

    def official(at: int, record: Mapping[str, Any]) -> Question:
        choices = [record[f"choice_{letter}"] for letter in "abcd"]
        text = _options(record["question"], choices)
        return _asked(record["question_id"], text + LETTER, seed_metric.image(record))

    fields = ("question_id", "question", "data_type", *(f"choice_{c}" for c in "abcd"))
    return _prompts(files, official, fields)


def pope_categories(files: Sequence[pathlib.Path]) -> Found:
    """Read POPE: LLaVA's file, or the official ones of some categories."""
    for path in files:
        for record in tables.items(path, ("question_id", "image", "text")):
            text, number = str(record["text"]).strip(), record["question_id"]
            if "label" in record:  # an official file, whose ids begin anew in each category
                label = pope_label(record, path)
                category = label.split()[0]
                block = list(yes_no.POPE_LINES).index(category) if category else 0
                number, text = block * pope.CATEGORY_IDS + int(number), text + SHORT
                record = {**record, "question_id": number, "category": category}
            yield record, _asked(number, text, record["image"])


def scienceqa(files: Sequence[pathlib.Path]) -> Found:
    """Read LLaVA's llava_test_CQM-A.json, or the test split of problems.json beside its splits."""
    value = tables.load(files[0])
    if isinstance(value, dict):
        value = list(_problems(files[0], value))
    tables.need(value, ("id", "conversations"), files[0])
    for record in value:
        told = str(record["conversations"][0]["value"]).replace(_IMAGE, "").strip()
        text, image = told + LETTER, str(record.get("image") or "")
        # eval_science_qa.py knows by the prompt which questions have an image
        prompt = f"{_IMAGE}\n{text}" if image else text
        more = {"is_multimodal": bool(image)}
        yield record, Question(record["id"], text, prompt, image, more=more)


def _problems(path: pathlib.Path, problems: Mapping[str, Any]):
    splits = tables.load(path.with_name("pid_splits.json"))
    for key in splits["test"] if isinstance(splits, dict) and "test" in splits else []:
        if key not in problems:
            raise tables.damaged(path, f"it has no problem {key}, which pid_splits.json names")
        item = problems[key]
        hint = [f"Context: {item['hint']}"] if item.get("hint") else []
        text = _options("\n".join([*hint, item["question"]]), item["choices"])
        image = f"{key}/{item['image']}" if item.get("image") else None
        yield {"id": key, "image": image, "conversations": [{"value": text}]}


def mmbench(suffix: str) -> Callable[[Sequence[pathlib.Path]], Found]:
    """Return what reads the tsv of MMBench, for the last line of its prompts."""

    def rows(files: Sequence[pathlib.Path]):
        table = tables.items(files[0], ("index", "question", "A", "B", "image"))
        pictures = {str(row["index"]): row["image"] for row in table}
        for row in table:
            if not str(row["index"]).isdecimal():
                raise tables.damaged(files[0], f"the index {row['index']!r} is no number")
            letters = [c for c in "ABCDEF" if c in row]
            empty = next((c for c in letters if _is_nothing(row[c])), None)
            letters = letters[: letters.index(empty)] if empty else letters
            hint = [] if _is_nothing(row.get("hint")) else [row["hint"]]
            options = [row[c] for c in letters]
            prompt = _options("\n".join([*hint, row["question"]]), options)
            more = {"round_id": 0, "options": options, "option_char": letters}
            code, number = row["image"], int(row["index"])
            if len(code) < _POINTER and code in pictures:
                code = pictures[code]
            yield (
                row,
                Question(
                    number,
                    prompt + suffix,
                    prompt,
                    f"{number % mmbench_metric.ROLL}.jpg",
                    data=_decoded(code),
                    more=more,
                ),
            )

    return rows


def _decoded(code: str) -> bytes:
    try:
        return base64.b64decode(code)
    except ValueError:
        return b""  # a picture that cannot be read is told where it is opened


def _is_nothing(cell: Any) -> bool:
    return cell is None or str(cell).lower() in _NOTHING


def _options(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip("ABCDEFGH", options, strict=False)]
    return "\n".join([question, *lines])


def _asked(number: int | str, text: str, image: str) -> Question:
    return Question(number, text, text, image)
