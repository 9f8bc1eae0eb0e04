"""OWLv2: boxes for any number of labels in one look at the image.

OWLv2 (Minderer et al., 2023) compares every patch of an image with the embeddings of texts. These
do not depend on the image, so a vocabulary is embedded once.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.entities import grounding_dino, interfaces, pretrained, weights

FLAG = "--detector-weights"
_TEXTS = 256  # embedded at a time


class Owlv2:
    """Detect with OWLv2."""

    name = "owlv2"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        identity: Mapping[str, str],
        box_threshold: float = 0.25,
        template: str = "a photo of a {}",
        device: str = "auto",
        dtype: str = "auto",
    ):
        """Take a model of transformers with its tokenizer and image processor; see `load`."""
        self._device = weights.device(device)
        self._dtype = weights.dtype(dtype, self._device)
        self._model = model.to(self._device)
        # the tower that looks is nearly all of the work; texts and boxes stay in float32
        model.owlv2.vision_model.to(self._dtype)
        model.layer_norm.to(self._dtype)
        self._tokenizer, self._images = tokenizer, image_processor
        self._identity = dict(identity)
        self._threshold, self._template = box_threshold, template
        self._embedded: dict[str, Any] = {}

    @classmethod
    def load(
        cls,
        source: str | os.PathLike,
        *,
        box_threshold: float = 0.25,
        template: str = "a photo of a {}",
        device: str = "auto",
        dtype: str = "auto",
    ) -> "Owlv2":
        """Load a folder that transformers wrote, or a model of the hub.

        Args:
            source: folder or hub id.
            box_threshold: score above which a box counts.
            template: the text for a label, which replaces `{}`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`.
            dtype: of the vision tower: `auto`, `float32`, `bfloat16`, `float16`.

        Raises:
            SgqlmError: the model cannot be loaded.
        """
        source = weights.locate(str(source), FLAG)
        return cls(
            pretrained.load(source, FLAG, classes={"owlv2": "Owlv2ForObjectDetection"}),
            pretrained.tokenizer(source, FLAG),
            pretrained.image_processor(source, FLAG),
            identity=weights.identity(source),
            box_threshold=box_threshold, template=template, device=device, dtype=dtype,
        )  # fmt: skip

    def settings(self) -> Mapping[str, Any]:
        """Return what changes the result, the identity of the weights too."""
        return {
            "detector": self.name,
            "weights": self._identity,
            "box_threshold": self._threshold,
            "template": self._template,
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    def detect(
        self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> list[interfaces.Boxes]:
        """Return the boxes of each image for its labels, best score first.

        Args:
            images: upright RGB.
            labels: of each image; an image without labels has no boxes.

        Returns:
            Boxes in pixels of each image, which may leave it, with the labels as they were given.

        Raises:
            SgqlmError: a label is too long.
        """
        import torch

        found = [interfaces.Boxes.empty() for _ in images]
        asked = [k for k, some in enumerate(labels) if some]
        if not asked:
            return found
        with torch.inference_mode():
            self._embed([label for k in asked for label in labels[k]])
            seen = [grounding_dino.widen(images[k]) for k in asked]
            pixels = self._images(images=seen, return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self._device, self._dtype)
            maps, _ = self._model.image_embedder(pixel_values=pixels)
            features = maps.flatten(1, 2).float()
            boxes = self._model.box_predictor(features, maps.float()).cpu().numpy()
            for row, k in enumerate(asked):
                found[k] = self._boxes(features[row], boxes[row], seen[row].size, labels[k])
        return found

    def _boxes(
        self, features: Any, boxes: np.ndarray, size: tuple[int, int], labels: Sequence[str]
    ) -> interfaces.Boxes:
        import torch

        texts = torch.stack([self._embedded[label] for label in labels])
        logits, _ = self._model.class_predictor(features[None], texts[None])
        top, label = logits[0].max(-1)  # before the sigmoid, which makes large scores equal
        scores, label = top.sigmoid().cpu().numpy(), label.cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > self._threshold]
        side = max(size)  # the model sees the image at the top left of a square
        return interfaces.Boxes(
            grounding_dino.corners(boxes[order], (side, side)),
            scores[order],
            [labels[int(k)] for k in label[order]],
        )

    def _embed(self, labels: Sequence[str]) -> None:
        """Add the embeddings of labels that are new."""
        new = [label for label in dict.fromkeys(labels) if label not in self._embedded]
        for start in range(0, len(new), _TEXTS):
            part = new[start : start + _TEXTS]
            texts = self._tokenize(part)
            vectors = self._model.owlv2.get_text_features(**texts).pooler_output
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
            self._embedded |= dict(zip(part, vectors, strict=True))

    def _tokenize(self, labels: Sequence[str]) -> Any:
        room = self._model.config.text_config.max_position_embeddings
        texts = [self._template.format(label) for label in labels]
        for label, ids in zip(labels, self._tokenizer(texts, verbose=False).input_ids, strict=True):
            if len(ids) > room:
                raise errors.SgqlmError(
                    f"the label {label[:60]!r} is too long for the detector", code=errors.DATA,
                    why=f"with its template it has {len(ids)} tokens; OWLv2 takes {room}",
                    fix="shorten it or leave it out of the labels",
                )  # fmt: skip
        return self._tokenizer(
            texts, padding="max_length", max_length=room, return_tensors="pt"
        ).to(self._device)
