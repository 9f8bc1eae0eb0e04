"""Files that are there as a whole or not at all."""

import os
import pathlib


def write(path: str | os.PathLike, content: str | bytes) -> pathlib.Path:
    """Write a file in place of what is there, making its folder; return its path.

    Args:
        path: the file; one that is there stays as it is until the new one is whole.
        content: text is written as UTF-8; half a surrogate pair as its escape in json.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(_bytes(content) if isinstance(content, str) else content)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
