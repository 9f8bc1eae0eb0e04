"""Where tests find material: committed golden files first, then a folder beside the checkout."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
_SHARED = ROOT.parent / "shared"
SHARED = _SHARED if (_SHARED / "fixtures").is_dir() else None


def fixture(name: str) -> pathlib.Path:
    """Return the path of a fixture such as `sq_llava/prompts.json`, or skip the test."""
    if (path := GOLDEN / name).exists():
        return path
    if SHARED and (path := SHARED / "fixtures" / name).exists():
        return path
    pytest.skip(f"needs the fixture {name}, which is not part of the repository")


def shared(name: str) -> pathlib.Path:
    """Return a path beside the checkout such as `real/images`, or skip the test."""
    if SHARED and (path := SHARED / name).exists():
        return path
    pytest.skip(f"needs {name} beside the checkout, which is not part of the repository")
