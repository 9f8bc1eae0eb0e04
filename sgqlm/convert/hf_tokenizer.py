"""Tokenizer files of a Hugging Face folder that give the ids of `sgqlm.text.tokenizer`.

The fast tokenizer cuts text at special tokens and `<image>` and puts a space in front of every
piece, as SentencePiece does. Two habits of LLaVA need more:

| what `sgqlm.text` does | what the file does |
|---|---|
| `USER:` behind `</s>` loses that space (rules `4.31`, `4.37`) | the normaliser takes it back \
from pieces that begin with a role word, which in our templates only follow `</s>` |
| it is `US` `ER` there, and not `USER` (rule `4.31`) | a pre-tokenizer cuts the word there |

Both know the role words of the templates only: any other text behind `</s>` keeps the space.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from sentencepiece import sentencepiece_model_pb2

from sgqlm import errors
from sgqlm.text import templates
from sgqlm.text import tokenizer as tokenizers

PAD = "<pad>"
_SPACE = "\u2581"
_BPE = 2  # ids of the SentencePiece format
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_ROW_MULTIPLE = 64


class ExtraIds(NamedTuple):
    """Ids that a folder adds behind those of the tokenizer."""

    image: int
    pad: int

    @property
    def end(self) -> int:
        """Rows that an embedding with both has at least."""
        return max(self) + 1


def extra_ids(
    tokenizer: tokenizers.Tokenizer | None, *, vocab_size: int, image_token_id: int | None = None
) -> ExtraIds:
    """Return the ids of `<image>` and `<pad>`.

    Args:
        tokenizer: of the model; None where there is none.
        vocab_size: rows of the model's embedding.
        image_token_id: the id that the folder the model came from has for `<image>`; None puts it
            right behind the tokenizer's ids.

    Returns:
        Two ids, neither of which the tokenizer gives to text.

    Raises:
        SgqlmError: `image_token_id` belongs to a piece of the tokenizer.
    """
    if tokenizer is None:
        image = vocab_size if image_token_id is None else image_token_id
        return ExtraIds(image, image + 1)
    first, known = tokenizer.vocab_size, _named(tokenizer)
    image = known.get(templates.IMAGE, first) if image_token_id is None else image_token_id
    if image < first and known.get(templates.IMAGE) != image:
        raise errors.SgqlmError(
            f"the id {image} of {templates.IMAGE} is a piece of the tokenizer",
            why=f"the tokenizer has the ids 0 to {first - 1}",
            fix=f"give an id from {first} on, or none",
            code=errors.CHECKPOINT,
        )
    return ExtraIds(image, known.get(PAD, max(image + 1, first)))


def num_rows(ids: ExtraIds, *, vocab_size: int) -> int:
    """Return the rows of the folder's embedding: those there are, or more in a multiple of 64."""
    if vocab_size >= ids.end:
        return vocab_size
    return -(-ids.end // _ROW_MULTIPLE) * _ROW_MULTIPLE


def files(
    tokenizer: tokenizers.Tokenizer, ids: ExtraIds, *, max_length: int, processor: str
) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json, special_tokens_map.json and tokenizer.model.

    Args:
        tokenizer: of the model.
        ids: of `<image>` and `<pad>`.
        max_length: positions of the model.
        processor: name of the processor class that wraps the tokenizer.

    Returns:
        File name -> content.

    Raises:
        SgqlmError: the SentencePiece model is not like LLaMA's.
    """
    names = {
        "bos_token": tokenizer.surface([tokenizer.bos_id]),
        "eos_token": tokenizer.surface([tokenizer.eos_id]),
        "pad_token": PAD,
        "unk_token": tokenizer.surface([tokenizer.pad_id]),
    }
    added = _added_tokens(tokenizer, ids)
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added
        },
        **names,
        "clean_up_tokenization_spaces": False,
        "legacy": tokenizer.legacy,
        # without it the class below returns token_type_ids too, which LLaVA refuses
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "padding_side": "left",
        "processor_class": processor,
        # The LLaMA classes of transformers 5 replace the normaliser of tokenizer.json by their own.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": as_json(tokenizer_json(tokenizer, ids)),
        "tokenizer_config.json": as_json(config),
        "special_tokens_map.json": as_json(names),
        "tokenizer.model": tokenizer.model_bytes,
    }


def tokenizer_json(tokenizer: tokenizers.Tokenizer, ids: ExtraIds) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    Args:
        tokenizer: of the model.
        ids: of `<image>` and `<pad>`.

    Returns:
        A tree of the `tokenizers` format, version 1.0.

    Raises:
        SgqlmError: the SentencePiece model is not like LLaMA's.
    """
    model = _proto(tokenizer)
    _refuse_other_models(model)
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    added = _added_tokens(tokenizer, ids)
    names = {token["id"]: token["content"] for token in added}
    # ids have no gaps in this format; the fillers are never made of text
    for index in range(len(vocab), ids.end):
        vocab[names.get(index, f"<unused_{index}>")] = index
    symbols = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    bos = tokenizer.surface([tokenizer.bos_id])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(tokenizer),
        "pre_tokenizer": _pre_tokenizer(tokenizer, symbols),
        "post_processor": _start_token(bos, tokenizer.bos_id),
        "decoder": _DECODER,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokenizer.surface([tokenizer.pad_id]),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(piece.type == _BYTE for piece in model.pieces),
            "ignore_merges": bool(symbols),  # symbols are cut out whole and have no merges
            "vocab": vocab,
            "merges": _merges(model),
        },
    }


_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def _proto(tokenizer: tokenizers.Tokenizer) -> Any:
    proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
    return proto.FromString(tokenizer.model_bytes)


def _named(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """Return special tokens, and pieces that are called `<image>` or `<pad>` already."""
    pieces = enumerate(_proto(tokenizer).pieces)
    found = {piece.piece: index for index, piece in pieces if piece.piece in (templates.IMAGE, PAD)}
    return {**found, **tokenizer.special_ids}


def _refuse_other_models(model) -> None:
    spec, text = model.trainer_spec, model.normalizer_spec
    kinds = {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}
    reasons = {
        "it is no BPE model": spec.model_type != _BPE,
        "it rewrites text before cutting it": bool(text.precompiled_charsmap),
        "it joins runs of spaces": text.remove_extra_whitespaces,
        "it puts no space in front of a text": not text.add_dummy_prefix,
        "it does not mark spaces": not text.escape_whitespaces or spec.treat_whitespace_as_suffix,
        "it has unused pieces": any(piece.type not in kinds for piece in model.pieces),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise errors.SgqlmError(
            "the tokenizer cannot be written as a fast Hugging Face tokenizer",
            where="tokenizer.model",
            why="; ".join(found),
            fix="export a model with a LLaMA tokenizer, or one made by sgqlm",
            code=errors.CHECKPOINT,
        )


def _merges(model) -> list[str]:
    """Return every pair of pieces that makes a piece, best first.

    SentencePiece takes the best score and, among equal ones, the leftmost pair. LLaMA's runs of
    spaces all have one score: growing the longest run first is the same as going from the left.
    """
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]

    def rank(pair):
        whole = "".join(pair)
        return -scores[whole], -len(whole), -len(pair[0])

    return [" ".join(pair) for pair in sorted(pairs, key=rank)]


def _added_tokens(tokenizer: tokenizers.Tokenizer, ids: ExtraIds) -> list[dict[str, Any]]:
    tokens = {**tokenizer.special_ids, templates.IMAGE: ids.image, PAD: ids.pad}
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, index in sorted(tokens.items(), key=lambda item: item[1])
    ]


def _heads(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Return how pieces begin that follow a special token and get no space in front."""
    if tokenizer.legacy:
        return []
    heads = [f"{templates.USER}:", f"{templates.VUSER}:"]
    if templates.VUSR_TOKEN in tokenizer.special_ids:
        heads.append(":")
    if tokenizer.rule == "4.37":  # a space that is there already counts as one here
        heads.append(f" {templates.ASSISTANT}:")
    return heads


def _normalizer(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}]
    if heads := _heads(tokenizer):
        choice = "|".join(map(re.escape, heads))
        # \A and not ^, which means the start of any line there
        found = rf"\A{_SPACE}(?={choice})"
        steps.append({"type": "Replace", "pattern": {"Regex": found}, "content": ""})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _pre_tokenizer(
    tokenizer: tokenizers.Tokenizer, symbols: Sequence[str]
) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    heads = _heads(tokenizer)
    if heads:  # at the start of the whole text a role word has its space, as any word
        space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first"}
        steps.append({**space, "split": False})
    steps += [_isolate(cut) for head in heads if (cut := _head_cut(tokenizer, head))]
    if symbols:
        longest_first = sorted(symbols, key=len, reverse=True)
        steps.append(_isolate("|".join(map(re.escape, longest_first))))
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _isolate(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _head_cut(tokenizer: tokenizers.Tokenizer, head: str) -> str | None:
    """Return a pattern for the first token of a role word behind `</s>`, if it is part of it."""
    if tokenizer.rule == "4.37":
        return None
    ids = tokenizer.encode(templates.END + head, bos=False)[1:]
    first = tokenizer.surface(ids[:1])
    if not first or not head.startswith(first):
        return None
    rest = head[len(first) :]
    return rf"\A{re.escape(first)}" + (f"(?={re.escape(rest)})" if rest else "")


def _start_token(bos: str, bos_id: int) -> dict[str, Any]:
    def one(kind: int, name: str) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": kind}},
            {"Sequence": {"id": name, "type_id": kind}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": one(0, "A"),
        "pair": one(0, "A") + one(1, "B"),
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def as_json(tree: Any) -> bytes:
    """Return json as the files of a folder have it: two spaces, text as it is."""
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()
