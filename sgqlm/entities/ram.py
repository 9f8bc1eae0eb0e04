"""RAM and RAM++: which of some thousand tags an image shows.

A port of the inference of the Recognize Anything models (Zhang et al., 2023; Huang et al., 2023;
https://github.com/xinyu1205/recognize-anything, Apache-2.0): a Swin transformer, and two layers in
which one query a tag looks at the image, without attention among the queries (Query2Label). In
RAM++ a tag has several descriptions, and the image decides how much each of them counts.
"""

import copy
import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.entities import interfaces, ram_checkpoint, weights
from sgqlm.entities import tags as tag_lists

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-12  # of the layer norms of the head, as in BERT


class RamTagger:
    """Tag images with RAM (`name` is `ram`) or RAM++ (`ram_plus`)."""

    def __init__(
        self,
        vision: Any,
        head: Mapping[str, Any],
        sizes: ram_checkpoint.Sizes,
        *,
        tags: Sequence[str] = (),
        thresholds: np.ndarray | None = None,
        identity: Mapping[str, str] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        """Take a Swin model and the tensors of the head; see `load` and `from_original`."""
        self.name = "ram_plus" if "reweight_scale" in head else "ram"
        self.sizes, self.tags, self.thresholds = sizes, list(tags), thresholds
        self._identity = dict(identity or {})
        self._device = weights.device(device)
        self._dtype = weights.dtype(dtype, self._device)
        self._vision = vision.to(self._device, self._dtype).eval()
        exact = ("label_embed", "reweight_scale", "fc.weight", "fc.bias")
        self._head = {
            name: tensor.to(self._device, tensor.dtype if name in exact else self._dtype)
            for name, tensor in head.items()
        }

    @classmethod
    def from_original(
        cls,
        tensors: Mapping[str, Any],
        *,
        swin: Mapping[str, Any] | None = None,
        num_class: int | None = None,
        descriptions_per_class: int | None = None,
        label_dim: int | None = None,
        query_dim: int | None = None,
        cross_attention_heads: int = 4,
        ffn: int | None = None,
        layers: int | None = None,
        tags: Sequence[str] = (),
        thresholds: np.ndarray | None = None,
        identity: Mapping[str, str] | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> "RamTagger":
        """Make a tagger of tensors in the names of the original programs.

        Sizes are read off the tensors; those that are given have to agree.

        Args:
            tensors: torch tensors or numpy arrays by name.
            swin: image_size, patch_size, embed_dim, depths, num_heads, window_size.
            num_class: tags.
            descriptions_per_class: of a tag in RAM++; 51 in the published one.
            label_dim: width of label embeddings and projected image tokens.
            query_dim: width of the queries.
            cross_attention_heads: of the head.
            ffn: inner width of the feed-forward layers of the head.
            layers: of the head.
            tags: the names of the classes; without them `tag` does not work, only `logits`.
            thresholds: f32[num_class], the score each tag must exceed.
            identity: of the weights, for `settings`.
            device: `auto`, `cpu`, `cuda`.
            dtype: `auto`, `float32`, `bfloat16`, `float16`.

        Raises:
            SgqlmError: a tensor is missing, unexpected or of another shape, or a size disagrees.
        """
        import torch

        tensors = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}
        found = ram_checkpoint.sizes(
            tensors, num_tags=len(tags), num_class=num_class,
            descriptions_per_class=descriptions_per_class,
            cross_attention_heads=cross_attention_heads,
        )  # fmt: skip
        given = {"label_dim": label_dim, "query_dim": query_dim, "ffn": ffn, "layers": layers}
        given = {name: value for name, value in given.items() if value is not None}
        _agree(given, dataclasses.asdict(found))
        _agree(dict(swin or {}), found.swin)
        return cls(
            *_split(ram_checkpoint.convert(tensors), found), found,
            tags=tags, thresholds=thresholds, identity=identity, device=device, dtype=dtype,
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        source: str | os.PathLike,
        *,
        tags: str | os.PathLike = "",
        thresholds: str | os.PathLike = "",
        exclude: Collection[str] = (),
        kind: str = "",
        device: str = "auto",
        dtype: str = "auto",
    ) -> "RamTagger":
        """Load a checkpoint as it was published, or what `save` wrote.

        Args:
            source: a file, a folder with one, or a hub id.
            tags: the tag list; by default `tags.txt` or `ram_tag_list.txt` beside the weights.
            thresholds: their thresholds, or one number for all; by default `thresholds.txt` or
                `ram_tag_list_threshold.txt` beside the weights.
            exclude: tags that are not asked for, which changes nothing for the others.
            kind: `ram` or `ram_plus`, to refuse the other one.
            device: `auto`, `cpu`, `cuda`, `cuda:1`.
            dtype: `auto`, `float32`, `bfloat16`, `float16`.

        Raises:
            SgqlmError: the weights or the lists cannot be used, or do not belong together.
        """
        tensors, names, limits = _read(source, tags, thresholds)
        model = cls.from_original(
            tensors, tags=names, thresholds=limits, device=device, dtype=dtype,
            identity=weights.identity(str(source)),
        )  # fmt: skip
        if kind and model.name != kind:
            raise ram_checkpoint.fault(
                f"these are the weights of {model.name}, not of {kind}", where=str(source),
                fix=f"give --tagger={model.name}, or other weights",
            )  # fmt: skip
        return model.keep(tag_lists.without(names, exclude))

    def keep(self, names: Collection[str]) -> "RamTagger":
        """Return a tagger for some of the tags; it shares the weights, and their scores stay.

        Raises:
            SgqlmError: a name is not among the tags, or there is none.
        """
        if unknown := sorted(set(names) - set(self.tags)):
            raise errors.SgqlmError(
                f"{len(unknown)} tags are not in the tag list", why=", ".join(unknown[:5]),
                fix="name tags of the list", code=errors.DATA,
            )  # fmt: skip
        wanted = set(names)
        rows = [k for k, tag in enumerate(self.tags) if tag in wanted]
        if not rows:
            raise errors.SgqlmError(
                "no tag is left", where="--tags-exclude", code=errors.DATA,
                fix="exclude fewer tags",
            )  # fmt: skip
        out = copy.copy(self)
        out.tags = [self.tags[k] for k in rows]
        out.thresholds = None if self.thresholds is None else self.thresholds[rows]
        out.sizes = dataclasses.replace(self.sizes, num_class=len(rows))
        out._head = self._head | {
            "label_embed": _rows(self._head["label_embed"], rows, self.sizes.num_class)
        }
        return out

    def settings(self) -> Mapping[str, Any]:
        """Return what changes the result, the identity of the weights too."""
        limits = [] if self.thresholds is None else [f"{value:.6g}" for value in self.thresholds]
        return {
            "tagger": self.name,
            "weights": self._identity,
            "tags": len(self.tags),
            "tags_sha256": tag_lists.digest(self.tags),
            "thresholds_sha256": tag_lists.digest(limits),
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return f32[3, S, S]: the whole image, squeezed to a square, as the model expects it."""
        side = self.sizes.swin["image_size"]
        square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        values = np.asarray(square, np.float32) / 255
        values = (values - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
        return values.transpose(2, 0, 1)

    def logits(self, pixels: Any) -> np.ndarray:
        """Return the logit of each tag.

        Args:
            pixels: f32[B, 3, S, S] of `pixels`, numpy or torch.

        Returns:
            f32[B, num_class].
        """
        import torch

        pixels = torch.as_tensor(pixels).to(self._device, self._dtype)
        with torch.inference_mode():
            tokens = self._vision(pixel_values=pixels).last_hidden_state
            return tag_logits(self._head, tokens, self.sizes).float().cpu().numpy()

    def tag(self, images: Sequence[Image.Image]) -> list[interfaces.Tags]:
        """Return the tags above their thresholds, best score first.

        Args:
            images: upright RGB of any sizes.

        Returns:
            Tag and score in 0..1; none where nothing is recognised.

        Raises:
            SgqlmError: the tagger was made without names or thresholds.
        """
        if not self.tags or self.thresholds is None:
            raise errors.SgqlmError(
                "the tagger has no tag list or no thresholds",
                fix="give from_original both, or use RamTagger.load",
            )
        if not images:
            return []
        logits = self.logits(np.stack([self.pixels(image) for image in images]))
        scores = 0.5 + 0.5 * np.tanh(0.5 * logits)  # the sigmoid, without overflow
        found = []
        for row in scores:
            order = np.argsort(-row, kind="stable")
            best = order[row[order] > self.thresholds[order]]
            found.append([(self.tags[k], float(row[k])) for k in best])
        return found


def tag_logits(head: Mapping[str, Any], tokens: Any, sizes: ram_checkpoint.Sizes) -> Any:
    """Return the logit of each tag for the tokens of images.

    Args:
        head: tensors of the head in the original names.
        tokens: [B, N, D] of the vision transformer.
        sizes: of the model.

    Returns:
        f32[B, num_class].
    """
    import torch
    from torch.nn import functional

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, head[f"{name}.weight"], head[f"{name}.bias"])

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(
            x, x.shape[-1:], head[f"{name}.weight"], head[f"{name}.bias"], eps=_EPS
        )

    def split(x: Any) -> Any:
        return x.unflatten(-1, (sizes.cross_attention_heads, -1)).transpose(1, 2)

    image = linear(torch.cat([tokens.mean(1, keepdim=True), tokens], 1), "image_proj")
    labels = _labels(head, image[:, 0].float(), sizes)
    x = functional.relu(linear(labels.to(image.dtype), "wordvec_proj"))
    for number in range(sizes.layers):
        name = f"tagging_head.encoder.layer.{number}"
        query = split(linear(x, f"{name}.crossattention.self.query"))
        key = split(linear(image, f"{name}.crossattention.self.key"))
        value = split(linear(image, f"{name}.crossattention.self.value"))
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        seen = linear(seen.flatten(2), f"{name}.crossattention.output.dense")
        x = norm(x + seen, f"{name}.crossattention.output.LayerNorm")
        inner = functional.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return linear(x.float(), "fc").squeeze(-1)


def _labels(head: Mapping[str, Any], summary: Any, sizes: ram_checkpoint.Sizes) -> Any:
    """Return f32[B, num_class, label_dim]: in RAM++ the descriptions, weighed by the image."""
    table = head["label_embed"]
    if "reweight_scale" not in head:
        return table.expand(len(summary), *table.shape)
    summary = summary / summary.norm(dim=-1, keepdim=True)
    shape = (sizes.num_class, sizes.descriptions_per_class)
    share = (head["reweight_scale"].exp() * summary @ table.T).unflatten(-1, shape).softmax(-1)
    # class by class: bcd,cde->bce without a copy of the table for each image
    return (share.transpose(0, 1) @ table.unflatten(0, shape)).transpose(0, 1)


def save(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    tags: str | os.PathLike = "",
    thresholds: str | os.PathLike = "",
    exclude: Collection[str] = (),
) -> pathlib.Path:
    """Convert a published checkpoint once: a folder that loads faster, without unpickling.

    Args:
        source: of `RamTagger.load`, as are `tags` and `thresholds`.
        folder: receives `model.safetensors` in the original names without what is dropped,
            `tags.txt` and `thresholds.txt`.
        tags: the tag list.
        thresholds: their thresholds.
        exclude: tags to leave out for good.

    Returns:
        The folder.

    Raises:
        SgqlmError: the weights or the lists cannot be used, or `folder` holds weights already.
    """
    from safetensors import torch as safe

    folder = pathlib.Path(folder)
    if (folder / "model.safetensors").exists():
        raise errors.SgqlmError(
            "there are weights already", where=str(folder), fix="name another folder"
        )
    tensors, names, limits = _read(source, tags, thresholds)
    RamTagger.from_original(tensors, tags=names)  # refuses what could not be loaded afterwards
    kept = set(tag_lists.without(names, exclude))
    rows = [k for k, name in enumerate(names) if name in kept]
    whole = {k: v for k, v in tensors.items() if not ram_checkpoint.DROPPED.fullmatch(k)}
    whole["label_embed"] = _rows(whole["label_embed"], rows, len(names))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tags.txt").write_text("".join(f"{names[k]}\n" for k in rows), "utf-8")
    (folder / "thresholds.txt").write_text("".join(f"{limits[k]:.6g}\n" for k in rows), "utf-8")
    whole = {name: tensor.clone().contiguous() for name, tensor in whole.items()}
    aside = folder / ".model.safetensors"
    safe.save_file(whole, aside)
    aside.rename(folder / "model.safetensors")
    return folder


def _read(
    source: str | os.PathLike, names: str | os.PathLike, limits: str | os.PathLike
) -> tuple[dict[str, Any], list[str], np.ndarray]:
    """Return tensors, tags and thresholds that belong together."""
    file = ram_checkpoint.locate(source)
    names = str(names) or ram_checkpoint.beside(source, file, ram_checkpoint.TAGS)
    limits = str(limits) or ram_checkpoint.beside(source, file, ram_checkpoint.THRESHOLDS)
    for found, flag, usual in (
        (names, "--tags", ram_checkpoint.TAGS),
        (limits, "--tag-thresholds", ram_checkpoint.THRESHOLDS),
    ):
        if not found:
            raise errors.SgqlmError(
                f"RAM needs {flag}", where=str(source), code=errors.DATA,
                why=f"beside the weights is no {' or '.join(usual)}",
                fix=f"give the file that was published with the weights: {flag}={usual[1]}",
            )  # fmt: skip
    tensors = ram_checkpoint.read(file)
    listed = tag_lists.read_tags(names)
    sizes = ram_checkpoint.sizes(tensors, num_tags=len(listed))
    if sizes.num_class != len(listed):
        raise errors.SgqlmError(
            "the tag list does not belong to the weights", where=names, code=errors.DATA,
            why=f"it has {len(listed)} tags, the weights have {sizes.num_class}",
            fix="give the tag list that was published with the weights",
        )  # fmt: skip
    return tensors, listed, tag_lists.read_thresholds(limits, len(listed))


def _rows(table: Any, rows: Sequence[int], count: int) -> Any:
    return table.unflatten(0, (count, -1))[list(rows)].flatten(0, 1)


def _agree(given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    wrong = [f"{name}: {value}, found {found.get(name)}" for name, value in given.items()
             if found.get(name) != value]  # fmt: skip
    if wrong:
        raise ram_checkpoint.fault("sizes disagree with the tensors", why="; ".join(wrong))


def _split(tensors: dict[str, Any], sizes: ram_checkpoint.Sizes) -> tuple[Any, dict[str, Any]]:
    """Return the vision model and the tensors of the head; refuse missing and unknown names."""
    import transformers

    inside = {k.removeprefix("vision."): v for k, v in tensors.items() if k.startswith("vision.")}
    head = {k: v for k, v in tensors.items() if not k.startswith("vision.")}
    shapes = ram_checkpoint.head_shapes(sizes, is_plus="reweight_scale" in head)
    ram_checkpoint.refuse_names(set(shapes) - set(head), set(head) - set(shapes), "head")
    wrong = [name for name, shape in shapes.items() if tuple(head[name].shape) != shape]
    if wrong:
        raise ram_checkpoint.fault(
            "tensors of the head have other shapes",
            why=", ".join(f"{name}: {tuple(head[name].shape)}" for name in wrong[:5]),
        )
    config = transformers.SwinConfig(**sizes.swin, drop_path_rate=0.0)
    make: Any = transformers.SwinModel.from_pretrained  # fast: it fills no weights at first
    try:
        vision, report = make(
            None, config=config, state_dict=inside, add_pooling_layer=False,
            output_loading_info=True,
        )  # fmt: skip
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise ram_checkpoint.fault("tensors of the image encoder do not fit", why=why) from None
    ram_checkpoint.refuse_names(report["missing_keys"], report["unexpected_keys"], "vision")
    return vision, head
