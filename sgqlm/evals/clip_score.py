"""CLIPScore of texts about images (Hessel et al., 2021), and of questions against answers."""

import functools
import pathlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.convert import clip
from sgqlm.data import images as image_lib
from sgqlm.data import llava_json
from sgqlm.evals import statistics
from sgqlm.models import clip_text
from sgqlm.text import clip_bpe

WEIGHT = 2.5
_ROWS = 16  # texts of one call; a shorter rest is padded, so that one program is compiled


class Scorer:
    """Scores texts against an image with a CLIP.

    Args:
        folder: of the model, as Hugging Face has it, with its tokenizer.
        prefix: put in front of every text; the authors took "A photo depicts" for captions.

    Attributes:
        num_texts: texts scored so far.
        num_cut: those of them that were longer than the text tower reads (77 tokens) and were cut.

    Raises:
        SgqlmError: the folder is no whole CLIP.
    """

    def __init__(self, folder: str | pathlib.Path, *, prefix: str = ""):
        self._tokenizer = clip_bpe.load(folder)
        self._clip = clip.load(folder)
        if self._clip.end not in (2, self._tokenizer.encode("")[0][-1]):
            told = f"{folder}: eos_token_id {self._clip.end} is not how its tokenizer ends a text; "
            told += "as in transformers, all texts count as their first token, so all are alike"
            print(told, file=sys.stderr)
        self._params = jax.tree.map(jax.numpy.asarray, self._clip.params)
        self._prefix = prefix
        self.num_texts = self.num_cut = 0

    def score(self, image: Image.Image, texts: Sequence[str]) -> list[float | None]:
        """Return the CLIPScore of each text, `WEIGHT` times the cosine, not below 0.

        Args:
            image: RGB, upright; its centre is cut out as CLIP does.
            texts: about the image; an empty one has no score.
        """
        given = [i for i, text in enumerate(texts) if text.strip()]
        out: list[float | None] = [None] * len(texts)
        if not given:
            return out
        rows = self._embed_texts([texts[i] for i in given])
        size = self._clip.vision.image_size
        pixels = image_lib.to_square(image, size, "crop")[None]
        vector = np.asarray(_images(self._params, pixels, config=self._clip.vision))[0]
        for i, cosine in zip(given, rows @ vector, strict=True):
            out[i] = round(WEIGHT * max(float(cosine), 0.0), 5)
        return out

    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        length, found = self._clip.text.max_positions, []
        encoded = [
            self._tokenizer.encode(f"{self._prefix} {text}".strip(), length) for text in texts
        ]
        self.num_texts += len(texts)
        self.num_cut += sum(is_cut for _, is_cut in encoded)
        for start in range(0, len(encoded), _ROWS):
            chunk = encoded[start : start + _ROWS]
            ids = np.zeros((_ROWS, length), np.int32)
            last = np.zeros(_ROWS, np.int32)
            for row, (tokens, _) in enumerate(chunk):
                ids[row, : len(tokens)] = tokens
                last[row] = self._clip.end_of(tokens)
            vectors = _texts(self._params, ids, last, config=self._clip.text)
            found.append(np.asarray(vectors)[: len(chunk)])
        return np.concatenate(found)


def pick(
    data: pathlib.Path, images: pathlib.Path, *, limit: int = 0, seed: int = 0
) -> tuple[list[llava_json.Record], dict[str, int]]:
    """Choose records of a LLaVA json that have an image and a conversation.

    Args:
        data: the json.
        images: its image folder.
        limit: records at most, drawn at random; 0 for all.
        seed: of the draw.

    Returns:
        The records in the order of the file, and counts: `records`, `without_image`, and the
        records left out for each rule that they break.

    Raises:
        SgqlmError: no record has an image that is there.
    """
    scan = llava_json.examine(data, images, decode=False)
    keys = scan.records.keys()
    usable = [number for number, key in enumerate(keys) if key]
    counts = {"records": scan.total, "without_image": len(keys) - len(usable)}
    for fault in scan.faults:
        if fault.drops:
            counts[fault.rule] = counts.get(fault.rule, 0) + 1
    if not usable:
        raise errors.SgqlmError(
            "no record has an image that is there",
            where=f"{data}, images below {images}",
            why=", ".join(f"{name}: {count}" for name, count in counts.items()),
            fix="correct --images; `sgqlm data check` tells more",
            code=errors.DATA,
        )
    if limit and limit < len(usable):
        usable = sorted(random.Random(seed).sample(usable, limit))
    return list(scan.records.pick(usable)), counts


def study(
    records: Sequence[llava_json.Record],
    scorer: Scorer,
    *,
    update: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Compare what questions and answers of conversations have to do with their image.

    Every human turn without `<image>` is a question, every gpt turn an answer.

    Args:
        records: conversations about images.
        scorer: the CLIP.
        update: told how many records are done.

    Returns:
        `images`, `questions` and `answers` (`mean`, `low` and `high` of the 95 % bootstrap interval
        over records, `count`, `cut` at the text tower's length), `difference` (mean over records of
        questions less answers, with interval and `p_value`), `broken` (record -> why its image
        could not be scored).

    Raises:
        SgqlmError: no text could be scored.
    """
    found = {"human": [], "gpt": []}  # pairs (record, score)
    cut, broken, means = {"human": 0, "gpt": 0}, {}, {"human": {}, "gpt": {}}
    for done, record in enumerate(records, 1):
        try:
            image = image_lib.open_image(record.image or "")
        except errors.SgqlmError as error:
            broken[record.id] = str(error.what)
            update(done)
            continue
        for role, scores in found.items():
            before = scorer.num_cut
            given = [s for s in scorer.score(image, texts(record, role)) if s is not None]
            cut[role] += scorer.num_cut - before
            scores.extend((done, score) for score in given)
            if given:
                means[role][done] = float(np.mean(given))
        update(done)
    if not (means["human"] and means["gpt"]):
        raise errors.SgqlmError(
            "there are no questions with answers to score",
            why=f"{len(broken)} of {len(records)} images cannot be read",
            fix="give a json of conversations about images",
            code=errors.DATA,
        )
    return {
        "images": len(records) - len(broken),
        "questions": _summary(found["human"], cut["human"]),
        "answers": _summary(found["gpt"], cut["gpt"]),
        "difference": _difference(means["gpt"], means["human"]),
        "broken": broken,
    }


def texts(record: llava_json.Record, role: str) -> list[str]:
    """Return what one role says in a conversation, without the image's placeholder."""
    said = [turn["value"] for turn in record.turns if turn["from"] == role]
    return [" ".join(text.replace("<image>", " ").split()) for text in said]


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `study` found as lines of text."""
    out = [f"CLIPScore over {found['images']} records"]
    for name in ("questions", "answers"):
        part = found[name]
        out.append(
            f"{name:10} {part['mean']:.4f} [{part['low']:.4f}, {part['high']:.4f}]  "
            f"{part['count']} texts, {part['cut']} of them cut"
        )
    part = found["difference"]
    out.append(
        f"questions less answers {part['mean']:+.4f} [{part['low']:+.4f}, {part['high']:+.4f}], "
        f"p = {part['p_value']:.2g}"
    )
    return out


def _summary(scored: Sequence[tuple[int, float]], cut: int) -> dict[str, Any]:
    groups, values = [group for group, _ in scored], [score for _, score in scored]
    return {**_mean(values, groups), "cut": cut}


def _mean(values: Sequence[float], groups: Sequence[int] | None = None) -> dict[str, Any]:
    found = statistics.bootstrap(values, groups=groups)
    interval = {"mean": found.value, "low": found.low, "high": found.high}
    return {name: round(value, 5) for name, value in interval.items()} | {"count": len(values)}


def _difference(answers: Mapping[int, float], questions: Mapping[int, float]) -> dict[str, Any]:
    both = answers.keys() & questions.keys()
    pairs = [questions[key] - answers[key] for key in sorted(both)]
    return {**_mean(pairs), "p_value": statistics.sign_flip(pairs)}


@functools.partial(jax.jit, static_argnames="config")
def _images(params, pixels, *, config):
    with jax.default_matmul_precision("highest"):  # TPUs and GPUs would round to fewer bits
        return clip_text.embed_images(params, pixels, config=config)


@functools.partial(jax.jit, static_argnames="config")
def _texts(params, ids, last, *, config):
    with jax.default_matmul_precision("highest"):
        return clip_text.embed_texts(params, ids, last, config=config)
