"""Score answers of any model: join them with the official annotations, and measure."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import caption_files, caption_scores, hallucinated, joining, scored, tables, yes_no
from sgqlm.evals.metrics import gqa, mmbench, records, scienceqa, seed, textvqa, vqa

# Questions that the published numbers are over (specification of each benchmark).
PUBLISHED = {
    "gqa": 12_578,
    "scienceqa": 4_241,
    "textvqa": 5_000,
    "seed": 19_242,
    "mmbench": 1_164,
    "mmbench_cn": 1_164,
    "vizwiz": 8_000,
    "vqav2": 107_394,
    "coco_caption": 5_000,
    "flickr30k": 1_000,
    "nocaps": 4_500,
    "conceptual": 15_840,
}
TASKS = ("pope", "mme", hallucinated.TASK, *PUBLISHED)
# What belongs to a benchmark in a folder of annotations.
_IN_FOLDER = {"pope": "coco_pope_*.json", "scienceqa": "p*s.json"}  # problems and pid_splits
# what LLaVA's program asks behind a question of MMBench, and leaves out of its answers
LETTERS = {
    "mmbench": "\nAnswer with the option's letter from the given choices directly.",
    "mmbench_cn": "\n请直接回答选项字母。",
}
Resolve = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
_IMG, _TYPES, _MEDIA = "IMG accuracy", "question types", "images and videos"
_OCR_TOKENS = "Reference OCR token:"
_KINDS = ("answer_type", "question_type")  # of VQA
_OLD_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def score(
    task: str,
    answers: Sequence[pathlib.Path],
    annotations: Sequence[pathlib.Path] = (),
    *,
    split: str = "test",
    only: Collection[str] | None = None,
    resolve: Resolve | None = None,
) -> scored.Scored:
    """Score files of answers to a benchmark.

    Args:
        task: one of `TASKS`.
        answers: the answers; several files only for POPE (one a category) and MME.
        annotations: the official annotations; of POPE, ScienceQA and MME also their folder; empty
            where the answers hold the truth too.
        split: of ScienceQA's pid_splits.json.
        only: ids of the captions to score; None for all.
        resolve: given MMBench's rows with `prediction`, returns them with what a judge made of it.

    Returns:
        The figures, with a note where they are over other questions than the published ones.

    Raises:
        SgqlmError: a file is missing or damaged, or answers and annotations do not fit together.
    """
    if task in _IN_FOLDER:
        annotations = [file for path in annotations for file in _opened(path, _IN_FOLDER[task])]
    if task == "pope":
        return yes_no.score_pope(answers, annotations)
    if task == "mme":
        return yes_no.score_mme(answers, annotations)
    if task == hallucinated.TASK:
        return hallucinated.score(answers, annotations)
    if len(answers) > 1:
        raise errors.SgqlmError(f"{task} takes one file of answers", fix="give one after another")
    if not annotations and task in ("gqa", "vqav2", "textvqa", "vizwiz", *caption_files.TASKS):
        raise errors.SgqlmError(
            f"{task} needs its annotations", where="--annotations", fix="give the official file"
        )
    path = answers[0]
    if task in ("vqav2", "vizwiz"):
        done = score_vqa(task, path, annotations)
    elif task in ("mmbench", "mmbench_cn"):
        done = score_mmbench(task, path, annotations, resolve)
    elif task == "scienceqa":
        done = score_scienceqa(path, annotations, split)
    elif task in caption_files.TASKS:
        done = caption_scores.score(task, path, annotations, only=only)
    else:
        done = {"gqa": score_gqa, "textvqa": score_textvqa, "seed": score_seed}[task](
            path, annotations
        )
    if len(done.items) != PUBLISHED[task]:
        done.notes.append(
            f"over {len(done.items)} questions; published figures are over {PUBLISHED[task]}"
        )
    return done


def _opened(path: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob(pattern))):
        raise errors.SgqlmError(
            f"the folder has no {pattern}", where=str(path), fix="give the official files"
        )
    return found


def score_gqa(path: pathlib.Path, files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score GQA answers against questions files such as testdev_balanced_questions.json."""
    questions = {}
    for file in files:
        part = _objects(file, "GQA questions")
        tables.need(part.values(), ("question", "answer", "types", "semantic", "groups"), file)
        questions |= part
    questions = {key: item for key, item in questions.items() if item.get("isBalanced", True)}
    joined, faults = _join(path, questions, {k: q["question"] for k, q in questions.items()})
    texts = {key: joined[key].text if key in joined else "" for key in questions}
    done = gqa.score(texts, questions)
    rows = [("accuracy", done["accuracy"], done["count"])]
    rows += [("binary", done["binary"], None), ("open", done["open"], None)]
    groups = dict.fromkeys(("binary", "open"), _TYPES)
    for kind in ("structural", "semantic"):
        rows += [(f"{kind} {key}", *value) for key, value in done[f"by_{kind}"].items()]
        groups |= {f"{kind} {key}": kind for key in done[f"by_{kind}"]}
    notes = []
    if done["distribution"] is not None:
        notes = [f"distribution {done['distribution']:.2f} (chi square, lower is better)"]
    details = {
        key: scored.told(q["question"], q["answer"], joined.get(key), q, _gqa_kinds(q["types"]))
        for key, q in questions.items()
    }
    return scored.Scored(
        "gqa", done["accuracy"], "accuracy", rows, done["items"], faults, notes,
        groups=groups, details=details,
    )  # fmt: skip


def _gqa_kinds(types: Mapping[str, Any]) -> list[str]:
    structural = types.get("structural")
    kind = "open" if structural == "query" else "binary"
    return [kind, f"structural {structural}", f"semantic {types.get('semantic')}"]


def score_scienceqa(
    path: pathlib.Path, files: Sequence[pathlib.Path], split: str = "test"
) -> scored.Scored:
    """Score ScienceQA answers against problems.json and pid_splits.json, or their own truth."""
    if not files:
        return _scienceqa_table(path)
    problems, keys = {}, None
    for file in files:
        value = _objects(file, "ScienceQA problems or splits")
        if all(isinstance(ids, list) for ids in value.values()):
            if split not in value:
                raise _no_split(split, value)
            keys = [str(key) for key in value[split]]
        else:
            tables.need(value.values(), ("choices", "answer"), file)
            problems |= value
    if keys is None:
        keys = [key for key, item in problems.items() if item.get("split", split) == split]
    unknown = [key for key in keys if key not in problems]
    if unknown or not keys:
        raise tables.damaged(files[0], f"no problems of the split: {joining.shown(unknown)}")
    joined, faults = _join(path, {key: problems[key] for key in keys})
    said = {key: {**answer.record, "text": answer.text} for key, answer in joined.items()}
    done = scienceqa.score(said, problems, keys)
    details = {key: _scienceqa_told(key, problems[key], joined.get(key)) for key in keys}
    found = _scienceqa(done, faults, details)
    grouped: dict[str, list[float]] = {}
    for key, value in done["items"].items():
        for name in scienceqa.groups(problems[key]):
            grouped.setdefault(name, []).append(value)
    parts = [(name, records.mean(part), len(part)) for name, part in sorted(grouped.items())]
    groups = {name: name.partition(" ")[0] for name in grouped}
    return dataclasses.replace(found, rows=[*found.rows, *parts], groups=groups)


def _scienceqa_told(key: str, problem: Mapping, answer: tables.Answer | None) -> dict[str, Any]:
    options = [f"{x}. {text}" for x, text in zip("ABCDE", problem["choices"], strict=False)]
    lines = [str(problem.get("hint") or ""), str(problem.get("question", "")), *options]
    right = next((text for at, text in enumerate(options) if at == problem["answer"]), "")
    where = {"image": f"{key}/{problem['image']}"} if problem.get("image") else {}
    kinds = [*_image_kind(answer), *scienceqa.groups(problem)]
    return scored.told("\n".join(filter(None, lines)), right, answer, where, kinds)


def _image_kind(answer: tables.Answer | None) -> list[str]:
    is_image = answer and scienceqa.has_image({**answer.record, "prompt": answer.prompt})
    return [_IMG] if is_image else []


def _scienceqa_table(path: pathlib.Path) -> scored.Scored:
    found = scored.own_truth(path)
    right = [float(scienceqa.parse(answer.text) == answer.truth) for answer in found]
    images = [v for v, answer in zip(right, found, strict=True) if _image_kind(answer)]
    done = {"accuracy": records.mean(right), "count": len(right)}
    done |= {"image_accuracy": records.mean(images), "image_count": len(images)}
    done["items"] = scored.numbered(found, right)
    return _scienceqa(done, scored.of_table(found), scored.of_own(found, _image_kind))


def _scienceqa(
    done: Mapping[str, Any], faults: joining.Faults, details: Mapping[str, Any]
) -> scored.Scored:
    rows = [("accuracy", done["accuracy"], done["count"])]
    rows.append((_IMG, done["image_accuracy"], done["image_count"]))
    score, notes = done["image_accuracy"], []
    if score is None:
        notes = [f"no prompt of the answers has <image>: there is no {_IMG}, the papers' figure"]
    return scored.Scored(
        "scienceqa", score, _IMG, rows, done["items"], faults, notes, details=details
    )


def score_seed(path: pathlib.Path, files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score SEED-Bench answers against SEED-Bench.json, or their own truth."""
    if not files:
        found = scored.own_truth(path)
        right = [float(answer.text == answer.truth) for answer in found]
        parts = {"image": [], "video": []}
        for answer, value in zip(found, right, strict=True):
            parts[_medium(answer)[0]].append(value)
        rows = [("accuracy", records.mean(right), len(right))]
        rows += [(name, records.mean(part), len(part)) for name, part in parts.items()]
        return scored.Scored(
            "seed", rows[0][1], "accuracy", rows, scored.numbered(found, right),
            scored.of_table(found), groups=dict.fromkeys(parts, _MEDIA),
            details=scored.of_own(found, _medium),
        )  # fmt: skip
    value = tables.load(files[0])
    data = value if isinstance(value, Mapping) else {"questions": value}
    if not isinstance(data.get("questions"), list):
        raise tables.damaged(files[0], "it has no list `questions`")
    tables.need(data["questions"], ("question_id", "answer"), files[0])
    truth = {str(item["question_id"]): item for item in data["questions"]}
    joined, faults = _join(path, truth)
    done = seed.score({key: answer.text for key, answer in joined.items()}, data)
    rows = [("accuracy", done["accuracy"], done["count"])]
    rows += [("image", done["image"], None), ("video", done["video"], None)]
    rows += [(name, *value) for name, value in done["by_type"].items()]
    types = {number: name for name, number in data.get("question_type", {}).items()}
    return scored.Scored(
        "seed", done["accuracy"], "accuracy", rows, done["items"], faults,
        groups=dict.fromkeys(done["by_type"], _TYPES) | {"image": _MEDIA, "video": _MEDIA},
        details={key: _seed_told(item, joined.get(key), types) for key, item in truth.items()},
    )  # fmt: skip


def _medium(answer: tables.Answer) -> list[str]:
    return ["video" if answer.key.startswith("v") else "image"]


def _seed_told(item: Mapping, answer: tables.Answer | None, types: Mapping) -> dict[str, Any]:
    options = [
        f"{x}. {item['choice_' + x.lower()]}" for x in "ABCD" if f"choice_{x.lower()}" in item
    ]
    question = "\n".join([str(item.get("question", "")), *options])
    number = item.get("question_type_id")
    kinds = (item.get("data_type"), types.get(number, number))
    return scored.told(question, item["answer"], answer, item, kinds)


def score_textvqa(path: pathlib.Path, files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score TextVQA answers against TextVQA_0.5.1_val.json.

    LLaVA's answers have the id of the image; the question in the prompt tells which one it is.
    """
    fields = ("image_id", "question", "answers")
    known = [item for file in files for item in tables.items(file, fields)]
    by_image = {_image_key(item["image_id"], item["question"]): item for item in known}
    by_number = {str(item["question_id"]): item for item in known if "question_id" in item}
    found, given = tables.answers(path), []
    images = {str(item["image_id"]) for item in known}
    is_by_image = any(answer.key in images for answer in found)
    for answer in found:
        question = question_of(answer.prompt)
        given.append((_image_key(answer.key, question) if is_by_image else answer.key, answer))
    truth = by_image if is_by_image else by_number
    asked = {} if is_by_image else {key: item["question"] for key, item in truth.items()}
    joined, faults = joining.join(given, truth, where=str(path), questions=asked)
    wanted = {key: [str(text) for text in item["answers"]] for key, item in truth.items()}
    items = _each(joined, wanted, textvqa.accuracy, path)
    rows = [("accuracy", records.mean(items.values()), len(items))]
    details = {
        key: scored.told(item["question"], scored.voted(wanted[key]), joined.get(key), item)
        for key, item in truth.items()
    }
    return scored.Scored(
        "textvqa", rows[0][1], "accuracy (M4C)", rows, items, faults, details=details
    )


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
    known = [item for file in files for item in tables.items(file)]
    truth = {_vqa_key(item): item for item in known if "answers" in item}
    names = {
        str(q["question_id"]): q["image"] for q in known if "answers" not in q and "image" in q
    }
    if not truth:
        raise tables.damaged(files[0], "it has no human answers (a field `answers`)")
    found = tables.answers(path)
    is_raw = any("text" in answer.record for answer in found)
    if task == "vizwiz":
        given = [(str(a.record.get("image") or names.get(a.key, a.key)), a) for a in found]
    else:
        given = [(answer.key, answer) for answer in found]
    asked = {_vqa_key(item): item["question"] for item in known if "question" in item}
    joined, faults = joining.join(given, truth, where=str(path), questions=asked)
    wanted = {key: [_word(answer) for answer in item["answers"]] for key, item in truth.items()}

    def measure(text: str, answers: Sequence[str]) -> float:
        return vqa.accuracy(textvqa.normalise(text) if is_raw else text, answers)

    items = _each(joined, wanted, measure, path)
    rows = [("accuracy", records.mean(items.values()), len(items))]
    groups: dict[str, str] = {}
    for name in _KINDS:
        parts = _grouped(items, {key: item.get(name) for key, item in truth.items()})
        rows += parts
        groups |= dict.fromkeys((part[0] for part in parts), name.replace("_", " ") + "s")
    note = (
        "answers were brought to the form that LLaVA submits" if is_raw else "scored as submitted"
    )
    details = {}
    for key, item in truth.items():
        answer, kinds = joined.get(key), [item.get(name) for name in _KINDS]
        question = asked.get(key) or (answer.prompt if answer else "")
        details[key] = scored.told(question, scored.voted(wanted[key]), answer, item, kinds)
    return scored.Scored(
        task, rows[0][1], "VQA accuracy", rows, items, faults, [note],
        groups=groups, details=details,
    )  # fmt: skip


def _vqa_key(item: Mapping[str, Any]) -> str:
    return str(item.get("question_id", item.get("image")))


def _word(answer: Any) -> str:
    return str(answer["answer"] if isinstance(answer, Mapping) else answer)


def _each(
    joined: Mapping[str, tables.Answer],
    wanted: Mapping[str, Sequence[str]],
    measure: Callable[[str, Sequence[str]], float],
    path: pathlib.Path,
) -> dict[str, float]:
    out = {}
    for key, answers in wanted.items():
        try:
            out[key] = measure(joined[key].text, answers) if key in joined else 0.0
        except ValueError as error:
            raise tables.damaged(path, f"the annotation of {key}: {error}") from error
    return out


def _grouped(items: Mapping[str, float], names: Mapping[str, Any]) -> list[tuple]:
    groups: dict[str, list[float]] = {}
    for key, value in items.items():
        if names[key] is not None:
            groups.setdefault(str(names[key]), []).append(value)
    return [(name, records.mean(part), len(part)) for name, part in sorted(groups.items())]


def score_mmbench(
    task: str, path: pathlib.Path, files: Sequence[pathlib.Path], resolve: Resolve | None = None
) -> scored.Scored:
    """Score MMBench answers against its tsv, or a sheet that has `prediction` and `answer`."""
    if files:
        rows = [row for file in files for row in tables.items(file, ("index", "A", "B"))]
        table = {str(row["index"]): row for row in rows}
        if not any(row.get("answer") for row in rows):
            raise errors.SgqlmError(
                "the table has no answers",
                where=str(files[0]),
                why="MMBench keeps those of its test split, only its server scores it",
                fix=f"send the sheet of `sgqlm eval submit --task {task}`",
                code=errors.DATA,
            )
        if not all(row.get("answer") for row in rows):
            raise tables.damaged(files[0], "some of its rows have no answer")
        joined, faults = _join(path, table)
        prompts = {key: answer.prompt + LETTERS[task] for key, answer in joined.items()
                   if answer.prompt}  # fmt: skip
        rows = [
            {**row, "prediction": joined[key].text if key in joined else None}
            for key, row in table.items()
        ]
    else:
        rows, prompts = _own_sheet(task, path), {}
        faults = joining.Faults(empty=[str(r["index"]) for r in rows if not r["prediction"]])
    try:
        done = mmbench.circular(resolve(rows) if resolve else rows)
    except ValueError as error:
        raise tables.damaged(files[0] if files else path, str(error)) from error
    out = [
        ("circular", done["accuracy"], done["count"]),
        ("single", done["vanilla"], done["count"]),
    ]
    groups = {"single": "answers"}
    for name in ("dimensions", "categories"):
        out += [(key, *value) for key, value in done[name].items()]
        groups |= dict.fromkeys(done[name], name)
    notes = [f"{len(done['unmatched'])} answers mean no option by the rules; they count as wrong"]
    items = {str(key): float(hit) for key, hit in done["hits"].items()}
    return scored.Scored(
        task, done["accuracy"], "circular accuracy", out, items, faults, notes,
        groups=groups, details=_mmbench_told(rows, prompts),
    )  # fmt: skip


def _mmbench_told(rows: Sequence[Mapping], prompts: Mapping[str, str]) -> dict[str, dict]:
    """Return what is known of every item, from its row and those of its rotated copies."""
    copies: dict[int, list[Mapping]] = {}
    for row in sorted(rows, key=lambda row: int(row["index"])):
        copies.setdefault(int(row["index"]) % mmbench.ROLL, []).append(row)
    short: dict[Any, str] = {name: key for key, name in mmbench.DIMENSIONS.items()}
    out = {}
    for base, (head, *others) in copies.items():
        options = mmbench.choices_of(head)
        lines = [head.get("hint") or "", head.get("question") or ""]
        lines += [f"{letter}. {text}" for letter, text in options.items()]
        wanted = f"{head['answer']}. {options.get(head['answer'], '')}"
        if others:
            wanted += f" (rotated: {', '.join(row['answer'] for row in (head, *others))})"
        said = [row["prediction"] for row in (head, *others)]
        kinds = (short.get(head.get("l2-category"), head.get("l2-category")), head.get("category"))
        where, kept = {"image": f"{base}.jpg"}, [kind for kind in kinds if kind]
        told = scored.told("\n".join(filter(None, lines)), wanted, None, where, kept)
        told["given"] = " | ".join("no answer" if text is None else str(text) for text in said)
        asked = prompts.get(str(head["index"]))
        out[str(base)] = told | ({"asked": asked} if asked else {})
    return out


def _own_sheet(task: str, path: pathlib.Path) -> list[dict[str, Any]]:
    rows = tables.items(path, ())
    if all({"index", "A", "B", "prediction"} <= set(row) and row.get("answer") for row in rows):
        return rows
    raise errors.SgqlmError(
        "there is nothing to compare the answers with",
        where=str(path),
        why="it is no sheet with the columns index, A, B, prediction and answer",
        fix=f"give the {task} tsv that was answered with --annotations",
        code=errors.DATA,
    )


def _objects(path: pathlib.Path, what: str) -> dict[str, Any]:
    value = tables.load(path)
    if not isinstance(value, dict) or not all(isinstance(v, dict | list) for v in value.values()):
        raise tables.damaged(path, f"it is no json object of {what}")
    return value


def _join(path: pathlib.Path, truth: Mapping, questions: Mapping[str, str] | None = None):
    given = [(answer.key, answer) for answer in tables.answers(path)]
    return joining.join(given, truth, where=str(path), questions=questions)


def _no_split(split: str, known: Mapping) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"there is no split {split!r}", where="--split", fix=f"one of {', '.join(known)}"
    )
