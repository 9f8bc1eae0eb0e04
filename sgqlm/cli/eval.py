"""`sgqlm eval`: send each of its forms to the module that has it."""

from sgqlm.cli import (
    common,
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
    is_named = any(word.partition("=")[0] in ("--tasks", "--task") for word in argv)
    if is_named:
        with common.stoppable("the answers so far are kept"):
            return eval_tasks.run(argv)
    with common.stoppable("without --tasks no answers are kept", "run it again"):
        return eval_scenes.run(argv)
