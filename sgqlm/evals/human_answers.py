"""Score answers against those of people: VQAv2, VizWiz and TextVQA."""

import collections
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sgqlm.evals import annotated, joining, scored, tables
from sgqlm.evals.metrics import records, textvqa, vqa

_OCR_TOKENS = "Reference OCR token:"
_KINDS = ("answer_type", "question_type")  # of VQA
_OLD_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def score_textvqa(path: pathlib.Path, files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score TextVQA answers against TextVQA_0.5.1_val.json.

    LLaVA's answers have the id of the image; the question in the prompt tells which one it is.
    """
    notes: list[str] = []
    by_number = annotated.by_id(files, _textvqa_items, notes, probe=_ten)
    found, images = tables.answers(path), {str(q["image_id"]) for q in by_number.values()}
    if any(answer.key in images for answer in found):
        truth, asked = _by_image(by_number.values()), {}
        given = _numbered(found, truth)
    else:
        truth, given = by_number, [(answer.key, answer) for answer in found]
        asked = {key: item["question"] for key, item in truth.items()}
    joined, faults = joining.join(given, truth, where=str(path), questions=asked)
    wanted = {key: vqa.texts_of(item["answers"]) for key, item in truth.items()}
    items = _each(joined, wanted, textvqa.accuracy)
    rows = [("accuracy", records.mean(items.values()), len(items))]
    details = {
        key: scored.told(item["question"], scored.voted(wanted[key]), joined.get(key), item)
        for key, item in truth.items()
    }
    return scored.Scored(
        "textvqa", rows[0][1], "accuracy (M4C)", rows, items, faults, notes, details=details
    )


def _textvqa_items(path: pathlib.Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    found = tables.items(path, ("image_id", "question", "answers"))
    return [(str(q.get("question_id", f"{path} {at}")), q) for at, q in enumerate(found)]


def _ten(item: Mapping[str, Any]) -> None:
    textvqa.check(vqa.texts_of(item["answers"]))
    item["question"].strip()


def _by_image(known: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return image and question -> annotation.

    Some questions are asked twice of one image. LLaVA's eval_textvqa.py has one annotation for
    both, the last one, and scores every line of the answers against it.
    """
    groups = collections.defaultdict(list)
    for item in known:
        groups[_image_key(item["image_id"], item["question"])].append(item)
    return {_nth(key, at): group[-1] for key, group in groups.items() for at in range(len(group))}


def _numbered(
    found: Iterable[tables.Answer], truth: Mapping[str, Any]
) -> list[tuple[str, tables.Answer]]:
    """Return answers with their keys in `_by_image`, in turn where a question is asked twice."""
    out, counts = [], collections.Counter()
    for answer in found:
        key = _image_key(answer.key, question_of(answer.prompt))
        nth = _nth(key, counts[key])
        counts[key] += nth in truth
        out.append((nth if nth in truth else key, answer))
    return out


def _nth(key: str, at: int) -> str:
    return f"{key} #{at + 1}" if at else key


def question_of(prompt: str) -> str:
    """Return the question in a TextVQA prompt of LLaVA; the prompt itself where it has no other."""
    if prompt.startswith("OCR tokens: ") and (found := _OLD_PROMPT.search(prompt)):
        return found[1]
    lines = [line for line in prompt.split("\n") if line.strip() != "<image>"]
    if lines and lines[0].startswith(_OCR_TOKENS) and len(lines) > 1:
        return lines[1]
    return lines[0] if lines else ""


def _image_key(image: Any, question: str) -> str:
    """Return the id of a TextVQA question whose answer has the id of its image."""
    return f"{image}: {question.strip().lower()}"


def score_vqa(task: str, path: pathlib.Path, files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score VQAv2 or VizWiz answers as their server does, in the form that LLaVA submits.

    Answers in LLaVA's layout go through `textvqa.normalise` first; a submission is taken as it is.
    VizWiz is joined by the name of the image: with LLaVA's answers give its question file too.
    """
    known = {file: tables.items(file) for file in files}
    notes: list[str] = []
    truth = annotated.by_id(files, _having(known, "answers"), notes, probe=_some)
    if not truth:
        raise tables.damaged(files[0], "it has no human answers (a field `answers`)")
    asked = annotated.by_id(files, _having(known, "question", is_value=True), [])
    names = {
        str(q["question_id"]): q["image"]
        for part in known.values()
        for q in part
        if "answers" not in q and "image" in q and "question_id" in q
    }
    found = tables.answers(path)
    is_raw = any("text" in answer.record for answer in found)
    if task == "vizwiz":
        given = [(str(a.record.get("image") or names.get(a.key, a.key)), a) for a in found]
    else:
        given = [(answer.key, answer) for answer in found]
    joined, faults = joining.join(given, truth, where=str(path), questions=asked)
    wanted = {key: vqa.texts_of(item["answers"]) for key, item in truth.items()}

    def measure(text: str, answers: Sequence[str]) -> float:
        return vqa.accuracy(textvqa.normalise(text) if is_raw else text, answers)

    items = _each(joined, wanted, measure)
    rows = [("accuracy", records.mean(items.values()), len(items))]
    groups: dict[str, str] = {}
    for name in _KINDS:
        parts = _grouped(items, {key: item.get(name) for key, item in truth.items()})
        rows += parts
        groups |= dict.fromkeys((part[0] for part in parts), name.replace("_", " ") + "s")
    form = "answers were brought to the form that LLaVA submits"
    notes.insert(0, form if is_raw else "scored as submitted")
    details = {}
    for key, item in truth.items():
        answer, kinds = joined.get(key), [item.get(name) for name in _KINDS]
        question = asked.get(key) or (answer.prompt if answer else "")
        details[key] = scored.told(question, scored.voted(wanted[key]), answer, item, kinds)
    return scored.Scored(
        task, rows[0][1], "VQA accuracy", rows, items, faults, notes,
        groups=groups, details=details,
    )  # fmt: skip


def _having(known: Mapping[pathlib.Path, Sequence[Mapping]], field: str, *, is_value: bool = False):
    """Return what reads the pairs of the records that have a field: whole, or its value."""

    def read(path: pathlib.Path) -> Iterable[tuple[str, Any]]:
        has = (item for item in known[path] if field in item)
        return [(_vqa_key(item), str(item[field]) if is_value else item) for item in has]

    return read


def _vqa_key(item: Mapping[str, Any]) -> str:
    return str(item.get("question_id", item.get("image")))


def _some(item: Mapping[str, Any]) -> None:
    vqa.agreement("", vqa.texts_of(item["answers"]))


def _each(
    joined: Mapping[str, tables.Answer],
    wanted: Mapping[str, Sequence[str]],
    measure: Callable[[str, Sequence[str]], float],
) -> dict[str, float]:
    return {
        key: measure(joined[key].text, answers) if key in joined else 0.0
        for key, answers in wanted.items()
    }


def _grouped(items: Mapping[str, float], names: Mapping[str, Any]) -> list[tuple]:
    groups: dict[str, list[float]] = {}
    for key, value in items.items():
        if names[key] is not None:
            groups.setdefault(str(names[key]), []).append(value)
    return [(name, records.mean(part), len(part)) for name, part in sorted(groups.items())]
