"""Let peft load an adapter and merge it, as a program: `merge_adapter.py FOLDER ANSWER`.

The base is a small random LLaVA, made here; ANSWER (npz) gets its weights before and after, the
names of its modules, and what peft said about missing or unexpected tensors.
"""

import json
import sys
import warnings

import numpy as np
import peft
import torch
import transformers


def base():
    """Return a LLaVA of 2 and 3 layers."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14, projection_dim=16,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, vocab_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval()


def weights(model):
    """Return all parameters by name."""
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def main(folder, answer):
    """Load, merge, write."""
    model = base()
    before = weights(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(model, folder)
    said = [str(item.message) for item in caught if "adapter keys" in str(item.message)]
    rest = peft.set_peft_model_state_dict(
        adapted, peft.utils.load_peft_weights(folder, device="cpu")
    )
    said += [f"unexpected {name}" for name in rest.unexpected_keys]
    said += [f"missing {name}" for name in rest.missing_keys if ".lora_" in name]
    active = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
    after = weights(adapted.merge_and_unload())
    report = {
        "version": transformers.__version__,
        "said": said,
        "modules": sorted(name for name, _ in base().named_modules()),
        "adapted": len(active),
    }
    arrays = {f"before/{name}": value for name, value in before.items()}
    arrays |= {f"after/{name}": value for name, value in after.items()}
    np.savez(answer, report=json.dumps(report), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
