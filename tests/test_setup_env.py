"""The set-up script, against a stand-in Python that records what it is asked to do."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tests import paths

# answers the questions of the script; `-m venv` copies it, `-m pip` is recorded
PYTHON = """#!/bin/sh
case "$1 $2" in
  "-V "*) echo Python 3.{minor}.1 ;;
  *version_info\\ *) exit {too_old} ;;
  *ensurepip*) exit {no_venv} ;;
  *%d.%d*) echo 3.{minor} ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
  "-m pip") shift 2; echo "$@" >> pip.log
    case "$*" in *index-url*) exit {no_index} ;; *{fails}*) echo "{message}" >&2; exit 1 ;; esac ;;
esac
"""
TOOLS = "awk bash cat cksum cp cut dirname du env find grep mkdir rm sed sh sleep tail touch tr"


@pytest.fixture
def place(tmp_path):
    for name in ("setup.py", "constraints", "scripts/setup_env.sh"):
        source, target = paths.ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS.split():
        (tools / tool).symlink_to(shutil.which(tool))
    _script(tools / "df", "#!/bin/sh\necho head\necho disk 1 1 99000000 1 /\n")
    _python(tmp_path)
    return tmp_path


def _script(path: pathlib.Path, text: str):
    path.write_text(text)
    path.chmod(0o755)


def _python(place, *, minor=12, no_venv=0, no_index=0, fails="NOTHING", message=""):
    text = PYTHON.format(
        minor=minor,
        too_old=int(minor < 11),
        no_venv=no_venv,
        no_index=no_index,
        fails=fails,
        message=message,
    )
    _script(place / "bin" / "python3", text)


def _run(place, profile="core", **settings):
    return subprocess.run(
        [place / "scripts" / "setup_env.sh", profile],
        env={"PATH": str(place / "bin"), **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def _pip(place):
    return (place / "pip.log").read_text().splitlines() if (place / "pip.log").exists() else []


def test_core_is_installed_once_with_pins_and_without_torch(place):
    done = _run(place)
    assert done.returncode == 0, done.stderr
    assert "ready after" in done.stdout
    assert _pip(place)[-1].endswith("-c constraints/cpu.txt --no-build-isolation -e .")
    assert not [line for line in _pip(place) if "torch" in line]
    (place / "pip.log").unlink()
    again = _run(place)
    assert (again.returncode, again.stdout, _pip(place)) == (0, "", [])


def test_a_new_pin_or_a_moved_folder_installs_again(place):
    assert _run(place).returncode == 0
    with (place / "constraints" / "cpu.txt").open("a") as pins:
        pins.write("another==1\n")
    (place / "pip.log").unlink()
    assert _run(place).returncode == 0
    assert _pip(place)
    moved = place.parent / "moved"
    place.rename(moved)
    (moved / "pip.log").unlink()
    assert _run(moved).returncode == 0
    assert _pip(moved)


def test_tests_get_torch_from_the_cpu_index(place):
    assert _run(place, "dev").returncode == 0
    extras, first, then = _pip(place)[-3:]
    assert extras.endswith("-e .[dev]")
    assert "--no-deps --index-url https://download.pytorch.org/whl/cpu torch==" in first
    assert "--index-url" not in then
    assert "torch==" in then


def test_without_the_cpu_index_torch_comes_from_the_default_one(place):
    _python(place, no_index=1)
    done = _run(place, "dev")
    assert done.returncode == 0
    assert "from the default index" in done.stdout
    assert "torch==" in _pip(place)[-1]


def test_torch_can_be_left_out_and_added_later(place):
    assert _run(place, "dev", TORCH="none").returncode == 0
    assert not [line for line in _pip(place) if "torch" in line]
    assert _run(place, "dev").returncode == 0
    assert [line for line in _pip(place) if "torch" in line]


def test_another_accelerator_has_its_extra_and_pins(place):
    assert _run(place, ACCEL="cuda").returncode == 0
    assert _pip(place)[-1].endswith("-c constraints/cuda.txt --no-build-isolation -e .[cuda]")


@pytest.mark.parametrize(
    ("python", "settings", "said"),
    [
        ({"minor": 9}, {}, "Python 3.11 or newer is needed, found Python 3.9.1"),
        ({"minor": 9}, {"PYTHON": "python3"}, "PYTHON=python3 is not Python 3.11 or newer"),
        ({"no_venv": 1}, {}, "sudo apt install python3.12-venv"),
        ({}, {"TORCH": "gpu"}, "use TORCH=cpu or TORCH=none"),
        ({}, {"ACCEL": "npu"}, "use cpu, cuda or tpu"),
    ],
)
def test_what_is_missing_is_one_line_with_the_remedy(place, python, settings, said):
    _python(place, **python)
    done = _run(place, **settings)
    assert done.returncode == 6
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (place / ".venv").exists()


def test_a_full_disk_is_told_before_anything_is_made(place):
    _script(place / "bin" / "df", "#!/bin/sh\necho head\necho disk 1 1 1024000 1 /\n")
    done = _run(place)
    assert done.returncode == 6
    assert "not enough disk space: 1000 MB free" in done.stderr
    assert not (place / ".venv").exists()


def test_a_disk_that_fills_up_and_a_failing_network_are_told_apart(place):
    _python(place, fails="-e", message="OSError: No space left on device")
    done = _run(place)
    assert done.returncode == 6
    assert "the disk is full" in done.stderr
    _python(place, fails="-e", message="ConnectionError")
    shutil.rmtree(place / ".venv")
    done = _run(place)
    assert done.returncode == 6
    assert "ConnectionError" in done.stderr
    assert "check the network" in done.stderr
    os.remove(place / ".venv.log")
