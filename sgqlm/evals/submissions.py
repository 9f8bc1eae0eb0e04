"""Turn answers in LLaVA's layout into what the server of each benchmark takes."""

import csv
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import files
from sgqlm.evals import annotated, caption_files, joining, tables
from sgqlm.evals import tasks as tasks_lib
from sgqlm.evals.metrics import gqa, textvqa

# Columns that LLaVA leaves out of the MMBench sheet; `prediction` is its seventh column.
_NOT_SENT = ("hint", "category", "source", "image", "comment", "l2-category")
_PREDICTION_AT = 6
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # no .xlsx can hold these
_HALF = re.compile(r"[\ud800-\udfff]")  # half of a surrogate pair: no text file can hold it
_MMVET = "v1_"


def write(
    task: str,
    answers: str | os.PathLike,
    out: str | os.PathLike,
    questions: str | os.PathLike | None = None,
) -> joining.Faults:
    """Write a submission; nothing is written where it would not be accepted.

    Args:
        task: one of `TASKS`.
        answers: LLaVA's jsonl.
        out: the file; its end `.xlsx` or `.tsv` chooses the kind of MMBench's sheet.
        questions: all questions of the split: LLaVA's question file or the official one (vqav2,
            gqa), LLaVA's (vizwiz), SEED-Bench.json, MMBench's tsv; of captions also the official
            file (`caption_files`). Not needed for gqa and mmvet.

    Returns:
        Ids without an answer (VQAv2 and MMBench get an empty one), and those that are not asked.

    Raises:
        SgqlmError: a file is missing or damaged, an id has two answers, or an answer is missing
            where the server asks for all.
    """
    if task in ("gqa", "mmvet") and questions is None:
        asked = None
    elif questions is None:
        raise errors.SgqlmError(
            f"{task} needs its questions", where="--questions", fix=f"give {_named(task)}"
        )
    elif task in caption_files.TASKS:
        asked = _images(task, pathlib.Path(questions))
    else:
        asked = _asked(pathlib.Path(questions))
    given = [(answer.key, answer) for answer in tables.answers(answers)]
    if task == "mmvet":  # LLaVA's ids are numbers, those of mm-vet.json have its prefix
        given = [(_mmvet_key(key), answer) for key, answer in given]
        asked = asked and {_mmvet_key(key): item for key, item in asked.items()}
    truth = dict(given) if asked is None else asked
    joined, faults = joining.join(given, truth, where=str(answers))
    if faults.missing and task not in ("vqav2", "mmbench", "mmbench_cn"):
        raise errors.SgqlmError(
            f"{len(faults.missing)} questions have no answer",
            where=str(answers),
            why=f"the server of {task} asks for all: {joining.shown(faults.missing)}",
            fix="answer them too",
            code=errors.DATA,
        )
    texts = {key: joined[key].text if key in joined else "" for key in truth}
    target = pathlib.Path(out)
    content = _FORMS[task](texts, asked or {}, target)
    files.write(target, content)
    return faults


def _asked(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    value = tables.load(path)
    if isinstance(value, dict) and value and all("answer" in q for q in value.values() if q):
        return value  # GQA: id -> question
    first = value[0] if isinstance(value, list) and value else {}
    name = "index" if "index" in first else "question_id"
    return annotated.by_id([path], annotated.items(key=name), [])


def _named(task: str) -> str:
    """Return the names of the files that have the questions of a benchmark."""
    about = tasks_lib.get(task)
    return " or ".join(about.all_questions or about.files)


def _mmvet_key(key: str) -> str:
    return _MMVET + key.removeprefix(_MMVET)


def _images(task: str, path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return question id -> `image_id` as the benchmark has it."""
    found = caption_files.read(task, [path])
    if found.is_pool:
        raise caption_files.without_split(task, path)
    if not found.asked:
        return {str(item.id): {"image_id": item.id} for item in found.items}
    return {
        key: {"image_id": caption_files.image_id(task, image, key)}
        for key, image in found.asked.items()
    }


def _json(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair: its escape in json


def _listed(row: Callable[[str, str, Mapping], dict[str, Any]]) -> Callable[..., bytes]:
    """Return what writes a list of `row(id, answer, question)`."""

    def content(texts: Mapping[str, str], asked: Mapping, out: pathlib.Path) -> bytes:
        return _json([row(key, text, asked.get(key, {})) for key, text in texts.items()])

    return content


def _vizwiz(key: str, text: str, question: Mapping) -> dict[str, Any]:
    tables.need([question], ("image",), "--questions")
    return {"image": question["image"], "answer": textvqa.normalise(text)}


def _seed(texts: Mapping[str, str], asked: Mapping[str, Mapping], out: pathlib.Path) -> bytes:
    return b"".join(
        _json({"question_id": asked[key]["question_id"], "prediction": text})
        for key, text in texts.items()
    )


def _mmvet(texts: Mapping[str, str], asked: Mapping, out: pathlib.Path) -> bytes:
    return _json(texts, indent=2)


def _mmbench(texts: Mapping[str, str], asked: Mapping[str, Mapping], out: pathlib.Path) -> bytes:
    first = next(iter(asked.values()))
    columns = [name for name in first if name not in (*_NOT_SENT, "prediction")]
    columns.insert(_PREDICTION_AT, "prediction")
    said = {key: _HALF.sub("\ufffd", text) for key, text in texts.items()}
    rows = [[{**row, "prediction": said[key]}[c] for c in columns] for key, row in asked.items()]
    kinds: dict[str, Callable] = {".tsv": _tsv, ".xlsx": _xlsx}
    if out.suffix not in kinds:
        raise errors.SgqlmError(
            "the sheet is an .xlsx or a .tsv file", where=str(out), fix="name it so"
        )
    return kinds[out.suffix](columns, rows)


def _tsv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _xlsx(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    try:
        import openpyxl
    except ImportError as error:
        raise errors.SgqlmError(
            "a sheet for the MMBench server needs the package openpyxl",
            fix="pip install -e '.[submit]' in the clone, or give an --out that ends with .tsv",
            code=errors.RESOURCES,
        ) from error
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    at = columns.index("index")
    sheet.append(list(columns))
    for row in rows:
        sheet.append(
            [int(cell) if i == at else _NO_XML.sub("", cell) for i, cell in enumerate(row)]
        )
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


_FORMS: Mapping[str, Callable[..., bytes]] = {
    "vqav2": _listed(
        lambda _, text, asked: {
            "question_id": asked["question_id"],
            "answer": textvqa.normalise(text),
        }
    ),
    "gqa": _listed(lambda key, text, _: {"questionId": key, "prediction": gqa.convert(text)}),
    "vizwiz": _listed(_vizwiz),
    "mmbench": _mmbench,
    "mmbench_cn": _mmbench,
    "seed": _seed,
    "mmvet": _mmvet,
    **dict.fromkeys(
        caption_files.TASKS,
        _listed(
            lambda _, text, asked: {
                "image_id": asked["image_id"],
                "caption": " ".join(text.split()),
            }
        ),
    ),
}
TASKS = tuple(_FORMS)
