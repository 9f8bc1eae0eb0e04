"""RAM and RAM++ checkpoints: their files, names and sizes.

The names are those of the original programs (Zhang et al., 2023; Huang et al., 2023). A published
checkpoint also holds the parts that write captions, which are left out.
"""

import dataclasses
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.entities import weights

FLAG = "--tagger-weights"
TAGS = ("tags.txt", "ram_tag_list.txt")  # beside the weights; the first one that is there
THRESHOLDS = ("thresholds.txt", "ram_tag_list_threshold.txt")
_FILES = ("model.safetensors", "ram_plus_swin_large_14m.pth", "ram_swin_large_14m.pth")
_WRAPPERS = ("model", "state_dict")
_DESCRIPTIONS = 51  # a tag in the published RAM++
# what a checkpoint may hold besides: the writing of captions, and tables computed from sizes
DROPPED = re.compile(
    r"(tag_encoder|text_decoder)\..+"
    r"|visual_encoder\.layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)"
)
_BLOCK = "encoder.layers.{}.blocks.{}."
_SWIN = (  # original name -> name in transformers
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", r"embeddings.norm.\1"),
    (r"layers\.(\d+)\.downsample\.(.+)", r"encoder.layers.\1.downsample.\2"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(\w+)", _BLOCK + "layernorm_before.{}"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(\w+)", _BLOCK + "layernorm_after.{}"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.(.+)", _BLOCK + "mlp.{}"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(\w+)", _BLOCK + "attention.o_proj.{}"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(relative_position_bias_table)",
        _BLOCK + "attention.relative_position_bias.{}",
    ),
    (r"norm\.(\w+)", r"layernorm.\1"),
)
_QKV = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(\w+)")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a model; `descriptions_per_class` is 1 in RAM."""

    swin: Mapping[str, Any]  # arguments of transformers.SwinConfig
    num_class: int
    descriptions_per_class: int
    label_dim: int
    query_dim: int
    cross_attention_heads: int
    ffn: int
    layers: int


def convert(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors under the names used here: those of transformers below `vision.`.

    Args:
        tensors: in the original names.

    Returns:
        All tensors but those of `DROPPED`; `qkv` is cut in three. Names that are not known are
        passed on as they are, for the check of the model to refuse.

    Raises:
        SgqlmError: a tensor is there under two names.
    """
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if DROPPED.fullmatch(name):
            continue
        for new, part in _renamed(name, tensor):
            if new in out:
                raise fault(f"the tensor {new} is there twice", why=f"one is {name}")
            out[new] = part
    return out


def _renamed(name: str, tensor: Any) -> list[tuple[str, Any]]:
    kind, _, rest = name.partition(".")
    if kind == "vision_multi":
        return [(f"tagging_head.{rest}", tensor)]
    if kind != "visual_encoder":
        return [(name, tensor)]
    if found := _QKV.fullmatch(rest):
        stage, block, what = found.groups()
        start = "vision." + _BLOCK.format(stage, block) + "attention."
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return [(f"{start}{letter}_proj.{what}", part) for letter, part in parts]
    for pattern, new in _SWIN:
        if found := re.fullmatch(pattern, rest):
            text = found.expand(new) if "\\" in new else new.format(*found.groups())
            return [("vision." + text, tensor)]
    return [(name, tensor)]


def sizes(
    tensors: Mapping[str, Any],
    *,
    num_tags: int = 0,
    num_class: int | None = None,
    descriptions_per_class: int | None = None,
    cross_attention_heads: int = 4,
) -> Sizes:
    """Read the sizes of a model off its tensors.

    Args:
        tensors: in the original names.
        num_tags: length of the tag list, 0 if it is not known.
        num_class: tags, where the caller knows them.
        descriptions_per_class: as well.
        cross_attention_heads: which no tensor tells.

    Raises:
        SgqlmError: tensors are missing, so this is no RAM, or their shapes do not fit.
    """
    patch = _shape(tensors, "visual_encoder.patch_embed.proj.weight")
    depths, heads, window = _stages(tensors)
    rows, label_dim = _shape(tensors, "label_embed")
    layer = r"(?:tagging_head|vision_multi)\.encoder\.layer\.(\d+)\.intermediate\.dense\.weight"
    found = [name for name in tensors if re.fullmatch(layer, name)]
    if not found:
        raise fault("this is no checkpoint of RAM", why="it has no tagging_head")
    if "reweight_scale" not in tensors:
        each = 1
    elif descriptions_per_class or num_class:
        each = descriptions_per_class or rows // (num_class or 1)
    else:
        each = _DESCRIPTIONS if rows % _DESCRIPTIONS == 0 else max(rows // max(num_tags, 1), 1)
    if rows % each or (num_class or rows // each) != rows // each:
        raise fault(
            "the number of tags does not fit the weights",
            why=f"label_embed has {rows} rows, for {num_class or num_tags} tags",
        )
    return Sizes(
        swin={
            "image_size": patch[2] * 8 * window,  # the last stage is one window
            "patch_size": patch[2], "embed_dim": patch[0], "depths": depths, "num_heads": heads,
            "window_size": window,
        },
        num_class=rows // each, descriptions_per_class=each, label_dim=label_dim,
        query_dim=_shape(tensors, "wordvec_proj.weight")[0],
        cross_attention_heads=cross_attention_heads,
        ffn=_shape(tensors, found[0])[0], layers=len(found),
    )  # fmt: skip


def _stages(tensors: Mapping[str, Any]) -> tuple[list[int], list[int], int]:
    """Return blocks and heads of each stage of the Swin transformer, and the side of a window."""
    table = r"visual_encoder\.layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table"
    depths: dict[int, int] = {}
    heads: dict[int, int] = {}
    rows = 0
    for name, tensor in tensors.items():
        if found := re.fullmatch(table, name):
            stage = int(found[1])
            depths[stage] = depths.get(stage, 0) + 1
            rows, heads[stage] = tensor.shape
    if sorted(depths) != [0, 1, 2, 3]:
        raise fault("this is no checkpoint of RAM", why="it has no Swin transformer of 4 stages")
    order = range(4)
    return [depths[k] for k in order], [heads[k] for k in order], (math.isqrt(rows) + 1) // 2


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise fault("this is no checkpoint of RAM", why=f"the tensor {name} is missing")
    return tuple(tensors[name].shape)


def head_shapes(sizes: Sizes, *, is_plus: bool) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor besides those below `vision.`."""
    wide, narrow = sizes.query_dim, sizes.label_dim
    linear = {
        "image_proj": (narrow, sizes.swin["embed_dim"] * 8),
        "wordvec_proj": (wide, narrow),
        "fc": (1, wide),
    }
    norms = []
    for number in range(sizes.layers):
        name = f"tagging_head.encoder.layer.{number}"
        linear |= {
            f"{name}.crossattention.self.query": (wide, wide),
            f"{name}.crossattention.self.key": (wide, narrow),
            f"{name}.crossattention.self.value": (wide, narrow),
            f"{name}.crossattention.output.dense": (wide, wide),
            f"{name}.intermediate.dense": (sizes.ffn, wide),
            f"{name}.output.dense": (wide, sizes.ffn),
        }
        norms += [f"{name}.crossattention.output.LayerNorm", f"{name}.output.LayerNorm"]
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
        out |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        out |= {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}
    out["label_embed"] = (sizes.num_class * sizes.descriptions_per_class, narrow)
    return out | ({"reweight_scale": ()} if is_plus else {})


def refuse_names(missing: Iterable[str], unexpected: Iterable[str], where: str) -> None:
    """Raise if any name is missing or unexpected."""
    parts = (("missing", sorted(missing)), ("unexpected", sorted(unexpected)))
    if why := "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in parts if names):
        raise fault("the tensors are not those of RAM or RAM++", why=why, where=where)


def locate(source: str | os.PathLike) -> pathlib.Path:
    """Return the file of weights that a user names by itself, by its folder or by a hub id.

    Raises:
        SgqlmError: there is none, or a folder has several.
    """
    named = weights.locate(str(source), FLAG)
    path = pathlib.Path(named)
    if not path.exists():
        return _from_hub(named, _FILES, is_needed=True) or path
    if path.is_file():
        return path
    found = [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", ".pth", ".pt")]
    whole = [p for p in found if p.name == _FILES[0]] or found
    if len(whole) != 1:
        names = ", ".join(p.name for p in whole)
        raise fault(
            "the folder has several files of weights" if names else "the folder has no weights",
            where=str(path), why=names, fix="name the file",
        )  # fmt: skip
    return whole[0]


def beside(source: str | os.PathLike, file: pathlib.Path, names: Sequence[str]) -> str:
    """Return the first of some files beside the weights; empty if there is none of them."""
    for name in names:
        if (path := file.parent / name).is_file():
            return str(path)
    if pathlib.Path(source).exists():
        return ""
    return str(_from_hub(str(source), names, is_needed=False) or "")


def _from_hub(repository: str, names: Sequence[str], *, is_needed: bool) -> pathlib.Path | None:
    from transformers.utils import hub

    why = ""
    for name in names:
        try:
            if found := hub.cached_file(repository, name):
                return pathlib.Path(found)
        except OSError as error:
            why = " ".join(str(error).split())[:300]
    if is_needed:
        raise fault(
            f"the model {repository} cannot be loaded", why=why,
            fix=f"give the file itself; the hub is asked for {', '.join(names)}",
        )  # fmt: skip
    return None


def read(file: pathlib.Path) -> dict[str, Any]:
    """Read the tensors of a file; of a pickle nothing but tensors is accepted.

    Raises:
        SgqlmError: it is no safetensors and no pickle of tensors.
    """
    import safetensors
    import torch
    from safetensors import torch as safe

    try:
        if file.suffix == ".safetensors":
            return safe.load_file(file)
        # mapped, the parts that are dropped are never read
        is_zip = zipfile.is_zipfile(file)
        tree = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except (
        *(OSError, RuntimeError, ValueError, EOFError, KeyError),
        *(pickle.UnpicklingError, safetensors.SafetensorError),
    ) as error:
        why = " ".join(str(error).split())[:300]
        raise fault("the weights cannot be read", where=str(file), why=why) from None
    for name in _WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping) or not all(torch.is_tensor(t) for t in tree.values()):
        raise fault("the file does not hold tensors by name", where=str(file))
    return dict(tree)


def fault(what: str, *, why: str = "", where: str = FLAG, fix: str = "") -> errors.SgqlmError:
    """Return the error of a checkpoint that is no good."""
    fix = fix or "give the checkpoint of RAM or RAM++ as it was published, or what `ram.save` wrote"
    return errors.SgqlmError(what, where=where, why=why, fix=fix, code=errors.CHECKPOINT)
