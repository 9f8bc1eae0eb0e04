"""Samples to batches on the host: text, placeholders, nodes, pixels, padding."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sgqlm import config, types
from sgqlm.data import graphs, images, sources
from sgqlm.text import conversation, self_questioning, templates

FAULT, PADDING = -1, -2  # values of `Batch.row` of rows that hold no sample


class Example(NamedTuple):
    """One sample before padding.

    tokens, labels, kinds are int32[t]; prompts one list of ids per run of graph tokens; nodes and
    pixels None where there are none; `row` is the image row (0 for text only), FAULT or PADDING.
    """

    tokens: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    prompts: Sequence[Sequence[int]]
    nodes: graphs.Nodes | None
    predicates: np.ndarray | None
    pixels: np.ndarray | None
    image_valid: bool
    row: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns samples into examples; every draw is a function of (seed, record, epoch).

    Attributes:
        model: sizes.
        text: tokenizer and conversation settings.
        tokenizer: text to ids.
        template: conversation format.
        self_questioning: probability that a human turn becomes the model's own question.
        graph_dropout: share of samples without graph.
        image_dropout: share of samples whose pixels are blanked: the image tokens stay, but
            `image_valid` is False and the pixels are zeros.
        node_dropout: share of nodes left out.
        node_jitter: share of its side by which a node moves and scales, see `graphs.jitter`.
        seed: of all draws.
    """

    model: config.ModelConfig
    text: config.TextConfig
    tokenizer: Any
    template: str
    self_questioning: float = 0.0
    graph_dropout: float = 0.0
    image_dropout: float = 0.0
    node_dropout: float = 0.0
    node_jitter: float = 0.0
    seed: int = 0

    def encode_label(self, text: str) -> list[int]:
        """Return the token ids of an entity label."""
        return self.tokenizer.encode(text, bos=False) if text else []

    def make_nodes(self, entities: graphs.Entities) -> graphs.Nodes:
        """Return the graph nodes of an image."""
        return graphs.make_nodes(entities, self.model, encode=self.encode_label)

    def make_pixels(self, image: images.ImageSource, where: str = "") -> np.ndarray:
        """Return the model's square of an image."""
        if isinstance(image, str | os.PathLike):
            where = f"{where}: {image}" if where else str(image)
        picture = images.open_image(image, where=where)
        return images.to_square(picture, self.model.vision.image_size, self.model.image_fit)

    def encode_turns(
        self, turns: Sequence[sources.Turn], *, has_image: bool, vusr_turns: Sequence[int] = ()
    ) -> conversation.Encoded:
        """Tokenise a conversation under these settings."""
        return conversation.encode(
            turns,
            self.template,
            tokenizer=self.tokenizer,
            has_image=has_image,
            vusr_turns=vusr_turns,
            compat=self.text.compat,
            system=self.text.system,
            vusr_marker=self.text.vusr_marker,
        )

    def example(
        self,
        sample: sources.Sample,
        *,
        epoch: int,
        nodes: graphs.Nodes | None,
        pixels: np.ndarray | None,
        row: int | None = None,
        weight: float = 1.0,
    ) -> Example:
        """Encode one sample.

        Args:
            sample: turns and names; its image and entities are taken from the next arguments.
            epoch: pass over the data.
            nodes: graph nodes of the image; None for none.
            pixels: the model's square; None for none (or where they are not needed).
            row: image row to note down; the sample's own by default.
            weight: factor of the loss of the sample.

        Raises:
            SgqlmError: the conversation breaks a rule.
        """
        has_image, model = sample.has_image, self.model
        vusr_turns: tuple[int, ...] = ()
        if self.self_questioning > 0 and templates.get(self.template).can_ask:
            vusr_turns = self_questioning.choose_turns(
                sample.turns,
                self.self_questioning,
                seed=self.seed,
                record=sample.record_key,
                epoch=epoch,
                has_image=has_image,
                compat=self.text.compat,
            )
        encoded = self.encode_turns(sample.turns, has_image=has_image, vusr_turns=vusr_turns)
        if not (model.graph.enabled and has_image):
            nodes = None
        nodes, blank = self._drop(sample, epoch, nodes)
        nodes = self._jitter(sample, epoch, nodes)
        expanded = conversation.expand(
            encoded,
            model.num_image_tokens,
            0 if nodes is None else len(nodes.boxes),
            placement=model.graph.placement,
        )
        row = sample.row if row is None else row
        return Example(
            np.array(expanded.tokens, np.int32),
            np.array(expanded.labels, np.int32),
            np.array(expanded.kinds, np.int8),
            expanded.prompts,
            nodes,
            self._predicates(sample, nodes),
            None if blank else pixels,
            has_image and not blank,
            row if has_image else 0,
            weight,
        )

    def _drop(self, sample, epoch, nodes) -> tuple[graphs.Nodes | None, bool]:
        if not (self.graph_dropout or self.image_dropout or self.node_dropout):
            return nodes, False
        key = sources.draw(self.seed, "drop", sample.record_key, epoch)
        rng = np.random.Generator(np.random.Philox(key=key))
        graph, image = rng.random(2)
        if nodes is not None and self.node_dropout:
            keep = rng.random(len(nodes.boxes)) >= self.node_dropout
            nodes = graphs.Nodes(*(part[keep] for part in nodes))
        return None if graph < self.graph_dropout else nodes, bool(image < self.image_dropout)

    def _jitter(self, sample, epoch, nodes) -> graphs.Nodes | None:
        if nodes is None or not self.node_jitter:
            return nodes
        key = sources.draw(self.seed, "jitter", sample.record_key, epoch)
        bounds = (0.0, 0.0, 1.0, 1.0)
        if sample.entities is not None:
            side, fit = self.model.vision.image_size, self.model.image_fit
            bounds = graphs.image_bounds(sample.entities.size, fit, image_size=side)
        rng = np.random.Generator(np.random.Philox(key=key))
        return graphs.jitter(nodes, self.node_jitter, rng=rng, bounds=bounds)

    def _predicates(self, sample, nodes) -> np.ndarray | None:
        graph = self.model.graph
        if nodes is None or not graph.edge_oracle:
            return None
        ids = np.full((graph.num_nodes, graph.num_nodes, graph.label_tokens), -1, np.int32)
        slot = {int(source): i for i, source in enumerate(nodes.source)}
        for subject, predicate, target in sample.relations:
            if subject in slot and target in slot:
                pair = ids[slot[target], slot[subject]]
                used = int((pair >= 0).sum())  # a pair may stand in several relations
                tokens = self.encode_label(predicate)[: graph.label_tokens - used]
                pair[used : used + len(tokens)] = tokens
        return ids


def dummy(tokenizer: Any, row: int) -> Example:
    """Return a valid example without weight: one start token, no image."""
    start = np.array([tokenizer.bos_id], np.int32)
    ignore, kind = np.array([types.IGNORE], np.int32), np.zeros(1, np.int8)
    return Example(start, ignore, kind, [], None, None, None, False, row, 0.0)


def fit(item: Example, length: int, num_runs: int) -> Example:
    """Cut an example to the sizes of a batch.

    Text is cut anywhere, image and graph tokens only as a whole: half an image is none. Example:
    with 3 image tokens `i`, `[s, i, i, i, a, b]` becomes `[s, i, i, i, a]` for length 5 and `[s]`
    for length 3.

    Args:
        item: any example.
        length: T of the batch.
        num_runs: R of the batch's graph; the cut is also in front of the run after these.

    Returns:
        An example of at most `length` tokens.
    """
    tokens, stop = item.tokens, len(item.tokens)
    if len(item.prompts) > num_runs:
        graph = tokens == types.GRAPH_TOKEN_ID
        starts = np.flatnonzero(graph & ~np.concatenate([[False], graph[:-1]]))
        stop = int(starts[num_runs])
    if stop > length:
        stop = length
        while stop and tokens[stop] < 0 and tokens[stop] == tokens[stop - 1]:
            stop -= 1  # placeholders are negative
    if stop == len(tokens):
        return item
    return item._replace(
        tokens=tokens[:stop],
        labels=item.labels[:stop],
        kinds=item.kinds[:stop],
        prompts=item.prompts[:num_runs],
    )


def collate(
    examples: Sequence[Example],
    model: config.ModelConfig,
    *,
    length: int,
    num_runs: int = 1,
    question_weight: float = 1.0,
    with_images: bool = True,
) -> types.Batch:
    """Pad examples to one batch of numpy arrays; what is longer than `length` is cut (`fit`).

    Args:
        examples: B examples.
        model: sizes.
        length: T of the batch.
        num_runs: R of the batch's graph; a sequence with more runs is cut in front of the next.
        question_weight: factor of the loss of self-asked question tokens.
        with_images: False leaves the pixels out (uint8[B, 0, 0, 3]), for cached features.

    Returns:
        See `types.Batch`.
    """
    examples = [fit(item, length, num_runs) for item in examples]
    size, side = len(examples), model.vision.image_size if with_images else 0
    tokens = np.zeros((size, length), np.int32)
    labels = np.full((size, length), types.IGNORE, np.int32)
    kinds = np.zeros((size, length), np.int8)
    pixels = np.zeros((size, side, side, 3), np.uint8)
    for b, item in enumerate(examples):
        t = len(item.tokens)
        tokens[b, :t], labels[b, :t], kinds[b, :t] = item.tokens, item.labels, item.kinds
        if with_images and item.pixels is not None:
            pixels[b] = item.pixels
    weight = np.array([item.weight for item in examples], np.float32)[:, None]
    weights = weight * (labels != types.IGNORE)
    weights[kinds == types.QUESTION] *= question_weight
    return types.Batch(
        images=pixels,
        image_valid=np.array([item.image_valid for item in examples], bool),
        tokens=tokens,
        lengths=np.array([len(item.tokens) for item in examples], np.int32),
        labels=labels,
        weights=weights.astype(np.float32),
        target_kind=kinds,
        graph=_graph(examples, model, num_runs) if model.graph.enabled else None,
        row=np.array([item.row for item in examples], np.int32),
    )


def _graph(examples, model, num_runs) -> types.GraphBatch:
    prompts = [item.prompts for item in examples]
    graph = graphs.stack([e.nodes for e in examples], prompts, model, num_runs=num_runs)
    if not model.graph.edge_oracle:
        return graph
    n, width = model.graph.num_nodes, model.graph.label_tokens
    empty = np.full((n, n, width), -1, np.int32)
    found = [empty if e.predicates is None else e.predicates for e in examples]
    return graph._replace(predicate_ids=np.stack(found))


def make_batch(
    samples: Sequence[sources.Sample],
    *,
    model: config.ModelConfig,
    text: config.TextConfig,
    tokenizer: Any,
    length: int | None = None,
    epoch: int = 0,
    seed: int = 0,
    template: str = "",
    self_questioning: float = 0.0,
    question_weight: float = 1.0,
    weights: Sequence[float] | None = None,
) -> types.Batch:
    """Make one batch of samples that are at hand, for instance to evaluate a loss.

    Args:
        samples: B samples with their images and entities.
        model: sizes.
        text: conversation settings.
        tokenizer: text to ids.
        length: T; by default that of the longest sample.
        epoch: pass over the data, part of the draws.
        seed: of the draws.
        template: conversation format; empty: `text.template`.
        self_questioning: probability of a self-asked turn.
        question_weight: factor of the loss of self-asked question tokens.
        weights: factor of the loss of each sample; 1 by default.

    Returns:
        The batch; `row` is each sample's own (0 for text only).

    Raises:
        SgqlmError: a sample is broken; the message names it.
    """
    encoder = Encoder(
        model, text, tokenizer, template or text.template, self_questioning, seed=seed
    )
    examples = []
    for b, sample in enumerate(samples):
        nodes = pixels = None
        if sample.image is not None:
            pixels = encoder.make_pixels(sample.image, sample.record_key)
        if sample.entities is not None and model.graph.enabled:
            nodes = encoder.make_nodes(sample.entities)
        weight = 1.0 if weights is None else weights[b]
        examples.append(
            encoder.example(sample, epoch=epoch, nodes=nodes, pixels=pixels, weight=weight)
        )
    return collate(
        examples,
        model,
        length=length or max(len(item.tokens) for item in examples),
        num_runs=round_runs(max((len(item.prompts) for item in examples), default=1)),
        question_weight=question_weight,
    )


def round_runs(runs: int) -> int:
    """Return a power of two of at least `runs`, so that few shapes occur."""
    return 1 << max(runs - 1, 0).bit_length()
