"""The command `sgqlm`: finds the verb, runs it, and turns its failure into an exit code."""

import atexit
import contextlib
import difflib
import errno
import importlib
import keyword
import os
import sys
import traceback
from collections.abc import Sequence

import sgqlm
from sgqlm import errors
from sgqlm.cli import common

# verb -> one line of help; the verb lives in sgqlm/cli/<verb>.py as run(argv) -> exit code
VERBS = {
    "quickstart": "train a small model on drawn scenes, test it and write a report",
    "doctor": "check this machine and the installed packages",
    "data": "check, build or show a data set, your own photographs included",
    "entities": "find the entities in images, or show them",
    "plan": "tell what a run needs: memory, hours, price, and whether it fits",
    "train": "train the stages of a configuration",
    "eval": "measure a trained model",
    "study": "measure a data set: CLIPScore of its questions and answers",
    "generate": "answer one prompt about one image",
    "ask": "let the model ask about an image and answer itself",
    "chat": "talk about an image",
    "import": "make a checkpoint of a LLaVA, CLIP and LLaMA, SQ-LLaVA, peft adapter or export",
    "export": "write a model for transformers, peft or vLLM",
    "ckpt": "check checkpoints and exports",
    "replay": "take the steps again that ended a run with exit code 5",
    "launch": "start a training run here, on a cluster or in a cloud",
}
UNEXPECTED = 1
BROKEN_PIPE = 141  # what a shell reports for a process ended by SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `sgqlm`; by default those of the process.

    Returns:
        The exit code, see `sgqlm.errors`.
    """
    if argv is not None:
        return _run(list(argv))
    stopped: list[int] = []
    atexit.register(_end, stopped)  # first: functions of atexit run in reverse order
    code = _run(sys.argv[1:])
    if code in (errors.PREEMPTED, errors.INTERRUPTED):
        stopped.append(code)
    return code


def _end(stopped: list[int]) -> None:
    """End a process that a signal stopped, once all others have done their work at exit.

    XLA compiles in threads of its own. A signal leaves one of them at work, and Python would then
    take away the client that it uses: that ends in a segmentation fault, not in the exit code.
    """
    for code in stopped:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _run(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # the reader has gone; nothing may be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        block = error if isinstance(error, errors.SgqlmError) else _describe(error)
        print(f"error: {block}", file=sys.stderr)
        return block.code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return errors.OK
    verb, *rest = words
    if verb in ("--version", "-V"):
        print(f"sgqlm {sgqlm.__version__}")
        return errors.OK
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        fix = f"did you mean `sgqlm {near[0]}`?" if near else "known verbs: " + ", ".join(VERBS)
        raise errors.SgqlmError(f"unknown verb {verb!r}", where="sgqlm " + " ".join(words), fix=fix)
    module = verb + "_" * keyword.iskeyword(verb)
    with common.stoppable("nothing has begun", "run it again"):  # to import jax takes seconds
        run = importlib.import_module(f"sgqlm.cli.{module}").run
    return run(rest)


def usage() -> str:
    """Return the text of `sgqlm --help`."""
    width = max(map(len, VERBS))
    rows = [f"  {verb:<{width}}  {line}" for verb, line in VERBS.items()]
    return "\n".join(
        [
            f"sgqlm {sgqlm.__version__}: {sgqlm.__doc__}",
            "",
            "usage: sgqlm VERB [arguments]",
            "",
            *rows,
            "",
            "`sgqlm VERB --help` explains one verb. `--debug` shows the traceback of an error.",
        ]
    )


def _describe(error: Exception) -> errors.SgqlmError:
    """Put an error that nobody expected into the form that users see."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("sgqlm"):
        return errors.SgqlmError(
            f"the package {error.name} is not installed",
            fix="run `make setup`; `sgqlm doctor` shows what is optional and how to add it",
            code=errors.RESOURCES,
        )
    if isinstance(error, MemoryError):
        return errors.SgqlmError(
            "out of memory", why=text, fix="use a smaller batch or model", code=errors.RESOURCES
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.SgqlmError(
            "the disk is full",
            where=str(error.filename or ""),
            fix="free some space, then run the same command again",
            code=errors.RESOURCES,
        )
    return errors.SgqlmError(
        f"unexpected {text}",
        why="this is a fault of sgqlm, or of a package it uses",
        fix="run the command again with --debug and report what it prints",
        code=UNEXPECTED,
    )
