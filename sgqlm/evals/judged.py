"""Benchmarks that a judge grades: ask what is not answered yet, keep every reply at once."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import chat
from sgqlm.evals import answers, asking, judge
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
    cases: Sequence[llava_bench.Case],
    by: judge.Judge,
    path: str | os.PathLike,
    *,
    rule_hash: str = "",
    parallel: int = 1,
    max_tokens: int | None = llava_bench.MAX_TOKENS,
) -> Iterator[dict[str, Any]]:
    """Yield the review of every case, and append the new ones to a review file of LLaVA's form.

    A line has what LLaVA's own has, the judge, and the hash of what it was asked. Cases that the
    file has already are not asked again; they come first. In the end the file has the order of the
    cases.

    Args:
        cases: of `llava_bench.pair`.
        by: the judge; without one, lines have `needs_judge` and none is written.
        path: jsonl file; made if it is not there.
        rule_hash: of the rules in the cases, for reports.
        parallel: cases that are asked at once.
        max_tokens: of a reply.

    Raises:
        SgqlmError: the file has reviews of another judge or of other answers, or the judge fails.
    """
    path = pathlib.Path(path)
    known, order = _reviews(path), {}
    for number, case in enumerate(cases, 1):
        order[case.question_id] = {
            "id": number,
            "question_id": case.question_id,
            "answer1_id": case.answer1_id,
            "answer2_id": case.answer2_id,
            "category": case.category,
            "judge": by.name,
            "prompt_hash": prompt_hash(case.content),
        } | ({"rule_hash": rule_hash} if rule_hash else {})
    found = {key: _same(known[key], line, path) for key, line in order.items() if key in known}
    yield from found.values()

    def ask(case: llava_bench.Case) -> str | None:
        messages, temperature = llava_bench.messages(case.content), llava_bench.TEMPERATURE
        try:
            return by.complete(messages, max_tokens=max_tokens, temperature=temperature)
        except judge.NeedsJudge:
            return None

    todo = [case for case in cases if case.question_id not in known]
    for case, content in asking.each(ask, todo, parallel):
        line = order[case.question_id]
        if content is None:
            yield line | {"needs_judge": True}
            continue
        line |= {"content": content, "tuple": llava_bench.parse_score(content)}
        chat.append(path, line)
        yield line
    _sort(path, list(order))


def grade(
    metadata: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Any],
    by: judge.Judge,
    path: str | os.PathLike,
    *,
    num_runs: int = 1,
    head: str = mmvet.HEAD,
    parallel: int = 1,
    max_tokens: int | None = mmvet.MAX_TOKENS,
) -> Iterator[Graded]:
    """Grade the answers to MM-Vet and keep the grades in a file of the official form.

    Grades that the file has already are not asked for again. Beside the official fields, an entry
    has the hashes of the prompt and of its table.

    Args:
        metadata: `mm-vet.json`, id -> {question, answer, capability}.
        predictions: id -> answer, `{"v1_0": ...}`.
        by: the judge; without one, nothing is graded.
        path: json file, id -> {model, content, score}; made if it is not there.
        num_runs: grades for every answer, 5 in the paper.
        head: the prompt, see `mmvet.official_head`.
        parallel: answers that are graded at once.
        max_tokens: of a reply.

    Yields:
        The new grades.

    Raises:
        SgqlmError: answers are missing or unknown, the file is of another judge or of other
            answers, or the judge fails.
    """
    path = pathlib.Path(path)
    _fit(metadata, predictions)
    grades = read_json(path) if path.is_file() else {}
    _same_judge(grades, by, path)
    hashes = {key: _hashes(item, predictions[key], head) for key, item in metadata.items()}
    for key, wanted in hashes.items():
        _same_prompt(key, grades.get(key, {}), wanted, path)

    def ask(key: str) -> tuple[str, float, bool] | None:
        texts = metadata[key]["question"], metadata[key]["answer"], predictions[key]
        try:
            return mmvet.grade(*texts, ask=_said_by(by, max_tokens), head=head)
        except judge.NeedsJudge:
            return None

    for run in range(num_runs):
        todo = [key for key in metadata if len(grades.get(key, {}).get("score", ())) <= run]
        for key, found in asking.each(ask, todo, parallel):
            if found is None:
                return
            entry = grades.setdefault(key, {"model": [], "content": [], "score": []} | hashes[key])
            for name, value in (("model", by.name), ("content", found[0]), ("score", found[1])):
                entry[name].append(value)
            _write(grades, path)
            yield Graded(key, run, *found)


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


def _reviews(path: pathlib.Path) -> dict[Any, dict[str, Any]]:
    lines = list(answers.iterate(path)) if path.is_file() else []
    found = {line.get("question_id"): line for line in lines}
    if len(found) < len(lines):
        raise mixed(path, f"{len(lines) - len(found)} questions are reviewed twice")
    return found


def _sort(path: pathlib.Path, ids: Sequence) -> None:
    """Bring a review file into the order of the questions; others stay behind them."""
    known = _reviews(path)
    order = [key for key in ids if key in known] + [key for key in known if key not in set(ids)]
    if order != list(known):
        answers.write(path, [known[key] for key in order])


def _same(found: dict[str, Any], wanted: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    # files of LLaVA itself name no judge and no prompt, but the answers
    names = ["answer2_id"] + ["prompt_hash"] * ("prompt_hash" in found)
    names += ["judge"] * ("judge" in found and wanted["judge"] != judge.NoJudge.name)
    if other := [name for name in names if found.get(name) != wanted[name]]:
        raise mixed(path, f"question {wanted['question_id']} differs in {', '.join(other)}")
    return found


def _said_by(by: judge.Judge, max_tokens: int | None) -> Callable[[str, float], str]:
    def reply(text: str, temperature: float) -> str:
        message = {"role": "user", "content": text}
        return by.complete([message], max_tokens=max_tokens, temperature=temperature)

    return reply


def _hashes(item: Mapping[str, Any], prediction: str, head: str) -> dict[str, str]:
    text = mmvet.prompt(item["question"], item["answer"], prediction, head=head)
    return {"prompt_hash": prompt_hash(text), "rule_hash": prompt_hash(head)}


def _same_prompt(key: str, entry: Mapping, wanted: Mapping, path: pathlib.Path) -> None:
    # grade files of MM-Vet itself have no hashes
    if entry.get("prompt_hash", wanted["prompt_hash"]) != wanted["prompt_hash"]:
        what = "prompt" if entry.get("rule_hash") != wanted["rule_hash"] else "answer"
        raise mixed(path, f"{key} was graded with another {what}")


def _same_judge(grades: Mapping[str, Mapping], by: judge.Judge, path: pathlib.Path) -> None:
    names = {name for entry in grades.values() for name in entry.get("model", [])}
    if names - {by.name} and by.name != judge.NoJudge.name:
        raise mixed(path, f"its judge is {', '.join(sorted(names))}, the judge now {by.name}")


def mixed(path: pathlib.Path, why: str) -> errors.SgqlmError:
    """Return the error for a file that cannot be continued."""
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
