"""Conversation formats: what a list of messages looks like as text, segment by segment."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sgqlm import errors, types

IMAGE = "<image>"
USER, ASSISTANT, VUSER = "USER", "ASSISTANT", "VUSER"
VUSR_TOKEN = "[vusr]"
END = "</s>"

# Lines that tell the form of the answer and not what is asked; never part of a graph prompt.
ANSWER_FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "When the provided information is insufficient, respond with 'Unanswerable'.",
    "Please answer yes or no.",
    "请直接回答选项字母。",
)

_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SELF_QUESTIONING = (  # the released template joins it to the sentence before without a space
    "Also, the artificial intelligence assistant is a curious virtual user. The virtual user "
    "asks complex questions that are relevant to the content in the image, for example, asking "
    "about background knowledge of the objects in the image, asking to discuss about events "
    "happening in the image, etc. Again, do not ask about uncertain details."
)


@dataclasses.dataclass(frozen=True)
class Template:
    """One conversation format.

    Attributes:
        name: `plain`, `vicuna_v1` or `v1_sq`.
        system: the text in front of the first role.
        can_ask: whether the format has the VUSER role.
        drops_opening: an opening gpt message is left out (as upstream does) instead of refused.
    """

    name: str
    system: str = ""
    can_ask: bool = False
    drops_opening: bool = False


class Message(NamedTuple):
    """One message: its role, its text, and text that precedes the role and is never trained."""

    role: Literal["USER", "ASSISTANT", "VUSER"]
    text: str | None  # None: the role is opened and left open
    lead: str = ""


class Segment(NamedTuple):
    """A stretch of rendered text of one kind; `question` is the index of the message it asks."""

    text: str
    kind: int
    question: int | None = None


def get(name: str) -> Template:
    """Return a template by name.

    Raises:
        SgqlmError: there is none of that name.
    """
    known = {
        "plain": Template("plain"),
        "vicuna_v1": Template("vicuna_v1", _VICUNA, drops_opening=True),
        "v1_sq": Template("v1_sq", _VICUNA + _SELF_QUESTIONING, can_ask=True),
    }
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        fix = (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(known)
        raise errors.SgqlmError(f"unknown template {name!r}", fix=fix)
    return known[name]


def render(
    messages: Sequence[Message], *, system: str, vusr_marker: Literal["role", "token"] = "role"
) -> list[Segment]:
    """Lay messages out as `system USER: question ASSISTANT: answer</s>USER: ...`.

    Even messages end with a space and odd ones with `</s>`, whatever their role; a VUSER question
    has its own `</s>` before that space. With an empty system text nothing precedes the first role.

    Args:
        messages: in order; an empty text, as upstream has it, also only opens the role.
        system: system text.
        vusr_marker: the role word `VUSER`, or the special token `[vusr]` in its place.

    Returns:
        Segments whose texts join to the rendered string.
    """
    segments = [Segment(system + " ", types.NOT_TRAINED)] if system else []
    for index, message in enumerate(messages):
        token = message.role == VUSER and vusr_marker == "token"
        head = message.lead + (VUSR_TOKEN if token else message.role) + ":"
        segments.append(Segment(head, types.NOT_TRAINED))
        if message.text is None or not (message.text or message.role == VUSER):
            continue
        body = " " + message.text
        if message.role == ASSISTANT:
            segments.append(Segment(body, types.ANSWER))
        elif message.role == VUSER:
            segments.append(Segment(body + END, types.QUESTION))
        else:
            segments.append(Segment(body, types.NOT_TRAINED, index))
        if index % 2:
            segments.append(Segment(END, types.ANSWER))
        else:
            segments.append(Segment(" ", types.NOT_TRAINED))
    return segments


def image_first(text: str) -> str:
    """Return a message with its `<image>` tags, if any, as one in front on a line of its own."""
    if IMAGE not in text:
        return text
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()


def without_image(text: str) -> str:
    """Return a message without its `<image>` line."""
    return image_first(text).removeprefix(IMAGE).removeprefix("\n")


def graph_prompt(text: str) -> str:
    """Return what a human message asks: no `<image>`, no trailing answer-format lines."""
    lines = text.replace(IMAGE, "").strip().splitlines()
    while lines and (not lines[-1].strip() or lines[-1].strip() in ANSWER_FORMATS):
        lines.pop()
    return "\n".join(lines).strip()
