"""Where the weights of a backend lie, what they are, and on what they run."""

import hashlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

from sgqlm import errors
from sgqlm.data import records

_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".json", ".txt", ".model")


def locate(weights: str, flag: str) -> str:
    """Return a folder or file of weights, or a hub id (`owner/name`), as loaders take it.

    Args:
        weights: what the user gave.
        flag: the setting, for messages.

    Raises:
        SgqlmError: nothing was given, or it is neither.
    """
    if not weights:
        raise errors.SgqlmError(
            "the weights of a model are not named",
            where=flag,
            fix="give a folder with the model, or its hub id as owner/name",
        )
    if pathlib.Path(weights).exists() or _HUB.fullmatch(weights):
        return weights
    raise errors.SgqlmError(
        f"there are no weights {weights}",
        where=flag,
        fix="give a folder with the model, or its hub id as owner/name",
    )


def identity(weights: str) -> dict[str, str]:
    """Return what names these weights in a manifest: `id` and, of local files, `sha256`.

    The digest is one of the names and contents of all files of the model; where they lie does not
    enter it.
    """
    path = pathlib.Path(weights)
    if not path.exists():
        return {"id": weights}
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    parts = [f"{p.name}:{records.file_digest(p)}" for p in files if p.suffix in _WEIGHTS]
    return {"id": path.name, "sha256": hashlib.sha256("\n".join(parts).encode()).hexdigest()}


def device(name: str = "auto") -> Any:
    """Return the torch device called `name`; `auto` takes a GPU where there is one.

    Raises:
        SgqlmError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise errors.SgqlmError(
            f"there is no device {name!r}", why=why, fix="give auto, cpu or cuda"
        ) from error
    return found


def dtype(name: str, where: Any) -> Any:
    """Return a torch dtype; `auto` is bfloat16 on a GPU that computes in it, else float32."""
    import torch

    if name == "auto":
        fast = where.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def load(make: Callable[[str], Any], weights: str, flag: str) -> Any:
    """Call a `from_pretrained`, and say plainly what is wrong if it fails.

    Args:
        make: a loader of transformers, with its options bound (`functools.partial`).
        weights: of `locate`.
        flag: the setting, for messages.

    Raises:
        SgqlmError: the files are missing or do not fit, or the hub cannot be reached.
    """
    import safetensors

    broken = (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError)
    try:
        return make(weights)
    except broken as error:
        why = " ".join(str(error).split())[:300]
        raise errors.SgqlmError(
            f"the model {weights} cannot be loaded", where=flag, why=why,
            fix="give a folder that transformers' save_pretrained wrote, or a hub id that can be "
            "reached from here", code=errors.CHECKPOINT,
        ) from error  # fmt: skip
