"""What becomes of the answers to a benchmark: the submission, the figures, the report."""

import collections
import dataclasses
import importlib.util
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import records
from sgqlm.evals import (
    answers,
    benchmark,
    caption_files,
    joining,
    judging,
    report,
    scored,
    scoring,
    submissions,
    tables,
)
from sgqlm.evals import tasks as tasks_lib

_MISMATCH = (
    "answers and annotations are not to the same questions: the figures above are no published "
    "protocol"
)
_OTHER_SPLIT = (joining.MISFIT, scoring.NO_ANSWERS)  # errors that another split may give


@dataclasses.dataclass
class Result:
    """What a benchmark gave: its files, its figures, and what a reader has to know."""

    task: str
    answers: list[dict[str, Any]]
    score: scored.Scored | None = None
    submission: pathlib.Path | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    annotations: Sequence[pathlib.Path] = ()
    code: int = errors.OK  # why there is no submission, or no figure of the judge

    @property
    def failed(self) -> list[str]:
        """Return why questions have no answer, one line each."""
        told = [(line["question_id"], line["metadata"].get("error")) for line in self.answers]
        return [f"{number}: {why}" for number, why in told if why]

    def lack(self, what: str, error: errors.SgqlmError, *, is_failure: bool = True) -> None:
        """Note what there is not, and why."""
        self.notes.append(f"{what}: {error.line}")
        self.code = max(self.code, error.code) if is_failure else self.code

    def lines(self) -> list[str]:
        """Return the result as lines of a terminal."""
        out = self.score.lines() if self.score else [f"{self.task}: {len(self.answers)} answers"]
        if self.failed:
            counts = " that counts as it stands" if self.score else ""
            out.append(
                f"caution: {len(self.failed)} of {len(self.answers)} questions have an error, and "
                f"an empty answer{counts}; the same command with --retry asks them again:"
            )
            out += [f"  {line}" for line in self.failed[: joining.SHOWN]]
        return out + self.notes


def finish(
    job: benchmark.Job,
    found: list[dict[str, Any]],
    folder: pathlib.Path,
    judge: judging.Settings | None = None,
) -> Result:
    """Write the submission and the figures of answers that `run` gave.

    Args:
        job: what was asked.
        found: the answers.
        folder: of this benchmark's results.
        judge: who grades the answers that need it.

    Returns:
        What there is; notes say what there is not, and why. The code is that of the error where
        there is no submission, or where the judge was to grade and did not.
    """
    task = job.place.task
    is_judged = judge is not None and not judge.is_open
    done = Result(task.name, found, annotations=job.place.annotations)
    is_whole = len(job.chosen) == len(job.questions)
    if task.submission and is_whole:
        try:
            done.submission = _submit(job, folder, done.notes)
        except errors.SgqlmError as error:
            done.lack("no submission is written", error)
    elif task.submission:
        done.notes.append("no submission is written for a part of the questions (--limit)")
    if task.name in judging.TASKS and not is_judged:
        done.notes.append(f"not scored: it needs a judge; next: {_next(job, folder, is_whole)}")
    elif not job.place.annotations and task.name not in judging.TASKS:
        why = " and ".join(task.annotations) or "the answers"
        done.notes.append(f"not scored: the annotations ({why}) are not there")
    else:
        try:
            done.score = _score(job, folder / benchmark.ANSWERS, judge, is_whole=is_whole)
            if is_judged and done.score.score is None:  # no reply could be read
                done.code = errors.DATA
            if done.score.faults.is_mismatch:
                done.notes.append(_MISMATCH)
                done.code = errors.DATA
        except errors.SgqlmError as error:
            is_other = error.what in _OTHER_SPLIT and _is_other_split(job)
            lacks_package = error.code == errors.RESOURCES and not is_judged
            is_failure = not (is_other or lacks_package)
            if error.code == errors.USAGE and not is_judged:  # a file is at fault, and no flag
                error.code = errors.DATA
            done.lack("not scored", error, is_failure=is_failure)
            if is_other:
                done.notes.append("the questions are of a split whose answers a server has")
    return done


def _is_other_split(job: benchmark.Job) -> bool:
    """Tell whether the user named question files that are not the usual ones of the benchmark.

    Such as GQA's test split: the annotations that lie beside are then those of the usual split.
    """
    usual = job.place.task.files
    return not any(path.match(pattern) for path in job.place.files for pattern in usual)


def check_judge(jobs: Sequence[benchmark.Job], judge: judging.Settings) -> None:
    """Refuse benchmarks whose answers the judge could not grade, before any is answered.

    Raises:
        SgqlmError: an official file is missing or damaged.
    """
    for job in jobs:
        name = job.place.task.name
        if name in judging.TASKS and not judge.is_open:
            files, asked = _judged_files(job), _asked(job)
            ids = [str(question.id) for question in job.questions]
            judging.check(name, files, judge, where=str(job.place.folder), ids=ids, only=asked)


def _asked(job: benchmark.Job) -> list[str] | None:
    """Return the ids of the questions, None where all of them are asked."""
    is_whole = len(job.chosen) == len(job.questions)
    return None if is_whole else [str(job.questions[at].id) for at in job.chosen]


def write_report(done: Result, about: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Write a result as json, with the settings of the answers."""
    about_score = {
        "answers": [benchmark.ANSWERS],
        "annotations": [str(file) for file in done.annotations],
        "sha256": {benchmark.ANSWERS: records.file_digest(path.with_name(benchmark.ANSWERS))},
    }
    return report.write(
        path,
        {
            "task": done.task,
            "answers": len(done.answers),
            "failed": done.failed,
            "submission": str(done.submission) if done.submission else None,
            "notes": done.notes,
            "settings": dict(about),
            "score": {**done.score.report(), **about_score} if done.score else None,
        },
    )


def _submit(job: benchmark.Job, folder: pathlib.Path, notes: list[str]) -> pathlib.Path:
    task, suffix = job.place.task, job.place.task.submission
    asked = job.place.all_questions or folder / benchmark.ASKED
    if task.is_rolled:
        asked = job.place.files[0]
        if not importlib.util.find_spec("openpyxl"):
            suffix = ".tsv"
            notes.append(
                "the sheet is a .tsv; for .xlsx: pip install -e '.[submit]' in the clone, then "
                "the same command"
            )
    elif asked.name == benchmark.ASKED:
        _write_asked(job, folder)
    if task.all_questions and job.place.all_questions is None:
        notes.append(f"the server wants all ids: put {task.all_questions[0]} beside the questions")
    path = folder / f"submission{suffix}"
    submissions.write(task.name, folder / benchmark.ANSWERS, path, asked)
    return path


def _write_asked(job: benchmark.Job, folder: pathlib.Path) -> pathlib.Path:
    lines = [{"question_id": q.id, "image": q.image, "text": q.text} for q in job.questions]
    answers.write(folder / benchmark.ASKED, lines)
    return folder / benchmark.ASKED


def _next(job: benchmark.Job, folder: pathlib.Path, is_whole: bool) -> str:
    place = job.place
    if not is_whole:  # the official files have more questions than were asked
        return f"the same command with {judging.HOW}; no question is answered again"
    files = " ".join(map(str, _judged_files(job) or [place.folder]))
    named = f"--task={place.task.name} --annotations {files}"
    return f"sgqlm eval score {folder / benchmark.ANSWERS} {named} {judging.HOW}"


def _judged_files(job: benchmark.Job) -> list[pathlib.Path]:
    place = job.place
    if place.task.name == "mmvet":
        return list(place.annotations)
    rules = place.files[0].with_name("rule.json")
    return [*place.files, *place.annotations, *([rules] if rules.is_file() else [])]


def _score(
    job: benchmark.Job, path: pathlib.Path, judge: judging.Settings | None, *, is_whole: bool
) -> scored.Scored:
    files = job.place.annotations
    if job.place.task.name == "vizwiz":  # annotated by image, answered by position
        files = [*files, _write_asked(job, path.parent)]
    if job.place.task.name in judging.TASKS:
        return judging.score(
            job.place.task.name,
            [path],
            _judged_files(job),
            judge,
            only=_asked(job),
            allow_mismatch=None,
        )
    if job.place.task.name in caption_files.TASKS:
        asked = {job.questions[at].label for at in job.chosen}
        return scoring.score(job.place.task.name, [path], files, only=asked)
    if is_whole:
        return _measured(job.place.task.name, path, files, judge)
    labels = collections.Counter(job.questions[at].label for at in job.chosen)
    with tempfile.TemporaryDirectory() as folder:
        cut = [_cut(job.place.task, file, labels, pathlib.Path(folder)) for file in files]
        if not any(cut):
            raise joining.misfit(str(path), "no question that was asked is annotated")
        return _measured(job.place.task.name, path, [file for file in cut if file], judge)


def _measured(task: str, path: pathlib.Path, files, judge) -> scored.Scored:
    if judge and task in judging.MATCHED:
        return judging.score(task, [path], files, judge)
    return scoring.score(task, [path], files)


def _cut(
    task: tasks_lib.Task, path: pathlib.Path, labels: Mapping[str, int], folder: pathlib.Path
) -> pathlib.Path | None:
    """Write the part of annotations that these questions have; return None where it is empty."""
    value: Any = tables.load(path)

    def part(found: list) -> list:
        left, kept = dict(labels), []
        for item in reversed(found):  # of a question that stands twice the last one counts
            label = task.label(item, path) if isinstance(item, dict) else str(item)
            if left.get(label):
                kept.append(item)
                left[label] -= task.may_repeat
        return kept[::-1]

    if isinstance(value, list):
        value = part(value)
    elif any(isinstance(value.get(name), list) for name in ("questions", "annotations", "data")):
        names = ("questions", "annotations", "data")
        value = {k: part(v) if k in names else v for k, v in value.items()}
    elif all(isinstance(item, list) for item in value.values()):  # ScienceQA's splits
        value = {k: part(v) for k, v in value.items()}
    else:
        value = {k: v for k, v in value.items() if k in labels}
    out = folder / f"{path.stem}.json"
    out.write_text(json.dumps(value), encoding="utf-8")
    return out if value else None
