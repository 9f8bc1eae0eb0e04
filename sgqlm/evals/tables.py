"""Read answers and annotations in the formats in which benchmarks and programs publish them."""

import csv
import dataclasses
import gzip
import io
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sgqlm import errors
from sgqlm.evals.metrics import records

IDS = (*records.IDS, "image")
TEXTS = ("text", "prediction", "pred", "answer", "parsed_ans", "answers_found_in_output", "output")
TRUTHS = ("label", "gt_answer", "ground_truth")
DAMAGED = "the file cannot be read"  # what the error for such a file says
_LISTS = ("annotations", "questions", "data")
_TSV = {".tsv": "\t", ".csv": ","}


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a file.

    Attributes:
        key: the id as it stands in the file.
        text: what the model said.
        prompt: what it was asked; empty where the file does not tell.
        truth: the right answer, in files that hold both.
        record: all fields.
    """

    key: str
    text: str
    prompt: str
    truth: str | None
    record: Mapping[str, Any]


def answers(path: str | os.PathLike) -> list[Answer]:
    """Read a file of answers.

    Args:
        path: json lines (LLaVA's layout), json (a list, id -> text, LLaVA's ScienceQA output), tsv
            or csv with a header, each also as `.gz`.

    Returns:
        The answers in their order.

    Raises:
        SgqlmError: the file is missing or damaged, or a record has no id or no answer.
    """
    return [_answer(record, pathlib.Path(path), at) for at, record in enumerate(_records(path), 1)]


def _answer(record: Any, path: pathlib.Path, number: int) -> Answer:
    if not isinstance(record, Mapping):
        raise damaged(path, f"record {number} is no object with fields")
    key, text = records.first(record, IDS), records.first(record, TEXTS)
    if key is None or (text is None and not any(name in record for name in TEXTS)):
        missing, names = ("id", IDS) if key is None else ("answer", TEXTS)
        raise damaged(path, f"record {number} has no {missing} (a field {', '.join(names)})")
    truth, prompt = records.first(record, TRUTHS), records.first(record, ("prompt", "question"))
    text, truth = "" if text is None else text, None if truth is None else str(truth)
    return Answer(str(key), str(text), str(prompt or ""), truth, record)


def _records(path: str | os.PathLike) -> list[Any]:
    value = load(path)
    if isinstance(value, list):
        return [record for record in value if not _is_header(record)]
    if _is_record(value):
        return [value]
    if _is_header(value):
        raise damaged(path, "it has no answers under its first line")
    if any(name in value for name in TEXTS):
        return [value]  # one answer, and it has no id
    if "correct" in value and "incorrect" in value:  # LLaVA's ScienceQA output, in two lists
        return [*value["correct"], *value["incorrect"]]
    if isinstance(value.get("outputs"), Mapping):  # LLaVA's ScienceQA result
        value = value["outputs"]
    if len(value) and all(isinstance(text, str | None) for text in value.values()):
        return [{"question_id": key, "text": text} for key, text in value.items()]
    return _listed(value, path)


def _is_record(value: Mapping) -> bool:
    """Return whether an object is one record, the only line of a file."""
    return records.first(value, IDS) is not None and any(name in value for name in TEXTS)


def _is_header(record: Any) -> bool:
    """Return whether a line says what was asked, as the first of `answers.AnswerFile` does."""
    return isinstance(record, Mapping) and "task" in record and records.first(record, IDS) is None


def items(path: str | os.PathLike, fields: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read the records of an annotation file: a list, its list in an object, or lines.

    Args:
        path: the file.
        fields: what every record must have.

    Raises:
        SgqlmError: the file is missing or damaged, or of another kind.
    """
    value = load(path)
    if isinstance(value, dict) and "image" in value and not any(name in value for name in _LISTS):
        value = [value]  # VizWiz has no other id
    value = value if isinstance(value, list) else _listed(value, path)
    need(value, fields, path)
    return value


def need(values: Iterable[Any], fields: Iterable[str], path: str | os.PathLike) -> None:
    """Refuse a file whose records lack a field.

    Raises:
        SgqlmError: there is such a record.
    """
    for number, record in enumerate(values, 1):
        absent = [f for f in fields if not isinstance(record, Mapping) or f not in record]
        if absent:
            raise damaged(path, f"record {number} has no field `{absent[0]}`")


def _listed(value: Mapping, path: str | os.PathLike) -> list[dict[str, Any]]:
    for name in _LISTS:
        if isinstance(value.get(name), list):
            return value[name]
    raise damaged(path, "it has no list of records")


def load(path: str | os.PathLike) -> Any:
    """Return the content of a file: a list of records, or a json object.

    Whether a file is one json value or lines of them is seen from its content: POPE's `.json` are
    lines, LLaVA's ScienceQA `.jsonl` is one object.

    Raises:
        SgqlmError: the file is missing, empty or damaged.
    """
    path = pathlib.Path(path)
    text = read_text(path)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if suffixes and suffixes[-1].lower() in _TSV:
        return _table(path, text, _TSV[suffixes[-1].lower()])
    if not text.strip():
        raise damaged(path, "it is empty")
    lines = text.split("\n")
    try:
        is_lines = isinstance(json.loads(lines[0]), dict) and any(map(str.strip, lines[1:]))
    except ValueError:
        is_lines = False
    if is_lines:
        return list(_json_lines(path, lines))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict | list):
        raise damaged(path, "it holds neither records nor an object")
    is_one = isinstance(value, dict) and records.first(value, records.IDS) is not None
    return [value] if is_one else value  # a file of one line


def _json_lines(path: pathlib.Path, lines: list[str]) -> Iterator[dict]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise damaged(path, f"line {number}: {error}") from error


def read_text(path: pathlib.Path) -> str:
    """Return the text of a file, unpacked where its name ends with `.gz`.

    Raises:
        SgqlmError: there is no such file, or it is no text.
    """
    if not path.is_file():
        raise errors.SgqlmError("there is no such file", where=str(path), fix="correct the path")
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n")
    except ValueError as error:
        raise damaged(path, str(error)) from error


def read_bytes(path: pathlib.Path) -> bytes:
    """Return the content of a file, unpacked where its name ends with `.gz`.

    Raises:
        SgqlmError: it is packed and damaged.
    """
    data = path.read_bytes()
    try:
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, str(error)) from error


def _table(path: pathlib.Path, text: str, delimiter: str) -> list[dict[str, Any]]:
    before = csv.field_size_limit(sys.maxsize)  # MMBench has its images in a column
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    try:
        rows = list(reader)
    except csv.Error as error:  # such as a bare carriage return
        raise damaged(path, f"line {reader.reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise damaged(path, "it has no rows under its header")
    short = [at for at, row in enumerate(rows, 2) if None in row or None in row.values()]
    if short:
        raise damaged(path, f"row {short[0]} has another number of columns than the header")
    return rows


def damaged(path: str | os.PathLike, why: str) -> errors.SgqlmError:
    """Return the error for a file that cannot be read."""
    return errors.SgqlmError(
        DAMAGED,
        where=str(path),
        why=why,
        fix="give a whole file in its published format",
        code=errors.DATA,
    )
