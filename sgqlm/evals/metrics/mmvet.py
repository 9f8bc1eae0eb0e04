"""MM-Vet: a judge grades each answer from 0 to 1; totals by capability and by integration.

Flow, rounding and grade file as `mm-vet_evaluator.py` of MM-Vet (Yu et al. 2023). Its prompt, a
table of seven graded examples, is read from that program; `HEAD` is one of ours.
"""

import ast
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sgqlm import errors

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
PUBLISHED_JUDGE = "gpt-4-0613"
NUM_QUESTIONS = 218
MAX_TOKENS = 3
MAX_RETRIES = 5
WARMER = 0.5  # added to the temperature after every retry
AGAIN = "\nPredict the correctness of the answer (digit): "
HEAD = """\
Grade the prediction of an AI model against the truth. The grade is one of 0.0, 0.1, 0.2, ..., 1.0;
0.0 is all wrong and 1.0 all right. Parts of a truth that are joined by <AND> must all be in the
prediction for 1.0; of parts joined by <OR> any one is enough. Write the missing grade of the last
row and nothing else.

Question | Truth | Prediction | Grade
--- | --- | --- | ---
Which fruits are on the table? | apple <AND> pear | two bananas | 0.0
Which fruits are on the table? | apple <AND> pear | There is an apple. | 0.5
Which fruits are on the table? | apple <AND> pear | a pear and a banana | 0.5
Which fruits are on the table? | apple <AND> pear | an apple next to a pear | 1.0
What does the sign say? | stop <OR> halt | It says halt. | 1.0
Why does the child laugh? | The dog wears the hat of the child and has fallen asleep. | A dog \
sleeps near the child. | 0.4
Why does the child laugh? | The dog wears the hat of the child and has fallen asleep. | Because \
the dog is asleep with the child's hat on its head. | 1.0
"""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of one model.

    Attributes:
        capabilities: capability -> 100 * mean grade over the questions that need it, mean of runs.
        integrations: capabilities joined by `_` -> the same over the questions that need just
            these; in the order of `CAPABILITIES`.
        total: 100 * mean grade, mean of runs; None where nothing is graded.
        std: standard deviation of the totals of the runs.
        runs: the totals.
        counts: questions for every capability, integration and `total`.
        needs_judge: ids of questions that lack a grade in some run; they are in no score.
        unknown: graded ids that the metadata does not have; they are in no score.
    """

    capabilities: dict[str, float]
    integrations: dict[str, float]
    total: float | None
    std: float | None
    runs: list[float]
    counts: dict[str, int]
    needs_judge: list[str]
    unknown: list[str]

    def rounded(self) -> dict[str, float | None]:
        """Return the row of the published table: capabilities and total, one decimal."""
        row = {**self.capabilities, "total": self.total, "std": self.std}
        return {name: None if value is None else round(value, 1) for name, value in row.items()}


def official_head(path: str | os.PathLike) -> str:
    """Return the prompt of a text file, or the one in `mm-vet_evaluator.py` or `.ipynb`.

    Nothing of the program is run.

    Raises:
        SgqlmError: there is no file, or no text is given the name `prompt` in it.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            cells = [c["source"] for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            sources = [c if isinstance(c, str) else "".join(c) for c in cells]
        elif path.suffix == ".py":
            sources = [text]
        else:
            return text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong("the prompt of MM-Vet cannot be read", str(path), str(error)) from error
    for source in sources:
        if (found := _assigned(source)) is not None:
            return found
    raise _wrong("the program has no prompt", str(path), "no text is assigned to `prompt`")


def prompt(question: str, answer: str, prediction: str, *, head: str, retry: bool = False) -> str:
    """Return what the judge is asked: the table and its last, unfinished row.

    Args:
        question: of MM-Vet.
        answer: the truth, its parts joined by <AND> or <OR>.
        prediction: the answer of the model.
        head: the table.
        retry: the judge has given something else before.
    """
    spaced = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    row = " | ".join([question, spaced, prediction, ""])
    return f"{head}\n{row}{AGAIN if retry else ''}"


def parse(reply: str) -> float | None:
    """Return the grade at the start of a reply, None if there is none from 0 to 1."""
    try:
        score = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return score if math.isfinite(score) and 0 <= score <= 1 else None


def grade(
    question: str,
    answer: str,
    prediction: str,
    *,
    ask: Callable[[str, float], str],
    head: str = HEAD,
) -> tuple[str, float, bool]:
    """Grade one answer, asking again and warmer where a reply cannot be read.

    The first reply is asked for at temperature 0, and so is the first retry; then the temperature
    rises. The reply to the last retry is kept but not read, as in the official program: the grade
    is then 0.

    Args:
        question: of MM-Vet.
        answer: the truth.
        prediction: the answer of the model.
        ask: gives the reply to a prompt at a temperature.
        head: the table that the prompt begins with.

    Returns:
        The last reply (its first word, if it is a grade), the grade, and whether it was read.
    """
    reply = ask(prompt(question, answer, prediction, head=head), 0.0)
    again = prompt(question, answer, prediction, head=head, retry=True)
    for retry in range(MAX_RETRIES):
        if (score := parse(reply)) is not None:
            return reply.split(" ")[0].strip(), score, True
        reply = ask(again, retry * WARMER)
    return reply, 0.0, False


def unread(entry: Mapping[str, Any]) -> list[int]:
    """Return the runs of an entry of a grade file whose reply was no grade; they count as 0."""
    contents, scores = entry.get("content", ()), entry["score"]
    if len(contents) != len(scores):  # some grades are of a file that holds no replies
        return []
    pairs = enumerate(zip(contents, scores, strict=True))
    return [run for run, (text, score) in pairs if parse(str(text)) != score]


def summarise(
    grades: Mapping[str, Mapping[str, Sequence]],
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    num_runs: int | None = None,
) -> Summary:
    """Return the scores of a grade file.

    Args:
        grades: id -> {model, content, score}, a list entry a run.
        metadata: `mm-vet.json`, id -> {capability, ...}; None for the total alone.
        num_runs: how many runs count; None for all that every question has.

    Raises:
        SgqlmError: a grade is no number from 0 to 1, or there is none at all.
    """
    scores = {key: _scores(key, value) for key, value in grades.items()}
    for key, item in (metadata or {}).items():
        if "capability" not in item:
            raise _wrong("this is not the metadata of MM-Vet", key, "it has no capability")
    expected = list(scores) if metadata is None else list(metadata)
    lengths = [len(scores[key]) for key in expected if scores.get(key)]
    runs = min(lengths, default=0) if num_runs is None else num_runs
    if runs < 1 and lengths:
        raise _wrong("no run can be scored", f"{runs} runs", "at least one is needed")
    done = [key for key in expected if 0 < runs <= len(scores.get(key, []))]
    table = np.array([scores[key][:runs] for key in done]).reshape(len(done), runs)
    sets = [frozenset(metadata[key]["capability"]) if metadata else frozenset() for key in done]
    single: dict[str, list[bool]] = {name: [name in s for s in sets] for name in _names(sets)}
    joint = {joined(names): [s == names for s in sets] for names in dict.fromkeys(sets) if names}
    totals = table.mean(0) * 100 if done else np.zeros(0)
    return Summary(
        {name: float(table[rows].mean() * 100) for name, rows in single.items()},
        {name: float(table[rows].mean() * 100) for name, rows in joint.items()},
        float(totals.mean()) if done else None,
        float(totals.std()) if done else None,
        totals.tolist(),
        {name: sum(rows) for name, rows in {**single, **joint}.items()} | {"total": len(done)},
        [key for key in expected if key not in set(done)],
        [key for key in scores if metadata is not None and key not in metadata],
    )


def _scores(key: str, value: Mapping) -> list[float]:
    try:
        scores = [float(score) for score in value["score"]]
        if all(0 <= score <= 1 for score in scores):
            return scores
        why = f"scores {scores}"
    except (KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    raise _wrong("a grade of MM-Vet cannot be used", key, why)


def _names(sets: Sequence[frozenset]) -> list[str]:
    found = set().union(*sets)
    return [*(n for n in CAPABILITIES if n in found), *sorted(found - set(CAPABILITIES))]


def joined(names: frozenset) -> str:
    """Return the name of a set of capabilities: in the order of `CAPABILITIES`, with `_`."""
    return "_".join(_names([names]))


def _assigned(source: str) -> str | None:
    # a cell may hold shell lines such as `!pip`, which are no Python
    plain = "\n".join("" if line.startswith(("!", "%")) else line for line in source.split("\n"))
    try:
        body = ast.parse(plain).body
    except SyntaxError:
        return None
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "prompt" in names and isinstance(node.value.value, str):
                return node.value.value
    return None


def _wrong(what: str, where: str, why: str) -> errors.SgqlmError:
    fix = "give the files of MM-Vet and a grade file of its form"
    return errors.SgqlmError(what, where=where, why=why, fix=fix, code=errors.DATA)
