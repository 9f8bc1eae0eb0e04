"""Let a judge say which option of MMBench an answer means, where no rule finds one.

The idea is VLMEvalKit's, the words are ours: the judge sees question, options and answer, and names
the letter of the option that means the same, or Z.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgqlm.evals import judge, judged
from sgqlm.evals.metrics import mmbench

TRIES, WARMER = 3, 0.5  # as often as VLMEvalKit; the first time at temperature 0
MAX_TOKENS = 8
HEAD = """\
Somebody answered a multiple-choice question in their own words. Name the option that the answer
means: write its letter and nothing else. If it means none of the options, or several of them,
write Z. Do not answer the question yourself.

Question: What stands in front of the house?
Options:
A. a tree
B. a bicycle
Answer: I can see a big oak there.
Letter: A

Question: What stands in front of the house?
Options:
A. a tree
B. a bicycle
Answer: It is a red car.
Letter: Z
"""


def prompt(row: Mapping[str, Any]) -> str:
    """Return what the judge is asked about a row with `question`, options and `prediction`."""
    options = [f"{letter}. {text}" for letter, text in mmbench.choices_of(row).items()]
    lines = [f"Question: {row.get('question') or ''}", "Options:", *options]
    return "\n".join([HEAD, *lines, f"Answer: {row['prediction']}", "Letter:"])


def letters(
    rows: Sequence[Mapping[str, Any]],
    by: judge.Judge,
    path: str | os.PathLike,
    *,
    parallel: int = 1,
    max_tokens: int | None = MAX_TOKENS,
    retry: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield what the judge makes of every answer, and keep it in a file; see `judged.resume`.

    Args:
        rows: of the table, each with `index` and `prediction`.
        by: the judge.
        path: jsonl file of `index`, `judge`, `rule_hash`, `prompt_hash`, `content` and `letter`,
            which is empty where no reply names an option; made if it is not there.
        parallel: rows that are asked at once.
        max_tokens: of a reply.
        retry: ask again where no reply names an option.

    Raises:
        SgqlmError: the file is of another judge or prompt, or the judge fails.
    """
    by_key = {str(row["index"]): row for row in rows}
    wanted = {
        key: {
            "index": key,
            "judge": by.name,
            "rule_hash": judged.prompt_hash(HEAD),
            "prompt_hash": judged.prompt_hash(prompt(row)),
        }
        for key, row in by_key.items()
    }

    def ask(key: str) -> dict[str, str]:
        row, reply = by_key[key], ""
        message = {"role": "user", "content": prompt(row)}
        for turn in range(TRIES):
            reply = by.complete([message], max_tokens=max_tokens, temperature=turn * WARMER)
            if letter := mmbench.match(reply, mmbench.choices_of(row)):
                return {"content": reply, "letter": letter}
        return {"content": reply, "letter": ""}

    file, fields = pathlib.Path(path), ("index", "letter")
    judged.skip_used(by, judged.used(file, "index"), wanted, ask)
    again = is_unread if retry else None
    yield from judged.resume(wanted, file, ask, fields=fields, parallel=parallel, again=again)


def is_unread(line: Mapping[str, Any]) -> bool:
    """Return whether the judge named neither an option nor Z."""
    return not line["letter"]
