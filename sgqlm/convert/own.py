"""Our own exports, read back: the very model that was written."""

import functools
import json
import pathlib
from typing import Any

import numpy as np

from sgqlm import config
from sgqlm.convert import hf, hf_config, leaves, names, source, stream, tensors

CARRIED = "carried"  # weights that take no part in the model, kept for an equal export


def is_export(folder: str | pathlib.Path) -> bool:
    """Tell whether a folder was written by `sgqlm export`."""
    return (pathlib.Path(folder) / stream.MANIFEST).is_file()


def read_manifest(folder: str | pathlib.Path) -> dict[str, Any]:
    """Read the manifest of an export whose files are whole.

    Raises:
        SgqlmError: a file is missing, changed or not listed.
    """
    folder = pathlib.Path(folder)
    if not is_export(folder):
        fix = "give a folder that `sgqlm export` wrote"
        raise hf_config.error("this is not an export of sgqlm", folder, fix)
    if faults := stream.verify(folder):
        raise hf_config.error(
            f"the export is damaged in {len(faults)} files",
            folder,
            "export it again, or fetch it again",
            "; ".join(faults[:3]),
        )
    return json.loads((folder / stream.MANIFEST).read_text())


def open_export(folder: str | pathlib.Path) -> source.Source:
    """Open an export of the format `sgqlm` or `llava`.

    A `llava` export has rows more than the model for `<image>` and `<pad>`, and layers behind the
    feature layer; both go again.

    Raises:
        SgqlmError: the export is damaged, or holds adapters only.
    """
    folder = pathlib.Path(folder)
    manifest = read_manifest(folder)
    if manifest["format"] == "peft":
        fix = "import it with `sgqlm import peft ... --onto=CHECKPOINT`"
        raise hf_config.error("this export holds adapters only", folder, fix)
    known = manifest["sgqlm"]
    model = config.from_config_dict(known["model"], config.ModelConfig, "config.model")
    text = config.from_config_dict(known["text"], config.TextConfig, "config.text")
    words = folder / "tokenizer.model"
    if manifest["format"] == "llava":
        found = hf.open_llava(folder)
        shapes = names.param_shapes(model)
        found.leaves = {path: _cut(leaf, shapes[path]) for path, leaf in found.leaves.items()}
    else:
        found = source.Source(model, text, {})
        given = found.files.enter_context(tensors.open_folder(folder))
        entries = names.own_entries(model)
        hf.add(found, given, entries, canonical=lambda name: name, where=folder)
        if (folder / f"{CARRIED}.safetensors").is_file():
            rest = found.files.enter_context(tensors.open_folder(folder, CARRIED))
            for name in rest.names:
                read = functools.partial(rest.read, name)
                found.carried[name] = leaves.Leaf(*rest.info(name), read)
    found.config, found.text = model, text
    found.about = {**known["about"], "format": manifest["format"]}
    found.tokenizer = words.read_bytes() if words.is_file() else b""
    leaves.check_shapes(found.leaves, model, where=str(folder))
    return found


def _cut(leaf: leaves.Leaf, shape: tuple[int, ...]) -> leaves.Leaf:
    if leaf.shape == shape:
        return leaf
    window = tuple(slice(0, size) for size in shape)
    return leaves.Leaf(leaf.dtype, shape, lambda: np.ascontiguousarray(leaf.load()[window]))
