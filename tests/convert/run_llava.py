"""What transformers makes of a LLaVA folder, as a program: `run_llava.py FOLDER GIVEN ANSWER`.

GIVEN is an npz file with `pixels`, and `ids` and `mask` padded on the left.
"""

import json
import sys

import numpy as np
import torch
import transformers


def main(folder, given, answer):
    """Write logits, 64 greedy tokens of the batch and of its first row alone, and what was lost."""
    transformers.logging.set_verbosity_error()
    kind = transformers.LlavaForConditionalGeneration
    model, lost = kind.from_pretrained(folder, output_loading_info=True)
    held = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
    inputs = {"input_ids": held["ids"], "attention_mask": held["mask"]}
    rules = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        logits = model.eval()(**inputs, pixel_values=held["pixels"]).logits
        several = model.generate(**inputs, pixel_values=held["pixels"], **rules)
        first = {name: part[:1] for name, part in inputs.items()}
        one = model.generate(**first, pixel_values=held["pixels"][:1], **rules)
    size = held["ids"].shape[1]
    report = {"version": transformers.__version__, "lost": sum(map(len, lost.values()))}
    np.savez(
        answer,
        logits=logits.numpy(),
        several=several[:, size:].numpy(),
        one=one[:, size:].numpy(),
        report=json.dumps(report),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
