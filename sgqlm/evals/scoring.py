"""Score answers of any model: join them with the official annotations, and measure."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import (
    annotated,
    caption_files,
    caption_scores,
    hallucinated,
    human_answers,
    joining,
    questions,
    scored,
    tables,
    tasks,
    yes_no,
)
from sgqlm.evals.metrics import gqa, mmbench, records, scienceqa, seed

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
NO_ANSWERS = "the table has no answers"
# what LLaVA's program asks behind a question of MMBench, and leaves out of its answers
LETTERS = {"mmbench": questions.LETTER, "mmbench_cn": questions.LETTER_CN}
Resolve = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
_IMG, _TYPES, _MEDIA = "IMG accuracy", "question types", "images and videos"
_DEPTHS = ("", "*/", "data/*/")  # where files lie in a folder
_OBJECTS = ("instances_val2014.json", "captions_val2014.json")


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
        annotations: the official annotations, or their folder; empty where the answers hold the
            truth too.
        split: of ScienceQA's pid_splits.json.
        only: ids of the captions to score; None for all.
        resolve: given MMBench's rows with `prediction`, returns them with what a judge made of it.

    Returns:
        The figures, with a note where they are over other questions than the published ones.

    Raises:
        SgqlmError: a file is missing or damaged, or answers and annotations do not fit together.
    """
    annotations = opened(task, annotations)
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
        done = human_answers.score_vqa(task, path, annotations)
    elif task in ("mmbench", "mmbench_cn"):
        done = score_mmbench(task, path, annotations, resolve)
    elif task == "scienceqa":
        done = score_scienceqa(path, annotations, split)
    elif task in caption_files.TASKS:
        done = caption_scores.score(task, path, annotations, only=only)
    else:
        textvqa = human_answers.score_textvqa
        done = {"gqa": score_gqa, "textvqa": textvqa, "seed": score_seed}[task](path, annotations)
    if len(done.items) != PUBLISHED[task]:
        done.notes.append(
            f"over {len(done.items)} questions; published figures are over {PUBLISHED[task]}"
        )
    return done


def opened(task: str, paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Return annotations with the files of the task in place of a folder.

    Raises:
        SgqlmError: a folder has none of them, or several of which one is meant.
    """
    return [file for path in paths for file in _in_folder(task, path)]


def _in_folder(task: str, path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir() or task not in TASKS or task == "mme":
        return [path]
    about = tasks.TASKS.get(task)
    wanted = _wanted(task, about)
    folders = [path / name for name in about.folders] if about else []
    for folder in [*filter(pathlib.Path.is_dir, folders), path]:
        for names in wanted:
            found = [file for name in names for file in _first(folder, name)]
            if len(found) > len(names) and task != "pope":
                told = ", ".join(str(file.relative_to(path)) for file in found)
                raise _unclear(f"several files can be the annotations of {task}", path, told)
            if found:
                return found
    if task == caption_files.CONCEPTUAL:
        return [path]  # the output of img2dataset
    told = " or ".join(" and ".join(names) for names in wanted)
    raise _unclear(f"the folder has no annotations of {task}", path, f"looked for {told}")


def _wanted(task: str, about: tasks.Task | None) -> list[tuple[str, ...]]:
    """Return the names of files that together are the annotations, the best first."""
    if about is None:
        return [_OBJECTS]
    if about.annotations and task not in caption_files.TASKS:
        return [about.annotations]
    return [(name,) for name in dict.fromkeys((*about.annotations, *about.files))]


def _first(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    return next((part for depth in _DEPTHS if (part := sorted(folder.glob(depth + name)))), [])


def _unclear(what: str, path: pathlib.Path, why: str) -> errors.SgqlmError:
    fix = "name the official file"
    return errors.SgqlmError(what, where=f"--annotations {path}", why=why, fix=fix)


def score_gqa(path: pathlib.Path, files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score GQA answers against questions files such as testdev_balanced_questions.json."""
    notes: list[str] = []
    known = annotated.by_id(files, _gqa_questions, notes, probe=_gqa_probe)
    joined, faults = _join(path, known, {k: q["question"] for k, q in known.items()})
    asked = {key: item for key, item in known.items() if _is_balanced(item)}
    if not asked:
        raise tables.damaged(files[0], "none of its questions is balanced")
    if other := [key for key in joined if key not in asked]:
        notes.append(
            f"{len(other)} answers are to questions that are not balanced; they are left out, as "
            "in GQA's eval.py"
        )
    for ids in (faults.missing, faults.empty):
        ids[:] = [key for key in ids if key in asked]
    texts = {key: joined[key].text if key in joined else "" for key in asked}
    with annotated.blamed(files[0]):
        done = gqa.score(texts, asked)
    rows = [("accuracy", done["accuracy"], done["count"])]
    rows += [("binary", done["binary"], None), ("open", done["open"], None)]
    groups = dict.fromkeys(("binary", "open"), _TYPES)
    for kind in ("structural", "semantic"):
        rows += [(f"{kind} {key}", *value) for key, value in done[f"by_{kind}"].items()]
        groups |= {f"{kind} {key}": kind for key in done[f"by_{kind}"]}
    if done["distribution"] is not None:
        notes.append(f"distribution {done['distribution']:.2f} (chi square, lower is better)")
    details = {
        key: scored.told(q["question"], q["answer"], joined.get(key), q, _gqa_kinds(q["types"]))
        for key, q in asked.items()
    }
    return scored.Scored(
        "gqa", done["accuracy"], "accuracy", rows, done["items"], faults, notes,
        groups=groups, details=details,
    )  # fmt: skip


def _gqa_questions(path: pathlib.Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    found = _objects(path, "GQA questions")
    tables.need(found.values(), ("question", "answer", "types", "semantic", "groups"), path)
    return found.items()


def _is_balanced(question: Mapping[str, Any]) -> bool:
    return question.get("isBalanced", True)


def _gqa_probe(question: Mapping[str, Any]) -> None:
    if _is_balanced(question):
        gqa.score({"": ""}, {"": question})


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
    keys, notes = None, []
    values = {file: _objects(file, "ScienceQA problems or splits") for file in files}
    splits = {f: v for f, v in values.items() if all(isinstance(ids, list) for ids in v.values())}
    for value in splits.values():
        if split not in value:
            raise _no_split(split, value)
        keys = [str(key) for key in value[split]]

    def read(path: pathlib.Path) -> Iterable[tuple[str, Any]]:
        tables.need(values[path].values(), ("choices", "answer"), path)
        return values[path].items()

    problems = annotated.by_id([f for f in values if f not in splits], read, notes, _science_probe)
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
    found.notes += notes
    return dataclasses.replace(found, rows=[*found.rows, *parts], groups=groups)


def _science_probe(problem: Mapping[str, Any]) -> None:
    scienceqa.score({}, {"": problem})
    _scienceqa_told("", problem, None)


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
    notes: list[str] = []
    pairs = [(str(item["question_id"]), item) for item in data["questions"]]
    truth = annotated.by_id(files[:1], lambda _: pairs, notes, _seed_probe)
    joined, faults = _join(path, truth)
    with annotated.blamed(files[0]):
        types = {number: name for name, number in data.get("question_type", {}).items()}
        texts = {key: answer.text for key, answer in joined.items()}
        done = seed.score(texts, {**data, "questions": list(truth.values())})
    rows = [("accuracy", done["accuracy"], done["count"])]
    rows += [("image", done["image"], None), ("video", done["video"], None)]
    rows += [(name, *value) for name, value in done["by_type"].items()]
    return scored.Scored(
        "seed", done["accuracy"], "accuracy", rows, done["items"], faults, notes,
        groups=dict.fromkeys(done["by_type"], _TYPES) | {"image": _MEDIA, "video": _MEDIA},
        details={key: _seed_told(item, joined.get(key), types) for key, item in truth.items()},
    )  # fmt: skip


def _seed_probe(item: Mapping[str, Any]) -> None:
    seed.score({}, [item])
    _seed_told(item, None, {})


def _medium(answer: tables.Answer) -> list[str]:
    return ["video" if answer.key.startswith("v") else "image"]


def _seed_told(item: Mapping, answer: tables.Answer | None, types: Mapping) -> dict[str, Any]:
    options = [
        f"{x}. {item['choice_' + x.lower()]}" for x in "ABCD" if f"choice_{x.lower()}" in item
    ]
    question = "\n".join([str(item.get("question", "")), *options])
    number = item.get("question_type_id")
    kinds = (item.get("data_type"), types.get(number, number))
    is_whole = {"data_id", "data_type", "question_type_id"} <= set(item)
    where = {"image": seed.image(item)} if is_whole else item
    return scored.told(question, item["answer"], answer, where, kinds)


def score_mmbench(
    task: str, path: pathlib.Path, files: Sequence[pathlib.Path], resolve: Resolve | None = None
) -> scored.Scored:
    """Score MMBench answers against its tsv, or a sheet that has `prediction` and `answer`."""
    notes: list[str] = []
    if files:
        read = annotated.items("A", "B", key="index")
        table = annotated.by_id(files, read, notes, _mmbench_probe)
        if not any(row.get("answer") for row in table.values()):
            raise errors.SgqlmError(
                NO_ANSWERS,
                where=str(files[0]),
                why="MMBench keeps those of its test split, only its server scores it",
                fix=f"send the sheet of `sgqlm eval submit --task {task}`",
                code=errors.DATA,
            )
        if not all(row.get("answer") for row in table.values()):
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
    notes += [f"{len(done['unmatched'])} answers mean no option by the rules; they count as wrong"]
    items = {str(key): float(hit) for key, hit in done["hits"].items()}
    return scored.Scored(
        task, done["accuracy"], "circular accuracy", out, items, faults, notes,
        groups=groups, details=_mmbench_told(rows, prompts),
    )  # fmt: skip


def _mmbench_probe(row: Mapping[str, Any]) -> None:
    _mmbench_told([{"answer": "", **row, "prediction": None}], {})


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
