"""Prompts of text-conditioned detectors: labels cut into chunks, and whose tokens are whose.

A detector of the DINO family scores every token of one sentence, "dog. red ball.", so the score of
a label is that of its own tokens, which have to be known exactly.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sgqlm import errors

SEPARATORS = (". ", ", ")  # spaces around the mark make no difference
_ENDS = re.compile(r"[.?\[\]]")  # marks that end a phrase in the model, or name special tokens


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One sentence for the model.

    Attributes:
        ids: token ids, with those at both ends.
        spans: first token, and the one after the last, of each label.
        labels: the labels as they were given.

    Example:
        "dog" and "Red ball" give the tokens [CLS] dog . red ball . [SEP] with the spans (1, 2) and
        (3, 5).
    """

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]
    labels: Sequence[str]


def clean(label: str, separator: str = ". ") -> str:
    """Return a label as the model can read it: lower case, without marks that cut phrases.

    Example:
        "St. Bernard [dog]" becomes "st bernard dog".
    """
    text = _ENDS.sub(" ", label.lower())
    text = text.replace(",", " ") if separator.strip() == "," else text
    return " ".join(text.split())


def prompts(
    labels: Sequence[str], tokenizer: Any, *, budget: int, separator: str = ". "
) -> list[Prompt]:
    """Put labels into as few prompts as their order allows.

    Labels that read the same count once, under the name given first. They are put in alphabetical
    order before they are cut, so that the order in which they come changes nothing.

    Args:
        labels: what to look for; may be empty.
        tokenizer: of the BERT kind.
        budget: tokens of a prompt, with those at both ends.
        separator: between labels; ". " keeps their tokens from attending to one another.

    Returns:
        Prompts; none for no labels.

    Raises:
        SgqlmError: a label names nothing, or has more tokens than a prompt, or there is no such
            separator.
    """
    mark = separator.strip()
    if mark not in [known.strip() for known in SEPARATORS]:
        known = " or ".join(repr(known) for known in SEPARATORS)
        raise errors.SgqlmError(
            f"there is no separator {separator!r}", where="--separator", fix=f"give {known}"
        )
    named: dict[str, str] = {}
    for label in labels:
        named.setdefault(clean(label, separator), label)
    texts = sorted(named)
    tokens = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    for text, ids in zip(texts, tokens, strict=True):
        _check(named[text], len(ids), budget)
    between, stop = tokenizer.convert_tokens_to_ids([mark, "."])
    out, chunk, used = [], [], 2
    for text, ids in zip(texts, tokens, strict=True):
        if used + len(ids) + 1 > budget:
            out.append(_prompt(chunk, tokenizer, between, stop))
            chunk, used = [], 2
        chunk.append((named[text], ids))
        used += len(ids) + 1
    return [*out, _prompt(chunk, tokenizer, between, stop)] if chunk else out


def best(logits: np.ndarray, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the logit and the index of the best label of each query.

    Args:
        logits: f32[Q, T] of the tokens.
        spans: of the labels, at least one.

    Returns:
        f32[Q], the highest logit among the label's own tokens, and int[Q]; the first of equals.
    """
    table = np.stack([logits[:, start:end].max(1) for start, end in spans], 1)
    return table.max(1), table.argmax(1)


def _check(label: str, count: int, budget: int) -> None:
    if count == 0:
        raise errors.SgqlmError(
            f"the label {label!r} names nothing", code=errors.DATA,
            why="no letter or digit is left once marks are taken away",
            fix="leave it out of the labels",
        )  # fmt: skip
    if count + 3 > budget:
        raise errors.SgqlmError(
            f"the label {label[:60]!r} is too long for the detector", code=errors.DATA,
            why=f"it has {count} tokens; a prompt of this model has room for {budget - 3}",
            fix="shorten it or leave it out of the labels",
        )  # fmt: skip


def _prompt(
    chunk: Sequence[tuple[str, Sequence[int]]], tokenizer: Any, between: int, stop: int
) -> Prompt:
    ids, spans = [tokenizer.cls_token_id], []
    for _, tokens in chunk:
        spans.append((len(ids), len(ids) + len(tokens)))
        ids += [*tokens, between]
    return Prompt([*ids[:-1], stop, tokenizer.sep_token_id], spans, [label for label, _ in chunk])
