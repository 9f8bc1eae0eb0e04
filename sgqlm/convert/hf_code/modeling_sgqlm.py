"""Model of a sgqlm folder in torch: patches, prototypes, scene graph and text in one sequence."""

from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)

from .configuration_sgqlm import SgqlmConfig
from .layers_sgqlm import Dense, LayerNorm, VisionTower, activation
from .prototypes_sgqlm import PaperExtractor, ReleasedExtractor
from .scene_graph_sgqlm import SceneGraph, pool_nodes
from .tokenization_sgqlm import GRAPH_TOKEN_ID, IMAGE_TOKEN_ID, SgqlmTokenizer

VISUAL_INPUTS = (
    "pixel_values",
    "node_coverage",
    "node_boxes",
    "node_label_ids",
    "node_valid",
    "needs_labels",
    "prompt_ids",
    "prompt_valid",
)


class Visual(NamedTuple):
    """The image as the language model and the graph take it."""

    tokens: torch.Tensor  # [B, I, H]
    node_features: torch.Tensor  # [B, P, D]


class LogitsProcessors(LogitsProcessorList):
    """Shows the placeholders, which are no ids of the vocabulary, to processors as padding."""

    def __call__(self, input_ids, scores, **kwargs):
        """Apply every processor."""
        return super().__call__(input_ids.clamp(min=0), scores, **kwargs)  # pyright: ignore


class Projector(nn.Module):
    """Patch features to language model tokens, merge x merge patches joined to one."""

    def __init__(self, config, merge, width, features):
        super().__init__()
        self.config, self.merge = config, merge
        self.linear_1 = Dense(width * merge**2, features)
        if config.kind == "mlp2x":
            self.linear_2 = Dense(features, features)

    def forward(self, x):
        """Map [B, P, D] to [B, I, H]."""
        side, step = round(x.shape[1] ** 0.5), self.merge
        if step > 1:
            x = x.reshape(len(x), side // step, step, side // step, step, x.shape[-1])
            x = x.transpose(2, 3).reshape(len(x), (side // step) ** 2, -1)
        x = self.linear_1(x)
        if self.config.kind == "linear":
            return x
        return self.linear_2(activation(self.config.activation)(x))


class RegionClassifier(nn.Module):
    """Names an entity from the pixels under its mask; the pair head only serves training."""

    def __init__(self, num_words, vocab_size, width):
        super().__init__()
        self.num_words = num_words
        self.norm = LayerNorm(width)
        self.fc1 = Dense(width, 2 * width)
        self.fc2 = Dense(2 * width, num_words * vocab_size)
        self.receive, self.send, self.evidence = (Dense(width, width) for _ in range(3))
        self.pair = Dense(width, vocab_size)

    def forward(self, pooled):
        """Map pooled features float32[B, N, D] to logits [B, N, W, V]."""
        hidden = functional.gelu(self.fc1(self.norm(pooled)), approximate="tanh")
        return self.fc2(hidden).unflatten(-1, (self.num_words, -1))


class SgqlmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Vision-language model with a scene graph; made for inference, it has no dropout.

    The inputs beside `input_ids` come from the processor. In `input_ids`, -200 stands once for
    each image token and -201 once for each graph token.
    """

    config_class = SgqlmConfig
    main_input_name = "input_ids"
    _no_split_modules: ClassVar = ["LlamaDecoderLayer", "VisionLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True

    def __init__(self, config):
        super().__init__(config)
        cfg = self.settings = config.settings
        self.vision_tower = VisionTower(cfg.vision, cfg.vision_lora)
        # prototypes that stand for the patches lie on no grid
        merge = 1 if cfg.prototypes.compress else cfg.projector.merge
        sizes = (merge, cfg.vision.width, cfg.llm.width)
        self.multi_modal_projector = Projector(cfg.projector, *sizes)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        if cfg.llm_lora.rank:
            self._add_adapters(cfg.llm_lora)
        if cfg.prototypes.mode != "none":
            kinds = {"paper": PaperExtractor, "released": ReleasedExtractor}
            self.prototypes = kinds[cfg.prototypes.mode](cfg.prototypes, cfg.vision.width)
        if cfg.graph.enabled:
            self.graph = SceneGraph(cfg.graph, cfg.vision, cfg.llm.width)
        if cfg.region_words:
            sizes = (cfg.region_words, cfg.llm.vocab_size, cfg.vision.width)
            self.regions = RegionClassifier(*sizes)
        self._tokenizer = None
        # as in training, these compute in float32 whatever the type of the rest
        exact = [name for name in ("prototypes", "regions") if hasattr(self, name)]
        self._keep_in_fp32_modules_strict = exact or None
        self.post_init()

    def _add_adapters(self, lora):
        for layer in self.language_model.model.layers:
            parts = [(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
            parts += [(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
            for owner, name in parts:
                old = getattr(owner, name)
                new = Dense(old.in_features, old.out_features, bias=False, lora=lora)
                setattr(owner, name, new.to(old.weight.dtype))

    def get_input_embeddings(self):
        """Return the embedding table."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replace the embedding table."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        """Return the output head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        """Replace the output head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def set_tokenizer(self, tokenizer):
        """Give the model the tokenizer with which it reads labels that it predicts itself.

        Without this call it loads that of the folder it came from, the first time it needs it.
        """
        self._tokenizer = tokenizer

    def encode_images(self, pixel_values, use_lora=True):
        """Map normalised pixels [B, 3, S, S] to patch features [B, P, D]."""
        table = self.get_input_embeddings().weight
        return self.vision_tower(pixel_values.to(table.device, table.dtype), use_lora)

    def visual_tokens(self, features) -> Visual:
        """Map patch features [B, P, D] through prototypes and projector."""
        cfg = self.settings
        if cfg.prototypes.mode == "none":
            return Visual(self.multi_modal_projector(features), features)
        patches, centers = self.prototypes(features)
        if cfg.prototypes.compress:
            tokens = self.multi_modal_projector(centers.to(features.dtype))
        else:
            tokens = self.multi_modal_projector(patches)
        return Visual(tokens, features if cfg.graph.node_source == "raw" else patches)

    def graph_tokens(self, node_features, coverage, boxes, label_ids, valid, prompt, prompt_valid):
        """Encode the entities [B, N, ...] under prompts [B, R, Q]: tokens [B, R, N, H]."""
        args = (node_features, coverage, boxes, label_ids, valid, prompt, prompt_valid)
        return self.graph(*args, self.get_input_embeddings())

    def predict_labels(self, features, coverage):
        """Map features of the tower without adapters, and masks, to token ids [B, N, W]."""
        return self.regions(pool_nodes(features, coverage)).argmax(-1)

    def embed(
        self,
        input_ids,
        pixel_values=None,
        node_coverage=None,
        node_boxes=None,
        node_label_ids=None,
        node_valid=None,
        needs_labels=None,
        prompt_ids=None,
        prompt_valid=None,
    ):
        """Build the language model's input rows [B, T, H]."""
        rows = self.get_input_embeddings()(input_ids.clamp(min=0))
        is_image, is_graph = input_ids == IMAGE_TOKEN_ID, input_ids == GRAPH_TOKEN_ID
        if ((input_ids < 0) & ~is_image & ~is_graph).any():
            raise ValueError("input_ids have a negative id that is no image or graph placeholder")
        if pixel_values is None:
            _check_runs(is_image, 0, 0, "image")
            _check_runs(is_graph, 0, 0, "graph")
            return rows
        features = self.encode_images(pixel_values)
        visual = self.visual_tokens(features)
        _check_runs(is_image, visual.tokens.shape[1], None, "image")
        rows = _place(rows, is_image, visual.tokens[:, None])
        if node_valid is None or not self.settings.graph.enabled:
            _check_runs(is_graph, 0, 0, "graph")
            return rows
        if prompt_ids is None:
            raise ValueError("entities come with prompt_ids and prompt_valid")
        _check_runs(is_graph, node_valid.sum(1), prompt_ids.shape[1], "graph")
        if needs_labels is not None and needs_labels.any():
            if self.settings.vision_lora.rank:
                features = self.encode_images(pixel_values, use_lora=False)
            found = self.predict_labels(features, node_coverage)
            node_label_ids = self._read_labels(found, node_label_ids, node_valid, needs_labels)
        nodes = (node_coverage, node_boxes, node_label_ids, node_valid)
        tokens = self.graph_tokens(visual.node_features, *nodes, prompt_ids, prompt_valid)
        order = torch.argsort((~node_valid).long(), dim=1, stable=True)
        tokens = tokens.take_along_dim(order[:, None, :, None], dim=2)
        return _place(rows, is_graph, tokens)

    def _read_labels(self, found, label_ids, valid, needs_labels):
        """Turn predicted ids to text and back: the ids that a label of that text would have."""
        words, label_ids = self._words(), label_ids.clone()
        for b, n in (valid & needs_labels[:, None]).nonzero().tolist():
            text = words.decode(found[b, n].tolist(), skip_special_tokens=True)
            ids = words.encode_with_starts(text)[0][: label_ids.shape[2]]
            label_ids[b, n] = -1
            label_ids[b, n, : len(ids)] = torch.tensor(ids, dtype=label_ids.dtype)
        return label_ids

    def _words(self):
        if self._tokenizer is None:
            folder = self.config.name_or_path or ""
            commit = getattr(self.config, "_commit_hash", None) or "main"
            try:
                self._tokenizer = SgqlmTokenizer.from_pretrained(folder, revision=commit)
            except (OSError, TypeError, ValueError) as error:
                raise ValueError(
                    "these entities have no labels, and to predict them the model needs its "
                    f"tokenizer, which {folder!r} does not have; call "
                    "model.set_tokenizer(processor.tokenizer), or give labels"
                ) from error
        return self._tokenizer

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        pixel_values=None,
        node_coverage=None,
        node_boxes=None,
        node_label_ids=None,
        node_valid=None,
        needs_labels=None,
        prompt_ids=None,
        prompt_valid=None,
        **kwargs,
    ):
        """Return the logits of every position, with a loss where `labels` (-100 ignored) are given.

        Raises:
            ValueError: the placeholders in `input_ids` do not fit the images and entities.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed(
                input_ids,
                pixel_values,
                node_coverage,
                node_boxes,
                node_label_ids,
                node_valid,
                needs_labels,
                prompt_ids,
                prompt_valid,
            )
        if (
            position_ids is None
            and attention_mask is not None
            and attention_mask.shape == inputs_embeds.shape[:2]
        ):
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        """Leave the image and the graph out once their positions are in the cache."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore
            input_ids, past_key_values=past_key_values, **kwargs
        )
        is_first = kwargs.get("is_first_iteration") or False  # transformers 5 says it
        if past_key_values is not None and past_key_values.get_seq_length() > 0 and not is_first:
            inputs = {key: value for key, value in inputs.items() if key not in VISUAL_INPUTS}
        return inputs

    def _get_logits_processor(self, *args, **kwargs):
        found = super()._get_logits_processor(*args, **kwargs)  # pyright: ignore
        return LogitsProcessors(found)


def _run_positions(is_member):
    """Number the runs of neighbouring members, and the members inside each run."""
    before = functional.pad(is_member[:, :-1], (1, 0))
    starts = (is_member & ~before).long()
    seen = is_member.long().cumsum(1)
    start_count = (starts * seen).cummax(1).values
    return starts.cumsum(1) - 1, seen - start_count


def _place(rows, is_member, runs):
    """Fill run r of each sequence's placeholders [B, T] from the front of `runs` [B, R, M, H]."""
    _, num_runs, size, width = runs.shape
    run, position = _run_positions(is_member)
    index = run.clamp(0, num_runs - 1) * size + position.clamp(0, size - 1)
    flat = runs.flatten(1, 2).to(rows.dtype)
    picked = flat.gather(1, index[..., None].expand(-1, -1, width))
    return torch.where(is_member[..., None], picked, rows)


def _check_runs(is_member, size, most, name):
    """Refuse placeholders that are not whole runs of `size`, at most `most` runs in a row."""
    runs, position = _run_positions(is_member)
    count, found = runs[:, -1] + 1, is_member.sum(1)
    longest = torch.where(is_member, position + 1, 0).amax(1)
    is_wrong = (found != count * size) | (longest > size)
    if most is not None:
        is_wrong |= count > most
    if is_wrong.any():
        row = int(is_wrong.nonzero()[0])
        size = int(size[row]) if torch.is_tensor(size) else size
        raise ValueError(
            f"row {row} has {int(found[row])} {name} placeholders in {int(count[row])} runs, but "
            f"it has {size} {name} features, and each run has to have as many"
        )
