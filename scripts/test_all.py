"""Run every test, the marked ones too, and write the summary docs/results/tests.md."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "results" / "tests.md"
PACKAGES = ("jax", "flax", "numpy", "pillow", "grain", "torch", "transformers")


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-m", "", f"--junitxml={results}", *arguments]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if results.exists():
            REPORT.parent.mkdir(parents=True, exist_ok=True)
            REPORT.write_text(summary(ElementTree.parse(results).getroot(), arguments))
            print(f"wrote {REPORT.relative_to(ROOT)}")
    return code


def summary(root: ElementTree.Element, arguments: list[str]) -> str:
    cases = list(root.iter("testcase"))
    outcomes = {"failure": [], "error": [], "skipped": []}
    for case in cases:
        for kind in outcomes:
            if (found := case.find(kind)) is not None:
                outcomes[kind].append((name(case), found.get("message", "").splitlines()[:1]))
    failed = outcomes["failure"] + outcomes["error"]
    passed = len(cases) - len(failed) - len(outcomes["skipped"])
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    lines = [
        "# All tests",
        "",
        f"Command: `{' '.join(['make test-all', *arguments])}`",
        "",
        "| | |",
        "|---|---|",
        f"| date | {datetime.date.today().isoformat()} |",
        f"| commit | {commit()} |",
        f"| machine | {os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()} |",
        f"| versions | Python {platform.python_version()}, {versions()} |",
        f"| passed | {passed} |",
        f"| failed | {len(failed)} |",
        f"| skipped | {len(outcomes['skipped'])} |",
        f"| seconds | {seconds:.0f} |",
    ]
    for title, rows in (("Failed", failed), ("Skipped, with the reason", outcomes["skipped"])):
        if rows:
            lines += ["", f"## {title}", ""]
            lines += [f"- `{case}`: {' '.join(why)}" for case, why in rows]
    slowest = sorted(cases, key=lambda case: -float(case.get("time", 0)))[:15]
    lines += ["", "## Slowest", "", "| test | seconds |", "|---|---|"]
    lines += [f"| `{name(case)}` | {float(case.get('time', 0)):.1f} |" for case in slowest]
    return "\n".join(lines) + "\n"


def name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '')}.{case.get('name')}".removeprefix("tests.")


def commit() -> str:
    def git(*words):
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    return (head + (" with local changes" if git("status", "--porcelain") else "")) or "unknown"


def versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
