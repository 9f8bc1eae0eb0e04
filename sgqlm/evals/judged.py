"""Benchmarks that a judge grades: ask what is not answered yet, keep every reply at once."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import chat, files
from sgqlm.evals import answers, asking, judge, tables
from sgqlm.evals.metrics import llava_bench, mmvet

# what a line of graded answers names, if it is ours; answers of LLaVA have an id
_SETTINGS, _ANSWER = ("judge", "rule_hash"), "answer2_id"


def prompt_hash(text: str) -> str:
    """Return the first 16 digits of the sha256 of a prompt, for reports."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resume(
    wanted: Mapping[str, Mapping[str, Any]],
    path: pathlib.Path,
    ask: Callable[[str], Mapping[str, Any]],
    *,
    fields: Sequence[str],
    parallel: int = 1,
    again: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a line for everything that is graded, and append the new ones to a json lines file.

    What the file has is not asked again, and comes first. Where the judge and its rule are the same
    and only the answer is another one, the judge is asked again, and the old line moves to the file
    `replaced`. In the end the file has the order of `wanted`.

    Args:
        wanted: id -> what its line tells beside the grade: `judge`, `prompt_hash`, `rule_hash`.
        path: the file; made if it is not there.
        ask: id -> what the reply of the judge adds to its line.
        fields: what every line of the file has, first the name of the id.
        parallel: how many are asked at once.
        again: tells a line to ask for again; it moves to `replaced` too. None for no line.

    Raises:
        SgqlmError: the file has grades of another judge or rule, or the judge fails.
    """
    known = _lines(path, fields)
    same = {k: _is_same(known[k], line, path, k) for k, line in wanted.items() if k in known}
    if old := [k for k, is_same in same.items() if not is_same or (again and again(known[k]))]:
        for key in old:
            chat.append(replaced(path), known.pop(key))
        answers.write(path, list(known.values()))
    yield from (known[key] for key in wanted if key in known)
    lock = threading.Lock()

    def asked(key: str) -> dict[str, Any]:
        line = {**wanted[key], **ask(key)}
        with lock:  # kept by the thread that got it: no signal to the program loses it
            chat.append(path, line)
        return line

    for _, line in asking.each(asked, [key for key in wanted if key not in known], parallel):
        yield line
    known = _lines(path, fields)
    order = [key for key in wanted if key in known] + [key for key in known if key not in wanted]
    if order != list(known):
        answers.write(path, [known[key] for key in order])


def replaced(path: pathlib.Path) -> pathlib.Path:
    """Return where grades are kept that were asked for again."""
    return path.with_name(f"{path.stem}-replaced.jsonl")


def run_paths(path: pathlib.Path, num_runs: int) -> list[pathlib.Path]:
    """Return the review files of several runs of a judge. Example: `r.jsonl`, `r-2.jsonl`."""
    names = [path.name, *(f"{path.stem}-{run + 1}{path.suffix}" for run in range(1, num_runs))]
    return [path.with_name(name) for name in names]


def used(path: pathlib.Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield id and line of all that was graded, what was replaced included."""
    for file in (path, replaced(path)):
        yield from ((str(line.get(name)), line) for line in _iterate(file))


def skip_used(
    by: judge.Judge,
    kept: Iterable[tuple[str, Mapping[str, Any]]],
    wanted: Mapping[str, Mapping[str, Any]],
    ask: Callable[[str], Any],
) -> None:
    """Let a replay go on after the replies that kept grades were made of; nobody else is asked.

    Args:
        by: the judge.
        kept: id and line of every grade.
        wanted: id -> line with its `prompt_hash`; grades of other prompts took other replies.
        ask: takes the replies for the grade of an id.
    """
    if not isinstance(by, judge.Replay):
        return
    for key, line in kept:
        if key in wanted and line.get("prompt_hash") in (None, wanted[key]["prompt_hash"]):
            with contextlib.suppress(errors.SgqlmError):  # a grade of replies not recorded here
                ask(key)


def review(
    cases: Sequence[llava_bench.Case],
    by: judge.Judge,
    path: str | os.PathLike,
    *,
    rule_hash: str = "",
    num_runs: int = 1,
    parallel: int = 1,
    max_tokens: int | None = llava_bench.MAX_TOKENS,
    retry: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the reviews of every case, and keep them in files of LLaVA's form; see `resume`.

    A line has what LLaVA's own has, the judge, and the hash of what it was asked.

    Args:
        cases: of `llava_bench.pair`.
        by: the judge.
        path: jsonl file of the first run, see `run_paths`; made if it is not there.
        rule_hash: of the rules in the cases, for reports.
        num_runs: reviews of every case.
        parallel: cases that are asked at once.
        max_tokens: of a reply.
        retry: ask again where a kept review has no two scores.

    Raises:
        SgqlmError: the file has reviews of another judge or rule, or the judge fails.
    """
    by_key, wanted = {str(case.question_id): case for case in cases}, {}
    for number, (key, case) in enumerate(by_key.items(), 1):
        wanted[key] = {
            "id": number,
            "question_id": case.question_id,
            "answer1_id": case.answer1_id,
            "answer2_id": case.answer2_id,
            "category": case.category,
            "judge": by.name,
            "prompt_hash": prompt_hash(case.content),
        } | ({"rule_hash": rule_hash} if rule_hash else {})

    def ask(key: str) -> dict[str, Any]:
        messages, temperature = llava_bench.messages(by_key[key].content), llava_bench.TEMPERATURE
        content = by.complete(messages, max_tokens=max_tokens, temperature=temperature)
        return {"content": content, "tuple": llava_bench.parse_score(content)}

    paths, again = run_paths(pathlib.Path(path), num_runs), is_unread if retry else None
    kept = itertools.chain.from_iterable(used(file, "question_id") for file in paths)
    skip_used(by, kept, wanted, ask)
    fields = ("question_id",)
    for file in paths:
        yield from resume(wanted, file, ask, fields=fields, parallel=parallel, again=again)


def is_unread(line: Mapping[str, Any]) -> bool:
    """Return whether a review has no two scores."""
    return tuple(llava_bench.scores_of(line)) == llava_bench.UNPARSABLE


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
    retry: bool = False,
) -> Iterator[tuple[str, int]]:
    """Grade the answers to MM-Vet and keep the grades in a file of the official form.

    What the file has is not asked for again, unless the answer is another one by now: see
    `replaced`. Beside the official fields, an entry has the hashes of the prompt and of its table.

    Args:
        metadata: `mm-vet.json`, id -> {question, answer, capability}.
        predictions: id -> answer, `{"v1_0": ...}`.
        by: the judge.
        path: json file, id -> {model, content, score}; made if it is not there.
        num_runs: grades for every answer, 5 in the paper.
        head: the prompt, see `mmvet.official_head`.
        parallel: answers that are graded at once.
        max_tokens: of a reply.
        retry: ask again where a kept reply is no grade.

    Yields:
        Id and number of the run, from 0, of every grade; those of the file first.

    Raises:
        SgqlmError: answers do not fit, the file is of another judge or prompt, the judge fails.
    """
    path, lock = pathlib.Path(path), threading.Lock()
    _fit(metadata, predictions)
    hashes = {key: _hashes(item, predictions[key], head) for key, item in metadata.items()}
    grades = _without_replaced(path, hashes, by, retry=retry)

    def said(key: str) -> dict[str, Any]:
        texts = metadata[key]["question"], metadata[key]["answer"], predictions[key]
        content, score, _ = mmvet.grade(*texts, ask=_said_by(by, max_tokens), head=head)
        return {"model": by.name, "content": content, "score": score}

    def ask(key: str) -> None:
        line = said(key)
        with lock:  # see `resume`
            entry = grades.setdefault(key, {**{name: [] for name in line}, **hashes[key]})
            for name, value in line.items():
                entry.setdefault(name, []).append(value)
            _write(grades, path)

    skip_used(by, _used_runs(grades, path), hashes, said)
    known = {key: len(grades[key]["score"]) if key in grades else 0 for key in metadata}
    yield from ((key, run) for run in range(num_runs) for key in metadata if run < known[key])
    for run in range(num_runs):
        todo = [key for key in metadata if known[key] <= run]
        for key, _ in asking.each(ask, todo, parallel):
            yield key, run
    _put_in_order(grades, metadata, path)


def _put_in_order(grades: dict[str, Any], keys: Iterable[str], path: pathlib.Path) -> None:
    ordered = {key: grades[key] for key in keys if key in grades} | grades
    if list(ordered) != list(grades):
        _write(ordered, path)


def _used_runs(grades: Mapping[str, Mapping], path: pathlib.Path) -> Iterator[tuple[str, Mapping]]:
    old = ((str(line.get("question_id")), line) for line in _iterate(replaced(path)))
    return ((key, line) for key, line in [*grades.items(), *old] for _ in line["score"])


def read_grades(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Return a grade file of MM-Vet, id -> {model, content, score}.

    Raises:
        SgqlmError: there is no such file, or it is another one.
    """
    grades = read_json(path)
    for key, entry in grades.items():
        parts = [entry.get(n, []) for n in ("model", "content")] if isinstance(entry, dict) else []
        if not parts or not all(isinstance(part, list) for part in [*parts, entry.get("score")]):
            why = f"{key} has no lists `model`, `content` and `score`"
            raise tables.damaged(path, why)
    mmvet.summarise(grades)  # refuses scores that are none
    return grades


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Return the object of a json file.

    Raises:
        SgqlmError: there is no such file, or it is no json object.
    """
    try:
        value = json.loads(tables.read_bytes(pathlib.Path(path)))
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


def _iterate(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    return answers.iterate(path) if path.is_file() else iter(())


def _lines(path: pathlib.Path, fields: Sequence[str]) -> dict[str, dict[str, Any]]:
    lines = list(_iterate(path))
    tables.need(lines, fields, path)
    found = {str(line[fields[0]]): line for line in lines}
    if len(found) < len(lines):
        raise mixed(path, f"{len(lines) - len(found)} answers are graded twice")
    return found


def _is_same(found: Mapping, wanted: Mapping, path: pathlib.Path, key: str) -> bool:
    """Return whether a grade is of this answer; False where nothing else differs.

    Files of the official programs name no judge and no prompt; LLaVA's name the answer.
    """
    names = [*_SETTINGS, "prompt_hash" if "prompt_hash" in found else _ANSWER]
    given = [name for name in names if name in found and name in wanted]
    other = [name for name in given if found[name] != wanted[name]]
    if other and (set(other) & set(_SETTINGS) or not set(_SETTINGS) <= set(given)):
        raise mixed(path, f"{key} differs in {', '.join(other)}")
    return not other


def _without_replaced(
    path: pathlib.Path, wanted: Mapping[str, Mapping], by: judge.Judge, *, retry: bool
) -> dict[str, dict[str, Any]]:
    """Return the grades of a file, once those to be asked for again are out of it."""
    grades = read_grades(path) if path.is_file() else {}
    names = {name for entry in grades.values() for name in entry.get("model", [])}
    if names - {by.name}:
        raise mixed(path, f"its judge is {', '.join(sorted(names))}, the judge now {by.name}")
    own = {"judge": by.name}
    same = {
        key: _is_same({**own, **grades[key]}, {**own, **line}, path, key)
        for key, line in wanted.items()
        if key in grades
    }
    old = {k: [] if ok else range(len(grades[k]["score"])) for k, ok in same.items()}
    old |= {k: mmvet.unread(grades[k]) for k, ok in same.items() if ok and retry}
    for key, runs in old.items():
        if runs:
            chat.append(replaced(path), {"question_id": key, **_runs(grades[key], runs)})
            rest = [run for run in range(len(grades[key]["score"])) if run not in runs]
            grades[key] = _runs(grades[key], rest)
    grades = {key: entry for key, entry in grades.items() if entry["score"]}
    if any(old.values()):
        _write(grades, path)
    return grades


def _runs(entry: Mapping[str, Any], runs: Iterable[int]) -> dict[str, Any]:
    """Return an entry of a grade file with some of its runs."""
    lists = {name: value for name, value in entry.items() if isinstance(value, list)}
    return {**entry, **{n: [v[run] for run in runs if run < len(v)] for n, v in lists.items()}}


def _said_by(by: judge.Judge, max_tokens: int | None) -> Callable[[str, float], str]:
    def reply(text: str, temperature: float) -> str:
        message = {"role": "user", "content": text}
        return by.complete([message], max_tokens=max_tokens, temperature=temperature)

    return reply


def _hashes(item: Mapping[str, Any], prediction: str, head: str) -> dict[str, str]:
    text = mmvet.prompt(item["question"], item["answer"], prediction, head=head)
    return {"prompt_hash": prompt_hash(text), "rule_hash": prompt_hash(head)}


def mixed(path: pathlib.Path, why: str) -> errors.SgqlmError:
    """Return the error for a file that cannot be continued."""
    return errors.SgqlmError(
        "the file has grades of something else",
        where=str(path),
        why=why,
        fix="give another file, or the same judge and prompt to go on",
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
    files.write(path, json.dumps(value, indent=4))
