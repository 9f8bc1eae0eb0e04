"""Everything of a standard LLaVA folder that is not weights.

The files are read by transformers 4 and 5 and by vLLM, so some values stand twice, in the spelling
of each.
"""

from typing import Any, NamedTuple

from sgqlm import config as config_lib
from sgqlm import errors
from sgqlm.convert import chat_template, hf_tokenizer
from sgqlm.models import clip_vit
from sgqlm.text import templates
from sgqlm.text import tokenizer as tokenizers

_IMAGE_NOTES = {
    "pad": "Images are padded to a square in the mean colour before they are resized "
    "(`LlavaImageProcessor` with `do_pad`). A program that reads these files with "
    "`CLIPImageProcessor` crops instead, and cuts off what lies beyond the middle square.",
    "crop": "Images are resized and cropped to their middle square (`CLIPImageProcessor`). Those "
    "more than 16 times as long as wide are shortened first in training, and not here.",
}
_COMMON_NOTES = (
    "Turn pictures upright and make them RGB before the processor sees them "
    '(`ImageOps.exif_transpose(image).convert("RGB")`): it ignores EXIF data, and transformers 5 '
    "puts transparent pictures on white, where training drops the alpha channel. Pictures of 16 "
    "bits a channel have to be brought to 8.",
    "With torchvision installed, transformers 5 resizes images with it, which changes pixels a "
    'little; `AutoProcessor.from_pretrained(..., backend="pil")` resizes as in training.',
    "Load the tokenizer with `AutoTokenizer` or `AutoProcessor`: the class `LlamaTokenizer` of "
    "transformers 5 takes the vocabulary alone and gives other ids to texts with several spaces, "
    "leading spaces or line breaks.",
    "The chat template does not write the start token, the tokenizer does. A server that renders "
    "the template and then tokenizes without special tokens (vLLM's chat endpoint) has to be told "
    "to add them: `add_special_tokens=true` in the request.",
)
_ASK_NOTE = (
    "The model learned to ask: `processor.apply_chat_template(messages, "
    'add_generation_prompt=True, open_role="vuser")` lets it go on with a question, about an image '
    "alone after a user message that is only the image. Its questions have the role `vuser`."
)


class SideFiles(NamedTuple):
    """Files of a folder, and what its card has to say about them."""

    files: dict[str, bytes]
    notes: tuple[str, ...]


def embedding_rows(
    config: config_lib.Config,
    tokenizer: tokenizers.Tokenizer | None,
    *,
    image_token_id: int | None = None,
) -> int:
    """Return the rows that the folder's embedding and head need for `<image>` and `<pad>`.

    Args:
        config: of the model.
        tokenizer: of the model; None where there is none.
        image_token_id: the id of `<image>` in the folder that the model came from, if known.

    Returns:
        `config.model.llm.vocab_size` where both fit behind the tokenizer's ids, as in a model of
        32064 rows with the 32000 pieces of LLaMA; else the next multiple of 64.
    """
    rows = config.model.llm.vocab_size
    ids = hf_tokenizer.extra_ids(tokenizer, vocab_size=rows, image_token_id=image_token_id)
    return hf_tokenizer.num_rows(ids, vocab_size=rows)


def side_files(
    config: config_lib.Config,
    tokenizer: tokenizers.Tokenizer | None,
    *,
    vocab_size: int,
    dtype: str,
    image_token_id: int | None = None,
) -> SideFiles:
    """Return the configuration, processor and tokenizer files of a LLaVA folder.

    Args:
        config: of the model; its extra parts are not looked at.
        tokenizer: of the model; None leaves the tokenizer files out.
        vocab_size: rows of the embedding that is written, from `embedding_rows`.
        dtype: of the weights, as torch names it.
        image_token_id: as given to `embedding_rows`.

    Returns:
        File name -> content, and notes on where the stock processor differs from sgqlm.

    Raises:
        SgqlmError: the format cannot hold a part of the configuration or the tokenizer.
    """
    refuse_unknown_parts(config.model)
    ids = hf_tokenizer.extra_ids(
        tokenizer, vocab_size=config.model.llm.vocab_size, image_token_id=image_token_id
    )
    if vocab_size < ids.end:
        raise _unfit(
            f"an embedding of {vocab_size} rows has no room for <image> ({ids.image})",
            fix=f"write at least {ids.end} rows",
        )
    bos, eos = (1, 2) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id)
    text_ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": ids.pad}
    whole = model_config(config.model, text_ids, ids.image, vocab_size=vocab_size, dtype=dtype)
    picture = image_processor(config.model)
    trees = {
        "config.json": whole,
        "generation_config.json": {**text_ids, "do_sample": False},
        "preprocessor_config.json": {**picture, "processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "image_processor": picture,
            "image_token": "<image>",
            "num_additional_image_tokens": 1,  # the class token, which `default` leaves out again
            "patch_size": config.model.vision.patch_size,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    }
    files = {name: hf_tokenizer.as_json(tree) for name, tree in trees.items()}
    files["chat_template.jinja"] = chat_template.build(config.text).encode()
    notes = (_IMAGE_NOTES[config.model.image_fit], *_COMMON_NOTES)
    notes += (_ASK_NOTE,) if templates.get(config.text.template).can_ask else ()
    if tokenizer is None:
        return SideFiles(files, (*notes, "The model came without a tokenizer that sgqlm reads."))
    length = config.model.llm.max_positions
    files |= hf_tokenizer.files(tokenizer, ids, max_length=length, processor="LlavaProcessor")
    return SideFiles(files, notes)


def refuse_unknown_parts(model: config_lib.ModelConfig) -> None:
    """Refuse what `LlavaForConditionalGeneration` has no setting for.

    Raises:
        SgqlmError: naming the setting.
    """
    projector = model.projector
    if projector.kind != "mlp2x":
        raise _unfit(f"LLaVA has no projector of kind {projector.kind!r}", where="projector.kind")
    if projector.merge > 1:
        raise _unfit(
            f"LLaVA's projector does not join {projector.merge} x {projector.merge} patches",
            where="projector.merge",
        )


def model_config(
    model: config_lib.ModelConfig,
    text_ids: dict[str, int],
    image_id: int,
    *,
    vocab_size: int,
    dtype: str,
) -> dict[str, Any]:
    """Return config.json of a `LlavaForConditionalGeneration`.

    Args:
        model: the configuration.
        text_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`.
        image_id: of `<image>`.
        vocab_size: rows of the embedding.
        dtype: of the weights.

    Returns:
        The tree, with both spellings of what transformers 4 and 5 call differently.
    """
    tied = model.llm.tie_embeddings
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        "torch_dtype": dtype,
        "image_seq_length": model.vision.num_patches,
        "image_token_id": image_id,
        "image_token_index": image_id,
        "multimodal_projector_bias": True,
        "pad_token_id": text_ids["pad_token_id"],
        "projector_hidden_act": model.projector.activation,
        "text_config": _text_config(model.llm, text_ids, vocab_size),
        "tie_word_embeddings": tied,
        "vision_config": _vision_config(model),
        "vision_feature_layer": model.vision.feature_layer,
        "vision_feature_select_strategy": "default",
    }


def _text_config(
    llm: config_lib.LlmConfig, text_ids: dict[str, int], vocab_size: int
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        **text_ids,
        "head_dim": llm.head_dim,
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "intermediate_size": llm.mlp_dim,
        "max_position_embeddings": llm.max_positions,
        "mlp_bias": False,
        "num_attention_heads": llm.num_heads,
        "num_hidden_layers": llm.num_layers,
        "num_key_value_heads": llm.num_kv_heads,
        "rms_norm_eps": llm.rms_norm_eps,
        "rope_parameters": {"rope_theta": llm.rope_theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": llm.tie_embeddings,
        "vocab_size": vocab_size,
    }


def _vision_config(model: config_lib.ModelConfig) -> dict[str, Any]:
    vision = model.vision
    return {
        "model_type": "clip_vision_model",
        "hidden_act": vision.activation,
        "hidden_size": vision.width,
        "image_size": vision.image_size,
        "intermediate_size": vision.mlp_dim,
        "layer_norm_eps": vision.layer_norm_eps,
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
        "projection_dim": vision.width,
    }


def image_processor(model: config_lib.ModelConfig) -> dict[str, Any]:
    """Return the settings of the stock image processor that do what `images.to_square` does."""
    size, is_padded = model.vision.image_size, model.image_fit == "pad"
    return {
        "image_processor_type": "LlavaImageProcessor" if is_padded else "CLIPImageProcessor",
        **({"do_pad": True} if is_padded else {}),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # PIL's number for bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(clip_vit.MEAN),
        "image_std": list(clip_vit.STD),
    }


def _unfit(what: str, *, where: str = "", fix: str = "use --format=sgqlm") -> errors.SgqlmError:
    return errors.SgqlmError(what, where=where, fix=fix, code=errors.CHECKPOINT)
