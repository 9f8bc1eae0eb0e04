"""Models of transformers from a folder or the hub: the right kind, and whole."""

import functools
from collections.abc import Mapping
from typing import Any

from sgqlm import errors
from sgqlm.entities import weights


def load(source: str, flag: str, /, classes: Mapping[str, str]) -> Any:
    """Load a model in float32 for inference.

    transformers fills what a folder lacks with random numbers, and takes the folder of another
    model for this one; both are refused here.

    Args:
        source: of `weights.locate`.
        flag: the setting, for messages.
        classes: class of transformers for each `model_type` that is right here.

    Raises:
        SgqlmError: it cannot be loaded, is of another kind, or lacks parameters.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # of reading files; downloads keep theirs
    config = weights.load(transformers.AutoConfig.from_pretrained, source, flag)
    if config.model_type not in classes:
        raise errors.SgqlmError(
            f"{source} is a model of another kind", where=flag, code=errors.CHECKPOINT,
            why=f"its config.json says {config.model_type}, not {' or '.join(classes)}",
            fix="name the backend that belongs to these weights, or other weights",
        )  # fmt: skip
    make = functools.partial(
        getattr(transformers, classes[config.model_type]).from_pretrained,
        dtype=torch.float32,
        output_loading_info=True,
    )
    model, report = weights.load(make, source, flag)
    known = dict(model.named_parameters())
    if missing := sorted(name for name in report["missing_keys"] if name in known):
        raise errors.SgqlmError(
            f"the weights in {source} are not complete", where=flag, code=errors.CHECKPOINT,
            why=f"{len(missing)} tensors are missing: {', '.join(missing[:5])}",
            fix="fetch the complete folder again",
        )  # fmt: skip
    return model.eval()


def tokenizer(source: str, flag: str, /) -> Any:
    """Load the tokenizer of a model."""
    import transformers

    return weights.load(transformers.AutoTokenizer.from_pretrained, source, flag)


def image_processor(source: str, flag: str, /) -> Any:
    """Load the image processor of a model, the one of Pillow and numpy on every machine."""
    import transformers

    make = functools.partial(transformers.AutoImageProcessor.from_pretrained, backend="pil")
    return weights.load(make, source, flag)
