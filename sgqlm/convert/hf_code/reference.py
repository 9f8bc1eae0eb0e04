"""What torch makes of a folder: run as a program, so that torch stays out of sgqlm.

`python reference.py JOB.json IN.npz OUT.npz` reads `pixels` float32[B, 3, S, S] (normalised) and
`ids` int64[B, T] (right-padded by `lengths`), and writes float32 arrays.
"""

import json
import pathlib
import sys
import typing

import numpy as np
import torch
import transformers


def main(job_file: str, given: str, out: str) -> None:
    """Run one job."""
    job = json.loads(pathlib.Path(job_file).read_text())
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    inputs = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
    with torch.no_grad():
        found = {"llava": llava, "towers": towers, "sgqlm": custom}[job["kind"]](job, inputs)
    np.savez(out, **{name: value.float().numpy() for name, value in found.items()})


def llava(job: dict, inputs: dict) -> dict:
    """Run `LlavaForConditionalGeneration`; row 0 has the image, row 1 is text."""
    kind = transformers.LlavaForConditionalGeneration
    model = _load(kind, job["folder"])
    mask = _mask(inputs)
    ids = inputs["expanded"]
    found = model(input_ids=ids, pixel_values=inputs["pixels"][:1], attention_mask=mask)
    return {"logits": found.logits}


def towers(job: dict, inputs: dict) -> dict:
    """Run CLIP's tower and a LLaMA apart, low-rank adapters added to both where there are any."""
    vision = _load(transformers.CLIPVisionModel, job["clip"])
    _add_adapter(vision, job.get("vision_adapter"), "vision_model")
    seen = vision(inputs["pixels"], output_hidden_states=True).hidden_states[job["layer"]]
    del vision
    words = _load_llama(job["llama"])
    _add_adapter(words, job.get("text_adapter"), "model.layers")
    logits = words(input_ids=inputs["ids"], attention_mask=_mask(inputs, "ids")).logits
    return {"features": seen[:, 1:], "logits": logits}


def custom(job: dict, inputs: dict) -> dict:
    """Run an export with its own code on text and a bare image."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        job["folder"], trust_remote_code=True, dtype=torch.float32
    ).eval()
    found = model(input_ids=inputs["ids"], attention_mask=_mask(inputs, "ids"))
    return {"logits": found.logits}


def _load(kind, folder):
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [*info["missing_keys"], *info["mismatched_keys"]]
    if lost:
        raise SystemExit(f"transformers did not find {len(lost)} tensors, such as {lost[0]}")
    return model.eval()


def _load_llama(folder: str):
    tree = json.loads((pathlib.Path(folder) / "config.json").read_text())
    known = {k: v for k, v in tree.items() if k not in ("architectures", "model_type")}
    cfg = transformers.LlamaConfig(**known)
    kind = transformers.LlamaForCausalLM
    model, info = typing.cast(typing.Any, kind).from_pretrained(
        folder, config=cfg, dtype=torch.float32, output_loading_info=True
    )
    if lost := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise SystemExit(f"transformers did not find {len(lost)} tensors, such as {lost[0]}")
    return model.eval()


def _add_adapter(model, folder: str | None, part: str) -> None:
    """Add alpha / rank * B A to the weights that an adapter names."""
    if not folder:
        return
    path = pathlib.Path(folder)
    settings = json.loads((path / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    modules = dict(model.named_modules())
    tensors = _tensors(path)
    for name, a in tensors.items():
        if ".lora_A." not in name or (part != "vision_model" and "vision_tower" in name):
            continue
        short = name.split(".lora_A.")[0]
        hits = [n for n in modules if n and (short.endswith("." + n) or _tail(short) == _tail(n))]
        (target,) = [n for n in hits if _tail(n) == _tail(short)]
        b = tensors[name.replace("lora_A", "lora_B")]
        modules[target].weight += scale * (b.float() @ a.float())


def _tail(name: str) -> str:
    """Return a module's name from its layer number on."""
    return name.rpartition("layers.")[2]


def _tensors(folder: pathlib.Path) -> dict:
    if (folder / "adapter_model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / "adapter_model.safetensors")
    return torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")


def _mask(inputs: dict, key: str = "expanded"):
    size = inputs[key].shape[1]
    return (torch.arange(size)[None] < inputs[f"{key}_lengths"][:, None]).long()


if __name__ == "__main__":
    main(*sys.argv[1:])
