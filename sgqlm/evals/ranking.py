"""A model as a classifier: words of a list ranked by their likelihood as the answer."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sgqlm import config as config_lib
from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs
from sgqlm.data.relations import types
from sgqlm.decode import generate, inputs, prefixes, score
from sgqlm.text import conversation

# keys of official files: VG150's VG-SGG-dicts-with-attri.json (numbers from 1), PSG's psg.json
_FIELDS = {
    "predicates": (("idx_to_predicate",), ("predicate_classes",)),
    "objects": (("idx_to_label",), ("thing_classes", "stuff_classes")),
}


class Picture(NamedTuple):
    """What questions of one image share: the model's square, and its entities with coverage."""

    square: Image.Image
    entities: graphs.Entities | None


class Scores(NamedTuple):
    """Log-likelihoods f32[Q, C] of the words after each question, and what they cost."""

    values: np.ndarray
    cost: score.Cost


@dataclasses.dataclass(frozen=True)
class Options:
    """How likelihoods become scores.

    Attributes:
        batch_size: questions that run at once.
        is_calibrated: the log-likelihood of the same words without image and graph is subtracted,
            which takes away what is likely in any image.
        is_per_token: the mean over a word's tokens instead of the sum; long words gain.
    """

    batch_size: int = 64
    is_calibrated: bool = False
    is_per_token: bool = False


class Ranker:
    """Ranks the words of a list as answers to questions about images.

    A word's score is the sum of the log probabilities (float32) of its tokens and of the end token,
    spelled as an answer is in training. Images, questions and common beginnings of words are run
    once, see `decode.score`.

    Args:
        model: the model.
        words: the answers to choose from.
        options: of the scores.
        generator: of the model, for several rankers to share; None makes one.
    """

    def __init__(
        self,
        model: model_lib.VisionLanguageModel,
        words: Sequence[str],
        *,
        options: Options = Options(),
        generator: generate.Generator | None = None,
    ):
        self.words, self.options = tuple(words), options
        self._model = model
        generator = generator or make_generator(model)
        self._scorer = score.Scorer(generator)
        self._choices = score.choices(continuations(words, model.config, model.tokenizer))

    def rank(self, picture: Picture, questions: Sequence[str]) -> Scores:
        """Score every word after every question about one image.

        Args:
            picture: see `open_picture`.
            questions: what is asked.
        """
        rows = [inputs.Row([inputs.human(text)], *picture) for text in questions]
        values, cost = self._score(rows)
        if self.options.is_calibrated:
            blind = [inputs.Row(row.turns) for row in rows]
            without, more = self._score(blind)
            values, cost = values - without, cost + more
        if self.options.is_per_token:
            values = values / self._choices.lengths
        return Scores(values, cost)

    def _score(self, rows: Sequence[inputs.Row]) -> Scores:
        model, size = self._model, self.options.batch_size
        prepared = [inputs.prepare(row, model.config, model.tokenizer) for row in rows]
        longest = max((row.length for row in prepared), default=0)
        values = np.zeros((len(rows), len(self.words)), np.float32)
        cost = score.Cost(0, 0)
        for start in range(0, len(rows), size):
            chunk = prepared[start : start + size]
            full = size if len(rows) > size else generate.power_of_two(len(chunk))
            padded = chunk + chunk[-1:] * (full - len(chunk))
            batch = inputs.collate(padded, generate.bucket(longest), model.config.model)
            values[start : start + size] = self._scorer.score(batch, self._choices)[: len(chunk)]
            lengths = batch.lengths[: len(chunk)]
            cost += score.cost(lengths, prefixes.shared_length(batch), self._choices)
        return Scores(values, cost)


def make_generator(model: model_lib.VisionLanguageModel) -> generate.Generator:
    """Return what runs a model's decoder: adapters merged, layers apart."""
    eos = model.tokenizer.eos_id
    return generate.Generator(model.config.model, model.params, eos_id=eos)


def open_picture(
    model: model_lib.VisionLanguageModel,
    image: Image.Image,
    entities: graphs.Entities | None,
) -> Picture:
    """Do once what is the same for all questions about an image.

    Args:
        model: the model; one that was trained with predicted labels puts them on bare entities.
        image: upright.
        entities: nodes of the graph; None for none.
    """
    cfg = model.config.model
    if entities is None or not cfg.graph.enabled:
        return Picture(model.square(image), None)
    if cfg.graph.labels == "predicted" and cfg.region_words and not any(entities.labels):
        (entities,) = model.tag([image], [entities])
    grid, fit, side = cfg.vision.grid, cfg.image_fit, cfg.vision.image_size
    if graphs.view(grid, fit, image_size=side) not in entities.coverage:
        entities = entities.with_coverage(grid, fit, image_size=side)
    return Picture(model.square(image), entities)


def continuations(
    words: Sequence[str], config: config_lib.Config, tokenizer: Any
) -> list[list[int]]:
    """Return the tokens that an answer has in training, its end token included.

    Args:
        words: the answers.
        config: of the model; its template is used.
        tokenizer: of the model.

    Raises:
        SgqlmError: there is no word, or one cannot be told from the text before it.
    """
    text, question = config.text, inputs.human("?")
    same = {
        "tokenizer": tokenizer,
        "has_image": False,
        "system": text.system,
        "vusr_marker": text.vusr_marker,
    }
    before = conversation.prompt([question], text.template, **same).input_ids
    found = []
    for word in words:
        turns = [question, {"from": "gpt", "value": word}]
        whole = conversation.encode(turns, text.template, **same).input_ids
        if whole[: len(before)] != before or len(whole) == len(before):
            raise errors.SgqlmError(
                f"the tokenizer joins {word!r} with the text before it",
                where="predicates",
                fix="leave this word out",
                code=errors.DATA,
            )
        found.append(whole[len(before) :])
    return found


def read_words(path: str | os.PathLike, kind: str) -> list[str]:
    """Read a list of predicates or objects.

    Args:
        path: a text file with one a line, a json list, or an official file that has them
            (VG-SGG-dicts-with-attri.json, psg.json).
        kind: `predicates` or `objects`.

    Returns:
        Different names in lower case, in the order of the file.

    Raises:
        SgqlmError: the file is missing, or has none.
    """
    path, names = pathlib.Path(path), []
    try:
        text = path.read_text("utf-8-sig")
        names = _from_json(json.loads(text), kind) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise _no_words(path, kind, str(error)) from error
    found = [word for word in dict.fromkeys(map(types.clean, names)) if word]
    if not found:
        raise _no_words(path, kind, "it has none")
    return found


def _from_json(value: Any, kind: str) -> list[str]:
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return value
    for fields in _FIELDS[kind]:
        if isinstance(value, dict) and all(name in value for name in fields):
            parts = [value[name] for name in fields]
            by_number = [
                [part[key] for key in sorted(part, key=int)] if isinstance(part, dict) else part
                for part in parts
            ]
            return [word for part in by_number for word in part]
    known = " or ".join(" and ".join(fields) for fields in _FIELDS[kind])
    raise ValueError(f"no list of strings, and it lacks {known}")


def _no_words(path: pathlib.Path, kind: str, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"there are no {kind} in this file",
        where=f"--{kind}={path}",
        why=why,
        fix="give a text file with one a line, VG-SGG-dicts-with-attri.json or psg.json",
    )
