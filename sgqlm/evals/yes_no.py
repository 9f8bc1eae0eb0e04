"""Score answers to the benchmarks of yes and no: POPE by category, MME by pairs of questions."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import annotated, joining, scored, tables
from sgqlm.evals.metrics import mme, pope, records

# Order of the categories in the ids of LLaVA's question file, and lines of the revision that LLaVA
# used (AoiDragon/POPE e3e39262); today's random file has 3000 and other questions.
POPE_LINES = {"adversarial": 3000, "random": 2910, "popular": 3000}
_FIGURES = ("f1", "accuracy", "precision", "recall", "yes_ratio")
_SUFFIXES = ("answer the question using a single word or phrase.", "please answer yes or no.")
_FOLDERS = ("questions_answers_YN", "images")


def score_pope(answers: Sequence[pathlib.Path], files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score POPE answers: the figures of each category, and the mean of their F1.

    Args:
        answers: answers to one or more categories.
        files: coco_pope_{random,popular,adversarial}.json, and where ids are not LLaVA's the
            question file that was answered; empty for answers with a column `label`.

    Raises:
        SgqlmError: answers and labels are not to the same questions.
    """
    if files:
        return _pope_joined(answers, files)
    parts, faults = {}, joining.Faults()
    for path in answers:
        found = scored.own_truth(path)
        faults.add(scored.of_table(found))
        texts, labels = [a.text for a in found], [a.truth for a in found]
        part = _measure(path, texts, labels)
        name = _pope_category(path)
        told = scored.of_own(found, lambda _: [name])  # noqa: B023
        parts[name] = part | {"details": told}
    return _pope(parts, faults)


def _pope_joined(answers: Sequence[pathlib.Path], files: Sequence[pathlib.Path]) -> scored.Scored:
    groups, labels, notes = _pope_groups(answers, files)
    parts, faults, where = {}, joining.Faults(), ", ".join(map(str, answers))
    asked = {name: truth for name, truth in labels.items() if groups.get(name)} or labels
    for name, truth in asked.items():
        found = groups.pop(name, [])
        _check_revision(name, found, truth, where)
        questions = {key: item["text"] for key, item in truth.items()}
        joined, part = joining.join(found, truth, where=where, questions=questions)
        for ids in vars(part).values():
            ids[:] = [f"{name} {key}" for key in ids]
        faults.add(part)
        wanted = {key: str(item["label"]) for key, item in truth.items()}
        # an answer that is not there is wrong, whatever the label
        texts = [
            joined[key].text if key in joined else {"yes": "no"}.get(label, "yes")
            for key, label in wanted.items()
        ]
        told = {
            key: scored.told(item["text"], item["label"], joined.get(key), item, [name])
            for key, item in truth.items()
        }
        parts[name] = _measure(where, texts, list(wanted.values())) | {"details": told}
    done = _pope(parts, faults)
    done.notes += notes
    done.notes += [f"no labels of {name}: left out" for name in groups]
    done.notes += [f"no answers to {name}: left out" for name in labels if name not in asked]
    return done


def _pope_groups(
    answers: Sequence[pathlib.Path], files: Sequence[pathlib.Path]
) -> tuple[dict[str, list[tuple[str, tables.Answer]]], dict[str, dict[str, dict]], list[str]]:
    """Return (id, answer) by category, the labels by category and id, and notes."""
    asked, notes = {}, []
    parts: dict[str, list] = {}
    for file in files:
        found = tables.items(file, ("question_id", "text"))
        if any("label" in item for item in found):
            parts.setdefault(_pope_category(file), []).append(file)
        asked |= {str(q["question_id"]): q["category"] for q in found if "category" in q}
    labels = {
        name: annotated.by_id(same, _pope_labels, notes, lambda q: pope.score([""], [q["label"]]))
        for name, same in parts.items()
    }
    if not labels:
        raise tables.damaged(files[0], "it has no labels")
    given = [(path, answer) for path in answers for answer in tables.answers(path)]
    groups: dict[str, list] = {}
    blocks = {int(_number(path, a.key, whole=True)) // pope.CATEGORY_IDS for path, a in given}
    for path, answer in given:
        name = _category_of(path, answer, asked, labels, len(blocks) == 1)
        groups.setdefault(name, []).append((_number(path, answer.key), answer))
    return groups, labels, notes


def _pope_labels(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    found = tables.items(path, ("label", "text"))
    return [(_number(path, item["question_id"]), item) for item in found]


def _category_of(
    path: pathlib.Path, answer: tables.Answer, asked: Mapping, labels: Mapping, is_one_block: bool
) -> str:
    """Return the category of an answer: as it is told, else by the ids of LLaVA's question file."""
    told = answer.record.get("category", asked.get(answer.key))
    if told is not None and told != "default":
        return str(told)
    if is_one_block and len(labels) == 1:
        return next(iter(labels))
    block = int(_number(path, answer.key, whole=True)) // pope.CATEGORY_IDS
    if block == 0 and _pope_category(path) in labels:
        return _pope_category(path)
    return list(POPE_LINES)[block] if block < len(POPE_LINES) else f"block {block}"


def _check_revision(name: str, found: Sequence, truth: Mapping, where: str) -> None:
    """Refuse another number of answers, unless prompts tell that ids mean the same questions."""
    if len({key for key, _ in found}) != len(truth) and not all(a.prompt for _, a in found):
        raise errors.SgqlmError(
            f"{len(found)} answers and {len(truth)} labels in the category {name}",
            where=where,
            why="revisions of POPE give the same ids to other questions",
            fix="give the labels of the revision that was answered (LLaVA: random has 2910 lines)",
            code=errors.DATA,
        )


def _measure(where: str | pathlib.Path, texts: Sequence[str], labels: Sequence) -> dict:
    try:
        return pope.score(texts, labels)
    except ValueError as error:
        raise tables.damaged(where, str(error)) from error


def _pope(parts: Mapping[str, dict], faults: joining.Faults) -> scored.Scored:
    mean = records.mean(part["f1"] for part in parts.values())
    absent = [name for name in POPE_LINES if name not in parts]
    metric = "mean F1"  # published of all three alone: of fewer it is called another figure
    metric += f" of {len(parts)} of {len(POPE_LINES)} categories" if absent else ""
    rows = [(metric, mean, sum(part["count"] for part in parts.values()))]
    items, details, groups, notes = {}, {}, {}, []
    for name, part in parts.items():
        rows += [(f"{name} {figure}", part[figure], part["count"]) for figure in _FIGURES]
        groups |= {f"{name} {figure}": name for figure in _FIGURES}
        told = {f"{name}/{key}": one for key, one in part["details"].items()}
        items |= dict(zip(told, part["items"], strict=True))
        details |= told
        if part["count"] != (lines := POPE_LINES.get(name)):
            told = f"{lines} lines" if lines else "no such category"
            notes.append(f"{name}: {part['count']} questions; the published figures have {told}")
    if absent:
        notes.append(f"published figures are the mean over three; absent: {', '.join(absent)}")
    return scored.Scored(
        "pope", mean, metric, rows, items, faults, notes, groups=groups, details=details
    )


def _pope_category(path: pathlib.Path) -> str:
    """Return the category of POPE that a file name tells, else the name."""
    stem = path.name.lower()
    return next((name for name in POPE_LINES if name in stem), path.stem)


def _number(path: pathlib.Path, key, *, whole: bool = False) -> str:
    if not str(key).isdecimal():
        raise tables.damaged(path, f"the id {key!r} of POPE is no number")
    return str(int(key) if whole else int(key) % pope.CATEGORY_IDS)


def score_mme(answers: Sequence[pathlib.Path], files: Sequence[pathlib.Path]) -> scored.Scored:
    """Score MME answers, in points.

    Args:
        answers: LLaVA's jsonl, or the text files of its eval_tool (image, question, truth, answer),
            or a folder of those.
        files: the release of MME, or such text files with the truth; empty where the answers
            have it.

    Raises:
        SgqlmError: a file is damaged, or an image has not two questions.
    """
    faults, where = joining.Faults(), ", ".join(map(str, answers))
    groups: dict[str, list] = {}
    details, doubled = {}, []
    if not files:
        said = [(category, row[:3], row[3]) for _, category, row in _mme_rows(answers, 4)]
        faults.empty = [f"{category}/{row[0]}" for category, row, text in said if not text]
    else:
        truth = annotated.by_id(files, _mme_truth, doubled)
        found = [answer for path in answers for answer in tables.answers(path)]
        given = [(_mme_key(*_place(a.key), a.prompt), a) for a in found]
        joined, faults = joining.join(given, truth, where=where)
        texts = {key: answer.text for key, answer in joined.items()}
        said = [(*about, texts.get(key)) for key, about in truth.items()]
    for category, (image, question, wanted), text in said:
        groups.setdefault(category, []).append((image, question, wanted, text or ""))
        where_is = {"image": f"{category}/{image}"}
        told = scored.told(question, wanted, None, where_is, [category])
        details[f"{category}/{image}/{question}"] = told | (
            {"given": text} if text is not None else {}
        )
    try:
        done = mme.score(groups)
    except ValueError as error:
        raise tables.damaged(where, str(error)) from error
    rows = [(name, done[name], None) for name in ("perception", "cognition")]
    rows += [(name, part["score"], part["count"]) for name, part in done["by_category"].items()]
    notes = [*doubled, "points: perception of 2000, cognition of 800"]
    if done["missing"]:
        notes.append(f"categories that are not there: {', '.join(done['missing'])}")
    if other := sum(part["other"] for part in done["by_category"].values()):
        notes.append(f"{other} answers are neither yes nor no")
    charts = dict.fromkeys(done["by_category"], "categories") | {"cognition": "sum"}
    return scored.Scored(
        "mme", done["perception"], "perception", rows, done["items"], faults, notes,
        groups=charts, details=details,
    )  # fmt: skip


def _mme_truth(path: pathlib.Path) -> list[tuple[str, tuple[str, tuple[str, ...]]]]:
    return [(key, (category, row[:3])) for key, category, row in _mme_rows([path], 3)]


def _mme_rows(
    paths: Sequence[pathlib.Path], least: int
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield (key, category, (image, question, truth, ...)) of text files and folders of them."""
    for root in paths:
        names = sorted(root.rglob("*.txt")) if root.is_dir() else [root]
        if not names:
            raise tables.damaged(root, "the folder has no .txt files")
        for path in names:
            for number, line in enumerate(tables.read_text(path).splitlines(), 1):
                if not line.strip():
                    continue
                parts = line.split("\t")
                category = path.stem
                if len(parts) == 2:  # the release: a file an image, in the folder of its category
                    folder = path.parent.parent if path.parent.name in _FOLDERS else path.parent
                    category, parts = folder.name, [path.stem, *parts]
                if len(parts) < least:
                    told = "answers too" if least > 3 else "image, question, truth"
                    raise tables.damaged(path, f"line {number} has {len(parts)} columns; {told}")
                row = tuple(part.strip() for part in parts)
                yield _mme_key(category, row[0], row[1]), category, row


def _place(key: str) -> tuple[str, str]:
    """Return category and image of an id such as `artwork/images/10002.jpg`."""
    category, _, rest = key.partition("/")
    return category, rest


def _mme_key(category: str, image: str, question: str) -> str:
    """Return what names a question of MME in all of its files."""
    text = " ".join(question.lower().split()).removeprefix("<image> ")
    for suffix in _SUFFIXES:
        text = text.replace(suffix, "").strip()
    return f"{category}/{pathlib.PurePosixPath(image).stem}/{text}"
