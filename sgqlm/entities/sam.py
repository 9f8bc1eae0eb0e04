"""Masks for boxes with SAM and SAM-HQ (transformers), without torchvision.

Sources: Kirillov et al., 2023 (SAM), Ke et al., 2023 (SAM-HQ). A box is the only prompt, one mask a
box, and a pixel belongs to it where its logit is above zero.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm.data import graphs
from sgqlm.entities import interfaces, pixels
from sgqlm.entities import weights as weights_

_BOXES = 64  # decoded at once
_LOGITS = 2**25  # of masks scaled up at once: 128 MiB

Embedding = dict[str, Any]  # what the decoder wants of one image
Coded = tuple[list[graphs.Rle], np.ndarray]  # n run-length codes, f32[n] mask scores


class SamSegmenter:
    """Segment boxes with SAM.

    The image encoder runs in `dtype`; prompts and mask decoder always in float32, because bfloat16
    tells apart only 256 places along a side.

    Attributes:
        name: for messages and manifests.
        encode_batch: images encoded together. On a CPU one: more gains nothing, and so masks do not
            depend on the batch at all. On a GPU rounding differs between batches.
    """

    name = "sam"
    keeps_ratio = True

    def __init__(
        self,
        weights: str | os.PathLike,
        *,
        device: str = "auto",
        dtype: str = "auto",
        encode_batch: int | None = None,
        flag: str = "--segmenter-weights",
    ):
        """Load the model from a folder or a hub id.

        Raises:
            SgqlmError: the weights are missing, or those of another model.
        """
        source = weights_.locate(str(weights), flag)
        self._device = weights_.device(device)
        self._dtype = weights_.dtype(dtype, self._device)
        self._frame = pixels.load(source, flag, keeps_ratio=self.keeps_ratio)
        model = pixels.load_model(self._classes(), source, flag, self._frame)
        self._model = model.to(self._device)
        self._identity = weights_.identity(source)
        self.encode_batch = encode_batch or (1 if self._device.type == "cpu" else 4)

    def settings(self) -> Mapping[str, Any]:
        """Return the model, its weights and the type it computes in."""
        dtype = str(self._dtype).removeprefix("torch.")
        return {"model": self.name, "weights": dict(self._identity), "dtype": dtype}

    def segment(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> list[interfaces.Masks]:
        """Return one mask per box.

        Args:
            images: upright RGB images.
            boxes: f32[n, 4] of each, x0, y0, x1, y1 in its pixels; n may be 0.

        Returns:
            Masks at the size of each image, bool[n, h, w], and the estimates of their IoU, f32[n].
        """
        out = []
        for image, parts in zip(images, self._images(images, boxes), strict=True):
            masks, scores = np.zeros((0, image.height, image.width), bool), np.zeros(0, np.float32)
            if found := list(parts):
                masks = np.concatenate([mask for mask, _ in found])
                scores = np.concatenate([score for _, score in found])
            out.append(interfaces.Masks(masks, scores))
        return out

    def segment_coded(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> list[Coded]:
        """Return what `segment` does with run-length codes; all masks are never held at once."""
        out = []
        for parts in self._images(images, boxes):
            codes: list[graphs.Rle] = []
            scores = [np.zeros(0, np.float32)]
            for masks, score in parts:
                codes += [graphs.encode_rle(mask) for mask in masks]
                scores.append(score)
            out.append((codes, np.concatenate(scores)))
        return out

    def _images(
        self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]
    ) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Yield the pieces of each image; images without boxes are not encoded."""
        for start in range(0, len(images), self.encode_batch):
            stop = start + self.encode_batch
            few = list(zip(images[start:stop], boxes[start:stop], strict=True))
            encoded = iter(self._encode([image for image, prompts in few if len(prompts)]))
            for image, prompts in few:
                embedding = next(encoded) if len(prompts) else {}
                yield self._pieces(embedding, prompts, (image.height, image.width))

    def _pieces(
        self, embedding: Embedding, boxes: np.ndarray, size: tuple[int, int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield bool[k, h, w] masks and f32[k] scores, few at a time."""
        import torch

        prompts = torch.from_numpy(self._frame.boxes(boxes, size)).to(self._device)
        step = min(max(_LOGITS // (size[0] * size[1]), 1), _BOXES)
        for start in range(0, len(prompts), _BOXES):
            part = prompts[start : start + _BOXES].clone()
            with torch.inference_mode():
                out = self._model(**embedding, input_boxes=part[None], multimask_output=False)
            logits, scores = out.pred_masks[0], out.iou_scores[0, :, 0].float().cpu().numpy()
            for i in range(0, len(part), step):
                masks = self._scale(logits[i : i + step].float(), size)
                yield masks, scores[i : i + step]

    def _scale(self, logits: Any, size: tuple[int, int]) -> np.ndarray:
        """Return logits f32[k, 1, h, w] of the whole square as masks bool[k, *size]."""
        from torch.nn import functional

        if self.keeps_ratio:
            height, width = self._frame.content(size)
            square = (self._frame.side, self._frame.side)
            logits = functional.interpolate(logits, square, mode="bilinear", align_corners=False)
            logits = logits[..., :height, :width]
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return (logits[:, 0] > 0).cpu().numpy()

    def _encode(self, images: Sequence[Image.Image]) -> list[Embedding]:
        import torch

        if not images:
            return []
        stacked = torch.from_numpy(np.stack([self._frame.pixels(image) for image in images]))
        mixed = self._dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self._dtype, enabled=mixed),
        ):
            return self._embeddings(stacked.to(self._device))

    def _classes(self) -> Mapping[str, str]:
        return {"sam": "SamModel"}

    def _embeddings(self, stacked: Any) -> list[Embedding]:
        found = self._model.get_image_embeddings(stacked).float()
        return [{"image_embeddings": one[None]} for one in found]


class SamHqSegmenter(SamSegmenter):
    """Segment boxes with SAM-HQ, which also decodes features of inner layers."""

    name = "sam_hq"

    def _classes(self) -> Mapping[str, str]:
        return {"sam_hq": "SamHQModel"}

    def _embeddings(self, stacked: Any) -> list[Embedding]:
        last, inner = self._model.get_image_embeddings(stacked)
        return [
            {
                "image_embeddings": last[i : i + 1].float(),
                "intermediate_embeddings": [layer[i : i + 1].float() for layer in inner],
            }
            for i in range(len(last))
        ]
