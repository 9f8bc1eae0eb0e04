"""sgqlm as a model of lmms-eval, which finds it by `lmms_eval_plugin`.

lmms-eval is another protocol than that of the papers, see docs/lmms_eval.md. Nothing of it is
imported before the class `Sgqlm` is asked for, so the core installs without it.
"""

import collections
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import images
from sgqlm.decode import generate, inputs, sample, score
from sgqlm.evals import (
    benchmark,
    lmms_eval_entities,
    lmms_eval_plugin,
    ranking,
    self_questioning,
)
from sgqlm.train import progress

# what a task may ask for that has no effect on an answer unless it differs from this
_NEUTRAL = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}
_USED = {"max_new_tokens", "until", "do_sample", "temperature", "top_p", "top_k"}
_LENGTH_UNIT = 16  # likelihood programs are compiled for multiples of so many tokens


def __getattr__(name: str) -> Any:
    """Make `Sgqlm` when lmms-eval asks for it: its base class imports torch."""
    if name == "Sgqlm":
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _model_class() -> type:
    base = lmms_eval_plugin.library("api.model").lmms
    return type("Sgqlm", (Adapter, base), {"__doc__": Adapter.__doc__, "__module__": __name__})


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing to be answered, in our terms.

    Attributes:
        text: what the user says.
        where: task, split and number of the document, for messages.
        document: of the task.
        visuals: returns the pictures, not called before they are needed.
        options: lmms-eval's `generation_kwargs`.
        repeat: how many requests of the same document came before.
        turn: how many rounds of the request came before.
    """

    text: str
    where: str
    document: Mapping[str, Any]
    visuals: Callable[[], Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeat: int = 0
    turn: int = 0

    def draws(self, seed: int) -> tuple[int, int]:
        """Return what `respond` draws with: it depends on no other request."""
        return self_questioning.seed_of(seed, f"{self.where}, round {self.turn}"), self.repeat


class Adapter:
    """A vision-language model of sgqlm as lmms-eval calls it, without lmms-eval's base class.

    The arguments are those of `--model_args`, as `pretrained=PATH,entities=none`.

    Args:
        pretrained: checkpoint, export or work directory, as of `sgqlm.load`.
        base: where the base weights lie, if they were moved.
        template: of the conversation, with its own system text; `trained` for both of the model.
        entities: nodes of the scene graph. `none`: without them; `extract`: found in each picture
            while it runs; else the store that `sgqlm entities extract` wrote. A model with a graph
            needs a choice.
        image_key: field of a task's documents that names the image in the store.
        extractor: of `entities=extract`: a preset, or a JSON object of its settings.
        batch_size: rows that run at once.
        max_new_tokens: of tasks that name no number.
        mesh: JSON object of axis sizes, as `{"data": 4, "tensor": 2}`; empty for one device.
        seed: of random draws.
        device: nothing but the platform that jax has found already.
        max_batch_size: of automatic batch sizes, which are refused.

    Raises:
        SgqlmError: an argument does not fit, or the model cannot be opened.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        base: str | None = None,
        template: str = "vicuna_v1",
        entities: str = "",
        image_key: str = "",
        extractor: str = "regions",
        batch_size: int | str = 1,
        max_new_tokens: int = 128,
        mesh: str = "",
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not pretrained:
            raise lmms_eval_plugin.wrong(
                "pretrained", "there is no model to measure", "give pretrained=PATH"
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or max_batch_size is not None:
            raise lmms_eval_plugin.wrong(
                "batch_size", f"{batch_size!r} is no batch size", "give --batch_size 8"
            )
        if int(max_new_tokens) < 1:
            raise lmms_eval_plugin.wrong(
                "max_new_tokens", f"{max_new_tokens} is too few", "give 1 or more"
            )
        _check_place(device)
        self.task_dict: dict[str, Any] = {}
        self.batch_size, self.seed = int(batch_size), int(seed)
        self._max_new_tokens, self._told = int(max_new_tokens), set()
        model = model_lib.load(
            str(pretrained), base=base, mesh=lmms_eval_plugin.json_object("mesh", mesh) or None
        )
        self.model = benchmark.with_template(model, template)
        has_graph = model.config.model.graph.enabled
        self._find = (
            lmms_eval_entities.finder(str(entities), image_key, extractor) if has_graph else None
        )
        if has_graph and not entities:
            raise lmms_eval_plugin.wrong(
                "entities",
                "the model has a scene graph, and there are no entities",
                "give entities=extract, entities=STORE,image_key=FIELD, or entities=none to "
                "measure the model without its graph",
            )

    @functools.cached_property
    def _generator(self) -> generate.Generator:
        return ranking.make_generator(self.model)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer requests of the form (context, options, doc_to_visual, doc_id, task, split).

        Args:
            requests: lmms-eval's instances.

        Returns:
            One text a request. Where the picture or the length of the prompt is at fault it is
            empty, and a line on stderr says so.

        Raises:
            SgqlmError: the task needs what the model does not have, such as several pictures.
        """
        found = []
        for context, options, doc_to_visual, number, task, split in (r.args for r in requests):
            found.append(self._request(context, options, doc_to_visual, number, task, split))
        return self._answer(_numbered(found))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer requests round by round; each round is a prompt of its own.

        Args:
            requests: as of `generate_until`, with `doc_to_text` before the document's number. It is
                given the answers so far and returns (visuals, context, is_over, answers, info).

        Returns:
            The answers of each request, one a round.
        """
        asked, following = [], []
        for instance in requests:
            context, options, doc_to_visual, doc_to_text, number, task, split = instance.args
            asked.append(self._request(context, options, doc_to_visual, number, task, split))
            following.append(doc_to_text)
        asked = _numbered(asked)
        answers: list[list[str]] = [[] for _ in requests]
        memory: list[Any] = [None] * len(asked)
        active, turn = list(range(len(asked))), 0
        while active:
            texts, turn, still = self._answer([asked[at] for at in active]), turn + 1, []
            for at, text in zip(active, texts, strict=True):
                visuals, context, is_over, said, memory[at] = following[at](
                    asked[at].document,
                    previous_output=[*answers[at], text],
                    round_idx=turn,
                    previous_round_info=memory[at],
                )
                answers[at] = list(said)
                if not is_over:
                    asked[at] = dataclasses.replace(
                        asked[at], text=context, visuals=lambda seen=visuals: seen, turn=turn
                    )
                    still.append(at)
            active = still
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Score continuations (context, continuation, doc_to_visual, doc_id, task, split).

        Args:
            requests: lmms-eval's instances.

        Returns:
            (number, is_greedy) each, in `GenerationResult`, since lmms-eval turns any bare pair
            into a string. `is_greedy`: the model's own answer is the continuation. The number is
            the mean negative log-likelihood of the tokens, the end included, for a continuation
            that is given as a text: lmms-eval takes the choice with the smallest. For one that is
            a function of the document it is their log-likelihood, of which lmms-eval makes a
            perplexity.

        Raises:
            SgqlmError: the task asks for likelihoods without a document (acc_mutual_info).
        """
        found, targets, is_loss = [], [], []
        for args in (instance.args for instance in requests):
            if len(args) != 6:
                raise errors.SgqlmError(
                    "likelihoods without a document are not supported",
                    where="acc_mutual_info",
                    fix="take the metric acc",
                )
            context, target, doc_to_visual, number, task, split = args
            request = self._request(context, {}, doc_to_visual, number, task, split)
            found.append(request)
            is_loss.append(isinstance(target, str))
            targets.append(str(target(request.document)) if callable(target) else target)
        pairs = self._score(found, targets, is_loss)
        return [_whole(pair) for pair in pairs]

    def _request(self, context, options, doc_to_visual, number, task, split) -> Request:
        document, where = self.task_dict[task][split][number], f"{task}/{split}, document {number}"
        if not isinstance(context, str):
            raise errors.SgqlmError("the context is no text", where=where)
        visuals = functools.partial(doc_to_visual, document) if doc_to_visual else list
        return Request(context, where, document, visuals, dict(options))

    def _answer(self, requests: Sequence[Request]) -> list[str]:
        groups: dict[tuple, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(self._settings(request), []).append(at)
        texts, done = [""] * len(requests), 0
        with progress.Progress("lmms-eval", len(requests)) as bar:
            for (room, sampling), group in groups.items():
                # the longest first: what is too long is told at once, and the time left holds
                group.sort(key=lambda at: -len(requests[at].text))
                for start in range(0, len(group), self.batch_size):
                    chunk = group[start : start + self.batch_size]
                    rows = {at: row for at in chunk if (row := self._row(requests[at], room))}
                    said = self.model.respond(
                        list(rows.values()),
                        max_new_tokens=room,
                        sampling=sampling,
                        draws=[requests[at].draws(self.seed) for at in rows],
                        batch_size=self.batch_size,
                    )
                    for at, text in zip(rows, said, strict=True):
                        texts[at] = _cut(text, requests[at].options.get("until"))
                    done += len(chunk)
                    bar.update(done)
        return texts

    def _settings(self, request: Request) -> tuple[int, sample.Sampling]:
        """Return the new tokens and the way of drawing that a request asks for."""
        options = {key: value for key, value in request.options.items() if value is not None}
        for key, neutral in _NEUTRAL.items():
            if options.get(key, neutral) not in (neutral, False):
                raise errors.SgqlmError(
                    f"{key}={options[key]} is not supported",
                    where=request.where,
                    fix=f"give --gen_kwargs {key}={neutral}",
                )
        for key in options.keys() - _USED - _NEUTRAL.keys():
            self._tell(f"{request.where.split(',')[0]}: {key}={options[key]} is not used")
        temperature = float(options.get("temperature", 1 if options.get("do_sample") else 0))
        top_p, top_k = float(options.get("top_p", 1)), int(options.get("top_k", 0))
        if temperature <= 0 or options.get("do_sample") is False:
            sampling = sample.Sampling()
        else:
            sampling = sample.Sampling(temperature, top_k, top_p)
        room, config = int(options.get("max_new_tokens", self._max_new_tokens)), self.model.config
        most = config.model.llm.max_positions
        if room < 1 or config.model.num_image_tokens + room >= most:
            raise errors.SgqlmError(
                f"{room} new tokens are asked for, but the model has {most} positions, "
                f"{config.model.num_image_tokens} of them for an image",
                where=request.where,
                fix="give --gen_kwargs max_new_tokens=256, or another number that fits",
            )
        return room, sampling

    def _row(self, request: Request, room: int) -> inputs.Row | None:
        """Return what the model sees; None where it cannot see this document, which is told."""
        found = _pictures(request)
        try:
            image = images.open_image(found[0]) if found else None
            nodes = None
            if image is not None and self._find is not None:
                nodes = self._find(image, request.document, request.where)
            row = inputs.Row([inputs.human(request.text)], image, nodes)
            length = inputs.prepare(row, self.model.config, self.model.tokenizer).length
            if length + room > (most := self.model.config.model.llm.max_positions):
                raise errors.SgqlmError(
                    f"{length} tokens and {room} new ones are more than the {most} positions"
                )
        except errors.SgqlmError as error:
            if error.code not in (errors.USAGE, errors.DATA) or isinstance(
                error, lmms_eval_entities.NoEntities
            ):
                raise
            self._tell(f"{request.where} gets an empty answer: {error.line}")
            return None
        return row

    def _score(
        self, requests: Sequence[Request], targets: Sequence[str], is_loss: Sequence[bool]
    ) -> list[tuple[float, bool]]:
        together: dict[tuple[str, str], list[int]] = {}
        for at, request in enumerate(requests):
            together.setdefault((request.where, request.text), []).append(at)
        # a document that cannot be seen has no best choice: all are equally unlikely
        found: list[tuple[float, bool]] = [(1e9 if as_loss else -1e9, False) for as_loss in is_loss]
        with progress.Progress("lmms-eval", len(requests)) as bar:
            done = 0
            for group in together.values():
                ids = ranking.continuations(
                    [targets[at].strip() for at in group], self.model.config, self.model.tokenizer
                )
                room = max(map(len, ids))
                if (row := self._row(requests[group[0]], room)) is not None:
                    values, said = self._likelihoods(row, ids)
                    for at, value, tokens in zip(group, values, ids, strict=True):
                        number = -value / len(tokens) if is_loss[at] else value
                        found[at] = (float(number), said == tokens)
                done += len(group)
                bar.update(done)
        return found

    def _likelihoods(self, row: inputs.Row, ids: list[list[int]]) -> tuple[np.ndarray, list[int]]:
        """Return f32[C], the log-likelihood of continuations, and the tokens of the own answer."""
        model, end = self.model, self.model.tokenizer.eos_id
        if row.image is not None:
            row = dataclasses.replace(
                row, entities=ranking.open_picture(model, row.image, row.entities).entities
            )
        prepared = inputs.prepare(row, model.config, model.tokenizer)
        batch = inputs.collate([prepared], generate.bucket(prepared.length), model.config.model)
        longest = max(map(len, ids))
        # one continuation more makes lengths equal that would each be compiled for
        space = model.config.model.llm.max_positions - prepared.length
        filler = [end] * min(-(-longest // _LENGTH_UNIT) * _LENGTH_UNIT, space)
        choices = score.choices([*ids, filler])
        values = score.Scorer(self._generator).score(batch, choices)[0, : len(ids)]
        room = min(len(filler), space)
        (said,) = self._generator.generate(batch, max_new_tokens=room)
        return values, [*said, end] if len(said) < room else said

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            print(f"sgqlm: {text}", file=sys.stderr, flush=True)


def _numbered(requests: Sequence[Request]) -> list[Request]:
    """Tell repeated requests of one document apart, so that each has its own draws."""
    seen: collections.Counter[str] = collections.Counter()
    out = []
    for request in requests:
        out.append(dataclasses.replace(request, repeat=seen[request.where]))
        seen[request.where] += 1
    return out


def _pictures(request: Request) -> list[Image.Image]:
    """Return the one picture of a document, or none."""
    found = _flat(request.visuals())
    if any(not isinstance(one, Image.Image) for one in found):
        kinds = sorted({type(one).__name__ for one in found})
        what = f"the model sees pictures, not {', '.join(kinds)} (videos, sounds)"
    elif len(found) > 1:
        what = f"the model sees one picture a question, not {len(found)}"
    else:
        return found
    raise errors.SgqlmError(
        what, where=request.where, fix="take a task with one picture a question, or none"
    )


def _flat(visuals: Any) -> list[Any]:
    if visuals is None:
        return []
    if isinstance(visuals, Iterable) and not isinstance(visuals, str | bytes | Mapping):
        return [one for inner in visuals for one in _flat(inner)]
    return [visuals]


def _cut(text: str, until: Any) -> str:
    """Return `text` before the first of the strings that end an answer."""
    stops = [until] if isinstance(until, str) else until or ()
    ends = [text.find(stop) for stop in stops if stop]
    return text[: min((end for end in ends if end >= 0), default=len(text))].strip()


def _whole(pair: tuple[float, bool]) -> Any:
    """Wrap a pair so that lmms-eval hands it on as it is."""
    try:
        return lmms_eval_plugin.library("api.instance").GenerationResult(text=pair)
    except (AttributeError, errors.SgqlmError):
        return pair  # versions before that class do not touch a pair


def _check_place(device: str | None) -> None:
    backend = jax.default_backend()
    names = {"gpu": ("gpu", "cuda"), "cpu": ("cpu",)}.get(backend, (backend,))
    if device and device not in names:
        raise lmms_eval_plugin.wrong(
            "device",
            f"jax runs on {backend}, not on {device}",
            "leave --device out, set JAX_PLATFORMS or CUDA_VISIBLE_DEVICES, and give mesh=... for "
            "several devices",
        )
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise errors.SgqlmError(
            "several processes would each load the model on all devices",
            where=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            fix="start python -m lmms_eval once, without accelerate or torchrun, and give mesh=...",
        )
