"""The whole model: image, prototypes, scene graph and text in one sequence."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sgqlm import config, types
from sgqlm.models import (
    attention,
    clip_vit,
    functional,
    llama,
    projector,
    prototypes,
    regions,
    scene_graph,
)
from sgqlm.parallel import rules


class VisualTokens(NamedTuple):
    """The image as the LLM and the scene graph take it."""

    tokens: jax.Array  # float[B, I, H]
    node_features: jax.Array  # float[B, P, D]
    responsibility: jax.Array | None  # float32[B, P, K], with prototypes
    aux: dict[str, jax.Array]


class Vlm(nn.Module):
    """Parameters of every part; the methods are what the functions below call."""

    config: config.ModelConfig
    remat: str = "none"

    def setup(self):
        """Declare the parts that the configuration turns on."""
        cfg = self.config
        tower = _tower_program(cfg)
        self.vision = clip_vit.ClipViT(cfg.vision, cfg.vision_lora, self.remat, tower)
        self.projector = projector.Projector(cfg.projector, cfg.llm.width)
        self.llm = llama.Llama(cfg.llm, cfg.llm_lora, self.remat, cfg.attention)
        if cfg.prototypes.mode == "paper":
            self.prototypes = prototypes.PaperExtractor(cfg.prototypes)
        elif cfg.prototypes.mode == "released":
            self.prototypes = prototypes.ReleasedExtractor(cfg.prototypes)
        if cfg.graph.enabled:
            self.graph = scene_graph.SceneGraph(cfg.graph, cfg.llm.width, cfg.vision.grid)
        if cfg.region_words:
            sizes = (cfg.region_words, cfg.llm.vocab_size, cfg.vision.width)
            self.regions = regions.RegionClassifier(*sizes)

    def encode(self, images):
        """Map uint8[B, S, S, 3] to patch features float[B, P, D]."""
        return self.vision(clip_vit.normalise(images, jnp.dtype(self.config.compute_dtype)))

    def visual(self, features):
        """Map patch features float[B, P, D] to `VisualTokens`."""
        cfg = self.config.prototypes
        features = features.astype(self.config.compute_dtype)
        if cfg.mode == "none":
            return VisualTokens(self.projector(features), features, None, {})
        found = self.prototypes(features)
        aux = prototypes.usage(found.responsibility)
        if cfg.compress:
            centers = found.centers.astype(features.dtype)
            tokens = self.projector(centers, merge=False)
        else:
            tokens = self.projector(found.patches)
        raw = self.config.graph.node_source == "raw"
        nodes = features if raw else found.patches
        return VisualTokens(tokens, nodes, found.responsibility, aux)

    def encode_graph(self, node_features, graph, edge_permutation=None):
        """Map pooled features and entities to `GraphTokens`."""
        if graph.prompt_ids.ndim == 2:
            ids, valid = graph.prompt_ids[:, None], graph.prompt_valid[:, None]
            graph = graph._replace(prompt_ids=ids, prompt_valid=valid)
        return self.graph(node_features, graph, self.llm.embed_rows, edge_permutation)

    def embed(self, batch, features=None, edge_permutation=None):
        """Build the input rows of a batch: float[B, T, H] and a dict of scalars."""
        dtype = jnp.dtype(self.config.compute_dtype)
        if features is None:
            features = self.encode(batch.images)
        visual = self.visual(features)
        rows = self.llm.embed_rows(jnp.maximum(batch.tokens, 0)).astype(dtype)
        rows = place(rows, batch.tokens == types.IMAGE_TOKEN_ID, visual.tokens[:, None])
        aux = dict(visual.aux)
        if self.config.graph.enabled and batch.graph is not None:
            found = self.encode_graph(visual.node_features, batch.graph, edge_permutation)
            order = jnp.argsort(~batch.graph.valid, axis=1, stable=True)
            tokens = jnp.take_along_axis(found.tokens, order[:, None, :, None], axis=2)
            rows = place(rows, batch.tokens == types.GRAPH_TOKEN_ID, tokens)
        guidance = self.config.prototypes.mask_guidance
        if guidance and visual.responsibility is not None and batch.graph is not None:
            coverage = batch.graph.coverage
            aux["mask_guidance"] = prototypes.mask_guidance(visual.responsibility, coverage)
        return rules.shard(rows, "batch", None, "embed"), aux

    def __call__(self, batch, features=None):
        """Map a batch to normalised hidden states float[B, T, H] and a dict of scalars."""
        rows, aux = self.embed(batch, features)
        return self.llm(rows, batch.lengths), aux

    def everything(self, batch):
        """Touch every parameter, for initialisation."""
        hidden, _ = self(batch)
        if self.config.region_words:
            first = jnp.zeros((1, 1), jnp.int32)
            masks, boxes = batch.graph.coverage, batch.graph.boxes
            self.classify(self.encode(batch.images), masks, boxes, first)
        return self.llm.logits(hidden)

    def classify(self, features, coverage, boxes=None, chosen=None):
        """Map features float[B, P, D] and masks uint8[B, N, P] to the two kinds of logits."""
        pooled = scene_graph.pool_nodes(features, coverage)
        words = self.regions.words(pooled)
        if boxes is None:
            return words, None
        weights = scene_graph.union_weights(boxes, self.config.vision.grid)
        total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
        between = jnp.einsum("bijp,bpd->bijd", weights / total, features.astype(jnp.float32))
        return words, self.regions.pairs(pooled, between, chosen)


def place(rows, is_member, runs):
    """Put rows of visual tokens where placeholders stand.

    Args:
        rows: float[B, T, H].
        is_member: bool[B, T], True at placeholders; run r of a sequence is filled from the
            front of `runs[:, r]`.
        runs: float[B, R, M, H].

    Returns:
        float[B, T, H]. Example: placeholders [0 1 1 0] and runs [[a, b, c]] give [x, a, b, x].
    """
    batch, num_runs, size, width = runs.shape
    run, position = functional.run_positions(is_member)
    index = jnp.clip(run, 0, num_runs - 1) * size + jnp.clip(position, 0, size - 1)
    flat = runs.reshape(batch, num_runs * size, width).astype(rows.dtype)
    picked = jnp.take_along_axis(flat, index[..., None], axis=1)
    return jnp.where(is_member[..., None], picked, rows)


def init_params(cfg: config.ModelConfig, key: jax.Array) -> types.Params:
    """Return freshly initialised float32 parameters as a plain nested dict."""
    variables = Vlm(cfg).init({"params": key}, _dummy_batch(cfg), method="everything")
    params = cast(types.Params, variables)["params"]
    params["llm"] = llama.mimetic(params["llm"], cfg.llm)
    if cfg.graph.enabled:
        params["graph"] = scene_graph.align_prompt(params["graph"])
    return params


def param_shapes(cfg: config.ModelConfig) -> types.Params:
    """Return the tree of `jax.ShapeDtypeStruct` without allocating an array."""
    return jax.tree.map(lambda leaf: leaf, _param_shapes(cfg))  # a tree of the caller's own


@functools.lru_cache(maxsize=16)  # tracing the model takes a second
def _param_shapes(cfg: config.ModelConfig) -> types.Params:
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    # of no mesh, whichever was set when they were asked for first
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)


def encode_images(params, cfg: config.ModelConfig, images, *, dropout_key=None):
    """Map uint8[B, S, S, 3] to the tower's patch features float[B, P, D]."""
    return _apply(params, cfg, "encode", dropout_key, images)


def visual_tokens(params, cfg: config.ModelConfig, features) -> VisualTokens:
    """Map patch features float[B, P, D] through prototypes and projector."""
    return _apply(params, cfg, "visual", None, features)


def graph_tokens(
    params,
    cfg: config.ModelConfig,
    node_features,
    graph: types.GraphBatch,
    *,
    edge_permutation=None,
    dropout_key=None,
) -> scene_graph.GraphTokens:
    """Encode scene graphs; see `scene_graph.SceneGraph`.

    Args:
        params: the whole tree.
        cfg: the model.
        node_features: float[B, P, D], from `visual_tokens`.
        graph: the entities of the batch.
        edge_permutation: int32[B, N], the control with wrong relations.
        dropout_key: turns prompt dropout on.

    Returns:
        Tokens float[B, R, N, H] in slot order (invalid slots hold rubbish) and attentions.
    """
    args = (node_features, graph, edge_permutation)
    return _apply(params, cfg, "encode_graph", dropout_key, *args)


def region_logits(params, cfg: config.ModelConfig, features, coverage, *, boxes=None, chosen=None):
    """Score words of regions and, given boxes, predicates of pairs; see `models.regions`.

    Args:
        params: the whole tree, with `regions`.
        cfg: the model.
        features: float[B, P, D].
        coverage: uint8[B, N, P].
        boxes: float32[B, N, 4].
        chosen: int32[B, K], the pairs to score.

    Returns:
        float32[B, N, W, V], and float32[B, K, V] or None.
    """
    return _apply(params, cfg, "classify", None, features, coverage, boxes, chosen)


def embed(
    params,
    cfg: config.ModelConfig,
    batch: types.Batch,
    *,
    features=None,
    edge_permutation=None,
    dropout_key=None,
):
    """Return the LLM's input rows float[B, T, H] and a dict of scalars."""
    args = (batch, features, edge_permutation)
    return _apply(params, cfg, "embed", dropout_key, *args)


def forward(
    params,
    cfg: config.ModelConfig,
    batch: types.Batch,
    *,
    features=None,
    dropout_key=None,
    remat: str = "none",
):
    """Return normalised hidden states float[B, T, H] and a dict of scalars.

    Args:
        params: the whole tree.
        cfg: the model.
        batch: padded on the right.
        features: cached tower features float[B, P, D] instead of the batch's images.
        dropout_key: turns LoRA and prompt dropout on.
        remat: `none`, `full`, `dots`, `qkv` or `offload`, see `layers.remat_policy`.
    """
    return _apply(params, cfg, "__call__", dropout_key, batch, features, remat=remat)


def attention_programs(
    cfg: config.ModelConfig, lengths: Iterable[int], *, rows: int
) -> dict[str, list[attention.Choice]]:
    """Return which attention a training step of the current mesh takes, without running it.

    Args:
        cfg: the model.
        lengths: of the batches.
        rows: of a (micro-)batch over all devices.

    Returns:
        `language model` and `tower`, each with its choices, one for each length.

    Raises:
        SgqlmError: the program that the configuration wants cannot run here.
    """
    llm, tower = cfg.llm, cfg.vision

    def choose(wanted, length, head_dim, heads):
        return attention.choose(
            wanted,
            platform=attention.platform(),
            dtype=cfg.compute_dtype,
            length=length,
            head_dim=head_dim,
            batch_fits=attention.fits_mesh(rows, heads),
        )

    texts = [choose(cfg.attention, n, llm.head_dim, llm.num_kv_heads) for n in lengths]
    width = tower.width // tower.num_heads
    image = choose(_tower_program(cfg), tower.num_patches + 1, width, tower.num_heads)
    return {"language model": texts, "tower": [image]}


def head(params, cfg: config.ModelConfig, hidden):
    """Map hidden states float[..., H] to float32 logits[..., V]."""
    return llama.head(params["llm"], cfg.llm, hidden)


def head_kernel(params, cfg: config.ModelConfig):
    """Return the matrix of the output head float[H, V], gathered over fsdp."""
    return llama.head_kernel(params["llm"], cfg.llm)


def _tower_program(cfg: config.ModelConfig) -> str:
    # a program for long causal sequences need not fit the tower: there it is a wish
    return "xla" if cfg.attention == "xla" else "auto"


def _apply(params, cfg, method, dropout_key, *args, remat="none") -> Any:
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return Vlm(cfg, remat).apply({"params": params}, *args, method=method, rngs=rngs)


def _dummy_batch(cfg: config.ModelConfig) -> types.Batch:
    size, nodes = cfg.vision.image_size, cfg.graph.num_nodes
    tokens = np.array([[types.IMAGE_TOKEN_ID, types.GRAPH_TOKEN_ID, 0]], np.int32)
    predicates = np.zeros((1, nodes, nodes, 1), np.int32) if cfg.graph.edge_oracle else None
    graph = types.GraphBatch(
        coverage=np.zeros((1, nodes, cfg.vision.num_patches), np.uint8),
        boxes=np.zeros((1, nodes, 4), np.float32),
        label_ids=np.zeros((1, nodes, 1), np.int32),
        valid=np.ones((1, nodes), bool),
        prompt_ids=np.zeros((1, 1, 1), np.int32),
        prompt_valid=np.ones((1, 1, 1), bool),
        predicate_ids=predicates,
    )
    return types.Batch(
        images=np.zeros((1, size, size, 3), np.uint8),
        image_valid=np.ones((1,), bool),
        tokens=tokens,
        lengths=np.array([3], np.int32),
        labels=np.full_like(tokens, types.IGNORE),
        weights=np.zeros(tokens.shape, np.float32),
        target_kind=np.zeros(tokens.shape, np.int8),
        graph=graph if cfg.graph.enabled else None,
        row=np.zeros((1,), np.int32),
    )
