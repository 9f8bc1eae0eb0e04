"""SentencePiece tokenizer with the rules LLaVA models were trained under."""

import collections
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import sentencepiece

from sgqlm import errors, types

_SPACE = "\u2581"
_PLACEHOLDERS = {types.IMAGE_TOKEN_ID: "<image>", types.GRAPH_TOKEN_ID: "<graph>"}
# Protobuf merges repeated messages, so these bytes behind a model file set
# normalizer_spec.add_dummy_prefix = false and leave the rest as it is.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"

Rule = Literal["4.31", "4.37"]


class Tokenizer:
    """SentencePiece model plus the slow LLaMA tokenizer rules of transformers.

    Text is cut at special tokens and every piece between them is encoded alone. What happens to
    the dummy prefix of a piece that follows a special token and does not begin with a space:

    | | `</s>USER:` becomes | used by |
    |---|---|---|
    | legacy | `</s>` `▁US` `ER` `:` | early Vicuna |
    | 4.31 | `</s>` `US` `ER` `:` (the ▁ of the first piece is dropped) | SQ-LLaVA, LLaVA-1.5 |
    | 4.37 | `</s>` `USER` `:` (no dummy prefix at all) | LLaVA's later pin |

    Args:
        model: serialized SentencePiece model.
        legacy: the tokenizer's `legacy` flag.
        rule: which release's treatment of the prefix applies when `legacy` is false.
        added_tokens: further special tokens; their ids follow the model's pieces.
    """

    def __init__(
        self,
        model: bytes,
        legacy: bool = False,
        *,
        rule: Rule = "4.31",
        added_tokens: tuple[str, ...] = (),
    ):
        self.model_bytes, self.legacy, self.added_tokens = model, legacy, added_tokens
        self.rule: Rule = rule
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bare = None
        if rule == "4.37" and not legacy:
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        base = self._pieces.vocab_size()
        own = (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        if min(own) < 0:
            raise errors.SgqlmError(
                "the SentencePiece model has no unknown, start or end token",
                fix="use a model with <unk>, <s> and </s>, such as LLaMA's",
            )
        self.special_ids = {self._pieces.id_to_piece(i): i for i in own}
        self.special_ids |= {token: base + i for i, token in enumerate(added_tokens)}
        self._special_text = {i: token for token, i in self.special_ids.items()}
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def __reduce__(self):
        """Pickle by content, so that data workers can hold a tokenizer."""
        return _rebuild, (self.model_bytes, self.legacy, self.rule, self.added_tokens)

    @property
    def bos_id(self) -> int:
        """Id of the start token."""
        return self._pieces.bos_id()

    @property
    def eos_id(self) -> int:
        """Id of the end token."""
        return self._pieces.eos_id()

    @property
    def pad_id(self) -> int:
        """Id that padding takes: the unknown token, as in LLaVA."""
        return self._pieces.unk_id()

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._pieces.vocab_size() + len(self.added_tokens)

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 over the model and the rules: equal digests give equal ids."""
        rules = repr((self.legacy, self.rule, self.added_tokens)).encode()
        return hashlib.sha256(self.model_bytes + b"\0" + rules).hexdigest()

    def with_token(self, token: str) -> "Tokenizer":
        """Return a tokenizer that knows one more special token, such as `[vusr]`.

        Args:
            token: text of the token; its id is the old `vocab_size`.

        Returns:
            The extended tokenizer, or this one when it has the token already.
        """
        if token in self.special_ids:
            return self
        added = (*self.added_tokens, token)
        return Tokenizer(self.model_bytes, self.legacy, rule=self.rule, added_tokens=added)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Tokenise text; `<s>`, `</s>` and added tokens inside it become their ids.

        Args:
            text: any string.
            bos: put the start token in front.

        Returns:
            Token ids.
        """
        ids = self.encode_with_starts(text)[0]
        return [self.bos_id, *ids] if bos else ids

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Tokenise text without a start token and say where each token begins.

        Args:
            text: any string.

        Returns:
            Token ids, and for each the index in `text` of its first character. The space that a
            piece begins with counts: in `a: b` the piece `▁b` starts at 2.
        """
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

    def _encode_piece(self, text: str, *, is_first: bool) -> tuple[list[int], list[int]]:
        processor = self._pieces if is_first or self._bare is None else self._bare
        found = processor.encode(text, return_type="offset_mapping")
        ids, starts = list(found["ids"]), [begin for begin, _ in found["offsets"]]
        keeps_prefix = self.legacy or self._bare is not None or is_first or text[0] == " "
        if keeps_prefix or not found["pieces"][0].startswith(_SPACE):
            return ids, starts
        bare = found["pieces"][0][1:]
        if not bare:
            return ids[1:], starts[1:]
        return [self._pieces.piece_to_id(bare), *ids[1:]], starts

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Turn ids into text.

        Args:
            ids: token ids; image and graph placeholders are allowed, and so are ids that the
                vocabulary does not have (rows a model was padded with).
            skip_special: leave special tokens, placeholders and unknown ids out.

        Returns:
            The text, without the dummy prefix of each run between special tokens.
        """
        parts, run = [], []
        for token in [*map(int, ids), self.eos_id]:
            if not self._is_special(token):
                run.append(token)
                continue
            if run:
                text = self.surface(run)
                has_prefix = self._bare is None or not parts
                parts.append(text[1:] if has_prefix and text.startswith(" ") else text)
                run = []
            parts.append("" if skip_special else self.surface([token]))
        return "".join(parts[:-1])

    def surface(self, ids: Sequence[int]) -> str:
        """Return the characters that the tokens stand for, every space and special token kept.

        Args:
            ids: token ids, placeholders allowed.

        Returns:
            Text such as ` A cat.</s>`, for display.
        """
        raw = b""
        for token in map(int, ids):
            if self._is_special(token):
                raw += self._name(token).encode()
            elif self._pieces.is_byte(token):
                raw += bytes([int(self._pieces.id_to_piece(token)[3:5], 16)])
            else:
                raw += self._pieces.id_to_piece(token).replace(_SPACE, " ").encode()
        return raw.decode("utf-8", errors="replace")

    def _is_special(self, token: int) -> bool:
        return token in self._special_text or not 0 <= token < self._pieces.vocab_size()

    def _name(self, token: int) -> str:
        if token in self._special_text:
            return self._special_text[token]
        return _PLACEHOLDERS.get(token, f"<{token}>")


def load(
    model_file: str | pathlib.Path | bytes, legacy: bool = False, *, rule: Rule = "4.31"
) -> Tokenizer:
    """Load a SentencePiece model.

    Args:
        model_file: path of a `tokenizer.model`, or its content.
        legacy: the `legacy` flag of the tokenizer's configuration.
        rule: treatment of text behind a special token, see `Tokenizer`.

    Returns:
        The tokenizer.

    Raises:
        SgqlmError: the file is missing or is no SentencePiece model.
    """
    where = "" if isinstance(model_file, bytes) else str(model_file)
    try:
        content = model_file if isinstance(model_file, bytes) else _read(model_file)
        return Tokenizer(content, legacy, rule=rule)
    except (OSError, RuntimeError, ValueError) as error:
        raise errors.SgqlmError(
            "the tokenizer cannot be loaded",
            where=where,
            why=str(error),
            fix="give a SentencePiece model file (tokenizer.model)",
        ) from error


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    symbols: Sequence[str] = ("USER", "ASSISTANT", "VUSER"),
) -> bytes:
    """Train a SentencePiece BPE model like LLaMA's: byte fallback, split digits, identity.

    The result depends only on the set of distinct lines. Each symbol is one piece, with and
    without a space in front, so a role word costs one token wherever it stands.

    Args:
        texts: the corpus; line breaks inside a text are always encoded as bytes.
        vocab_size: upper bound; a small corpus gives fewer pieces.
        symbols: words that are never split.

    Returns:
        A serialized model for `load`.

    Raises:
        SgqlmError: the corpus is empty or `vocab_size` leaves no room for characters.
    """
    lines = sorted({line for text in texts for line in text.splitlines() if line.strip()})
    pieces = [form for symbol in symbols for form in (symbol, _SPACE + symbol)]
    room = vocab_size - 3 - 256 - len(pieces)
    if not lines or room < 16:
        why = "the corpus has no text" if not lines else f"{vocab_size - room} ids are fixed"
        fix = "check the data set" if not lines else f"set vocab_size to {vocab_size - room + 64}"
        raise errors.SgqlmError("no tokenizer can be trained", why=why, fix=fix + " or more")
    lines = _common_characters(lines, room // 2)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        user_defined_symbols=pieces,
        required_chars=":",
        character_coverage=1.0,
        max_sentence_length=max(10, *(len(line.encode()) + 1 for line in lines)),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _common_characters(lines: Sequence[str], max_chars: int) -> list[str]:
    """Blank all but the most frequent characters; the others are encoded as bytes."""
    counts = collections.Counter(char for line in lines for char in line)
    rare = {ord(char): " " for char, _ in counts.most_common()[max_chars:]}
    return [line.translate(rare) for line in lines] if rare else list(lines)


def _read(path: str | pathlib.Path) -> bytes:
    return pathlib.Path(path).read_bytes()


def _rebuild(model, legacy, rule, added_tokens):
    return Tokenizer(model, legacy, rule=rule, added_tokens=added_tokens)
