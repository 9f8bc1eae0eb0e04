"""JAX vision-language models that see scene graphs and learn to ask as well as to answer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from sgqlm import model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    path: "str | os.PathLike[str]",
    base: "str | os.PathLike[str] | None" = None,
    mesh: "Mapping[str, int] | None" = None,
) -> "model.VisionLanguageModel":
    """Load a trained model.

    Args:
        path: a checkpoint directory of sgqlm, or a Hugging Face LLaVA folder.
        base: where the base weights lie, if not where the checkpoint says.
        mesh: sizes of the axes `data` (rows of a batch) and `tensor` (heads and weights) whose
            product is the number of devices; None: one device.

    Returns:
        The handle to ask, answer and look into the model.

    Raises:
        SgqlmError: the folder is no model, or its files are damaged.
    """
    from sgqlm import model  # brings in jax, which `import sgqlm` must not

    return model.load(path, base=base, mesh=mesh)
