"""Features of a frozen tower, computed once for every image."""

import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from sgqlm import config, types
from sgqlm.models import vlm
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import progress


class Cache(NamedTuple):
    """Tower features by image row; the last row is that of an image of zeros."""

    array: np.ndarray  # float16[rows + 1, P, D]

    def rows(self, batch: types.Batch) -> np.ndarray:
        """Return float16[B, P, D]; a row without image gets the features of zeros."""
        has_image = batch.image_valid & (batch.row >= 0)
        return self.array[np.where(has_image, batch.row, len(self.array) - 1)]


def compute(
    params: types.Params,
    cfg: config.ModelConfig,
    images: Callable[[int], np.ndarray],
    num_images: int,
    *,
    mesh: Any,
    batch_size: int = 128,
    file: str | os.PathLike | None = None,
) -> Cache:
    """Run the tower over all images.

    Args:
        params: the whole tree, on the mesh.
        cfg: the model.
        images: row -> uint8[S, S, 3].
        num_images: number of rows.
        mesh: the mesh; batches are divided over it.
        batch_size: images at a time; rounded up to a multiple of the devices.
        file: where the array is kept for the next stage; read if it is there.

    Returns:
        The cache.
    """
    if file is not None and pathlib.Path(file).is_file():
        return Cache(np.load(file))
    shards = mesh_lib.num_batch_shards(mesh)
    batch_size = -(-batch_size // shards) * shards
    encode = jax.jit(lambda tree, pixels: vlm.encode_images(tree, cfg, pixels))
    vision = {"vision": params["vision"]}
    size, vit = cfg.vision.image_size, cfg.vision
    out = np.empty((num_images + 1, vit.num_patches, vit.width), np.float16)
    with progress.Progress("features", num_images + 1) as shown:
        for start in range(0, num_images + 1, batch_size):
            rows = range(start, min(start + batch_size, num_images + 1))
            pixels = np.zeros((batch_size, size, size, 3), np.uint8)
            for place, row in enumerate(rows):
                if row < num_images:
                    pixels[place] = images(row)
            found = encode(vision, mesh_lib.put_batch(pixels, mesh))
            out[start : rows.stop] = np.asarray(found)[: len(rows)]
            shown.update(rows.stop)
    if file is not None:
        _write(out, pathlib.Path(file))
    return Cache(out)


def tower_digest(params: types.Params, cfg: config.ModelConfig) -> str:
    """Return a digest of the tower's weights and settings, to name a cache file with."""
    total = hashlib.sha256(repr((cfg.vision, cfg.vision_lora, cfg.image_fit)).encode())
    total.update(cfg.compute_dtype.encode())
    for path, leaf in sorted(traverse_util.flatten_dict(params["vision"], sep="/").items()):
        total.update(path.encode())
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:16]


def _write(array: np.ndarray, file: pathlib.Path):
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.npy")
    np.save(aside, array)
    aside.rename(file)
