"""Entities with SAM3 (Meta, 2025), which finds and segments all instances of a concept at once.

The image processor of transformers for SAM3 needs torchvision, so images are prepared by
`pixels.Frame`, and instances are made of the outputs here, as its
`post_process_instance_segmentation` does. The image is encoded once for all its concepts.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.data import graphs
from sgqlm.entities import composite, filters, interfaces, pixels, pretrained
from sgqlm.entities import weights as weights_

_CONCEPTS = 8  # decoded at once
_VALUES = 2**25  # of masks scaled up at once: 128 MiB


class Sam3Extractor(composite.TaggedExtractor):
    """Find the tags of an image with SAM3: boxes, scores and masks of every instance."""

    def __init__(
        self,
        tagger: interfaces.Tagger | None,
        weights: str | os.PathLike,
        limits: filters.Limits = filters.Limits(),
        *,
        box_threshold: float = 0.5,
        vocabulary: Sequence[str] = (),
        views: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        flag: str = "--segmenter-weights",
        name: str = "sam3",
    ):
        """Load the model.

        Args:
            tagger: see `TaggedExtractor`, as `limits`, `vocabulary`, `views` and `name`.
            weights: folder or hub id.
            limits: which boxes and masks become entities.
            box_threshold: instances with lower scores are dropped; a score is that of the instance
                times that of the concept being there at all.
            vocabulary: labels where there is no tagger.
            views: patch grids whose coverage is stored.
            device: see `weights.device`.
            dtype: see `weights.dtype`.
            flag: the setting of the weights, for messages.
            name: for messages and manifests.

        Raises:
            SgqlmError: the weights are missing, or those of another model.
        """
        super().__init__(tagger, limits, vocabulary=vocabulary, views=views, name=name)
        source = weights_.locate(str(weights), flag)
        self._device = weights_.device(device)
        self._dtype = weights_.dtype(dtype, self._device)
        self._threshold = box_threshold
        self._frame = pixels.load(source, flag, keeps_ratio=False)
        # published folders are those of the video model, which holds the image model
        classes = {"sam3": "Sam3Model", "sam3_video": "Sam3Model"}
        model = pixels.load_model(classes, source, flag, self._frame)
        self._model = model.to(self._device)
        self._tokenizer = pretrained.tokenizer(source, flag)
        self._identity = weights_.identity(source)

    def settings(self) -> Mapping[str, Any]:
        """Return all that changes the result, as json types."""
        model = {
            "model": "sam3",
            "weights": dict(self._identity),
            "dtype": str(self._dtype).removeprefix("torch."),
            "box_threshold": self._threshold,
        }
        return {**super().settings(), "segmenter": model}

    def _find(
        self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> Sequence[composite.Found]:
        return [self._find_one(*part) for part in zip(images, labels, strict=True)]

    def _find_one(self, image: Image.Image, labels: Sequence[str]) -> composite.Found:
        with self._stage("detect"):
            boxes, masks = self._instances(image, labels)
        with self._stage("filter"):
            kept = self._select(boxes, image, labels)
        with self._stage("segment"):
            size = (image.height, image.width)
            codes = [
                graphs.encode_rle(mask)
                for few in self._scale([masks[i] for i in kept.index], size)
                for mask in few
            ]
        return kept, codes, None

    def _instances(
        self, image: Image.Image, labels: Sequence[str]
    ) -> tuple[interfaces.Boxes, list[Any]]:
        """Return boxes above the threshold, and f32[h, w] mask logits of each."""
        if not labels:
            return interfaces.Boxes.empty(), []
        boxes, scores, names, masks = [], [], [], []
        extent = np.array([image.width, image.height] * 2, np.float32)
        seen = self._compute(self._see, image)
        for start in range(0, len(labels), _CONCEPTS):
            few = labels[start : start + _CONCEPTS]
            out = self._compute(self._look_for, seen, few)
            score = out.pred_logits.float().sigmoid() * out.presence_logits.float().sigmoid()
            score, box = score.cpu().numpy(), out.pred_boxes.float().cpu().numpy() * extent
            for row, label in enumerate(few):
                keep = np.flatnonzero(score[row] > self._threshold)
                boxes.append(box[row][keep])
                scores.append(score[row][keep])
                names += [label] * len(keep)
                # copies, or every mask of every query would stay in memory
                masks += [out.pred_masks[row, i].float().clone() for i in keep]
        return interfaces.Boxes(np.concatenate(boxes), np.concatenate(scores), names), masks

    def _compute(self, run: Callable[..., Any], /, *inputs: Any) -> Any:
        import torch

        mixed = self._dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self._dtype, enabled=mixed),
        ):
            return run(*inputs)

    def _see(self, image: Image.Image) -> Any:
        import torch

        values = torch.from_numpy(self._frame.pixels(image))[None].to(self._device)
        return self._model.get_vision_features(pixel_values=values)

    def _look_for(self, seen: Any, labels: Sequence[str]) -> Any:
        return self._model(vision_embeds=_repeat(seen, len(labels)), **self._texts(labels))

    def _texts(self, labels: Sequence[str]) -> dict[str, Any]:
        import torch

        room = self._model.config.text_config.max_position_embeddings
        texts = self._tokenizer(list(labels), padding="max_length", max_length=room)
        for label, ids in zip(labels, texts.input_ids, strict=True):
            if len(ids) > room:
                raise errors.SgqlmError(
                    f"the label {label[:60]!r} is too long for SAM3", code=errors.DATA,
                    why=f"it has {len(ids)} tokens; a concept has at most {room}",
                    fix="shorten it or leave it out of the labels",
                )  # fmt: skip
        keys = ("input_ids", "attention_mask")
        return {key: torch.tensor(texts[key], device=self._device) for key in keys}

    def _scale(self, logits: Sequence[Any], size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Yield masks bool[k, *size], few at a time; probabilities are scaled, not logits."""
        import torch
        from torch.nn import functional

        step = max(_VALUES // (size[0] * size[1]), 1)
        for start in range(0, len(logits), step):
            few = torch.stack(list(logits[start : start + step]))[None].sigmoid()
            large = functional.interpolate(few, size, mode="bilinear", align_corners=False)
            yield (large[0] > 0.5).cpu().numpy()


def _repeat(seen: Any, count: int) -> Any:
    """Return the encoded image `count` times, without copies."""
    keys = ("fpn_hidden_states", "fpn_position_encoding")
    parts = {key: tuple(x.expand(count, *x.shape[1:]) for x in getattr(seen, key)) for key in keys}
    return type(seen)(**parts)
