"""Every setting of a model and a run, as frozen dataclasses that are built strictly."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from sgqlm import errors


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """CLIP vision tower; the defaults are openai/clip-vit-large-patch14-336."""

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    layer_norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    feature_layer: int = -2  # index into [embeddings, layer 1, ...]; -2 leaves the last layer out

    @property
    def grid(self) -> int:
        """Patches along one side of the square image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patch tokens, without the class token."""
        return self.grid**2

    @property
    def num_used_layers(self) -> int:
        """Layers that are computed to reach `feature_layer`."""
        index = self.feature_layer
        return index if index >= 0 else self.num_layers + 1 + index


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """CLIP text tower, which no sgqlm model has: it scores texts against images."""

    vocab_size: int = 49408
    max_positions: int = 77
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    layer_norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"


@dataclasses.dataclass(frozen=True)
class LlmConfig:
    """LLaMA decoder; the defaults are Vicuna-7B-v1.5."""

    vocab_size: int = 32000
    width: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    mlp_dim: int = 11008
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_positions: int = 4096
    tie_embeddings: bool = False


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """W_v: ViT width to LLM width. `merge` > 1 joins merge x merge patches into one token."""

    kind: Literal["mlp2x", "linear"] = "mlp2x"
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    merge: int = 1


@dataclasses.dataclass(frozen=True)
class PrototypeConfig:
    """Prototype extractor of SQ-LLaVA: `paper` is the published text, `released` the code."""

    mode: Literal["none", "paper", "released"] = "none"
    num_prototypes: int = 256
    iterations: int = 2
    compress: bool = False  # the prototypes replace the patches in the LLM (paper mode only)
    mask_guidance: float = 0.0  # weight of the InfoNCE over entity masks


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """Scene-graph expression (SGE) of LLaVA-SG; the defaults are the `sgqlm` preset."""

    enabled: bool = True
    impl: Literal["jraph", "dense"] = "jraph"
    width: int = 256
    num_nodes: int = 32
    num_rounds: int = 2
    num_heads: int = 8
    prompt_tokens: int = 64
    label_tokens: int = 8
    node_source: Literal["raw", "prototypes"] = "raw"
    use_boxes: bool = True
    labels: Literal["none", "predicted"] = "predicted"
    label_skip: bool = False  # add the label embedding to the finished graph token as well
    edge_geometry: bool = True
    edge_visual: bool = True
    edge_oracle: bool = False  # diagnostic upper bound: annotated predicates enter the edges
    message_passing: bool = True
    prompt_attention: bool = True
    prompt_dropout: float = 0.1
    placement: Literal["after_image", "after_question"] = "after_image"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; rank 0 means none."""

    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank if self.rank else 0.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One vision-language model. The shapes of all parameters follow from it."""

    vision: VisionConfig = VisionConfig()
    llm: LlmConfig = LlmConfig()
    projector: ProjectorConfig = ProjectorConfig()
    prototypes: PrototypeConfig = PrototypeConfig()
    graph: GraphConfig = GraphConfig()
    vision_lora: LoraConfig = LoraConfig()
    llm_lora: LoraConfig = LoraConfig()
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # of the language model; `auto` picks by platform, dtype and length (models.attention.choose),
    # as it always does for the tower, unless this is `xla`
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    image_fit: Literal["pad", "crop"] = "pad"  # pad to a square, or CLIP's centre crop
    # Words that the region classifier predicts for an entity (its label); 0: no classifier.
    # For towers trained here; a real run has its labels from an extractor.
    region_words: int = 0

    @property
    def num_image_tokens(self) -> int:
        """LLM tokens that one image takes, graph tokens not counted."""
        if self.prototypes.compress:
            return self.prototypes.num_prototypes
        return (self.vision.grid // self.projector.merge) ** 2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Tokenizer and conversation format."""

    tokenizer: str = "train"  # a SentencePiece model file, or `train`: made from the data set
    vocab_size: int = 512  # of a tokenizer trained on the data set
    legacy: bool = False
    template: Literal["plain", "vicuna_v1", "v1_sq"] = "v1_sq"
    system: str | None = None  # None: the template's own system text
    vusr_marker: Literal["role", "token"] = "role"
    self_questioning: float = 0.5  # probability that a human turn of an image sample is asked
    compat: Literal["strict", "official"] = "strict"


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data set of a mixture."""

    name: str = "scenes"  # `scenes`, or the name of a data set under `path`
    path: str = ""  # folder of a built data set, or of a LLaVA json with its images
    split: str = "train"
    # passes over it in one epoch: 1 takes every record once, 0.5 half of them, 2 each twice
    weight: float = 1.0
    tasks: tuple[str, ...] = ()  # scenes: conversation kinds; empty means all
    entities: str = ""  # another entity store than the data set's own; `none` leaves them out


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Loading: mixture, lengths, workers."""

    buckets: tuple[int, ...] = (640, 768, 1024, 1536, 2048, 2688)
    num_workers: int = 0
    num_threads: int = 2
    shuffle: bool = True
    fault_budget: float = 0.001  # share of broken records above which a run stops with 3
    graph_dropout: float = 0.0  # share of samples whose graph is left out
    image_dropout: float = 0.0  # share of samples whose image pixels are blanked
    node_dropout: float = 0.0
    node_jitter: float = 0.0  # share of its side by which a node's box and mask move and scale
    cache_images: bool = False  # keep decoded images in memory (small sets)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One row of the stage table: what trains, on what, how long."""

    name: str = "instruct"
    objective: Literal["lm", "region_text"] = "lm"
    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    steps: int = 0  # 0: `epochs` decides
    epochs: float = 1.0
    min_steps: int = 0  # `epochs` gives at least as many, for data sets of a few records
    batch_size: int = 128  # samples of one optimizer step, over all devices
    accumulation: int = 1
    # part -> learning rate; a part that is absent is frozen. Parts: vision, vision_lora,
    # prototypes, projector, graph, llm, llm_lora, regions.
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warmup: float = 0.03
    final_lr: float = 0.0  # share of the peak at the end of the cosine
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    template: str = ""  # empty: text.template
    self_questioning: float | None = None  # None: text.self_questioning
    question_weight: float = 1.0  # loss weight of self-asked question tokens
    pair_weight: float = 0.0  # region_text: weight of naming the relation of two regions
    cache_features: bool = False  # compute the frozen tower's features once
    buckets: tuple[int, ...] = ()  # empty: data.buckets


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run of one or more stages."""

    workdir: str = "runs/train"
    stages: tuple[StageConfig, ...] = ()
    only: tuple[str, ...] = ()  # names of the stages to run; empty means all
    init: str = ""  # checkpoint or Hugging Face folder the first stage starts from
    resume: Literal["auto", "never", "must"] = "auto"
    seed: int = 0
    mesh: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"data": 1, "fsdp": -1, "tensor": 1}
    )
    # what the backward pass computes again: nothing, all but a layer's input, all but the matrix
    # products, all but q, k, v and the attended values, or those kept in host memory
    remat: Literal["none", "full", "dots", "qkv", "offload"] = "none"
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 8
    save_every: int = 0  # 0: at the end of a stage only
    async_save: bool = True  # checkpoints are written while the next steps run
    keep: int = 2
    sample_every: int = 0  # steps between pictures of sample answers; 0: none
    # a step whose gradient norm is above this multiple of the median of the last `spike_window`
    # good steps is left out; 0: none is
    spike_factor: float = 0.0
    spike_window: int = 64
    tensorboard: bool = True


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Generation and scoring settings of `sgqlm eval`."""

    batch_size: int = 64
    max_new_tokens: int = 16
    num_scenes: int = 500  # test scenes, or conversations of a data set, at most
    num_asked: int = 100
    num_described: int = 32  # test scenes the model describes, for what it says that is not there
    ask_temperature: float = 0.7
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """Procedural scenes: size of the world and the noise of its detector-like graph."""

    path: str = ""  # folder of the built data set; empty: built under the work directory
    image_size: int = 112
    num_train: int = 12000
    num_val: int = 200
    num_test: int = 500
    min_objects: int = 5
    max_objects: int = 8
    min_radius: float = 0.08  # share of the side
    max_radius: float = 0.14
    missed: float = 0.05
    spurious: float = 0.05
    box_jitter: float = 0.05


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment, as `configs/*.py` describe it."""

    model: ModelConfig = ModelConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    scenes: SceneConfig = SceneConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def from_config_dict(tree: Mapping[str, Any], kind: type = Config, where: str = "config") -> Any:
    """Build a configuration from a nested mapping, refusing what it does not know.

    Args:
        tree: a `ml_collections.ConfigDict` or plain dict; keys may be left out, never invented.
        kind: the dataclass to build.
        where: the dotted path of `tree`, used in messages.

    Returns:
        An instance of `kind`.

    Raises:
        SgqlmError: a key is unknown (the nearest one is named) or a value has the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else "known: " + ", ".join(fields)
            raise errors.SgqlmError(f"unknown setting {where}.{key}", where=where, fix=hint)
        values[key] = convert(tree[key], hints[key], f"{where}.{key}")
    return kind(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the nested plain dict (json types) that `from_config_dict` turns back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(config)


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the annotation `hint` asks, or raise `SgqlmError` naming `where`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not hasattr(value, "keys"):
            raise _mismatch(value, "a group of settings", where)
        return from_config_dict(value, hint, where)
    if origin is typing.Union or origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return convert(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise _mismatch(value, "one of " + ", ".join(map(repr, args)) + hint_text, where)
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise _mismatch(value, "a list", where)
        return tuple(convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if hint is not Any and origin is not None and issubclass(origin, Mapping):
        if not hasattr(value, "keys"):
            raise _mismatch(value, "a mapping", where)
        return {k: convert(value[k], args[1], f"{where}.{k}") for k in value}
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (hint is int and isinstance(value, bool)) or not isinstance(value, hint):
        raise _mismatch(value, hint.__name__, where)
    return value


def _mismatch(value: Any, expected: str, where: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"{where} has the value {value!r}, which does not fit",
        where=where,
        fix=f"give {expected}",
    )
