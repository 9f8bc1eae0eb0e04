"""Which conversations can be trained on with right labels, and why the others cannot.

Each rule stands for a case in which the official programs train wrong text, mask the whole sample
without a word, or stop with an assertion.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sgqlm import errors
from sgqlm.text import templates

CONTROL_TOKENS = ("<s>", templates.END, "<unk>")
_MARKER = " ASSISTANT: "
_SURROGATE = re.compile("[\ud800-\udfff]")


class Fault(NamedTuple):
    """One broken rule; `turn` is an index into the conversation, or None for the whole of it."""

    rule: str
    turn: int | None
    message: str


def faults(
    turns: Sequence[Any],
    *,
    template: str = "vicuna_v1",
    has_image: bool = True,
    for_training: bool = True,
    control_tokens: Collection[str] = CONTROL_TOKENS,
) -> list[Fault]:
    """List every rule that a conversation breaks.

    Args:
        turns: LLaVA turns, `{"from": "human" | "gpt", "value": str}`.
        template: name of the conversation format.
        has_image: whether the sample has an image.
        for_training: also apply the rules that concern labels; off for a prompt, where the last
            answer is open and the image may be put in front by the caller.
        control_tokens: special tokens of the tokenizer, which text may not contain.

    Returns:
        The faults, in order of turns; empty for a good conversation.
    """
    shape = list(_shape_faults(turns))
    if shape:
        return shape
    form = templates.get(template)
    found = list(_order_faults(turns, form, for_training))
    kept = list(enumerate(turns))[opening(turns, form) :]
    found += _image_faults(kept, has_image, for_training)
    found += _text_faults(kept, control_tokens, for_training and form.name != "plain")
    return sorted(found, key=lambda fault: -1 if fault.turn is None else fault.turn)


def opening(turns: Sequence[dict[str, str]], form: templates.Template) -> int:
    """Return how many opening turns the template leaves out (0 or 1)."""
    return int(form.drops_opening and bool(turns) and turns[0]["from"] == "gpt")


def refuse(found: Sequence[Fault]) -> None:
    """Raise for the first fault, if there is one.

    Raises:
        SgqlmError: with exit code `DATA`, naming the rule.
    """
    if not found:
        return
    rule, turn, message = found[0]
    raise errors.SgqlmError(
        f"the conversation breaks the rule {rule!r}: {message}",
        where="" if turn is None else f"turn {turn}",
        why=_REASONS[rule],
        fix="correct or drop the record (`sgqlm data check` lists every such record)",
        code=errors.DATA,
    )


_REASONS = {
    "turn shape": "a turn is {'from': 'human' or 'gpt', 'value': text}",
    "human first": "the separators of this template follow the position of a turn; upstream "
    "swaps them and then ignores the sample",
    "alternating": "each question has one answer; upstream puts the separators in wrong places",
    "answered": "there is nothing to train after the last question; upstream ignores the sample",
    "plain pair": "the plain template has one image and one caption",
    "no empty text": "an empty text loses its separator, and the labels of the sample shift",
    "no control token": "the text would become a token that ends or starts a sequence",
    "no role marker": "it reads as the start of an answer, so user text would be trained",
    "image placeholder": "the text and the images of a sample have to agree",
}


def _shape_faults(turns: Sequence[Any]) -> Iterator[Fault]:
    if isinstance(turns, str) or not isinstance(turns, Sequence) or not turns:
        yield Fault("turn shape", None, "there are no turns")
        return
    for index, turn in enumerate(turns):
        if not hasattr(turn, "get") or turn.get("from") not in ("human", "gpt"):
            yield Fault("turn shape", index, "it is from neither 'human' nor 'gpt'")
        elif not isinstance(turn.get("value"), str):
            yield Fault("turn shape", index, "its value is no text")
        elif _SURROGATE.search(turn["value"]):
            yield Fault("turn shape", index, "its value has half of a surrogate pair")


def _order_faults(turns, form: templates.Template, for_training: bool) -> Iterator[Fault]:
    start = opening(turns, form)
    if len(turns) == start:
        yield Fault("answered", None, "no human turn is left")
        return
    if turns[start]["from"] == "gpt":
        yield Fault("human first", start, "the conversation begins with gpt")
    for index in range(start + 1, len(turns)):
        if turns[index]["from"] == turns[index - 1]["from"]:
            yield Fault("alternating", index, f"two turns in a row are from {turns[index]['from']}")
    if for_training and turns[-1]["from"] == "human":
        yield Fault("answered", len(turns) - 1, "the last turn is from human")
    if for_training and form.name == "plain" and len(turns) != 2:
        yield Fault("plain pair", None, f"there are {len(turns)} turns")


def _image_faults(turns, has_image: bool, for_training: bool) -> list[Fault]:
    rule, tag = "image placeholder", templates.IMAGE
    holders = [(index, turn["from"]) for index, turn in turns if tag in turn["value"]]
    if not has_image:
        return [Fault(rule, index, f"{tag} in a sample without image") for index, _ in holders]
    found = [Fault(rule, i, f"{tag} in an answer") for i, who in holders if who == "gpt"]
    if for_training and not holders:
        found.append(Fault(rule, None, f"the sample has an image and no turn has {tag}"))
    return found


def _text_faults(turns, control_tokens: Collection[str], has_rounds: bool) -> Iterator[Fault]:
    for index, turn in turns:
        text = templates.image_first(turn["value"])
        for token in sorted(control_tokens):
            if token in text:
                yield Fault("no control token", index, f"the text contains {token}")
        if not text:
            yield Fault("no empty text", index, "the text is empty")
        if has_rounds and _has_marker(text, is_human=turn["from"] == "human"):
            yield Fault("no role marker", index, f"the text contains {_MARKER.strip()!r}")


def _has_marker(text: str, *, is_human: bool) -> bool:
    """Tell whether a split at the answer marker would cut the round in another place."""
    if not is_human:
        return _MARKER in text
    question = f"USER: {text}"
    return (question + _MARKER).index(_MARKER) != len(question)
