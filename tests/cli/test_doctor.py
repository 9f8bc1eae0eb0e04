import json

import pytest

from sgqlm import errors
from sgqlm.cli import doctor, main
from tests import paths


def test_this_environment_passes(capsys):
    assert main.main(["doctor"]) == errors.OK
    out = capsys.readouterr().out
    assert "ok    Python" in out
    assert "0 failed" in out


def test_json_is_the_same_list(capsys):
    assert main.main(["doctor", "--json"]) == errors.OK
    rows = json.loads(capsys.readouterr().out)
    assert {"Python", "packages", "jax", "processor", "memory", "disk", "torch"} <= {
        row["name"] for row in rows
    }
    assert all(set(row) == {"name", "state", "found", "fix"} for row in rows)


def test_a_failure_gives_the_code_and_its_remedy(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_all", lambda: [doctor.disk(10), doctor.disk(99 * 2**30)])
    assert doctor.run([]) == errors.RESOURCES
    out = capsys.readouterr().out
    assert "fail  disk" in out
    assert "fix: free at least 1 GiB" in out
    assert "1 failed, 0 warned, 2 checked" in out


@pytest.mark.parametrize(
    ("check", "state"),
    [
        (doctor.python((3, 10, 4)), doctor.FAIL),
        (doctor.python((3, 11, 0)), doctor.OK),
        (doctor.processor(1), doctor.WARN),
        (doctor.processor(2), doctor.OK),
        (doctor.memory(2 * 2**30), doctor.WARN),
        (doctor.memory(16 * 2**30), doctor.OK),
        (doctor.memory(None), doctor.NOTE),
        (doctor.disk(2**29), doctor.FAIL),
        (doctor.disk(2**31), doctor.WARN),
        (doctor.open_files(256), doctor.WARN),
        (doctor.open_files(-1), doctor.OK),
        (doctor.torch(None), doctor.NOTE),
        (doctor.extra("demo", ["no-such-package"]), doctor.NOTE),
        (doctor.extra("demo", ["numpy"]), doctor.OK),
    ],
)
def test_limits(check, state):
    assert check.state == state
    assert check.fix or state != doctor.FAIL


def test_packages_are_compared_with_the_pins():
    numpy = doctor._version("numpy")
    assert doctor.packages(["numpy"], {"numpy": numpy}).state == doctor.OK
    other = doctor.packages(["numpy"], {"numpy": "1.0"})
    assert (other.state, other.found) == (
        doctor.WARN,
        f"not the tested versions: numpy {numpy} instead of 1.0",
    )
    missing = doctor.packages(["numpy", "no-such-package"], {})
    assert (missing.state, missing.found) == (doctor.FAIL, "missing: no-such-package")
    assert doctor.packages([], {}).state == doctor.FAIL


def test_a_local_version_is_the_pinned_one():
    assert doctor.pins("# x\nTorch==2.13.0\na_b.c==1\n") == {"torch": "2.13.0", "a-b-c": "1"}
    assert doctor._public("2.13.0+cpu") == "2.13.0"


@pytest.mark.parametrize("name", ["cpu", "cuda", "tpu"])
def test_constraints_name_exact_versions_and_no_address(name):
    text = (paths.ROOT / "constraints" / f"{name}.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if name != "cpu":
        assert lines.pop(0) == "-c cpu.txt"
    assert doctor.pins(text).keys() == {doctor._canonical(line.split("==")[0]) for line in lines}
    assert "://" not in text
    assert not [line for line in lines if "+" in line]


def test_every_core_requirement_is_pinned():
    text = (paths.ROOT / "constraints" / "cpu.txt").read_text()
    groups = doctor._requirements()
    wanted = groups[""] + groups["dev"] + groups["entities"]
    assert not set(wanted) - set(doctor.pins(text))


def test_a_broken_jax_is_told_in_one_line(monkeypatch):
    import jax

    def broken():
        raise RuntimeError("no device\nlong text")

    monkeypatch.setattr(jax, "devices", broken)
    check = doctor.jax_backend()
    assert (check.state, check.found) == (doctor.FAIL, "does not work: no device")
