"""What transformers makes of a folder, as a program: `read_folder.py FOLDER REQUEST ANSWER`.

REQUEST is an npz file with `texts` (json) and pictures; ANSWER gets `report` (json) and pixels.
"""

import json
import sys

import numpy as np
import transformers
from PIL import Image

MODES = {2: "LA", 3: "RGB", 4: "RGBA"}
KEYS = {
    "": ("image_token_index", "image_token_id", "image_seq_length", "projector_hidden_act",
         "tie_word_embeddings", "vision_feature_layer", "vision_feature_select_strategy",
         "pad_token_id"),
    "text_config": ("model_type", "vocab_size", "hidden_size", "intermediate_size", "head_dim",
                    "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
                    "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act"),
    "vision_config": ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
                      "num_attention_heads", "image_size", "patch_size", "hidden_act",
                      "layer_norm_eps"),
}  # fmt: skip


def settings(folder):
    """Return the settings that the model is built from."""
    config = transformers.AutoConfig.from_pretrained(folder)
    out = {}
    for part, keys in KEYS.items():
        held = getattr(config, part) if part else config
        # each major keeps one of the two spellings of some keys
        out |= {f"{part}.{key}": getattr(held, key) for key in keys if hasattr(held, key)}
    text = config.text_config
    parameters = getattr(text, "rope_parameters", None) or {}
    out["rope_theta"] = getattr(text, "rope_theta", None) or parameters["rope_theta"]
    out["dtype"] = str(config.dtype)
    out["class"] = type(config).__name__
    return out


def main(folder, request, answer):
    """Read a folder and write the answer."""
    transformers.logging.set_verbosity_error()
    given = np.load(request)
    texts = json.loads(str(given["texts"]))
    processor = transformers.AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    report = {
        "version": transformers.__version__,
        "ids": tokenizer(texts)["input_ids"],
        "decoded": tokenizer.decode(tokenizer(texts[0])["input_ids"], skip_special_tokens=True),
        "specials": tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]),
        "length": len(tokenizer),
        "settings": settings(folder),
        "generation": transformers.GenerationConfig.from_pretrained(folder).to_diff_dict(),
        "placeholders": [],
        "inputs": sorted(tokenizer(texts[0])),
    }
    out = {}
    for name in given.files:
        if name == "texts":
            continue
        array = given[name]
        image = Image.fromarray(array)
        assert image.mode == (MODES[array.shape[2]] if array.ndim == 3 else "L")
        text = "USER: <image>\nWhat? ASSISTANT:"
        found = processor(text=text, images=[image], return_tensors="np")
        out[name] = found["pixel_values"][0]
        report["placeholders"].append(int((found["input_ids"] == processor.image_token_id).sum()))
    np.savez(answer, report=json.dumps(report), **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
