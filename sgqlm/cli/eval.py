"""`sgqlm eval`: send each of its forms to the module that has it."""

from sgqlm.cli import (
    eval_report,
    eval_scenes,
    eval_score,
    eval_submit,
    eval_tasks,
)


def run(argv: list[str]) -> int:
    """Run `sgqlm eval`; return the exit code."""
    verbs = {
        "score": eval_score.run,
        "submit": eval_submit.run,
        "report": eval_report.run,
        "compare": eval_report.compare,
    }
    if argv[:1] and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    named, others = _tasks(argv)
    if named not in (None, "scenes"):
        return eval_tasks.run(argv)
    return eval_scenes.run(others, is_named=named is not None)


def _tasks(words: list[str]) -> tuple[str | None, list[str]]:
    """Return what --tasks names, None without it, and the words without it."""
    for at, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name in ("--tasks", "--task"):
            end = at + (1 if is_joined else 2)
            value = value if is_joined else "".join(words[at + 1 : end])
            return value, words[:at] + words[end:]
    return None, words
