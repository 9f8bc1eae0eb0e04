"""Tokenizer and conversation formats of a sgqlm folder: the ids the model was trained with."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import ClassVar

import sentencepiece
from transformers import PreTrainedTokenizer

IMAGE, IMAGE_TOKEN_ID, GRAPH_TOKEN_ID = "<image>", -200, -201
CONTROL_TOKENS = ("<s>", "</s>", "<unk>")
ANSWER_FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "When the provided information is insufficient, respond with 'Unanswerable'.",
    "Please answer yes or no.",
    "请直接回答选项字母。",
)
_SPACE = "\u2581"
_PLACEHOLDERS = {IMAGE_TOKEN_ID: IMAGE, GRAPH_TOKEN_ID: "<graph>"}
# Protobuf merges repeated messages: these bytes behind a model switch its dummy prefix off.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_IMAGE_LEAD = f"USER: {IMAGE}\n"
_QUESTION = re.compile(r"(?:\A|(?<= )|(?<=</s>))USER: (.*?)(?= ASSISTANT:|\Z)", re.DOTALL)


class SgqlmTokenizer(PreTrainedTokenizer):
    """SentencePiece, cut at special tokens, each piece between them encoded alone.

    Args:
        vocab_file: the SentencePiece model.
        legacy: the piece behind a special token keeps its dummy prefix.
        rule: without `legacy`, how that prefix is dropped: `4.31` cuts it off the first piece,
            `4.37` encodes without it.
        added_tokens: further special tokens; their ids follow those of the model.
    """

    vocab_files_names: ClassVar = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, legacy=False, rule="4.31", added_tokens=(), **kwargs):
        with open(vocab_file, "rb") as file:
            content = file.read()
        self.vocab_file, self.legacy, self.rule = vocab_file, legacy, rule
        self._pieces = _open(content)
        has_bare = rule == "4.37" and not legacy
        self._bare = _open(content + _NO_DUMMY_PREFIX) if has_bare else None
        base, name = self._pieces.vocab_size(), self._pieces.id_to_piece
        own = (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        self.special_ids = {name(i): i for i in own}
        self.special_ids |= {token: base + i for i, token in enumerate(added_tokens)}
        self._special_text = {i: token for token, i in self.special_ids.items()}
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        for key, i in (("unk_token", 0), ("bos_token", 1), ("eos_token", 2), ("pad_token", 0)):
            kwargs.setdefault(key, name(own[i]))
        super().__init__(legacy=legacy, rule=rule, added_tokens=list(added_tokens), **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._pieces.vocab_size() + len(self.special_ids) - 3

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return {self._convert_id_to_token(i): i for i in range(self.vocab_size)}

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text, without a start token, and where in it each token begins."""
        if not self.legacy:
            text = text.replace(_SPACE, " ")
        ids, starts, offset = [], [], 0
        for piece in self._cut.split(text):
            if piece in self.special_ids:
                ids.append(self.special_ids[piece])
                starts.append(offset)
            elif piece:
                new_ids, new_starts = self._encode_piece(piece, is_first=offset == 0)
                ids += new_ids
                starts += [offset + start for start in new_starts]
            offset += len(piece)
        return ids, starts

    def _encode_piece(self, text, *, is_first):
        processor = self._pieces if is_first or self._bare is None else self._bare
        ids, pieces, starts = _spans(processor, text)
        keeps_prefix = self.legacy or self._bare is not None or is_first or text[0] == " "
        if keeps_prefix or not pieces[0].startswith(_SPACE):
            return ids, starts
        if not (bare := pieces[0][1:]):
            return ids[1:], starts[1:]
        return [self._pieces.piece_to_id(bare), *ids[1:]], starts

    def tokenize(self, text, **kwargs):
        """Return the tokens of a text, without a start token."""
        return [self._convert_id_to_token(i) for i in self.encode_with_starts(text)[0]]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        """Put the start token in front."""
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or ())]

    def get_special_tokens_mask(
        self, token_ids_0, token_ids_1=None, already_has_special_tokens=False
    ):
        """Return 1 for special tokens and 0 for text."""
        if not already_has_special_tokens:
            token_ids_0 = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return [int(self._is_special(i)) for i in token_ids_0]

    def convert_tokens_to_string(self, tokens):
        """Join tokens to text."""
        return self._text([self._convert_token_to_id(token) for token in tokens], False)

    def _convert_token_to_id(self, token):
        return self.special_ids.get(token, self._pieces.piece_to_id(token))

    def _convert_id_to_token(self, index):
        if index in self._special_text:
            return self._special_text[index]
        if 0 <= index < self._pieces.vocab_size():
            return self._pieces.id_to_piece(index)
        return _PLACEHOLDERS.get(index, f"<{index}>")

    def _decode(self, token_ids, skip_special_tokens=False, **kwargs):
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self._text([int(i) for i in ids], skip_special_tokens)

    def _text(self, ids, skip_special):
        parts, run = [], []
        for token in [*ids, self._pieces.eos_id()]:
            if not self._is_special(token):
                run.append(token)
                continue
            if run:
                text = self._surface(run)
                has_prefix = self._bare is None or not parts
                parts.append(text[1:] if has_prefix and text.startswith(" ") else text)
                run = []
            parts.append("" if skip_special else self._convert_id_to_token(token))
        return "".join(parts[:-1])

    def _surface(self, ids):
        raw = b""
        for token in ids:
            piece = self._pieces.id_to_piece(token)
            is_byte = self._pieces.is_byte(token)
            raw += bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(_SPACE, " ").encode()
        return raw.decode("utf-8", errors="replace")

    def _is_special(self, token):
        return token in self._special_text or not 0 <= token < self._pieces.vocab_size()

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Copy the SentencePiece model."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = os.path.join(save_directory, prefix + self.vocab_files_names["vocab_file"])
        if os.path.abspath(target) != os.path.abspath(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (target,)


class Prompt(str):
    """A conversation as text that remembers what is asked in it.

    Attributes:
        first: what the first message asks; empty where the model asks it.
        questions: for each question of the user, where it ends in the text, and the question.
    """

    first: str
    questions: tuple[tuple[int, str], ...]

    def __new__(cls, text, first="", questions=()):
        """Make the string and attach the questions."""
        prompt = super().__new__(cls, text)
        prompt.first, prompt.questions = first, tuple(questions)
        return prompt

    def __getnewargs__(self):
        """Copy and pickle with the questions."""
        return str(self), self.first, self.questions


def read_prompt(text: str, template: str) -> Prompt:
    """Find the questions of a conversation that came as a string, by its role words."""
    if isinstance(text, Prompt):
        return text
    if template == "plain":
        return Prompt(text, text)
    found, first = [], None
    for match in _QUESTION.finditer(text):
        is_asked = re.match(rf"{IMAGE}\n(VUSER|\[vusr\]):", match[1])
        question = "" if is_asked else match[1]
        first = question if first is None else first
        if question:
            found.append((match.end(1), question))
    return Prompt(text, first or "", found)


def conversation(
    turns: Sequence[Mapping[str, str]],
    *,
    template: str,
    system: str,
    has_image: bool = True,
    vusr_turns: Sequence[int] = (),
    open_role: str = "assistant",
    vusr_marker: str = "role",
    control_tokens: Sequence[str] = CONTROL_TOKENS,
) -> Prompt:
    """Write a conversation as the model was trained on it, up to where it goes on.

    Args:
        turns: `{"from": "human" | "gpt", "value": str}`; the image goes in front of the first
            question where no turn has `<image>`.
        template: `plain`, `vicuna_v1` or `v1_sq`.
        system: text in front of the first role; empty for none.
        has_image: whether there is an image.
        vusr_turns: indices of human turns that the model asked itself.
        open_role: who speaks next, the `assistant` or the questioner `vuser`.
        vusr_marker: how the questioner is written: `role` (VUSER) or `token` ([vusr]).
        control_tokens: tokens that no text may contain.

    Returns:
        The text.

    Raises:
        ValueError: the turns are no conversation that can be continued.
    """
    turns = list(turns)
    if turns:
        _check_turns(turns, template, has_image, control_tokens)
    if has_image and not any(IMAGE in turn["value"] for turn in turns):
        human = next((i for i, turn in enumerate(turns) if turn["from"] == "human"), -1)
        turns = [
            {**turn, "value": f"{IMAGE}\n{turn['value']}"} if i == human else turn
            for i, turn in enumerate(turns)
        ]
    _check_asked(turns, template, has_image, vusr_turns)
    _check_open(turns, template, has_image, open_role)
    if template == "plain":
        text = _image_first(turns[0]["value"]) + "\n" if turns else IMAGE
        return Prompt(text, text)
    messages = _messages(turns, template, vusr_turns)
    role = "VUSER" if open_role == "vuser" else "ASSISTANT"
    messages.append((role, None, "" if messages else _IMAGE_LEAD))
    return _render(messages, system, vusr_marker)


def graph_question(text: str) -> str:
    """Return what a message asks, without `<image>` and trailing answer-format lines."""
    lines = text.replace(IMAGE, "").strip().splitlines()
    while lines and (not lines[-1].strip() or lines[-1].strip() in ANSWER_FORMATS):
        lines.pop()
    return "\n".join(lines).strip()


def _open(content):
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(content)
    return processor


def _spans(processor, text):
    """Return ids, pieces and first characters of an encoded text."""
    try:
        found = processor.encode(text, return_type="offset_mapping")
    except TypeError:  # before that keyword, sentencepiece gave offsets in its own message
        pieces = processor.encode(text, out_type="immutable_proto").pieces
        return [p.id for p in pieces], [p.piece for p in pieces], [p.begin for p in pieces]
    return list(found["ids"]), list(found["pieces"]), [begin for begin, _ in found["offsets"]]


def _image_first(text):
    if IMAGE not in text:
        return text
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()


def _without_image(text):
    return _image_first(text).removeprefix(IMAGE).removeprefix("\n")


def _opening(turns, template):
    """Return how many opening turns the template leaves out."""
    return int(template == "vicuna_v1" and bool(turns) and turns[0]["from"] == "gpt")


def _messages(turns, template, vusr_turns):
    """Return (role, text, what stands in front of the role) of each turn."""
    found = []
    for index, turn in list(enumerate(turns))[_opening(turns, template) :]:
        text = _image_first(turn["value"])
        if index not in vusr_turns:
            found.append(("USER" if turn["from"] == "human" else "ASSISTANT", text, ""))
        elif text.startswith(IMAGE):
            found.append(("VUSER", _without_image(text), _IMAGE_LEAD))
        else:
            found.append(("VUSER", text, ""))
    return found


def _render(messages, system, vusr_marker):
    text, questions = f"{system} " if system else "", []
    for index, (role, body, lead) in enumerate(messages):
        text += lead + ("[vusr]" if role == "VUSER" and vusr_marker == "token" else role) + ":"
        if body is None:
            continue
        text += " " + body + ("</s>" if role == "VUSER" else "")
        if role == "USER":
            questions.append((len(text), body))
        text += "</s>" if index % 2 else " "
    role, body, _ = messages[0]
    return Prompt(text, body or "" if role == "USER" else "", questions)


def _check_turns(turns, template, has_image, control_tokens):
    for index, turn in enumerate(turns):
        value = turn.get("value")
        if turn.get("from") not in ("human", "gpt") or not isinstance(value, str):
            raise ValueError(f"turn {index} is not {{'from': 'human' or 'gpt', 'value': text}}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(f"turn {index} has half of a surrogate pair")
    start = _opening(turns, template)
    if len(turns) == start or turns[start]["from"] == "gpt":
        raise ValueError("the conversation has to begin with a human turn")
    for index, turn in list(enumerate(turns))[start:]:
        text, who = _image_first(turn["value"]), turn["from"]
        if index > start and who == turns[index - 1]["from"]:
            raise ValueError(f"turns {index - 1} and {index} are both from {who}")
        if not text:
            raise ValueError(f"turn {index} is empty")
        if IMAGE in text and (who == "gpt" or not has_image):
            raise ValueError(f"turn {index}, from {who}, has {IMAGE}, which cannot stand there")
        for token in control_tokens:
            if token in text:
                raise ValueError(f"turn {index} contains the control token {token}")


def _check_asked(turns, template, has_image, vusr_turns):
    if vusr_turns and (template != "v1_sq" or not has_image):
        raise ValueError("only v1_sq conversations about an image have turns asked by the model")
    images = [index for index, turn in enumerate(turns) if IMAGE in turn["value"]]
    for index in vusr_turns:
        is_human = 0 <= index < len(turns) and turns[index]["from"] == "human"
        if not is_human or not _without_image(turns[index]["value"]).strip():
            raise ValueError(f"turn {index} is no question, so the model cannot have asked it")
        if index < images[0] or (index and index in images):
            raise ValueError(f"turn {index} was not asked about an image in front of it")


def _check_open(turns, template, has_image, open_role):
    last = turns[-1]["from"] if turns else None
    if open_role == "vuser":
        if template != "v1_sq" or not has_image or last == "human":
            raise ValueError("the model asks in v1_sq, about an image, after an answer")
    elif template == "plain" and turns:
        if len(turns) > 1:
            raise ValueError("a plain prompt has at most one turn")
    elif last != "human" and not (template == "plain" and has_image):
        raise ValueError("there is no question to answer; end with a human turn")
