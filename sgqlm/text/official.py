"""Labels as the official programs compute them, faults included, for `compat="official"`.

LLaVA (c121f043) and SQ-LLaVA (e4baa2f) tokenise each round again and subtract constants from its
length instead of following the segments. Where their arithmetic goes wrong, so does this module:
that is its purpose.
"""

from collections.abc import Callable, Sequence

from sgqlm import types
from sgqlm.text import templates
from sgqlm.text import tokenizer as tokenizers

MAX_LENGTH = 2048  # model_max_length of every released run

_MARKER = " ASSISTANT: "
_ASKED_HEADER = "VUSER: "  # assumed of every round that has no answer


def round_labels(
    ids: Sequence[int],
    text: str,
    *,
    template: str,
    tokenizer: tokenizers.Tokenizer,
    count: Callable[[str], int],
    max_length: int,
) -> list[int]:
    """Label a multi-turn sample by the lengths of its rounds.

    Args:
        ids: token ids of the sample, already cut if it is text-only.
        text: the rendered conversation.
        template: `vicuna_v1`, where a malformed round ends the labelling, or `v1_sq`, where it
            counts as a question of the model.
        tokenizer: the tokenizer of `ids`.
        count: number of tokens of a string, start token and image placeholders included.
        max_length: length from which the check of the sum is left out.

    Returns:
        Labels; all ignored when the lengths do not add up.
    """
    labels = list(ids)
    labels[0] = types.IGNORE
    # Releases that encode without a dummy prefix count one token too many in later rounds.
    surplus = int(tokenizer.rule == "4.37" and not tokenizer.legacy)
    position = 1
    for index, turn in enumerate(text.split(templates.END)):
        if not turn:
            break
        parts = turn.split(_MARKER)
        if len(parts) == 2:
            masked = count(parts[0] + _MARKER) - 2
        elif template == "v1_sq":
            masked = count(_ASKED_HEADER) - 2
        else:
            break
        length = count(turn)
        if index:
            length, masked = length - surplus, masked - surplus
        end = min(position + masked, len(labels))
        labels[position:end] = [types.IGNORE] * (end - position)
        position += length
    kept = min(position, len(labels))
    labels[kept:] = [types.IGNORE] * (len(labels) - kept)
    if position < max_length and position != sum(token != tokenizer.pad_id for token in ids):
        return [types.IGNORE] * len(labels)
    return labels


def messages(
    turns: Sequence[dict[str, str]], *, template: str, vusr_turns: Sequence[int]
) -> list[templates.Message]:
    """Turn a conversation into messages without checking it.

    An opening gpt turn is dropped by `vicuna_v1` and kept by `v1_sq`.
    """
    skip = int(template != "v1_sq" and turns[0]["from"] == "gpt")
    found = []
    for index, turn in enumerate(turns[skip:], start=skip):
        role = templates.USER if turn["from"] == "human" else templates.ASSISTANT
        if index in vusr_turns:
            role = templates.VUSER
        found.append(templates.Message(role, turn["value"]))
    return found
