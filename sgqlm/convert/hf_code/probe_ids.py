"""Print the ids that the processor of a folder gives to conversations.

A program of its own, so that sgqlm never imports transformers: `probe_ids.py FOLDER` reads probes
(json) from its input and writes one json object as the last line of its output. It runs the code
of the folder, where the folder has some.
"""

import importlib
import itertools
import json
import sys

PLACEHOLDER = -200  # what processors without an `image_token_id` put where the image stands


def main(folder: str) -> dict:
    """Return `rows` (one a probe: `ids` and `images`, or `error`), or what is `missing`."""
    probes = json.load(sys.stdin)
    try:
        transformers = importlib.import_module("transformers")
        images = importlib.import_module("PIL.Image")
        transformers.logging.set_verbosity_error()
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        picture = images.new("RGB", (8, 8))
        rows = [row(processor, probe, picture) for probe in probes]
    except ImportError as error:
        if (error.name or "").startswith("transformers_modules"):
            raise  # the folder lacks a part of its own code
        return {"missing": str(error).strip().splitlines()[0]}
    return {"checked_with": f"transformers {transformers.__version__}", "rows": rows}


def row(processor, probe, picture) -> dict:
    """Return the ids of one conversation, each run of image tokens as one, and its lengths."""
    try:
        text = render(processor, probe)
        images = {"images": [picture]} if probe["has_image"] else {}
        found = processor(text=text, return_tensors="np", **images)["input_ids"][0].tolist()
    except ImportError:
        raise
    except Exception as error:  # whatever a processor raises is a difference, not an end
        return {"error": f"{type(error).__name__}: {error}"}
    image_id = getattr(processor, "image_token_id", PLACEHOLDER)
    ids, lengths = [], []
    for token, run in itertools.groupby(found):
        count = len(list(run))
        ids += [PLACEHOLDER] if token == image_id else [token] * count
        lengths += [count] if token == image_id else []
    return {"ids": ids, "images": lengths}


def render(processor, probe) -> str:
    """Return a conversation as text, up to where the model goes on."""
    if probe["vusr_turns"] or probe["open_role"] != "assistant":
        options = {name: probe[name] for name in ("has_image", "vusr_turns", "open_role")}
        if hasattr(processor, "conversation"):
            return processor.conversation(probe["turns"], **options)
        options = {"open_role": probe["open_role"]}
    else:
        options = {}
    return processor.apply_chat_template(
        probe["messages"], add_generation_prompt=True, tokenize=False, **options
    )


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
