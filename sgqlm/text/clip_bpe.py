"""CLIP's byte-pair tokenizer, read from the files of a Hugging Face folder."""

import functools
import itertools
import json
import pathlib
import re
import unicodedata
from typing import Any

from sgqlm import errors

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# kinds of characters, one letter each: letters, numbers, space, others
_PIECE = re.compile(r"L+|N|O+")
_CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")


class Tokenizer:
    """Texts to ids as `transformers.CLIPTokenizer` gives them.

    Text is composed (NFC), its white space made single, its letters lower case; pieces are runs of
    letters, single digits, runs of other signs, and the English endings 's 't 're 've 'm 'll 'd.

    Args:
        vocabulary: token -> id.
        merges: pairs of tokens, the first merged first.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]):
        self._ids = vocabulary
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._letters = _byte_letters()
        self._merged = functools.lru_cache(maxsize=50_000)(self._merge)

    def encode(self, text: str, max_length: int = 77) -> tuple[list[int], bool]:
        """Tokenise a text between start and end token.

        Args:
            text: any text.
            max_length: tokens at most, both ends included; the end token stays.

        Returns:
            The ids, and whether the text was cut.
        """
        ids = [self._ids[START]]
        for piece in _pieces(" ".join(unicodedata.normalize("NFC", text).split()).lower()):
            letters = tuple(self._letters[byte] for byte in piece.encode())
            ids.extend(self._merged(letters))
        is_cut = len(ids) > max_length - 1
        return [*ids[: max_length - 1], self._ids[END]], is_cut

    def _merge(self, letters: tuple[str, ...]) -> list[int]:
        parts = [*letters[:-1], letters[-1] + _WORD_END]
        last = len(self._ranks)
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, last))
            if best not in self._ranks:
                break
            joined, at = [], 0
            while at < len(parts):
                is_pair = at + 1 < len(parts) and pairs[at] == best
                joined.append("".join(best) if is_pair else parts[at])
                at += 1 + is_pair
            parts = joined
        unknown = self._ids[END]  # as CLIP has it
        return [self._ids.get(part, unknown) for part in parts]


def load(folder: str | pathlib.Path) -> Tokenizer:
    """Read `vocab.json` and `merges.txt`, or `tokenizer.json`.

    Args:
        folder: of a CLIP model.

    Returns:
        The tokenizer.

    Raises:
        SgqlmError: the files are missing or hold no byte-pair vocabulary of CLIP.
    """
    folder = pathlib.Path(folder)
    vocabulary, lines = folder / "vocab.json", folder / "merges.txt"
    try:
        if vocabulary.is_file() and lines.is_file():
            known = json.loads(vocabulary.read_text("utf-8"))
            rows = [row for row in lines.read_text("utf-8").split("\n") if row.strip()]
            merges = [row.split() for row in rows if not row.startswith("#version")]
        elif (whole := folder / "tokenizer.json").is_file():
            model = json.loads(whole.read_text("utf-8"))["model"]
            known = model["vocab"]
            merges = [row.split() if isinstance(row, str) else row for row in model["merges"]]
        else:
            raise _fault(
                "the tokenizer is missing", folder, "there is no vocab.json with merges.txt"
            )
        pairs = [(first, second) for first, second in merges]
    except (ValueError, KeyError, TypeError) as error:
        raise _fault("the tokenizer cannot be read", folder, f"{error!r}") from error
    if not isinstance(known, dict) or START not in known or END not in known:
        raise _fault("the tokenizer is not CLIP's", folder, f"it has no {START} or {END}")
    return Tokenizer(known, pairs)


def _pieces(text: str) -> list[str]:
    kinds = "".join(map(_kind, text))
    out, at = [], 0
    while at < len(text):
        found = _CONTRACTION.match(text, at) or _PIECE.match(kinds, at)
        if found:
            out.append(text[at : found.end()])
        at = found.end() if found else at + 1
    return out


def _kind(letter: str) -> str:
    if letter.isspace():
        return "S"
    major = unicodedata.category(letter)[0]
    return major if major in "LN" else "O"


def _byte_letters() -> dict[int, str]:
    """Return the printable character that stands for each byte in byte-level vocabularies.

    Printable bytes of Latin-1 stand for themselves, the others, in order, for 256, 257, ...
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + number) for number, byte in enumerate(others)},
    }


def _fault(what: str, where: Any, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        what,
        where=str(where),
        why=why,
        fix="give the complete folder of a CLIP model",
        code=errors.CHECKPOINT,
    )
