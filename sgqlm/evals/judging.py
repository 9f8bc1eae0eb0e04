"""Score benchmarks that a judge grades: ask the judge about answers, or take what one has graded.

LLaVA-Bench (in the wild, COCO) and MM-Vet need a judge; MMBench may ask one about answers that no
rule understands. Who graded, and what they were asked, stands in every report.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import answers as answers_lib
from sgqlm.evals import joining, judge, judged, matching, reviewed, scored, scoring, tables
from sgqlm.evals.metrics import llava_bench, mmbench, mmvet
from sgqlm.train import progress

MATCHED = ("mmbench", "mmbench_cn")
TASKS = tuple(reviewed.PUBLISHED)
# official names of the files in a folder of annotations
_NAMES = {
    "llava_wild": ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl", "rule.json"),
    "llava_coco": (
        "qa90_questions.jsonl",
        "caps_boxes_coco2014_val_80.jsonl",
        "qa90_gpt4_answer.jsonl",
        "rule.json",
    ),
    "mmvet": ("mm-vet.json",),
}
# endings of the files with their published prompts
PROMPTS = {"mmvet": (".py", ".ipynb", ".txt"), "llava_wild": (".json",), "llava_coco": (".json",)}
_LLAVA = ("questions", "contexts", "references")
_WANTED = {"mmvet": ("questions",), "llava_wild": _LLAVA, "llava_coco": _LLAVA}
HOW = "--judge=openai --judge-model=NAME (or --judge=http://HOST:PORT/v1)"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Who grades, and how.

    Attributes:
        by: the judge.
        runs: how often every answer is graded.
        reviews: file of the grades; None for one beside the answers, see `default_path`.
        prompts: LLaVA's `rule.json`; MM-Vet's program or a text with its prompt; else ours is used.
        parallel: answers that are graded at once.
        max_tokens: of a reply, 0 to leave it to the service; None for the benchmark's own.
        retry: ask again where a kept reply could not be read.
    """

    by: judge.Judge = dataclasses.field(default_factory=judge.NoJudge)
    runs: int = 1
    reviews: pathlib.Path | None = None
    prompts: Sequence[pathlib.Path] = ()
    parallel: int = 1
    max_tokens: int | None = None
    retry: bool = False

    @property
    def is_open(self) -> bool:
        """Whether there is no judge."""
        return isinstance(self.by, judge.NoJudge)

    def prompt(self, task: str) -> pathlib.Path | None:
        """Return the file with the prompt of a benchmark, told by its ending; None for ours."""
        return next((path for path in self.prompts if path.suffix in PROMPTS[task]), None)

    def room(self, usual: int) -> int | None:
        """Return how long a reply may be, in tokens; None leaves it to the service."""
        return usual if self.max_tokens is None else self.max_tokens or None


def score(
    task: str,
    answers: Sequence[pathlib.Path],
    annotations: Sequence[pathlib.Path] = (),
    settings: Settings | None = None,
    *,
    only: Sequence[str] | None = None,
    allow_mismatch: bool | None = False,
) -> scored.Scored:
    """Score answers with a judge, or files that a judge has graded.

    Args:
        task: of `TASKS` or `MATCHED`.
        answers: a file of answers; or review files of LLaVA, or a grade file of MM-Vet.
        annotations: the official files or their folder.
        settings: the judge; without one, answers are counted and not scored.
        only: ids of the questions that were asked; None for all.
        allow_mismatch: ask the judge although answers are missing (MM-Vet counts them as 0,
            LLaVA-Bench leaves them out) or to other questions (they are left out); it is asked
            about neither. None where a user cannot choose that.

    Raises:
        SgqlmError: a file is missing or damaged, files do not fit together, or the judge fails;
            grades that are there stay, and are not asked for again.
    """
    settings = settings or Settings()
    if task in MATCHED:
        return _mmbench(task, answers, annotations, settings)
    files = _files(task, annotations, settings, only)
    if len(kinds := {_is_graded(path) for path in answers}) > 1:
        raise errors.SgqlmError(
            "answers and graded files are scored one after another",
            where=", ".join(map(str, answers)),
        )
    if kinds == {True}:
        if not settings.is_open:
            raise errors.SgqlmError(
                "the file is graded already", where=str(answers[0]), fix="leave --judge out"
            )
        return reviewed.score(task, answers, files.get("questions"), files.get("references", {}))
    if len(answers) > 1:
        raise errors.SgqlmError(f"{task} takes one file of answers", fix="give one after another")
    joined, faults = _joined(task, answers[0], files.get("questions"))
    if settings.is_open:
        return _open(task, joined, faults)
    _check(task, files, settings, "--annotations")
    if faults.is_mismatch and not allow_mismatch:
        raise _mismatch(str(answers[0]), faults, can_allow=allow_mismatch is not None)
    ask = _mmvet if task == "mmvet" else _llava
    return ask(task, answers[0], files, joined, faults, settings)


def check(
    task: str,
    annotations: Sequence[pathlib.Path],
    settings: Settings,
    *,
    where: str,
    ids: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Refuse official files that a judge could not grade with; nothing is asked.

    Args:
        task: of `TASKS`.
        annotations: the official files or their folder.
        settings: the judge.
        where: the files are to be, for the message.
        ids: of all questions; None where nobody knows them.
        only: ids of the questions that are asked; None for all.

    Raises:
        SgqlmError: a file is missing or damaged, or they do not fit together, or the prompt does.
    """
    files = _files(task, annotations, settings, only)
    _check(task, files, settings, where)
    if asked := [reviewed.key_of(task, key) for key in (ids if only is None else only) or ()]:
        known = files["questions"]
        faults = joining.Faults(
            missing=[key for key in known if key not in set(asked)],
            unknown=[key for key in asked if key not in known],
        )
        if faults.is_mismatch:
            raise _mismatch(where, faults, can_allow=False)


def _mismatch(where: str, faults: joining.Faults, *, can_allow: bool) -> errors.SgqlmError:
    fixes = ["answer all questions"] if faults.missing and can_allow else []
    if faults.unknown or not can_allow:
        fixes.append("give the official files of the version that is answered")
    if can_allow:
        fixes.append("give --allow-mismatch to have the others graded")
    told = {"no answer": faults.missing, "no annotation": faults.unknown}
    parts = [f"{len(i)} questions have {n}: {joining.shown(i)}" for n, i in told.items() if i]
    return errors.SgqlmError(
        "the judge was not asked: answers and annotations are not to the same questions",
        where=where,
        why="; ".join(parts),
        fix=", or ".join(fixes),
        code=errors.DATA,
    )


def _check(task: str, files: Mapping[str, Any], settings: Settings, where: str) -> None:
    if absent := [name for name in _WANTED[task] if name not in files]:
        raise errors.SgqlmError(
            f"the judge of {task} needs the official files",
            where=where,
            why=f"no {' and no '.join(absent)}",
            fix=f"give their folder, or {_told(task)}",
        )
    if task == "mmvet":
        _head(settings)
    else:
        lines = files["questions"].values()
        _cases(files, [{"question_id": line["question_id"], "text": ""} for line in lines])


def _files(
    task: str,
    annotations: Sequence[pathlib.Path],
    settings: Settings,
    only: Sequence[str] | None,
) -> dict[str, dict[str, Any]]:
    """Return the official files by what they are; of the questions, those that are asked."""
    files = _annotations(task, annotations, settings)
    if only is not None and "questions" in files:
        wanted = {reviewed.key_of(task, key) for key in only}
        files["questions"] = {k: q for k, q in files["questions"].items() if k in wanted}
    return files


def _cases(files: Mapping[str, Any], said: Sequence[Mapping]) -> list[llava_bench.Case]:
    references = files["references"].items()
    return llava_bench.pair(
        files["questions"].values(),
        files["contexts"].values(),
        [line for key, line in references if key in files["questions"]],
        said,
        rules=files.get("rules"),
    )


def _head(settings: Settings) -> str:
    own = settings.prompt("mmvet")
    return mmvet.official_head(own) if own else mmvet.HEAD


def default_path(answers: pathlib.Path, task: str, by: judge.Judge) -> pathlib.Path:
    """Return where the grades of a judge are kept: beside the answers, under its name."""
    end = {"mmvet": "grade.json"}.get(task, "matches.jsonl" if task in MATCHED else "review.jsonl")
    name = re.sub(r"[^\w.-]+", "-", by.name)
    return answers.with_name(f"{answers.stem}_{name}-{end}")


def _is_graded(path: pathlib.Path) -> bool:
    value = tables.load(path)
    if isinstance(value, dict):
        return any(isinstance(entry, dict) and "score" in entry for entry in value.values())
    return any(isinstance(line, dict) and {"tuple", "answer2_id"} & set(line) for line in value)


def _annotations(
    task: str, paths: Sequence[pathlib.Path], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Return the official files by what they are, seen from their content; keys are ids as text."""
    found: dict[str, dict[str, Any]] = {}
    given = [file for path in paths for file in _opened(task, path)]
    if task != "mmvet" and (rules := settings.prompt(task)):
        given = [path for path in given if path.name != "rule.json"] + [rules]
    for path in given:
        value = tables.load(path)
        lines = [value] if isinstance(value, dict) else value
        fields = set(lines[0]) if lines and isinstance(lines[0], dict) else set()
        if task != "mmvet" and fields & {"caption", "captions"}:
            kind, part = "contexts", {str(at): line for at, line in enumerate(lines)}
        elif isinstance(value, dict):
            kind = "questions" if task == "mmvet" else "rules"
            wanted = ("question", "answer", "capability") if task == "mmvet" else ("role", "prompt")
            tables.need(value.values(), wanted, path)
            part = value
        elif task != "mmvet" and {"question_id", "text"} <= fields:
            kind = "questions" if "image" in fields else "references"
            tables.need(lines, ("question_id", "text"), path)
            part = _unique(lines, path)
        else:
            raise tables.damaged(path, f"it is none of the files of {task}: {_told(task)}")
        if kind in found:
            raise tables.damaged(path, f"it holds {kind}, and so does a file before it")
        found[kind] = part
    return found


def _opened(task: str, path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path]
    if found := [path / name for name in _NAMES[task] if (path / name).is_file()]:
        return found
    raise errors.SgqlmError(
        "the folder has no official files", where=str(path), fix=f"give {_told(task)}"
    )


def _told(task: str) -> str:
    return ", ".join(_NAMES[task])


def _unique(lines: Sequence[Mapping], path: pathlib.Path) -> dict[str, Any]:
    found = {str(line["question_id"]): line for line in lines}
    if len(found) < len(lines):
        raise tables.damaged(path, f"{len(lines) - len(found)} ids stand twice")
    return found


def _joined(task: str, path: pathlib.Path, questions: Mapping[str, Mapping] | None):
    found = tables.answers(path)
    given = [(reviewed.key_of(task, answer.key), answer) for answer in found]
    truth: Mapping[str, Any] = dict(given) if questions is None else questions
    field = "question" if task == "mmvet" else "text"
    asked = {key: item[field] for key, item in (questions or {}).items()}
    joined, faults = joining.join(given, truth, where=str(path), questions=asked)
    return joined, faults if task == "mmvet" else reviewed.LeftOut(**vars(faults))


def _open(task: str, joined: Mapping, faults: joining.Faults) -> scored.Scored:
    note = f"{len(joined)} answers need a judge, none is scored: {HOW}"
    more = {"judge": "none", "judging": {"backend": "none", "needs_judge": len(joined)}}
    name, metric = reviewed.HEADLINES[task]
    return scored.Scored(
        task, None, metric, [(name, None, len(joined))], {}, faults, [note], more=more
    )


def _llava(task, path, files, joined, faults, settings: Settings) -> scored.Scored:
    questions = {key: line for key, line in files["questions"].items() if key in joined}
    said = [
        {
            "question_id": line["question_id"],
            "text": joined[key].text,
            "answer_id": joined[key].record.get("answer_id", key),
        }
        for key, line in questions.items()
    ]
    rules = files.get("rules")
    cases = _cases({**files, "questions": questions}, said)
    # all rules, also where a part of the questions needs few: the judge of a part is that of all
    rule_hash = judged.prompt_hash(json.dumps([llava_bench.SYSTEM, rules or llava_bench.RULE]))
    first = settings.reviews or default_path(path, task, settings.by)
    paths = judged.run_paths(first, settings.runs)
    known = sum(_kept(file, settings, judged.is_unread) for file in paths)
    before = _replaced(paths)
    with _asking(task, len(cases) * settings.runs, known, settings, first) as tell:
        for _ in judged.review(
            cases,
            settings.by,
            first,
            rule_hash=rule_hash,
            num_runs=settings.runs,
            parallel=settings.parallel,
            max_tokens=settings.room(llava_bench.MAX_TOKENS),
            retry=settings.retry,
        ):
            tell()
    texts = {str(line["question_id"]): line["text"] for line in said}
    done = reviewed.score(task, paths, questions, files["references"], given=texts)
    done.faults = faults
    _tell_replaced(done, before)
    return _about(done, settings, llava_bench.TEMPERATURE, llava_bench.MAX_TOKENS, bool(rules))


def _mmvet(task, path, files, joined, faults, settings: Settings) -> scored.Scored:
    metadata = {key: item for key, item in files["questions"].items() if key in joined}
    head = _head(settings)
    texts = {key: joined[key].text for key in metadata}
    out = settings.reviews or default_path(path, task, settings.by)
    known, before = 0, _replaced([out])
    if out.is_file():
        entries = [entry for key, entry in judged.read_grades(out).items() if key in metadata]
        known = sum(len(entry["score"][: settings.runs]) for entry in entries)
        known -= sum(len(mmvet.unread(entry)) for entry in entries) if settings.retry else 0
    with _asking(task, len(metadata) * settings.runs, known, settings, out) as tell:
        for _ in judged.grade(
            metadata,
            texts,
            settings.by,
            out,
            num_runs=settings.runs,
            head=head,
            parallel=settings.parallel,
            max_tokens=settings.room(mmvet.MAX_TOKENS),
            retry=settings.retry,
        ):
            tell()
    done = reviewed.score(
        task, [out], files["questions"], {}, given=texts, num_runs=settings.runs,
        missing=faults.missing,
    )  # fmt: skip
    done.faults = faults
    _tell_replaced(done, before)
    return _about(done, settings, 0.0, mmvet.MAX_TOKENS, head != mmvet.HEAD)


def _mmbench(task, answers, annotations, settings: Settings) -> scored.Scored:
    seen: dict[str, str] = {}

    out = settings.reviews or default_path(answers[0], task, settings.by)

    def resolve(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        todo = [r for r in rows if not mmbench.is_blank(r.get("prediction"))]
        todo = [row for row in todo if not mmbench.match_row(row)]
        known = _kept(out, settings, matching.is_unread)
        with _asking(task, len(todo), known, settings, out) as tell:
            for line in matching.letters(
                todo,
                settings.by,
                out,
                parallel=settings.parallel,
                max_tokens=settings.room(matching.MAX_TOKENS),
                retry=settings.retry,
            ):
                seen[line["index"]] = line["letter"]
                tell()
        return [{**r, "prediction": seen.get(str(r["index"])) or r["prediction"]} for r in rows]

    if settings.is_open:
        return scoring.score(task, answers, annotations)
    before = _replaced([out])
    done = scoring.score(task, answers, annotations, resolve=resolve)
    matched = sum(letter not in ("", mmbench.REFUSED) for letter in seen.values())
    unread = sum(not letter for letter in seen.values())
    note = f"{len(seen)} answers were shown to the judge, {matched} mean an option"
    done.notes.append(note + f"; {unread} replies name none {reviewed.AGAIN}" * bool(unread))
    digest = judged.prompt_hash(matching.HEAD)
    judging = {"prompt_hash": digest, "shown": len(seen), "matched": matched}
    judging["unparsable"] = unread
    done.more = {"judge": reviewed.named(settings.by.name, digest), "judging": judging}
    _tell_replaced(done, before)
    return _about(done, settings, 0.0, matching.MAX_TOKENS, None)


def _kept(path: pathlib.Path, settings: Settings, is_unread) -> int:
    """Return how many grades of a file are not asked for again."""
    lines = answers_lib.iterate(path) if path.is_file() else ()
    return sum(not (settings.retry and is_unread(line)) for line in lines)


def _replaced(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, int]:
    """Return the files of grades that were asked for again, and their sizes in bytes."""
    files = map(judged.replaced, paths)
    return {file: file.stat().st_size if file.is_file() else 0 for file in files}


def _tell_replaced(done: scored.Scored, before: Mapping[pathlib.Path, int]) -> None:
    old = [str(f) for f, size in before.items() if f.is_file() and f.stat().st_size > size]
    if old:
        done.notes.append(f"grades that were asked for again are in {', '.join(old)}")


def _about(
    done: scored.Scored, settings: Settings, temperature: float, usual: int, is_published
) -> scored.Scored:
    """Add to a report who was asked, and how."""
    told = {"model": settings.by.name, **judge.about(settings.by), "temperature": temperature}
    told["max_tokens"] = settings.room(usual)
    done.more["judging"] = told | done.more["judging"]
    if is_published is False:
        done.notes.append(
            "the judge was asked in words of ours; --judge-prompt takes the published ones"
        )
    return done


@contextlib.contextmanager
def _asking(task: str, total: int, known: int, settings: Settings, path: pathlib.Path) -> Iterator:
    """Show progress of `tell`; where the judge fails, say what is kept."""
    done, known = 0, min(known, total)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise errors.SgqlmError(
            "the grades cannot be kept: nothing can be written there",
            where=str(path),
            fix="name another file with --reviews",
        )
    with progress.Progress(f"{task} judge", total, done=known) as bar:

        def tell(count: int = 1) -> None:
            nonlocal done
            done += count
            tokens = getattr(settings.by, "tokens", 0)
            if done < known:  # kept ones, told in one go
                return
            bar.update(done, f"{tokens:,} tokens" if tokens else "")

        try:
            yield tell
        except errors.SgqlmError as error:
            if error.code != errors.RESOURCES:
                raise
            raise errors.SgqlmError(
                error.what,
                where=error.where,
                why=error.why,
                fix=f"{error.fix} ({done} of {total}, {path}); the same command goes on there",
                code=error.code,
            ) from error
