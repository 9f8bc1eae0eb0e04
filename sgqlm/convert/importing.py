"""Models of other programs, by kind."""

import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sgqlm import errors
from sgqlm.convert import hf, leaves, own, source
from sgqlm.models import projector

Kind = Literal["llava", "clip", "llama", "sq-llava", "peft", "sgqlm"]


def open_any(folder: str | pathlib.Path) -> source.Source:
    """Open a Hugging Face LLaVA or an export of ours, whichever lies there.

    Raises:
        SgqlmError: it is neither.
    """
    folder = pathlib.Path(folder)
    return own.open_export(folder) if own.is_export(folder) else hf.open_llava(folder)


def is_model(folder: str | pathlib.Path) -> bool:
    """Tell whether `open_any` knows what lies there."""
    return own.is_export(folder) or hf.is_llava_folder(pathlib.Path(folder))


def add_projector(found: source.Source, *, seed: int) -> None:
    """Give two towers a fresh projector between them.

    Args:
        found: from `hf.open_towers`.
        seed: of the values.
    """
    cfg = found.config
    joined = cfg.vision.width * cfg.projector.merge**2
    made = projector.Projector(cfg.projector, cfg.llm.width).init(
        jax.random.key(seed), jnp.zeros((1, 1, joined)), merge=False
    )
    for path, array in traverse_util.flatten_dict(made["params"], sep="/").items():
        found.leaves[f"projector/{path}"] = leaves.of_array(np.asarray(array))
    found.notes.append(f"the projector is fresh (seed {seed}): train it before you ask anything")


def set_tokenizer(found: source.Source, file: str | pathlib.Path | None) -> None:
    """Take a SentencePiece model instead of the folder's, or say that there is none.

    Raises:
        SgqlmError: the file is missing.
    """
    if file is not None:
        path = pathlib.Path(file)
        if not path.is_file():
            raise errors.SgqlmError(
                "there is no such tokenizer", where=str(path), fix="give a tokenizer.model"
            )
        found.tokenizer = path.read_bytes()
    if not found.tokenizer:
        found.notes.append(
            "the folder has no tokenizer.model: the model gives logits only; import it again with "
            "--tokenizer=FILE to give it one"
        )
