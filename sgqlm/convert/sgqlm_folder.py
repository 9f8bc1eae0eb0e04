"""Every file of a folder in format `sgqlm` beside its weights: settings, tokenizer, torch code.

The folder is a model of its own for transformers 4 and 5 (`trust_remote_code=True`), and holds
the exact configuration, from which sgqlm itself rebuilds the model.
"""

import json
import pathlib
from typing import Any

from sgqlm import config as config_lib
from sgqlm import errors, types
from sgqlm.text import templates
from sgqlm.text import tokenizer as tokenizers

MODEL_TYPE = "sgqlm"
ARCHITECTURE = "SgqlmForConditionalGeneration"
CODE = pathlib.Path(__file__).resolve().parent / "hf_code"


def side_files(config: config_lib.Config, tokenizer: tokenizers.Tokenizer) -> dict[str, bytes]:
    """Return every file of the folder but weights and model card.

    Args:
        config: the whole configuration, `lora` ranks 0 where the weights are merged.
        tokenizer: of the model.

    Returns:
        Content by file name.

    Raises:
        SgqlmError: the model needs something that the folder cannot hold.
    """
    model = config.model
    if model.graph.enabled and model.graph.edge_oracle:
        raise errors.SgqlmError(
            "a model whose edges know the annotated predicates cannot be exported",
            where="config.model.graph.edge_oracle",
            why="it is a diagnostic upper bound: no predicate is annotated for a new picture",
            fix="train with graph.edge_oracle=False and export that model",
            code=errors.CHECKPOINT,
        )
    if tokenizer.vocab_size > model.llm.vocab_size:
        raise errors.SgqlmError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model only "
            f"{model.llm.vocab_size} rows",
            where="config.model.llm.vocab_size",
            fix="give the tokenizer that the model was trained with",
            code=errors.CHECKPOINT,
        )
    trees = {
        "config.json": model_config(config, tokenizer),
        "generation_config.json": {
            **_special_ids(tokenizer),
            "do_sample": False,
            "max_new_tokens": 128,
        },
        "processor_config.json": _processor_config(config),
        "preprocessor_config.json": _preprocessor_config(config),
        "tokenizer_config.json": _tokenizer_config(config, tokenizer),
    }
    files = {name: _json(tree) for name, tree in trees.items()}
    files["tokenizer.model"] = tokenizer.model_bytes
    return files | {path.name: path.read_bytes() for path in sorted(CODE.glob("*_sgqlm.py"))}


def model_config(config: config_lib.Config, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        config: the whole configuration.
        tokenizer: of the model.

    Returns:
        What transformers reads, and under `sgqlm` what `read_config` turns back.
    """
    model, module = config.model, "modeling_sgqlm." + ARCHITECTURE
    dtype = {"dtype": model.compute_dtype, "torch_dtype": model.compute_dtype}
    return {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "auto_map": {
            "AutoConfig": "configuration_sgqlm.SgqlmConfig",
            "AutoModel": module,
            "AutoModelForImageTextToText": module,
            "AutoProcessor": "processing_sgqlm.SgqlmProcessor",
        },
        **dtype,
        **_special_ids(tokenizer),
        "image_token_index": types.IMAGE_TOKEN_ID,
        "graph_token_index": types.GRAPH_TOKEN_ID,
        "tie_word_embeddings": model.llm.tie_embeddings,
        "text_config": _text_config(model.llm) | dtype | _special_ids(tokenizer),
        "sgqlm": {
            "model": config_lib.to_dict(model),
            "text": config_lib.to_dict(config.text),
            "tokenizer": _rules(tokenizer),
        },
    }


def _text_config(llm: config_lib.LlmConfig) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": llm.rope_theta}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": llm.vocab_size,
        "hidden_size": llm.width,
        "intermediate_size": llm.mlp_dim,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "head_dim": llm.head_dim,
        "max_position_embeddings": llm.max_positions,
        "rms_norm_eps": llm.rms_norm_eps,
        # transformers 4 reads the first and transformers 5 the second
        "rope_theta": llm.rope_theta,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": llm.tie_embeddings,
    }


def _processor_config(config: config_lib.Config) -> dict[str, Any]:
    template = templates.get(config.text.template)
    system = template.system if config.text.system is None else config.text.system
    text = {
        "template": config.text.template,
        "system": system,
        "vusr_marker": config.text.vusr_marker,
    }
    return {
        "processor_class": "SgqlmProcessor",
        "auto_map": {"AutoProcessor": "processing_sgqlm.SgqlmProcessor"},
        "model": config_lib.to_dict(config.model),
        "text": text,
    }


def _preprocessor_config(config: config_lib.Config) -> dict[str, Any]:
    """Describe the pixels for programs that look here; the processor itself reads the other."""
    size = config.model.vision.image_size
    return {
        "processor_class": "SgqlmProcessor",
        "auto_map": {"AutoProcessor": "processing_sgqlm.SgqlmProcessor"},
        "size": {"height": size, "width": size},
        "do_pad": config.model.image_fit == "pad",
        "do_center_crop": config.model.image_fit == "crop",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "rescale_factor": 1 / 255,
        "resample": 3,
    }


def _tokenizer_config(config: config_lib.Config, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    names = {i: token for token, i in tokenizer.special_ids.items()}
    special = {
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
        "unk_token": names[tokenizer.pad_id],
        "pad_token": names[tokenizer.pad_id],
    }
    return {
        "tokenizer_class": "SgqlmTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_sgqlm.SgqlmTokenizer", None]},
        "processor_class": "SgqlmProcessor",
        **special,
        **_rules(tokenizer),
        "model_max_length": config.model.llm.max_positions,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def _rules(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    return {
        "legacy": tokenizer.legacy,
        "rule": tokenizer.rule,
        "added_tokens": list(tokenizer.added_tokens),
    }


def _special_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()
