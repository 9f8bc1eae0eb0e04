"""The tiny release of SQ-LLaVA, its pickles turned into safetensors so that tests open it fast."""

import pathlib
import shutil

from tests import paths

NAME = "sqllava-lora-tiny"


def original() -> pathlib.Path:
    """Return the folder with `base`, `clip` and the release, as it was published, or skip."""
    return paths.fixture("sq_llava/tiny_ckpt/base/config.json").parent.parent


def copy(target: pathlib.Path) -> pathlib.Path:
    """Copy it to `target` with safetensors in place of pickles."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(original(), target, copy_function=shutil.copyfile)
    for folder in [target, *(p for p in target.rglob("*") if p.is_dir())]:
        folder.chmod(0o755)
    for file in list(target.rglob("*.bin")):
        tensors = {k: v.contiguous() for k, v in torch.load(file, weights_only=True).items()}
        name = file.with_suffix(".safetensors").name.replace("pytorch_", "")
        save_file(tensors, file.with_name(name), metadata={"format": "pt"})
        file.unlink()
    return target
