"""The environments that other tests run in: which Python is taken, and when there is none."""

import pathlib

import pytest

from tests.convert import other_python


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for variable in (
        "TORCH",
        *(name for names in other_python.VARIABLES.values() for name in names),
    ):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def commands(monkeypatch):
    """Record what would be run instead of installing gigabytes; `venv` makes its folder."""
    found = []

    def record(*command, **settings):
        found.append([str(word) for word in command])
        if "venv" in command:
            pathlib.Path(command[-1]).mkdir()
        return "no such package" if "fails" in found[-1] else ""

    monkeypatch.setattr(other_python, "_run", record)
    return found


@pytest.mark.parametrize("major", ["4", "5"])
def test_the_variable_names_the_interpreter(major, monkeypatch, tmp_path):
    for variable in other_python.VARIABLES[major]:
        monkeypatch.setenv(variable, "/usr/bin/other")
        assert other_python.environment(major, tmp_path) == "/usr/bin/other"
        monkeypatch.delenv(variable)


def test_an_environment_is_made_once_and_again_when_a_pin_moves(commands, tmp_path, monkeypatch):
    python = other_python.environment("4", tmp_path)
    assert pathlib.Path(python).is_relative_to(tmp_path)
    _, first, rest = commands
    assert "--index-url" in first and first[-1].startswith("torch==")
    assert {"transformers==4.57.6", first[-1]} < set(rest) and "--index-url" not in rest
    assert any(word.startswith("peft==") for word in rest)
    assert other_python.environment("4", tmp_path) == python and len(commands) == 3
    assert other_python.environment("5", tmp_path) != python and len(commands) == 6
    assert any(word.startswith("transformers==5.") for word in commands[-1])
    monkeypatch.setitem(other_python.WANTED, "5", "transformers==5.0")
    other_python.environment("5", tmp_path)
    assert len(commands) == 9


def test_what_cannot_be_made_is_skipped_with_the_reason(commands, tmp_path, monkeypatch):
    monkeypatch.setitem(other_python.WANTED, "4", "fails")
    with pytest.raises(pytest.skip.Exception, match=r"no environment with fails.*no such package"):
        other_python.environment("4", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    monkeypatch.setenv("TORCH", "none")
    with pytest.raises(pytest.skip.Exception, match="TORCH=none"):
        other_python.environment("5", tmp_path)
