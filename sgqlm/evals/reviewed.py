"""Score what a judge has graded: review files of LLaVA-Bench, grade files of MM-Vet."""

import csv
import io
import pathlib
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import answers as answers_lib
from sgqlm.evals import joining, judged, scored, tables
from sgqlm.evals.metrics import llava_bench, mmvet

# Questions that the published numbers are over, and who graded them.
PUBLISHED = {"llava_wild": 60, "llava_coco": 90, "mmvet": mmvet.NUM_QUESTIONS}
JUDGES = {
    "llava_wild": llava_bench.PUBLISHED_JUDGE,
    "llava_coco": llava_bench.PUBLISHED_JUDGE,
    "mmvet": mmvet.PUBLISHED_JUDGE,
}
_LLAVA = ("all", "score relative to the reference")
HEADLINES = {"llava_wild": _LLAVA, "llava_coco": _LLAVA, "mmvet": ("total", "mean grade")}
UNNAMED = "not named in the file"
_INTEGRATION = "integration "
AGAIN = "(--judge-retry asks the judge for them again)"


class LeftOut(joining.Faults):
    """Faults where a question without an answer or a grade is in no mean."""

    fate = "are left out"


def score(
    task: str,
    files: Sequence[pathlib.Path],
    questions: Mapping[str, Mapping[str, Any]] | None = None,
    references: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    given: Mapping[str, str] | None = None,
    num_runs: int | None = None,
    missing: Collection[str] = (),
) -> scored.Scored:
    """Score graded files.

    Args:
        task: of `PUBLISHED`.
        files: review files of LLaVA-Bench, one a run of the judge; or one grade file of MM-Vet.
        questions: id -> question of the official file, for MM-Vet that of mm-vet.json; None where
            it is not at hand: then there is no telling what is missing, and no capabilities.
        references: id -> line of the reference answers, to show them.
        given: id -> answer, to show it.
        num_runs: runs of MM-Vet that count; None for all that every question has.
        missing: ids of MM-Vet without an answer, which nobody graded: they count as 0.

    Raises:
        SgqlmError: a file is missing or damaged, or of several judges.
    """
    shown = {key: _shown(task, item) for key, item in (questions or {}).items()}
    for name, texts in (("wanted", _texts(references)), ("given", given or {})):
        for key, text in texts.items():
            shown.setdefault(key, {})[name] = text
    if task == "mmvet":
        done = _mmvet(files, questions, shown, num_runs, missing)
    else:
        done = _llava(task, files, questions, shown)
    if (count := len(done.items)) not in (0, PUBLISHED[task]):
        done.notes.append(f"over {count} questions; published figures are over {PUBLISHED[task]}")
    done.notes.append(
        f"published figures are of {JUDGES[task]}, which cannot be asked any more: those of "
        "another judge do not compare"
    )
    return done


def key_of(task: str, key: str) -> str:
    """Return an id as the official files write it: MM-Vet's begin with `v1_`."""
    return f"v1_{key}" if task == "mmvet" and key.isdigit() else key


def named(model: str, digest: str) -> str:
    """Return what a report calls a judge; figures of judges with the same name compare."""
    return f"{model}, prompt {digest}" if digest else model


def _texts(lines: Mapping[str, Mapping[str, Any]] | None) -> dict[str, str]:
    return {key: str(line["text"]) for key, line in (lines or {}).items()}


def _shown(task: str, item: Mapping[str, Any]) -> dict[str, Any]:
    if task == "mmvet":
        wanted, names = str(item["answer"]), item["capability"]
        kinds = [*names, _INTEGRATION + mmvet.joined(frozenset(names))]
        told = {"question": item["question"], "wanted": wanted, "image": item.get("imagename", "")}
        return {**told, "kinds": kinds}
    return {"question": item["text"], "image": item.get("image", "")}


def _judge(lines: Iterable[Mapping[str, Any]], path: pathlib.Path) -> tuple[str, str]:
    """Return the judge of graded lines and the hash of its prompt, empty where none is told."""
    found = {
        (str(line.get("judge") or UNNAMED), str(line.get("rule_hash") or "")) for line in lines
    }
    if len(found) > 1:
        told = " and ".join(sorted(named(*pair) for pair in found))
        raise errors.SgqlmError(
            "the file has grades of several judges",
            where=str(path),
            why=told,
            fix="score those of one judge at a time",
            code=errors.DATA,
        )
    return found.pop() if found else (UNNAMED, "")


def _llava(task: str, files, questions, shown: dict[str, dict]) -> scored.Scored:
    runs, judges, faults = {}, set(), LeftOut()
    for path in files:
        lines = list(answers_lib.iterate(path))
        tables.need(lines, ("question_id",), path)
        judges.add(_judge(lines, path))
        by_id = {str(line["question_id"]): line for line in lines}
        llava_bench.summarise(lines)  # refuses doubled ids and lines that are no review
        runs[_free(path.stem, runs)] = by_id
    if len(judges) > 1:
        raise errors.SgqlmError(
            "the files are of several judges",
            where=", ".join(map(str, files)),
            why=" and ".join(sorted(named(*pair) for pair in judges)),
            fix="score those of one judge at a time",
            code=errors.DATA,
        )
    ids = list(questions or dict.fromkeys(key for run in runs.values() for key in run))
    for run in runs.values():
        faults.missing += [key for key in ids if key not in run and key not in faults.missing]
        faults.unknown += [key for key in run if key not in ids and key not in faults.unknown]
    kept = {name: {k: run[k] for k in ids if k in run} for name, run in runs.items()}
    if not all(kept.values()):
        raise tables.damaged(files[0], "a file has no review of these questions")
    rows, items, notes, unparsable = _relative(kept)
    for run in kept.values():
        for key, line in run.items():
            told = shown.setdefault(key, {})
            told["kinds"] = [line["category"]] if "category" in line else []
    for key in items:
        lines = [run.get(key) for run in kept.values()]
        shown[key]["grades"] = [line and llava_bench.scores_of(line) for line in lines]
    model, digest = judges.pop()
    graded = sum(map(len, kept.values()))
    judging = {"model": model, "prompt_hash": digest, "runs": len(runs), "graded": graded}
    judging |= {"unparsable": unparsable, "needs_judge": 0, "files": [str(p) for p in files]}
    return scored.Scored(
        task, rows[0][1], HEADLINES[task][1], rows, items, faults, notes,
        groups={name: "runs" if name in runs else "categories" for name, *_ in rows[1:]},
        details={key: shown[key] for key in items if key in shown},
        more={"judge": named(model, digest), "judging": judging},
    )  # fmt: skip


def _free(name: str, taken: Iterable[str]) -> str:
    return name if name not in taken else _free(f"{name}'", taken)


def _relative(runs: Mapping[str, Mapping[str, Mapping]]):
    """Return rows, items, notes and the number of reviews that could not be read.

    The score of a question is the judge's grade of the model. The headline figure is a ratio of two
    means, so it is no mean over questions: that takes the grades of the reference as well.
    """
    notes: list[str] = []
    ratios: dict[str, list[tuple[float | None, int]]] = {"all": []}
    parts: dict[str, list[float]] = {}
    unparsable, summaries = 0, []
    for name, run in runs.items():
        pairs = {key: llava_bench.scores_of(line) for key, line in run.items()}
        summary = llava_bench.summarise(run.values())
        told = []
        summaries.append(summary)
        for group, found in summary.items():
            members = [p for k, p in pairs.items() if group in ("all", run[k].get("category"))]
            ratio = sum(p[1] for p in members) / sum(p[0] for p in members) if found.score else None
            ratios.setdefault(group, []).append((ratio, found.count))
            if found.score is not None:
                told.append(f"{group} {found.score} ({found.reference}, {found.model})")
        if told:
            notes.append(f"{name}, as LLaVA rounds (reference, model): {'; '.join(told)}")
        unparsable += summary["all"].unparsable
        if ratios["all"][-1][0] is not None:
            for key, pair in pairs.items():
                parts.setdefault(key, []).append(pair[1])
    rows = [(group, _mean(r[0] for r in found), found[0][1]) for group, found in ratios.items()]
    if len(runs) > 1:
        single = zip(runs, ratios["all"], strict=True)
        rows += [(name, ratio, count) for name, (ratio, count) in single]
        scores = llava_bench.over_runs(summaries)
        if scores:
            notes.append(
                f"means over {len(runs)} reviews; of the rounded scores {scores['mean']:.1f}, "
                f"standard deviation {scores['std']:.1f}"
            )
    if unparsable:
        graded = sum(map(len, runs.values()))
        lost = "they count as -1 in both means, as in LLaVA"
        notes.append(_unread(unparsable, graded, "reviews have no two scores", lost * bool(parts)))
    items = {key: statistics.fmean(values) for key, values in parts.items()}
    return rows, items, notes, unparsable


def _unread(count: int, total: int, what: str, counted: str) -> str:
    """Return a note on grades that could not be read; `counted` as what, empty without a score."""
    if counted:
        return f"{count} of {total} {what}; {counted} {AGAIN}"
    return (
        f"not scored: {count} of {total} {what}, so none is left; see what the judge has replied "
        f"{AGAIN}"
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known and len(known) == len(found) else None


def _mmvet(
    files, questions, shown: dict[str, dict], num_runs: int | None, missing: Collection[str]
) -> scored.Scored:
    if len(files) > 1:
        raise errors.SgqlmError("MM-Vet takes one grade file", fix="give one after another")
    grades, path = judged.read_grades(files[0]), files[0]
    lines = [
        {"judge": name, "rule_hash": entry.get("rule_hash")}
        for entry in grades.values()
        for name in entry.get("model", ())
    ]
    model, digest = _judge(lines, path)
    grades |= {key: {"score": [0.0] * (num_runs or 1)} for key in missing}
    found = mmvet.summarise(grades, questions, num_runs=num_runs)
    done = [k for k in questions or grades if k in grades and k not in set(found.needs_judge)]
    count = len(found.runs)
    unread = sum(run < count for key in done for run in mmvet.unread(grades[key]))
    graded = count * len(set(done).difference(missing))
    is_scored = unread < graded or not unread
    means = {key: statistics.fmean(grades[key]["score"][:count]) for key in done}
    items = means if is_scored else {}
    parts = {**found.capabilities, **{_INTEGRATION + k: v for k, v in found.integrations.items()}}
    sizes = found.counts
    total = None if found.total is None or not is_scored else found.total / 100
    rows = [("total", total, len(done))]
    for name, value in parts.items():
        part = value / 100 if is_scored else None
        rows.append((name, part, _size(name, sizes, questions, done)))
    notes = []
    if is_scored and count > 1:
        notes.append(f"means over {count} runs, totals {_runs(found)}, std {found.std:.1f}")
    if is_scored:
        told = [f"{name} {value}" for name, value in found.rounded().items() if name != "std"]
        notes.append(f"as MM-Vet rounds: {', '.join(told)}")
    if questions is None:
        notes.append("capabilities and missing questions are known with --annotations mm-vet.json")
    if unread:
        lost = "they count as 0, as in MM-Vet" * is_scored
        notes.append(_unread(unread, graded, "grades could not be read", lost))
    judging = {"model": model, "prompt_hash": digest, "runs": count}
    judging |= {"totals": found.runs, "std": found.std} if is_scored else {}
    judging |= {"graded": graded, "unparsable": unread, "files": [str(path)], "needs_judge": 0}
    faults = LeftOut(missing=list(found.needs_judge), unknown=list(found.unknown))
    return scored.Scored(
        "mmvet", total, HEADLINES["mmvet"][1], rows, items, faults, notes,
        groups={n: "integrations" if n.startswith(_INTEGRATION) else "capabilities" for n in parts},
        details={key: shown[key] for key in items if key in shown},
        more={"judge": named(model, digest), "judging": judging},
    )  # fmt: skip


def _size(name: str, sizes: Mapping[str, int], questions, done: Sequence[str]) -> int:
    if name.startswith(_INTEGRATION):
        wanted = set(name.removeprefix(_INTEGRATION).split("_"))
        return sum(set(questions[key]["capability"]) == wanted for key in done)
    return sum(name in questions[key]["capability"] for key in done) if questions else sizes[name]


def _runs(found: mmvet.Summary) -> str:
    return ", ".join(f"{run:.1f}" for run in found.runs)


def sheets(done: scored.Scored, model: str) -> dict[str, str]:
    """Return the two tables of MM-Vet's program, end of the name -> csv text; none without runs.

    Args:
        done: of MM-Vet.
        model: name of the row.
    """
    told = done.more.get("judging", {})
    if done.task != "mmvet" or not told.get("totals"):
        return {}
    runs = told["totals"]
    last = [round(100 * (done.score or 0.0), 1), round(told["std"], 1), [round(r, 1) for r in runs]]
    out = {}
    for kind, end in (("capabilities", "cap-score"), ("integrations", "cap-int-score")):
        rows = [row for row in done.rows if done.groups.get(row[0]) == kind]
        if not rows:
            continue
        if kind == "integrations":
            rows.sort(key=lambda row: -(row[2] or 0))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [row[0].removeprefix(_INTEGRATION) for row in rows]
        writer.writerow(["", *names, "total", "std", "runs"])
        writer.writerow([model, *(round(100 * (row[1] or 0.0), 1) for row in rows), *last])
        out[f"{end}-{len(runs)}runs.csv"] = text.getvalue()
    return out
