"""Checksums of the files of a folder: listed when it is written, compared when it is read."""

import hashlib
import json
import pathlib
from typing import Any


def sha256(file: pathlib.Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files(folder: pathlib.Path, *, manifest: str) -> dict[str, pathlib.Path]:
    """Return the files below a folder by relative name, the manifest left out."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found.pop(manifest, None)
    return found


def listing(folder: pathlib.Path, *, manifest: str) -> dict[str, dict[str, Any]]:
    """Return checksum and size of every file, as a manifest's `files` holds them."""
    return {
        name: {"sha256": sha256(file), "bytes": file.stat().st_size}
        for name, file in sorted(files(folder, manifest=manifest).items())
    }


def faults(folder: pathlib.Path, *, manifest: str) -> list[str]:
    """Return what is wrong with the files of a folder: missing, not listed, changed."""
    try:
        listed = json.loads((folder / manifest).read_text())["files"]
        sums = {name: (entry["sha256"], entry["bytes"]) for name, entry in listed.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{manifest} cannot be read ({type(error).__name__})"]
    present = files(folder, manifest=manifest)
    found = [f"{name} is missing" for name in sorted(set(sums) - set(present))]
    found += [f"{name} is not listed" for name in sorted(set(present) - set(sums))]
    for name in sorted(set(sums) & set(present)):
        file = present[name]
        if (sha256(file), file.stat().st_size) != sums[name]:
            found.append(f"{name} has changed")
    return found
