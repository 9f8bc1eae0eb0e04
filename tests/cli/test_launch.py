import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from sgqlm import errors
from sgqlm.cli import launch
from tests import paths

TRAIN = [f"--config={paths.ROOT}/configs/base.py:tiny", "--config.text.system=a  'b'"]


@pytest.mark.parametrize("place", launch.PLACES)
def test_every_place_has_its_launcher_which_explains_itself(place, capsys):
    assert f"--on {place} " in launch.HELP
    words = launch.plan(["--on", place, "--help"]).words
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--workdir" in done.stdout


def test_nothing_is_sent_without_yes():
    shown = launch.plan(["--on", "gpu", "--workdir", "r", "--", *TRAIN])
    assert not shown.is_sent
    assert shown.words[1:] == ["--print", "--workdir", "r", "--", *TRAIN]
    assert shown == launch.plan(["--on=gpu", "--print", "--workdir", "r", "--", *TRAIN])
    sent = launch.plan(["--on", "gpu", "--workdir", "r", "--yes", "--", *TRAIN])
    assert sent.is_sent
    assert sent.words[1:] == ["--workdir", "r", "--", *TRAIN]


def test_words_of_the_run_are_not_taken_for_options():
    words = launch.plan(["--on=local", "--workdir=r", "--", *TRAIN, "--config.text.system=--yes"])
    assert not words.is_sent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--print", "--", *TRAIN], "--on is missing"),
        (["--on"], "--on is missing"),
        (["--on=moon", "--", *TRAIN], "unknown place"),
        (["--on=gpu", "--print", "--yes", "--", *TRAIN], "exclude each other"),
        (["--on=gpu", "--", TRAIN[0], "--config.train.sed=1"], "train.sed"),
        (["--on=gpu", "--", *TRAIN, "stray"], "unknown argument"),
        (["--on=gpu", "--", "--config=configs/none.py"], "no such configuration"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(words, message):
    with pytest.raises(errors.SgqlmError, match=message) as caught:
        launch.plan(words)
    assert caught.value.code == errors.USAGE


def test_without_the_repository(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "a" / "b" / "launch.py"))
    with pytest.raises(errors.SgqlmError, match="launchers are not there"):
        launch.plan(["--on=gpu", "--", *TRAIN])


def test_help(capsys):
    assert launch.run([]) == launch.run(["--help"]) == errors.OK
    assert "--on PLACE" in capsys.readouterr().out


def _sgqlm(folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sgqlm", "launch", *words],
        cwd=folder,
        env={**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(paths.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def _documented():
    text = (paths.ROOT / "docs" / "laptop_to_slice.md").read_text().replace("\\\n", " ")
    return re.findall(r"sgqlm launch (--on .*? -- --config=\S+?)(?:`|\n)", text)


def test_the_page_shows_every_place():
    assert {command.split()[1] for command in _documented()} == set(launch.PLACES)


@pytest.mark.parametrize("command", _documented())
def test_commands_of_the_page_are_accepted(command):
    command = command.replace("--config=...", "--config=configs/base.py:tiny")
    words = shlex.split(command.replace("--config=configs", f"--config={paths.ROOT}/configs"))
    words = ["--print" if word == "--yes" else word for word in words]
    found = launch.plan(words)
    done = subprocess.run(found.words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_shown(tmp_path):
    shown = _sgqlm(tmp_path, "--on", "local", "--workdir", "my run", "--", *TRAIN)
    assert shown.returncode == 0, shown.stderr
    assert "nothing is sent" in shown.stdout
    assert "sgqlm train --config.train.workdir=my\\ run" in shown.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_process_becomes_the_launcher(tmp_path):
    # a real run, which ends at once with the code of sgqlm train
    words = ["--on=local", "--yes", "--workdir=my run", "--", *TRAIN, "--config.train.only=none"]
    sent = _sgqlm(tmp_path, *words)
    assert sent.returncode == errors.USAGE, sent.stderr
    assert "unknown stage 'none'" in sent.stdout
    assert "unknown stage" in (tmp_path / "my run" / "logs" / "process-0.log").read_text()
