"""Floating-point operations of a training step, counted by hand.

XLA's own count takes the body of a loop once, so a scanned model looks as small as one layer.
Here every matrix product of the program is counted, 2 operations a multiply-add; elementwise work
is not.

Rules, for a product y = x W of F operations:

* the forward pass costs F;
* the gradient of x costs F, and is needed where something that trains stands before x;
* the gradient of W costs F, and is needed where W trains.

So frozen weights behind something that trains cost 2F, trained ones 3F, and an adapter three times
its own forward pass. Nothing flows below the first part that trains: a frozen tower costs F, and
the first layer's inputs have no gradient when only its own adapters train.

Definitions:

* Model FLOPs: forward and backward without what is computed twice, over valid tokens only, causal
  attention counted half (position t sees t + 1 others), logits at labelled positions only. MFU is
  model FLOPs per second over the peak of the chips. 6 N a token, the usual figure, is 1.4 times as
  much for adapters and for a frozen base.
* Hardware FLOPs add what rematerialisation computes again; HFU divides those by the peak.
* Token goodput: valid tokens (image, graph, prompt and answer; no padding) per second.
"""

from collections.abc import Collection
from typing import NamedTuple

from sgqlm import config

# kinds of remat that compute a whole layer again, except what its last product gives
_RECOMPUTED = {
    "none": (),
    "dots": ("attention",),
    "full": ("qkv", "attention", "o", "up"),
    "qkv": ("scores", "o", "up"),
    "offload": ("scores", "o", "up"),
}


class Work(NamedTuple):
    """Operations of one part for one sample."""

    forward: int = 0
    backward: int = 0
    remat: int = 0

    @property
    def model(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """Forward, backward and what is computed again."""
        return self.model + self.remat

    def plus(self, other: "Work") -> "Work":
        """Return the sum of both."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


class Shape(NamedTuple):
    """What one sample is.

    Attributes:
        length: T, positions of the LLM.
        labelled: positions whose logits are computed.
        num_runs: R, runs of graph tokens.
        num_pairs: pairs of regions that are scored, in region-text pretraining.
        is_cached: features of the tower are read instead of computed.
        is_causal_half: count causal attention half, as model FLOPs do; False: the full square,
            as plain XLA computes it.
    """

    length: int
    labelled: int
    num_runs: int = 1
    num_pairs: int = 0
    is_cached: bool = False
    is_causal_half: bool = True


def sample(
    model: config.ModelConfig,
    trained: Collection[str],
    shape: Shape,
    *,
    remat: str = "none",
    objective: str = "lm",
) -> dict[str, Work]:
    """Count the operations of one training sample.

    Args:
        model: the model as the stage runs it: adapters that take no part have rank 0, see
            `train.stages.program_model`.
        trained: parts that train, as `models.lora.PARTS` names them; none: evaluation.
        shape: what a sample is.
        remat: as `config.TrainConfig.remat`.
        objective: of the stage.

    Returns:
        Part -> work; `head` is the output matrix, `llm_lora` and `vision_lora` the adapters.
    """
    parts = frozenset(trained)
    found = {} if shape.is_cached else _vision(model, parts, remat)
    if objective == "region_text":
        return found | {"regions": _regions(model, parts, shape.num_pairs)}
    if model.prototypes.mode != "none":
        found["prototypes"] = _prototypes(model, parts)
    found["projector"] = _projector(model, parts)
    if model.graph.enabled:
        found["graph"] = _graph(model, parts, shape.num_runs)
    return found | _llm(model, parts, shape, remat)


def total(parts: dict[str, Work]) -> Work:
    """Return the sum over all parts."""
    result = Work()
    for work in parts.values():
        result = result.plus(work)
    return result


def gathers_backward(trained: Collection[str]) -> frozenset[str]:
    """Return the parts through whose weights a gradient flows in the backward pass."""
    parts = frozenset(trained)
    found = {"llm", "llm_lora"} | (parts & {"projector", "prototypes", "graph", "regions"})
    if _has_vision(parts):
        found |= {"vision", "vision_lora", "projector", "prototypes", "graph"}
    return frozenset(found if parts else ())


def _has_vision(parts: frozenset[str]) -> bool:
    return bool(parts & {"vision", "vision_lora"})


def _dense(rows: int, inputs: int, outputs: int, trains: bool, flows: bool) -> Work:
    forward = 2 * rows * inputs * outputs
    return Work(forward, forward * (trains + flows))


def _adapter(rows, inputs, outputs, rank, trains: bool, flows: bool, passes: bool) -> Work:
    """Count (x A) B; `flows`: x needs a gradient, `passes`: y has one."""
    a, b = 2 * rows * inputs * rank, 2 * rows * rank * outputs
    hidden = b if trains or (passes and flows) else 0
    return Work(a + b, (a + b) * trains + hidden + a * flows)


class _Stack:
    """Sums the products of a transformer's layers: base and adapters, and what is recomputed."""

    def __init__(self, rows: int, rank: int, trains: tuple[bool, bool], remat: str):
        self.base, self.lora = Work(), Work()
        self._rows, self._rank, self._trains = rows, rank, trains
        self._again = _RECOMPUTED[remat]

    def dense(self, kind: str, inputs: int, outputs: int, flows: bool, passes: bool):
        """Add one dense layer with its adapter."""
        base, lora = self._trains
        work = _dense(self._rows, inputs, outputs, base, flows)
        extra = Work()
        if self._rank:
            extra = _adapter(self._rows, inputs, outputs, self._rank, lora, flows, passes)
        again = kind in self._again and passes
        # the last product of a layer is needed by nothing, but its adapter's hidden rows are
        if kind == "down" and "up" in self._again and lora and passes:
            extra = extra._replace(remat=2 * self._rows * inputs * self._rank)
        self.base = self.base.plus(work._replace(remat=work.forward * again))
        self.lora = self.lora.plus(extra._replace(remat=extra.remat + extra.forward * again))

    def attention(self, pairs: int, width: int, passes: bool):
        """Add the two products of attention over `pairs` of positions."""
        scores = 2 * pairs * width
        again = scores * (("attention" in self._again) * 2 + ("scores" in self._again))
        self.base = self.base.plus(Work(2 * scores, 4 * scores * passes, again * passes))


def _vision(model, parts, remat) -> dict[str, Work]:
    cfg, tokens = model.vision, model.vision.num_patches + 1
    whole, lora = "vision" in parts, "vision_lora" in parts
    passes = whole or lora
    patch = _dense(cfg.num_patches, cfg.patch_size**2 * 3, cfg.width, whole, False)
    stack = _Stack(tokens, model.vision_lora.rank, (whole, lora), remat if passes else "none")
    for layer in range(cfg.num_used_layers):
        flows = whole or (lora and layer > 0)
        for _ in "qkv":
            stack.dense("qkv", cfg.width, cfg.width, flows, passes)
        stack.attention(tokens**2, cfg.width, passes)
        stack.dense("o", cfg.width, cfg.width, passes, passes)
        stack.dense("up", cfg.width, cfg.mlp_dim, passes, passes)
        stack.dense("down", cfg.mlp_dim, cfg.width, passes, passes)
    found = {"vision": patch.plus(stack.base)}
    return found | ({"vision_lora": stack.lora} if model.vision_lora.rank else {})


def _prototypes(model, parts) -> Work:
    num, rounds = model.prototypes.num_prototypes, model.prototypes.iterations
    patches, width = model.vision.num_patches, model.vision.width
    trains, below = "prototypes" in parts, _has_vision(parts)
    passes = trains or below
    pair = 2 * num * patches * width
    # keys, values and output (f, v of the released code); the query of every round
    kernels = 3 if model.prototypes.mode == "paper" else 2
    work = Work()
    for index in range(kernels):
        flows = below or (trains and index == 2)
        work = work.plus(_dense(patches, width, width, trains, flows))
    for _ in range(rounds):
        work = work.plus(_dense(num, width, width, trains, passes))
    between = (2 * rounds + (2 if model.prototypes.mode == "paper" else 4)) * pair
    return work.plus(Work(between, 2 * between * passes))


def _projector(model, parts) -> Work:
    cfg, width = model.projector, model.llm.width
    compressed = model.prototypes.compress and model.prototypes.mode != "none"
    merge = 1 if compressed else cfg.merge
    inputs = model.vision.width * merge**2
    trains = "projector" in parts
    below = _has_vision(parts) or "prototypes" in parts
    work = _dense(model.num_image_tokens, inputs, width, trains, below)
    if cfg.kind == "linear":
        return work
    return work.plus(_dense(model.num_image_tokens, width, width, trains, trains or below))


def _graph(model, parts, num_runs: int) -> Work:
    cfg, width = model.graph, model.graph.width
    n, patches, source = cfg.num_nodes, model.vision.num_patches, model.vision.width
    trains = "graph" in parts
    below = _has_vision(parts) or (cfg.node_source == "prototypes" and "prototypes" in parts)
    words = "llm" in parts
    passes = trains or below or words

    def dense(rows, inputs, outputs, flows=passes):
        return _dense(rows, inputs, outputs, trains, flows)

    def between(operations: int, sides: int = 2):
        return Work(operations, operations * sides * passes)

    work = between(2 * n * patches * source, sides=int(below)).plus(dense(n, source, width))
    if cfg.use_boxes:
        work = work.plus(dense(n, 5, width, False)).plus(dense(n, width, width))
    if cfg.labels == "predicted":
        work = work.plus(dense(n, model.llm.width, width, words))
    if cfg.message_passing:
        if cfg.edge_geometry:
            work = work.plus(dense(n * n, 6, width, False)).plus(dense(n * n, width, width))
        if cfg.edge_visual:
            work = work.plus(dense(patches, source, width, below))
            work = work.plus(between(2 * n * n * patches * width, sides=1))
        for _ in range(cfg.num_rounds):
            work = work.plus(dense(4 * n, width, width)).plus(dense(n * n, width, cfg.num_heads))
            work = work.plus(between(2 * n * n * width)).plus(dense(2 * n, width, 2 * width))
    if cfg.prompt_attention:
        prompt = num_runs * (cfg.prompt_tokens + 1)
        work = work.plus(dense(2 * n * num_runs, width, width))
        work = work.plus(dense(2 * prompt, model.llm.width, width, words))
        work = work.plus(between(4 * n * prompt * width))
    work = work.plus(dense(n * num_runs, width, model.llm.width))
    return work.plus(dense(n * num_runs, model.llm.width, model.llm.width))


def _llm(model, parts, shape: Shape, remat) -> dict[str, Work]:
    cfg, length = model.llm, shape.length
    whole, lora = "llm" in parts, "llm_lora" in parts
    inputs = bool(parts - {"llm_lora", "regions"})  # the rows that enter need a gradient
    passes = inputs or lora
    pairs = length * (length + 1) // 2 if shape.is_causal_half else length**2
    stack = _Stack(length, model.llm_lora.rank, (whole, lora), remat if passes else "none")
    heads, keys = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    for layer in range(cfg.num_layers):
        flows = inputs or (lora and layer > 0)
        for outputs in (heads, keys, keys):
            stack.dense("qkv", cfg.width, outputs, flows, passes)
        stack.attention(pairs, heads, passes)
        stack.dense("o", heads, cfg.width, passes, passes)
        for _ in ("gate", "up"):
            stack.dense("up", cfg.width, cfg.mlp_dim, passes, passes)
        stack.dense("down", cfg.mlp_dim, cfg.width, passes, passes)
    head = _dense(shape.labelled, cfg.width, cfg.vocab_size, whole, passes)
    found = {"llm": stack.base, "head": head}
    return found | ({"llm_lora": stack.lora} if model.llm_lora.rank else {})


def _regions(model, parts, num_pairs: int) -> Work:
    width, vocab, n = model.vision.width, model.llm.vocab_size, model.graph.num_nodes
    trains, below = "regions" in parts, _has_vision(parts)
    passes = trains or below
    pool = 2 * n * model.vision.num_patches * width
    work = Work(pool, pool * below).plus(_dense(n, width, 2 * width, trains, below))
    work = work.plus(_dense(n, 2 * width, model.region_words * vocab, trains, passes))
    if num_pairs:
        work = work.plus(Work(pool * n, pool * n * below))
        work = work.plus(_dense(2 * n + n * n, width, width, trains, below))
        work = work.plus(_dense(num_pairs, width, vocab, trains, passes))
    return work
