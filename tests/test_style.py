"""Formatting, lint, spelling, and what no tool looks for."""

import functools
import pathlib
import re
import subprocess
import sys

import pytest

from tests import paths

TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ".json", ".svg", ".html", ""}
FOLDERS = ("sgqlm", "configs", "scripts", "tests", "docs", "data", "constraints", "launch", ".ci")
THIS = pathlib.Path(__file__)  # holds what it looks for
MACHINE = re.compile(r"(?<![\w.])/(root|work|home/\w+|tmp/\w+)(/|\b(?=[\s'\"`):,]|$))")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplemented")


def _tool(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_format():
    _tool("ruff", "format", "--check", ".")


def test_lint():
    _tool("ruff", "check", ".")


def test_spelling():
    _tool("codespell_lib")


def _files():
    for folder in FOLDERS:
        yield from (p for p in (paths.ROOT / folder).rglob("*") if p.is_file())
    yield from (p for p in paths.ROOT.glob("*") if p.is_file() and not p.name.startswith(".venv"))


@functools.cache
def _lines():
    return list(_each_line())


def _each_line():
    for path in _files():
        if (
            path != THIS
            and path.suffix in TEXT
            and "golden" not in path.parts
            and "__pycache__" not in path.parts
        ):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield f"{path.relative_to(paths.ROOT)}:{number}: {line.strip()[:90]}", line


def test_no_path_of_one_machine():
    assert not [where for where, line in _lines() if MACHINE.search(line)]


def test_nothing_is_left_unfinished():
    assert not [where for where, line in _lines() if UNFINISHED.search(line)]


@pytest.mark.parametrize(
    "line", ["x = '{}work/a'", "see {}root/.cache", "({}home/ann/x)", "cd {}tmp/a"]
)
def test_the_machine_pattern_finds_paths(line):
    assert MACHINE.search(line.format("/"))  # put together here, so that this file names no path


def test_links_between_documents_lead_somewhere():
    broken = []
    for path in [paths.ROOT / "README.md", *(paths.ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", path.read_text()):
            link = target[0] or target[1]
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(paths.ROOT)}: {link}")
    assert not broken


def test_every_page_is_in_the_navigation():
    navigation = (paths.ROOT / "mkdocs.yml").read_text()
    docs = paths.ROOT / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    assert set(re.findall(r"([\w/-]+\.md)$", navigation, flags=re.MULTILINE)) == {
        page
        for page in pages
        if not page.startswith("results/")  # written by programs
    }


def test_large_files_stay_out():
    limit = 2 * 2**20
    assert not [str(p) for p in _files() if pathlib.Path(p).stat().st_size > limit]
