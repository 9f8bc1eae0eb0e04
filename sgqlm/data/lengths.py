"""How long the records of a source can get, so that a batch's length is known before it is made."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sgqlm import config, errors
from sgqlm.data import batch, mixture, sources
from sgqlm.text import conversation

_SELF_ASKED = 8  # tokens that a turn grows by at most when the model asks it


def bounds(
    found: Sequence[sources.Source], encoder: batch.Encoder, *, needed: bool
) -> list[mixture.Bounds]:
    """Return upper bounds of lengths and graph runs of every record of every source.

    They hold for every draw of self-asked turns, and for as many entities as the model takes.

    Args:
        found: sources; one that draws its conversations anew has no bounds.
        encoder: tokenizer and settings.
        needed: whether lengths are needed at all; runs are found with them.

    Returns:
        Bounds of each source. They are kept beside a built data set, where that can be written to.
    """
    after_question = encoder.model.graph.placement == "after_question"
    if not needed and not (encoder.model.graph.enabled and after_question):
        return [mixture.Bounds(None, None)] * len(found)
    return [_bounds(source, encoder) for source in found]


def default_runs(model: config.ModelConfig) -> int:
    """Return R for records whose number of asked turns is not known beforehand."""
    after_question = model.graph.enabled and model.graph.placement == "after_question"
    return 16 if after_question else 1


def _bounds(source: sources.Source, encoder: batch.Encoder) -> mixture.Bounds:
    if source.turns(0) is None:
        return mixture.Bounds(None, None)
    path = source.length_cache(_digest(encoder))
    table = _load(path, len(source))
    if table is None:
        table = np.array([_bound(source, i, encoder) for i in range(len(source))], np.int32)
        _save(path, table)
    return mixture.Bounds(table[:, 0], table[:, 1])


def _bound(source: sources.Source, index: int, encoder: batch.Encoder) -> tuple[int, int]:
    """Return (tokens, runs) of a record; (1, 1) where it is broken and becomes a dummy."""
    model = encoder.model
    try:
        turns, has_image = source.turns(index) or ([], False)
        encoded = encoder.encode_turns(turns, has_image=has_image)
    except (errors.SgqlmError, RuntimeError, ValueError):
        return 1, 1
    nodes = model.graph.num_nodes if model.graph.enabled and has_image else 0
    placement = model.graph.placement
    tokens = conversation.expanded_length(
        encoded, model.num_image_tokens, nodes, placement=placement
    )
    can_grow = encoder.self_questioning > 0 and has_image
    human = sum(turn["from"] == "human" for turn in turns)
    runs = 1 + len(encoded.asked) if placement == "after_question" else 1
    return tokens + (_SELF_ASKED * human if can_grow else 0), runs


def _digest(encoder: batch.Encoder) -> str:
    settings = {
        "model": config.to_dict(encoder.model.graph),
        "image": encoder.model.num_image_tokens,
        "text": config.to_dict(dataclasses.replace(encoder.text, tokenizer="")),
        "tokenizer": encoder.tokenizer.digest,
        "template": encoder.template,
        "asks": encoder.self_questioning > 0,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _load(path: pathlib.Path | None, size: int) -> np.ndarray | None:
    if path is None or not path.is_file():
        return None
    with contextlib.suppress(OSError, ValueError):
        table = np.load(path)
        if table.shape == (size, 2):
            return table
    return None


def _save(path: pathlib.Path | None, table: np.ndarray) -> None:
    if path is None:
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a data set that cannot be written to is only slower
        with open(aside, "wb") as file:
            np.save(file, table)
        aside.replace(path)
