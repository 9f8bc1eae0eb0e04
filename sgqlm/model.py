"""The handle a user holds: one trained model with its tokenizer and settings."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from PIL import Image

from sgqlm import config as config_lib
from sgqlm import errors, types
from sgqlm.convert import exporting, importing, source
from sgqlm.convert import leaves as leaves_lib
from sgqlm.data import graphs
from sgqlm.data import images as image_lib
from sgqlm.decode import ask as asking
from sgqlm.decode import generate as generating
from sgqlm.decode import inputs, sample
from sgqlm.models import vlm
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.parallel import rules
from sgqlm.train import checkpoint, region_text


@dataclasses.dataclass(frozen=True)
class SceneGraph:
    """What the model makes of the entities of one image.

    Attributes:
        entities: the nodes, in the order of the arrays below.
        node_attention: f32[n], the share of each node's prompt attention that lies on the words
            of the prompt rather than on the learned null token; 0 for an empty prompt.
        edges: f32[n, n], attention of the receiver (row) over the senders (columns), averaged
            over the rounds of message passing; rows sum to 1 unless a node is alone.
        source: int32[n], index of each node among the entities that were given.
        words: the m words of the prompt that the graph hears.
        word_attention: f32[n, m], prompt attention of each node on each word, averaged over the
            heads and summed over the tokens of a word; rows sum to `node_attention`.
    """

    entities: graphs.Entities
    node_attention: np.ndarray
    edges: np.ndarray
    source: np.ndarray | Sequence[int] = ()
    words: Sequence[str] = ()
    word_attention: np.ndarray | Sequence[Sequence[float]] = ()


class VisionLanguageModel:
    """A vision-language model that generates, asks, and shows its scene graph.

    Args:
        config: the whole configuration; `config.model` gives the shapes, `config.text` the
            conversation format.
        params: the parameters as they train.
        tokenizer: of the model; None allows `logits` only.
    """

    def __init__(self, config: config_lib.Config, params: types.Params, tokenizer: Any):
        self.config = config
        self.params = jax.tree.map(jnp.asarray, params)
        self._tokenizer = tokenizer

    @classmethod
    def from_parts(
        cls, config: config_lib.Config, params: types.Params, tokenizer: Any
    ) -> "VisionLanguageModel":
        """Make a model of what training holds in memory; see the class for the arguments."""
        return cls(config, params, tokenizer)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            SgqlmError: the model came without one that sgqlm reads.
        """
        if self._tokenizer is None:
            raise errors.SgqlmError(
                "this model came without a SentencePiece tokenizer, so it can only give logits",
                fix="put the `tokenizer.model` of its language model beside the weights",
                code=errors.CHECKPOINT,
            )
        return self._tokenizer

    def logits(
        self,
        images: Sequence[Image.Image | None],
        input_ids: np.ndarray | Sequence[Sequence[int]],
        entities: Sequence[graphs.Entities | None] | None = None,
        prompts: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Return the logits of every position.

        Args:
            images: one a row, None for text.
            input_ids: int[B, T], `types.IMAGE_TOKEN_ID` where the image stands.
            entities: one a row, or None for no scene graph.
            prompts: the question that each row's graph hears; None for empty ones.

        Returns:
            f32[B, T', V]. In each row a placeholder gives way to that row's image tokens and
            then its graph tokens; T' is the length of the longest row, and what follows a
            shorter row on its right has no meaning.

        Raises:
            SgqlmError: a row has a placeholder but no image, or prompts are given to a model
                whose graph follows the question (ids alone do not say where that ends).
        """
        model, count = self.config.model, len(images)
        if prompts is not None and model.graph.placement == "after_question":
            raise errors.SgqlmError(
                "a model with graph.placement=after_question takes no prompts with raw ids",
                fix="use generate, which knows where the question ends",
            )
        rows = self._tagged(
            [
                inputs.Row((), image, found)
                for image, found in zip(images, entities or [None] * count, strict=True)
            ]
        )
        prepared = [
            inputs.prepare_ids(
                row,
                list(map(int, ids)),
                prompt=self._heard(text),
                config=model,
                tokenizer=self._tokenizer,
            )
            for row, ids, text in zip(rows, input_ids, prompts or [""] * count, strict=True)
        ]
        batch = inputs.collate(prepared, max(row.length for row in prepared), model)
        return np.asarray(_logits(self.params, batch, config=model))

    def generate(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        entities: Sequence[graphs.Entities | None] | None = None,
        max_new_tokens: int = 128,
        temperature: float | int = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Answer one question a row.

        A row's text does not depend on the rows beside it: its random draws come from the seed
        and its own position.

        Args:
            images: one a row, None for text.
            prompts: what the user says.
            entities: one a row, or None for no scene graph.
            max_new_tokens: tokens of an answer at most.
            temperature: 0 is greedy.
            seed: of the draws.

        Returns:
            One text a row.
        """
        rows = [
            inputs.Row([inputs.human(prompt)], image, found)
            for image, prompt, found in zip(
                images, prompts, entities or [None] * len(images), strict=True
            )
        ]
        sampling = sample.Sampling(temperature)
        return self.respond(rows, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)

    def respond(
        self,
        rows: Sequence[inputs.Row],
        *,
        max_new_tokens: int = 128,
        sampling: sample.Sampling = sample.Sampling(),
        seed: int = 0,
        draws: Sequence[tuple[int, int]] | None = None,
        batch_size: int = 16,
    ) -> list[str]:
        """Continue conversations.

        Args:
            rows: the conversations.
            max_new_tokens: tokens of a row at most.
            sampling: how a token is drawn.
            seed: of the draws.
            draws: what each row draws with, a seed and a number; None: `seed` and its position.
            batch_size: rows that run at once; rows of similar length run together.

        Returns:
            One text a row, in the order of `rows`.
        """
        prepared = self._prepare(rows)
        order = sorted(range(len(rows)), key=lambda i: prepared[i].length)
        texts = [""] * len(rows)
        for start in range(0, len(rows), batch_size):
            chunk = order[start : start + batch_size]
            size = batch_size if len(rows) > batch_size else generating.power_of_two(len(chunk))
            full = chunk + chunk[-1:] * (self._generator.whole_rows(size) - len(chunk))
            picked = [prepared[i] for i in full]
            ids = self._generator.generate(
                self._collate(picked),
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                seed=seed if draws is None else [draws[i][0] for i in full],
                rows=full if draws is None else [draws[i][1] for i in full],
                edge_permutation=inputs.edge_permutations(
                    picked, self.config.model.graph.num_nodes
                ),
            )
            for i, found in zip(chunk, ids, strict=False):
                texts[i] = self.tokenizer.decode(found).strip()
        return texts

    def stream(
        self,
        row: inputs.Row,
        *,
        max_new_tokens: int = 128,
        sampling: sample.Sampling = sample.Sampling(),
        seed: int = 0,
    ) -> Iterator[str]:
        """Continue one conversation piece by piece; the pieces join to what `respond` returns.

        Args:
            row: the conversation.
            max_new_tokens: tokens at most.
            sampling: how a token is drawn.
            seed: of the draws.

        Yields:
            Text as soon as it is whole: a character of several tokens comes in one piece.
        """
        batch = self._collate(self._prepare([row]))
        ids, shown = [], ""
        for token in self._generator.stream(
            batch, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed
        ):
            ids.append(token)
            text = self.tokenizer.decode(ids).strip()
            if len(text) > len(shown) and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        if rest := self.tokenizer.decode(ids).strip()[len(shown) :]:
            yield rest

    def scene_graph(
        self,
        image: Image.Image,
        prompt: str = "",
        entities: graphs.Entities | None = None,
    ) -> SceneGraph:
        """Show what the scene graph attends to.

        Args:
            image: the picture.
            prompt: the question; empty for an unprompted graph.
            entities: the nodes; None for none.

        Returns:
            The graph. Its entities are those the model sees, the surest first: what its square
            does not show or its slots do not hold is left out.

        Raises:
            SgqlmError: the model was built without a scene graph.
        """
        model = self.config.model
        if not model.graph.enabled:
            raise errors.SgqlmError("this model has no scene graph (graph.enabled is off)")
        (row,) = self._tagged([inputs.Row((), image, entities)])
        nodes = inputs.make_nodes(row, model, self._tokenizer)
        if row.entities is None or nodes is None or not (count := len(nodes.boxes)):
            empty = graphs.Entities.empty((image.height, image.width))
            return SceneGraph(empty, np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
        heard = self._heard(prompt)[: model.graph.prompt_tokens]
        graph = graphs.stack([nodes], [[heard]], model, num_runs=1)
        found = _graph(self.params, self._pixels(image), graph, config=model)
        attention = np.asarray(found.prompt_attention)[0, 0, :count]
        edges = np.asarray(found.edge_attention)[0, :, :count, :count]
        edges = edges.mean(0) if len(edges) else np.zeros((count, count), np.float32)
        words, by_word = inputs.by_word(heard, attention[:, : len(heard)], self._tokenizer)
        seen, on_prompt = row.entities.take(nodes.source), 1.0 - attention[:, -1]
        return SceneGraph(seen, on_prompt, edges, nodes.source, words, by_word)

    def prototype_map(self, image: Image.Image) -> np.ndarray | None:
        """Return int[grid, grid], the prototype each patch leans to; None without prototypes."""
        model = self.config.model
        if model.prototypes.mode == "none":
            return None
        share = _responsibility(self.params, self._pixels(image), config=model)
        return np.asarray(share)[0].argmax(-1).reshape(model.vision.grid, model.vision.grid)

    def square(self, image: Image.Image) -> Image.Image:
        """Return an image as the model sees it, padded or cropped to its square."""
        return Image.fromarray(self._pixels(image)[0])

    def tag(
        self, images: Sequence[Image.Image], entities: Sequence[graphs.Entities]
    ) -> list[graphs.Entities]:
        """Put labels on entities, predicted from the pixels by the model's region classifier.

        Every other method does so by itself for entities that come without labels.

        Args:
            images: one a set of entities.
            entities: what is to be labelled.

        Returns:
            The same entities with labels; those that the model does not see get an empty one.

        Raises:
            SgqlmError: the model has no region classifier.
        """
        model, out = self.config.model, []
        if not model.region_words:
            raise errors.SgqlmError("this model has no region classifier (region_words is 0)")
        size = min(64, generating.power_of_two(len(images)))
        for start in range(0, len(images), size):
            chunk = entities[start : start + size]
            nodes = [graphs.make_nodes(found, model) for found in chunk]
            full = nodes + nodes[-1:] * (size - len(nodes))
            pixels = [self._pixels(image)[0] for image in images[start : start + size]]
            pixels += pixels[-1:] * (size - len(pixels))
            coverage = graphs.stack(full, [[]] * size, model, num_runs=1).coverage
            ids = np.asarray(_labels(self.params, np.stack(pixels), coverage, config=model))
            for found, seen, rows in zip(chunk, nodes, ids, strict=False):
                labels = [""] * len(found)
                for index, label in zip(seen.source, rows, strict=False):
                    labels[index] = self.tokenizer.decode(label.tolist())
                out.append(dataclasses.replace(found, labels=labels))
        return out

    def ask(
        self,
        image: Image.Image,
        num_questions: int = 3,
        *,
        entities: graphs.Entities | None = None,
        temperature: float | int = asking.SAMPLING.temperature,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[str]:
        """Ask different questions about an image.

        Args:
            image: the picture.
            num_questions: how many; a model that has fewer to ask returns fewer.
            entities: nodes of the scene graph; None for none.
            temperature: of the draws.
            max_new_tokens: tokens of a question at most.
            seed: of the draws.

        Returns:
            The questions.
        """
        return asking.questions(
            self,
            inputs.Row((), image, entities),
            count=num_questions,
            sampling=asking.SAMPLING._replace(temperature=temperature),
            max_new_tokens=max_new_tokens,
            seed=seed,
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        format: exporting.Format = "llava",
        *,
        options: exporting.Options = exporting.Options(),
    ) -> exporting.Report:
        """Export the model for other libraries; `sgqlm export` does the same from a checkpoint.

        Args:
            folder: is made.
            format: `llava` (standard, adapters merged), `peft` (adapters only) or `sgqlm` (all).
            options: dtype, size of files, what may be left out.

        Returns:
            The manifest, and notes on what differs.

        Raises:
            SgqlmError: the format cannot hold a part of the model, or the folder exists.
        """
        flat = traverse_util.flatten_dict(self.params, sep="/")
        leaves = {path: leaves_lib.of_array(np.asarray(leaf)) for path, leaf in flat.items()}
        words = self._tokenizer.model_bytes if self._tokenizer else b""
        found = source.Source(self.config.model, self.config.text, leaves, tokenizer=words)
        digest = exporting.config_digest(config_lib.to_dict(self.config))
        facts = {"source": "a model in memory", "config_digest": digest}
        return exporting.write(found, format, folder, facts=facts, options=options)

    @functools.cached_property
    def _generator(self) -> generating.Generator:
        model, eos = self.config.model, self.tokenizer.eos_id
        return generating.Generator(model, self.params, eos_id=eos)

    def _prepare(self, rows: Sequence[inputs.Row]) -> list[inputs.Prepared]:
        tagged = self._tagged(rows)
        return [inputs.prepare(row, self.config, self.tokenizer) for row in tagged]

    def _tagged(self, rows: Sequence[inputs.Row]) -> list[inputs.Row]:
        """Label the entities of rows that have none, where the model was trained with labels."""
        model = self.config.model
        if not (model.graph.enabled and model.graph.labels == "predicted" and model.region_words):
            return list(rows)
        bare = {
            (id(row.image), id(row.entities)): (row.image, row.entities)
            for row in rows
            if row.image is not None and row.entities is not None and not any(row.entities.labels)
        }
        pairs = bare.values()
        found = self.tag([image for image, _ in pairs], [entities for _, entities in pairs])
        labelled = dict(zip(bare, found, strict=True))
        return [
            dataclasses.replace(
                row, entities=labelled.get((id(row.image), id(row.entities)), row.entities)
            )
            for row in rows
        ]

    def _collate(self, rows: Sequence[inputs.Prepared]) -> types.Batch:
        length = generating.bucket(max(row.length for row in rows))
        return inputs.collate(rows, length, self.config.model)

    def _heard(self, prompt: str) -> list[int]:
        return inputs.graph_prompt(prompt, self.config, self.tokenizer) if prompt else []

    def _pixels(self, image: Image.Image) -> np.ndarray:
        model = self.config.model
        upright = image_lib.open_image(image)
        return image_lib.to_square(upright, model.vision.image_size, model.image_fit)[None]


def load(
    path: str | os.PathLike,
    base: str | os.PathLike | None = None,
    mesh: Mapping[str, int] | None = None,
) -> VisionLanguageModel:
    """Open a trained model; see `sgqlm.load`."""
    folder = pathlib.Path(path)
    on = None
    if mesh is not None:  # every process generates alone
        on = mesh_lib.for_decode(mesh_lib.make(mesh, jax.local_devices(), where="mesh"))
    # a run leaves a config.json of its own beside its checkpoints
    if checkpoint.find(folder) or not (folder / "config.json").exists():
        return VisionLanguageModel(*checkpoint.load_model(folder, base=base, mesh=on))
    if "train" in _json(folder, "config.json"):
        raise errors.SgqlmError(
            "this run has no checkpoint yet",
            where=str(folder),
            why="it was stopped before its first one was saved",
            fix="start the same command again, or set config.train.save_every lower",
            code=errors.CHECKPOINT,
        )
    with importing.open_any(folder) as found:
        words = exporting.open_tokenizer(found)
        settings = config_lib.Config(model=found.config, text=found.text)
        params = found.params()
        if on is not None:
            params = jax.device_put(params, rules.param_shardings(params, on))
        return VisionLanguageModel(settings, params, words)


def _json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    file = folder / name
    return json.loads(file.read_text()) if file.is_file() else {}


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, batch, *, config):
    hidden, _ = vlm.forward(params, config, batch)
    return vlm.head(params, config, hidden)


@functools.partial(jax.jit, static_argnames="config")
def _labels(params, pixels, coverage, *, config):
    plain = region_text.without_lora(config)
    features = vlm.encode_images(params, plain, pixels)
    words, _ = vlm.region_logits(params, plain, features, coverage)
    return words.argmax(-1)


@functools.partial(jax.jit, static_argnames="config")
def _graph(params, pixels, graph, *, config):
    visual = vlm.visual_tokens(params, config, vlm.encode_images(params, config, pixels))
    return vlm.graph_tokens(params, config, visual.node_features, graph)


@functools.partial(jax.jit, static_argnames="config")
def _responsibility(params, pixels, *, config):
    features = vlm.encode_images(params, config, pixels)
    return vlm.visual_tokens(params, config, features).responsibility
