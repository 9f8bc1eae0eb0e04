"""Benchmarks that a judge grades: ask what is not answered yet, keep every reply at once."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import chat
from sgqlm.evals import answers, judge
from sgqlm.evals.metrics import llava_bench, mmvet


@dataclasses.dataclass(frozen=True)
class Graded:
    """One grade of MM-Vet, for progress.

    Attributes:
        key: id of the question.
        run: number of the run, from 0.
        reply: what the judge said last.
        score: the grade.
        is_read: false where no reply could be read and the grade is 0 for that.
    """

    key: str
    run: int
    reply: str
    score: float
    is_read: bool


def prompt_hash(text: str) -> str:
    """Return the first 16 digits of the sha256 of a prompt, for reports."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def review(
    cases: Sequence[llava_bench.Case], by: judge.Judge, path: str | os.PathLike
) -> Iterator[dict[str, Any]]:
    """Yield the review of every case, and append the new ones to a review file of LLaVA's form.

    A line has what LLaVA's own has, and the judge and the hash of what it was asked. Cases that
    the file has already are not asked again.

    Args:
        cases: of `llava_bench.pair`.
        by: the judge; without one, lines have `needs_judge` and none is written.
        path: jsonl file; made if it is not there.

    Raises:
        SgqlmError: the file has reviews of another judge or of other answers, or the judge fails.
    """
    path = pathlib.Path(path)
    known = {line.get("question_id"): line for line in _reviews(path)}
    for number, case in enumerate(cases, 1):
        line = {
            "id": number,
            "question_id": case.question_id,
            "answer1_id": case.answer1_id,
            "answer2_id": case.answer2_id,
            "category": case.category,
            "judge": by.name,
            "prompt_hash": prompt_hash(case.content),
        }
        if case.question_id in known:
            yield _same(known[case.question_id], line, path)
            continue
        try:
            content = by.complete(
                llava_bench.messages(case.content),
                max_tokens=llava_bench.MAX_TOKENS,
                temperature=llava_bench.TEMPERATURE,
            )
        except judge.NeedsJudge:
            yield line | {"needs_judge": True}
            continue
        line |= {"content": content, "tuple": llava_bench.parse_score(content)}
        chat.append(path, line)
        yield line


def grade(
    metadata: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Any],
    by: judge.Judge,
    path: str | os.PathLike,
    *,
    num_runs: int = 1,
    head: str = mmvet.HEAD,
) -> Iterator[Graded]:
    """Grade the answers to MM-Vet and keep the grades in a file of the official form.

    Grades that the file has already are not asked for again.

    Args:
        metadata: `mm-vet.json`, id -> {question, answer, capability}.
        predictions: id -> answer, `{"v1_0": ...}`.
        by: the judge; without one, nothing is graded.
        path: json file, id -> {model, content, score}; made if it is not there.
        num_runs: grades for every answer, 5 in the paper.
        head: the prompt, see `mmvet.official_head`.

    Yields:
        The new grades.

    Raises:
        SgqlmError: answers are missing or unknown, the file is of another judge, or the judge
            fails.
    """
    path = pathlib.Path(path)
    _fit(metadata, predictions)
    grades = read_json(path) if path.is_file() else {}
    _same_judge(grades, by, path)

    def ask(text: str, temperature: float) -> str:
        message = {"role": "user", "content": text}
        return by.complete([message], max_tokens=mmvet.MAX_TOKENS, temperature=temperature)

    for run in range(num_runs):
        for key, item in metadata.items():
            entry = grades.setdefault(key, {"model": [], "content": [], "score": []})
            if len(entry["score"]) > run:
                continue
            texts = item["question"], item["answer"], predictions[key]
            try:
                reply, score, is_read = mmvet.grade(*texts, ask=ask, head=head)
            except judge.NeedsJudge:
                return
            for name, value in (("model", by.name), ("content", reply), ("score", score)):
                entry[name].append(value)
            _write({key: entry for key, entry in grades.items() if entry["score"]}, path)
            yield Graded(key, run, reply, score, is_read)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Return the object of a json file.

    Raises:
        SgqlmError: there is no such file, or it is no json object.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text("utf-8"))
        if isinstance(value, dict):
            return value
        why = f"it is a {type(value).__name__}"
    except (OSError, ValueError) as error:
        why = str(error)
    raise errors.SgqlmError(
        "this is no file with one json object",
        where=str(path),
        why=why,
        fix="correct the path or the file",
        code=errors.DATA,
    )


def _reviews(path: pathlib.Path) -> list[dict[str, Any]]:
    return list(answers.iterate(path)) if path.is_file() else []


def _same(found: dict[str, Any], wanted: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    # files of LLaVA itself name no judge and no prompt, but the answers
    names = ["answer2_id"] + ["prompt_hash"] * ("prompt_hash" in found)
    names += ["judge"] * ("judge" in found and wanted["judge"] != judge.NoJudge.name)
    if other := [name for name in names if found.get(name) != wanted[name]]:
        raise _mixed(path, f"question {wanted['question_id']} differs in {', '.join(other)}")
    return found


def _same_judge(grades: Mapping[str, Mapping], by: judge.Judge, path: pathlib.Path) -> None:
    names = {name for entry in grades.values() for name in entry.get("model", [])}
    if names - {by.name} and by.name != judge.NoJudge.name:
        raise _mixed(path, f"its judge is {', '.join(sorted(names))}, the judge now {by.name}")


def _mixed(path: pathlib.Path, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        "the file has grades of something else",
        where=str(path),
        why=why,
        fix="give another file, or the same judge, prompt and answers to go on",
        code=errors.DATA,
    )


def _fit(metadata: Mapping, predictions: Mapping) -> None:
    missing = [key for key in metadata if key not in predictions]
    unknown = [key for key in predictions if key not in metadata]
    if missing or unknown:
        raise errors.SgqlmError(
            "the answers do not fit MM-Vet",
            where=", ".join([*missing, *unknown][:5]),
            why=f"{len(missing)} questions without an answer, {len(unknown)} unknown answers",
            fix="give a whole answer file and mm-vet.json of the same version",
            code=errors.DATA,
        )
    for key, item in metadata.items():
        if not {"question", "answer", "capability"} <= set(item):
            why = "the question has no question, answer and capability"
        elif not isinstance(predictions[key], str):
            why = f"the answer is no text but {type(predictions[key]).__name__}"
        else:
            continue
        raise errors.SgqlmError(
            "a record cannot be graded",
            where=key,
            why=why,
            fix='give mm-vet.json and answers of the form {"v1_0": "text"}',
            code=errors.DATA,
        )


def _write(value: Mapping, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(value, indent=4), encoding="utf-8")
    os.replace(aside, path)
