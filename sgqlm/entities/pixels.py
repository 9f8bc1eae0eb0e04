"""Images in the frame of a segmentation model: resized, normalised, and boxes along with them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from sgqlm import errors
from sgqlm.entities import pretrained
from sgqlm.entities import weights as weights_


@dataclasses.dataclass(frozen=True)
class Frame:
    """The square a model looks at, and how an image is put into it.

    Attributes:
        side: of the square in pixels.
        keeps_ratio: the longer side of the image fills the square and zeros fill the rest below or
            to the right (SAM); otherwise the image is stretched to the square (SAM2, SAM3).
        mean: of each channel, of values in 0..1.
        std: of each channel.
        scale: what turns a byte into such a value.
        resample: filter of PIL, 2 for bilinear.
    """

    side: int
    keeps_ratio: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    resample: int = 2

    def content(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of an image of `size` (height, width) inside the square.

        A side that would round to nothing keeps one pixel.
        """
        if not self.keeps_ratio:
            return self.side, self.side
        scale = self.side / max(size)
        height, width = (max(int(length * scale + 0.5), 1) for length in size)
        return height, width

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return an upright RGB image as f32[3, side, side], normalised."""
        height, width = self.content((image.height, image.width))
        small = image.resize((width, height), Image.Resampling(self.resample))
        values = (np.asarray(small, np.float64) * self.scale).astype(np.float32)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        out = np.zeros((3, self.side, self.side), np.float32)
        out[:, :height, :width] = values.transpose(2, 0, 1)
        return out

    def boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return f32[n, 4] boxes of an image of `size` (height, width) in pixels of the square."""
        (height, width), (new_height, new_width) = size, self.content(size)
        factor = np.array([new_width / width, new_height / height] * 2)
        return (np.asarray(boxes, np.float64).reshape(-1, 4) * factor).astype(np.float32)


def load(weights: str, flag: str, *, keeps_ratio: bool) -> Frame:
    """Read how a model wants its images from its `preprocessor_config.json`.

    Args:
        weights: folder or hub id.
        flag: the setting, for messages.
        keeps_ratio: see `Frame`.

    Raises:
        SgqlmError: there is no such file, or it asks for something else than a square.
    """
    import transformers

    read = transformers.SamImageProcessorPil.get_image_processor_dict
    found: dict[str, Any] = weights_.load(read, weights, flag)[0]
    size = found.get("size")
    sides = set(size.values()) if isinstance(size, dict) else {size}
    side = sides.pop() if len(sides) == 1 else None
    mean, std = (tuple(found.get(f"image_{name}") or ()) for name in ("mean", "std"))
    if not isinstance(side, int) or side < 1 or len(mean) != 3 or len(std) != 3:
        raise errors.SgqlmError(
            f"the image settings of {weights} are not those of such a model", where=flag,
            why=f"they give the size {size}, the mean {list(mean)} and the deviation {list(std)}",
            fix="give the weights of the chosen model", code=errors.CHECKPOINT,
        )  # fmt: skip
    scale, resample = found.get("rescale_factor", 1 / 255), found.get("resample", 2)
    return Frame(side, keeps_ratio, mean, std, float(scale), int(resample))


def load_model(classes: Mapping[str, str], weights: str, flag: str, frame: Frame) -> Any:
    """Load a model of transformers that looks at images of the size of a frame.

    Args:
        classes: see `pretrained.load`.
        weights: folder or hub id.
        flag: the setting, for messages.
        frame: what its images become.

    Returns:
        The model in evaluation mode, in float32.

    Raises:
        SgqlmError: it cannot be loaded, is another model, or looks at images of another size.
    """
    model = pretrained.load(weights, flag, classes=classes)
    vision = model.config.vision_config
    size = getattr(vision, "backbone_config", vision).image_size
    side = size if isinstance(size, int) else size[0]
    if side != frame.side:
        raise errors.SgqlmError(
            f"the files of {weights} do not fit together", where=flag, code=errors.CHECKPOINT,
            why=f"the model looks at {side} pixels a side, its image settings give {frame.side}",
            fix="fetch the complete folder again",
        )  # fmt: skip
    return model.requires_grad_(False)
