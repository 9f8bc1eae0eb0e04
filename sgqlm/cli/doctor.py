"""`sgqlm doctor`: what this machine has, what is missing, and what to do about it."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import sys
from collections.abc import Sequence
from typing import Literal

from sgqlm import errors
from sgqlm.cli import common

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"
SETUP = "run `make setup`"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    state: Literal["ok", "note", "warn", "fail"]
    found: str
    fix: str = ""


def run(argv: list[str]) -> int:
    """Print the table of checks; fail with `RESOURCES` when something needed is missing."""
    parser = common.Parser(prog="sgqlm doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    arguments = parser.parse_args(argv)
    checks = check_all()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        print(table(checks))
    return errors.RESOURCES if any(check.state == FAIL for check in checks) else errors.OK


def check_all() -> list[Check]:
    """Return all checks in the order of the table."""
    requirements = _requirements()
    return [
        python(sys.version_info[:3]),
        packages(requirements.pop("", ()), pins(_constraints())),
        jax_backend(),
        processor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None),
        memory(_memory_bytes()),
        disk(shutil.disk_usage(".").free),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        torch(_version("torch")),
        *(extra(name, wanted) for name, wanted in sorted(requirements.items())),
    ]


def table(checks: Sequence[Check]) -> str:
    """Return the checks as text, the remedy under each one that has any."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"{'':<5} {'':<{width}}  fix: {check.fix}")
    counts = {state: sum(check.state == state for check in checks) for state in (WARN, FAIL)}
    lines.append("extras are optional: pip install -c constraints/cpu.txt -e '.[NAME]'")
    lines.append(f"{counts[FAIL]} failed, {counts[WARN]} warned, {len(checks)} checked")
    return "\n".join(lines)


def python(version: tuple[int, ...]) -> Check:
    """Check the version of the interpreter."""
    found = f"{'.'.join(map(str, version))} in {sys.prefix}"
    if version < (3, 11):
        return Check("Python", FAIL, found, "install Python 3.11 or newer, then `make setup`")
    return Check("Python", OK, found)


def packages(wanted: Sequence[str], pinned: dict[str, str]) -> Check:
    """Check that the needed packages are there, in the versions of the constraints file."""
    installed = {name: _version(name) for name in wanted}
    if not wanted:
        return Check("packages", FAIL, "sgqlm itself is not installed", SETUP)
    if missing := sorted(name for name, version in installed.items() if version is None):
        return Check("packages", FAIL, "missing: " + ", ".join(missing), SETUP)
    if not pinned:
        return Check(
            "packages", NOTE, f"{len(installed)} installed; no constraints file to compare"
        )
    other = [
        f"{name} {version} instead of {pinned[name]}"
        for name, version in sorted(installed.items())
        if name in pinned and _public(version) != pinned[name]
    ]
    if other:
        return Check("packages", WARN, "not the tested versions: " + "; ".join(other), SETUP)
    return Check("packages", OK, f"{len(installed)} installed, in the tested versions")


def jax_backend() -> Check:
    """Check that jax finds devices and computes on them."""
    try:
        import jax
        import jax.numpy as jnp

        devices = jax.devices()
        total = float(jnp.ones((64, 64)).dot(jnp.ones((64, 64))).sum())
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check("jax", FAIL, f"does not work: {reason}", SETUP)
    found = f"{jax.__version__}, {len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    if total != 64.0**3:
        return Check("jax", FAIL, f"{found}, computes wrongly: {total}", "try JAX_PLATFORMS=cpu")
    if devices[0].platform == "cpu" and pathlib.Path("/proc/driver/nvidia").exists():
        return Check("jax", WARN, f"{found}; the NVIDIA GPU is not used", "`make setup ACCEL=cuda`")
    return Check("jax", OK, found)


def processor(cores: int | None) -> Check:
    """Check how many cores this process may use."""
    cores = cores or os.cpu_count() or 1
    found = f"{cores} core{'s' * (cores > 1)}, {platform.machine()}"
    if cores < 2:
        return Check("processor", WARN, found, "expect quickstart to take twice as long")
    return Check("processor", OK, found)


def memory(total: int | None) -> Check:
    """Check the memory that this process may use."""
    if total is None:
        return Check("memory", NOTE, "size unknown")
    if total < 4 * GIB:
        return Check("memory", WARN, f"{total / GIB:.1f} GiB", "quickstart needs about 4 GiB")
    return Check("memory", OK, f"{total / GIB:.1f} GiB")


def disk(free: int) -> Check:
    """Check the free space of the current folder's disk."""
    found = f"{free / GIB:.1f} GiB free here"
    if free < GIB:
        return Check("disk", FAIL, found, "free at least 1 GiB; runs and checkpoints need it")
    if free < 5 * GIB:
        return Check("disk", WARN, found, "enough for small models only")
    return Check("disk", OK, found)


def open_files(limit: int) -> Check:
    """Check how many files may be open at a time: data shards and checkpoints need many."""
    if 0 <= limit < 1024:
        return Check("open files", WARN, str(limit), "`ulimit -n 4096` in this shell")
    unlimited = limit < 0 or limit == resource.RLIM_INFINITY
    return Check("open files", OK, "unlimited" if unlimited else str(limit))


def torch(version: str | None) -> Check:
    """Tell whether torch is there; only entity models and the comparison tests use it."""
    if version is None:
        return Check("torch", NOTE, "not installed; training and answering do not need it")
    return Check("torch", OK, version)


def extra(name: str, wanted: Sequence[str]) -> Check:
    """Tell whether one optional group of packages is complete."""
    missing = sorted(package for package in wanted if _version(package) is None)
    if not missing:
        return Check(f"extra {name}", OK, "installed")
    return Check(f"extra {name}", NOTE, "without " + ", ".join(missing))


def pins(constraints: str) -> dict[str, str]:
    """Return the exact versions that the text of a constraints file names."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", constraints, flags=re.MULTILINE)
    return {_canonical(name): version for name, version in found}


def _constraints() -> str:
    path = pathlib.Path(__file__).resolve().parents[2] / "constraints" / "cpu.txt"
    return path.read_text() if path.exists() else ""


def _requirements() -> dict[str, list[str]]:
    """Return extra -> packages as installed metadata tells; the core is under the empty name."""
    groups: dict[str, list[str]] = {}
    try:
        lines = importlib.metadata.requires("sgqlm") or []
    except importlib.metadata.PackageNotFoundError:
        return groups
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        marker = re.search(r"extra == ['\"](.+?)['\"]", line)
        # the accelerator extras are jax itself; the jax line tells whether they work
        if name and not line.startswith("jax["):
            groups.setdefault(marker.group(1) if marker else "", []).append(_canonical(name[0]))
    return groups


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str | None) -> str:
    return (version or "").split("+")[0]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_bytes() -> int | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")  # a container may have less
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total
