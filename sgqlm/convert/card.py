"""README.md of an export: what it is, how it is loaded, where it came from, what to mind."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sgqlm.convert import probe as probes

Kind = Literal["llava", "peft", "sgqlm"]

# LLaVA-1.5 and SQ-LLaVA are made of Vicuna 1.5, which is made of Llama 2; later ones differ
_LLAMA_2 = re.compile(r"vicuna|llama(?!.?[3-9])|llava(?!.*(mistral|qwen|llama.?3|gemma|phi))", re.I)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NOTICE = (
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
    "All Rights Reserved."
)
_IMPORTS = (  # text of the card; nothing is imported here
    "from PIL import Image, ImageOps\n"
    "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
)
_PICTURE = """\
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
"""
_ANSWER = """\
ids = model.generate(**inputs, max_new_tokens=128, do_sample=False)
print(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
_MESSAGES = """\
messages = [{"role": "user", "content": [
    {"type": "image"}, {"type": "text", "text": "What is in this picture?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[image], text=text, return_tensors="pt")
"""
_LOAD = {
    "llava": _IMPORTS
    + """
folder = "FOLDER"  # or the name on the hub
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
processor = AutoProcessor.from_pretrained(folder)
"""
    + _PICTURE
    + _MESSAGES
    + _ANSWER,
    "peft": "from peft import PeftModel\n"
    + _IMPORTS
    + """
base, folder = "BASE", "FOLDER"
model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
model = PeftModel.from_pretrained(model, folder)  # .merge_and_unload() folds it in
processor = AutoProcessor.from_pretrained(base)
"""
    + _PICTURE
    + _MESSAGES
    + _ANSWER,
    "sgqlm": _IMPORTS
    + """
source = {"pretrained_model_name_or_path": "FOLDER", "trust_remote_code": True}
# from the hub also: source["revision"] = "<the commit whose code you have read>"
model = AutoModelForImageTextToText.from_pretrained(**source, dtype="auto")
processor = AutoProcessor.from_pretrained(**source)
"""
    + _PICTURE
    + """\
text = processor.conversation("What is left of the dog?")
entities = {  # optional: what a detector found, in pixels of the picture
    "boxes": [[10, 20, 110, 220], [150, 40, 300, 260]], "labels": ["dog", "cat"]}
inputs = processor(images=[image], text=[text], entities=[entities])
"""
    + _ANSWER,
}
_VERSIONS = "The same lines work in transformers 4.57 and 5."
_FORMATS = {
    "llava": "`apply_chat_template` writes the conversation format of the training: "
    "`{system} USER: <image>\\n{question} ASSISTANT:`, an answer ends with `</s>` and the next "
    "`USER:` follows it without a space. The image comes first, in any message that has one.",
    "peft": "The adapter was trained with `{system} USER: <image>\\n{question} ASSISTANT:`, where "
    "an answer ends with `</s>` and the next `USER:` follows it without a space. If the template "
    "of the base writes something else, pass this one's text to the processor yourself.",
    "sgqlm": "`processor.conversation(turns)` writes the conversation format of the training, "
    "from a question or from turns `{'from': 'human' | 'gpt', 'value': text}`; "
    '`open_role="vuser"` lets a model that learned to ask go on with a question of its own.',
}
_INPUTS = """\
## Extra inputs

| argument of the processor | what |
|---|---|
| `entities` | one a text, or None: `boxes` float[n, 4] (x0 y0 x1 y1), `masks` bool[n, h, w] or \
COCO run-length codes, optionally `labels` and `scores`. Coordinates are pixels of the upright \
picture. Without entities the model answers from the image alone. |
| `prompts` | the question the scene graph hears, one a text; left out, it is read from the text |

The code in this folder runs on your machine: read it, and pin `revision` when you load it from a
hub, so that it cannot change under you. Without `trust_remote_code=True` transformers asks on the
terminal, and fails where there is none. Servers such as vLLM hand over images only, so entities
do not reach a model that they serve.
"""
_LIMITS = """\
## Limits

The model can be wrong in a confident tone: it may name objects that are not in the picture,
miscount and misread text. What it learned, and in which languages, follows from its base and its
training data. Nothing was measured on this folder unless a table here says so: measure first.
"""


def model_card(
    manifest: Mapping[str, Any],
    *,
    kind: Kind,
    notes: Sequence[str],
    probe: probes.ProbeReport | None,
) -> str:
    """Return README.md of an export.

    Args:
        manifest: `format`, `source`, `step`, `config_digest`, `versions` (name -> version), `base`
            (a name, or a mapping with `id` or `path`, or None), `dropped` (names of parts),
            `dtype`, `created_by`; what is missing is left out.
        kind: of the export.
        notes: where the folder differs from sgqlm, one sentence or more each.
        probe: comparison of token ids; None where there was nothing to compare.

    Returns:
        Markdown with a YAML head.
    """
    base = base_name(manifest.get("base"))
    code = _LOAD[kind].replace("BASE", base or "the base model").rstrip()
    parts = [
        _front_matter(kind, base),
        f"# {_title(kind, base)}\n",
        _summary(manifest, kind, base),
        f"## Load\n\n```python\n{code}\n```\n\n{_VERSIONS}\n",
        f"## Prompt format\n\n{_FORMATS[kind]}\n\n{_compared(probe)}\n",
        _INPUTS if kind == "sgqlm" else "",
        _list("## What to mind\n", notes),
        _list("## Left out\n", [_dropped(name) for name in manifest.get("dropped") or ()]),
        _provenance(manifest),
        _LIMITS,
        f"## Licence\n\n{_licence(base)}\n",
    ]
    return "\n".join(part for part in parts if part)


def notice(base: Any) -> str | None:
    """Return the text of the NOTICE file that the licence of the base asks for, if it does.

    Args:
        base: as in the manifest.
    """
    return _NOTICE + "\n" if _is_llama_2(base_name(base)) else None


def base_name(base: Any) -> str:
    """Return the name of a base: a hub name whole, of a folder its last part; empty for none.

    Example: `/data/models/vicuna-7b-v1.5` gives `vicuna-7b-v1.5`.
    """
    if isinstance(base, Mapping):
        base = base.get("id") or base.get("path")
    text = str(base or "").strip().rstrip("/\\")
    return text if _HUB_NAME.fullmatch(text) else re.split(r"[/\\]", text)[-1]


def _is_llama_2(base: str) -> bool:
    return bool(_LLAMA_2.search(base.split("/")[-1]))  # not the owner, who has newer ones too


def _front_matter(kind: Kind, base: str) -> str:
    values: dict[str, Any] = {"license": "other", "license_name": "license-of-the-base-model"}
    if not base:
        values["license_name"] = "not-chosen"
    elif _is_llama_2(base):
        values = {"license": "llama2"}
    values |= {
        "language": ["en"],
        "library_name": "peft" if kind == "peft" else "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    if _HUB_NAME.fullmatch(base):  # hubs refuse anything else
        values["base_model"] = base
        values["base_model_relation"] = "adapter" if kind == "peft" else "finetune"
    extra = {"llava": [], "peft": ["lora"], "sgqlm": ["scene-graph", "custom_code"]}[kind]
    values["tags"] = ["sgqlm", "llava", *extra]
    # json is yaml, and quotes what would otherwise mean something
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---", ""])


def _title(kind: Kind, base: str) -> str:
    name = base.split("/")[-1] or "a model of its own"
    what = {"llava": "LLaVA model", "peft": "LoRA adapter", "sgqlm": "sgqlm model"}[kind]
    return f"{what} from {name}" if base else f"{what}, trained from scratch"


def _summary(manifest: Mapping[str, Any], kind: Kind, base: str) -> str:
    what = {
        "llava": "A vision-language model in the standard LLaVA layout "
        "(`LlavaForConditionalGeneration`): no code of its own is needed.",
        "peft": f"A low-rank adapter for the LLaVA model {base or 'it was trained on'}.",
        "sgqlm": "A vision-language model that sees an image as patches, as prototypes and as a "
        "scene graph of entities, with the PyTorch code it needs.",
    }[kind]
    maker = manifest.get("created_by") or "sgqlm"
    return f"{what} Trained in JAX and exported by {maker}.\n"


def _compared(probe: probes.ProbeReport | None) -> str:
    if probe is None:
        return "Token ids were not compared with those of the training."
    if probe.different is None:
        return f"Token ids were not compared with those of the training ({probe.checked_with})."
    found = (
        f"{probe.different} of {probe.total} probe conversations (several turns, spaces, line "
        "breaks, scripts of the world, code) get other token ids from this folder than in "
        f"training, compared with {probe.checked_with}."
    )
    if not probe.different:
        return found
    examples = "\n".join(f"    {' '.join(line.split())}" for line in probe.examples)
    return f"**{found}** The first ones:\n\n{examples}"


def _dropped(name: str) -> str:
    return f"`{name}`: trained, and not part of this folder. Answers differ from the full model's."


def _provenance(manifest: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in sorted((manifest.get("versions") or {}).items()))
    base = base_name(manifest.get("base"))
    source = str(manifest.get("source") or "").rstrip("/\\")
    rows = {
        "format": manifest.get("format"),
        "checkpoint": re.split(r"[/\\]", source)[-1],  # not the path on the machine of its maker
        "step": manifest.get("step"),
        "base": base,
        "dtype": manifest.get("dtype"),
        "sha256 of the training configuration": manifest.get("config_digest"),
        "versions": versions,
    }
    lines = [f"| {k} | {v} |" for k, v in rows.items() if v not in (None, "")]
    table = "\n".join(["| | |", "|---|---|", *lines])
    return f"## Origin\n\n{table}\n\nChecksums of all files are in `sgqlm_export.json`.\n"


def _licence(base: str) -> str:
    if not base:
        return "Whoever publishes these weights chooses; mind the terms of the training data."
    if _is_llama_2(base):
        return (
            f"{base} derives from Llama 2, whose licence passes on to this model, with its "
            f"acceptable use policy. {_NOTICE} The terms of the training data apply as well."
        )
    return f"The licence of {base} applies to this model, and so do the terms of its training data."


def _list(head: str, items: Sequence[str]) -> str:
    return "\n".join([head, *(f"- {item}" for item in items), ""]) if items else ""
