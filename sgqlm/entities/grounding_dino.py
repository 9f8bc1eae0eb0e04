"""Grounding DINO and MM Grounding DINO: boxes for labels in words.

Grounding DINO (Liu et al., 2023) scores the tokens of a sentence for each of its queries. What
transformers makes of these scores can merge labels or cut them, so the label of a box is found
here: the one whose own tokens score highest (`spans`).
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sgqlm.entities import interfaces, pretrained, spans, weights

FLAG = "--detector-weights"
_MAX_ASPECT = 16  # longer strips could shrink to less than a pixel
_FILL = (124, 116, 104)  # the mean colour, which the model sees as zero


class GroundingDino:
    """Detect with Grounding DINO."""

    name = "grounding_dino"
    model_type, model_class = "grounding-dino", "GroundingDinoForObjectDetection"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        identity: Mapping[str, str],
        box_threshold: float = 0.25,
        separator: str = ". ",
        device: str = "auto",
        dtype: str = "auto",
    ):
        """Take a model of transformers with its tokenizer and image processor; see `load`."""
        self._device = weights.device(device)
        self._dtype = weights.dtype(dtype, self._device)
        self._model = model.to(self._device)
        self._tokenizer, self._images = tokenizer, image_processor
        self._identity = dict(identity)
        config = model.config
        self._budget = min(config.max_text_len, config.text_config.max_position_embeddings)
        self._threshold, self._separator = box_threshold, separator
        spans.prompts([], tokenizer, budget=self._budget, separator=separator)  # refuses wrong ones

    @classmethod
    def load(
        cls,
        source: str | os.PathLike,
        *,
        box_threshold: float = 0.25,
        separator: str = ". ",
        device: str = "auto",
        dtype: str = "auto",
    ) -> "GroundingDino":
        """Load a folder that transformers wrote, or a model of the hub.

        Args:
            source: folder or hub id.
            box_threshold: score above which a box counts.
            separator: ". " or ", " between the labels of a prompt.
            device: `auto`, `cpu`, `cuda`, `cuda:1`.
            dtype: of the multiplications: `auto`, `float32`, `bfloat16`, `float16`. Boxes and
                scores are made in float32 in any case.

        Raises:
            SgqlmError: the model cannot be loaded, or a setting is wrong.
        """
        source = weights.locate(str(source), FLAG)
        return cls(
            pretrained.load(source, FLAG, classes={cls.model_type: cls.model_class}),
            pretrained.tokenizer(source, FLAG),
            pretrained.image_processor(source, FLAG),
            identity=weights.identity(source),
            box_threshold=box_threshold, separator=separator, device=device, dtype=dtype,
        )  # fmt: skip

    def settings(self) -> Mapping[str, Any]:
        """Return what changes the result, the identity of the weights too."""
        return {
            "detector": self.name,
            "weights": self._identity,
            "box_threshold": self._threshold,
            "separator": self._separator,
            "dtype": str(self._dtype).removeprefix("torch."),
        }

    def detect(
        self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]
    ) -> list[interfaces.Boxes]:
        """Return the boxes of each image for its labels, best score first.

        Labels that do not fit into one prompt are asked for in several, whose boxes are joined.
        Images are computed together only where they have one shape, since padding shows in the
        result; so an image gives the same boxes in any company.

        Args:
            images: upright RGB.
            labels: of each image; an image without labels has no boxes.

        Returns:
            Boxes in pixels of each image, which may leave it, with the labels as they were given.

        Raises:
            SgqlmError: a label is too long or names nothing.
        """
        asked = {tuple(some): None for some in labels}
        plans = {some: self._prompts(some) for some in asked}
        groups = defaultdict(list)
        for index, (image, some) in enumerate(zip(images, labels, strict=True)):
            if plans[tuple(some)]:
                pixels, size = self._pixels(image)
                job = [(index, pixels, size, prompt) for prompt in plans[tuple(some)]]
                groups[tuple(pixels.shape)] += job
        found = [[] for _ in images]
        for jobs in groups.values():
            for start in range(0, len(jobs), len(images)):
                part = jobs[start : start + len(images)]
                for (index, *_), boxes in zip(part, self._run(part), strict=True):
                    found[index].append(boxes)
        return [_join(parts) for parts in found]

    def _prompts(self, labels: Sequence[str]) -> list[spans.Prompt]:
        return spans.prompts(
            labels, self._tokenizer, budget=self._budget, separator=self._separator
        )

    def _pixels(self, image: Image.Image) -> tuple[Any, tuple[int, int]]:
        """Return f32[3, h, w] and the width and height that boxes of 0..1 are multiplied with."""
        image = widen(image, -(-max(image.size) // _MAX_ASPECT))
        pixels = self._images(images=[image], return_tensors="pt")["pixel_values"][0]
        return pixels, image.size

    def _run(self, jobs: Sequence[tuple]) -> list[interfaces.Boxes]:
        import torch

        ids = [torch.tensor(prompt.ids) for *_, prompt in jobs]
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self._device)
        lengths = torch.tensor([len(prompt.ids) for *_, prompt in jobs], device=self._device)
        mask = (torch.arange(ids.shape[1], device=self._device) < lengths[:, None]).long()
        pixels = torch.stack([pixels for _, pixels, _, _ in jobs]).to(self._device)
        is_mixed = self._dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, dtype=self._dtype, enabled=is_mixed),
        ):
            out = self._model(
                pixel_values=pixels, input_ids=ids, attention_mask=mask,
                token_type_ids=torch.zeros_like(ids),
            )  # fmt: skip
        # one transfer for the batch, not several an image
        logits, boxes = out.logits.float().cpu().numpy(), out.pred_boxes.float().cpu().numpy()
        return [
            self._boxes(logits[row], boxes[row], size, prompt)
            for row, (_, _, size, prompt) in enumerate(jobs)
        ]

    def _boxes(
        self, logits: np.ndarray, boxes: np.ndarray, size: tuple[int, int], prompt: spans.Prompt
    ) -> interfaces.Boxes:
        top, label = spans.best(logits, prompt.spans)
        scores = 0.5 + 0.5 * np.tanh(0.5 * top)  # the sigmoid, without overflow
        keep = scores > self._threshold
        return interfaces.Boxes(
            corners(boxes[keep], size),
            scores[keep],
            [prompt.labels[int(k)] for k in label[keep]],
        )


class MMGroundingDino(GroundingDino):
    """Detect with MM Grounding DINO (Zhao et al., 2024), the same with other weights."""

    name = "mm_grounding_dino"
    model_type, model_class = "mm-grounding-dino", "MMGroundingDinoForObjectDetection"


def corners(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Turn boxes of centre, width and height in 0..1 into corners in pixels.

    Args:
        boxes: f32[n, 4].
        size: width and height of the image.

    Example:
        (0.5, 0.5, 1, 0.5) at size (8, 4) is (0, 1, 8, 3).
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], 1) * np.array([*size, *size], np.float32)


def widen(image: Image.Image, least: int = 1) -> Image.Image:
    """Return an image whose sides are long enough for a model to work on.

    Args:
        image: RGB.
        least: pixels of a side. Up to 3 pixels could be taken for channels, so 8 at least.

    Returns:
        The image, with so much added at its right and bottom that pixels keep their places.
    """
    least = max(least, 8)
    if min(image.size) >= least:
        return image
    wide = Image.new("RGB", (max(image.width, least), max(image.height, least)), _FILL)
    wide.paste(image)
    return wide


def _join(parts: Sequence[interfaces.Boxes]) -> interfaces.Boxes:
    if not parts:
        return interfaces.Boxes.empty()
    scores = np.concatenate([part.scores for part in parts])
    labels = [label for part in parts for label in part.labels]
    order = np.argsort(-scores, kind="stable")
    boxes = np.concatenate([part.boxes for part in parts])
    return interfaces.Boxes(boxes[order], scores[order], [labels[k] for k in order])
