import builtins
import errno
import keyword
import os
import signal
import subprocess
import sys
import threading

import pytest

from sgqlm import errors
from sgqlm.cli import doctor, main
from tests import paths


def _fail_with(monkeypatch, error):
    def run(argv):
        raise error

    monkeypatch.setattr(doctor, "run", run)


def test_every_verb_in_the_help_exists():
    shown = main.usage()
    for verb, line in main.VERBS.items():
        assert f"  {verb} " in shown
        assert line in shown
        file = f"{verb}{'_' * keyword.iskeyword(verb)}.py"  # `import` is no name in Python
        assert (paths.ROOT / "sgqlm" / "cli" / file).exists(), verb


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help(words, capsys):
    assert main.main(words) == errors.OK
    assert "usage: sgqlm VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"), [("evla", "sgqlm eval"), ("doctr", "sgqlm doctor"), ("zzz", "known verbs")]
)
def test_unknown_verb_names_the_nearest(word, hint, capsys):
    assert main.main([word]) == errors.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert f"unknown verb '{word}'" in err
    assert hint in err


def test_the_verb_gets_its_words_and_gives_the_code(monkeypatch):
    seen = []
    monkeypatch.setattr(doctor, "run", lambda argv: seen.append(argv) or 75)
    assert main.main(["doctor", "--debug", "--json", "x"]) == 75
    assert seen == [["--json", "x"]]


def test_an_error_is_one_block_without_traceback(monkeypatch, capsys):
    error = errors.SgqlmError("no such record", where="a.json:3", fix="mend it", code=errors.DATA)
    _fail_with(monkeypatch, error)
    assert main.main(["doctor"]) == errors.DATA
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: no such record\n  where: a.json:3\n  fix: mend it\n")


def test_debug_shows_the_traceback(monkeypatch, capsys):
    _fail_with(monkeypatch, errors.SgqlmError("no such record"))
    assert main.main(["doctor", "--debug"]) == errors.USAGE
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "test_main.py" in err


@pytest.mark.parametrize("code", [errors.PREEMPTED, errors.INTERRUPTED])
def test_a_stopped_process_ends_before_python_takes_apart_what_threads_use(code):
    script = f"""
import atexit, os, sys
from sgqlm.cli import doctor, main

class Client:  # as that of XLA, which must not go while a thread compiles
    def __del__(self):
        os.abort()

def run(argv):
    atexit.register(print, "cleaned up")
    doctor.client = Client()
    return {code}

doctor.run = run
sys.argv = ["sgqlm", "doctor"]
sys.exit(main.main())
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    assert (done.returncode, done.stdout) == (code, "cleaned up\n"), done.stderr


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("odd"), main.UNEXPECTED, "unexpected ValueError: odd"),
        (MemoryError(), errors.RESOURCES, "out of memory"),
        (OSError(errno.ENOSPC, "full", "x.bin"), errors.RESOURCES, "where: x.bin"),
        (KeyboardInterrupt(), errors.INTERRUPTED, "interrupted"),
    ],
)
def test_other_errors(error, code, text, monkeypatch, capsys):
    _fail_with(monkeypatch, error)
    assert main.main(["doctor"]) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


def test_a_missing_package_is_told(monkeypatch, capsys):
    real = builtins.__import__

    def without_resource(name, *args, **kwargs):
        if name == "resource":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "sgqlm.cli.doctor")
    monkeypatch.setattr(builtins, "__import__", without_resource)
    assert main.main(["doctor"]) == errors.RESOURCES
    assert "the package resource is not installed" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)  # the first write meets a closed pipe
    done = subprocess.run(
        [sys.executable, "-m", "sgqlm", "--help"],
        cwd=paths.ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (main.BROKEN_PIPE, "")


def test_exit_code_reaches_the_shell():
    done = subprocess.run(
        [sys.executable, "-m", "sgqlm", "nothing"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == errors.USAGE
    assert done.stderr.startswith("error: unknown verb")


def test_an_error_fits_on_one_line():
    error = errors.SgqlmError("no such file", where="a.json", why="it was moved", fix="correct it")
    assert error.line == "no such file (a.json): it was moved; correct it"
    assert errors.SgqlmError("no\n  file").line == "no file"


def test_sigterm_during_the_imports_is_no_failure(monkeypatch, capsys):
    def slow(name):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(1)

    monkeypatch.setattr(main.importlib, "import_module", slow)
    assert main.main(["eval"]) == errors.PREEMPTED
    assert "nothing has begun" in capsys.readouterr().err
