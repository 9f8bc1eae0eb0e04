"""What a frozen tower says about every image, computed once: features and entity labels."""

import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from sgqlm import config, types
from sgqlm.data import graphs
from sgqlm.models import vlm
from sgqlm.parallel import distributed
from sgqlm.parallel import mesh as mesh_lib
from sgqlm.train import progress, region_text


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
    images: Iterable[tuple[int, np.ndarray]],
    num_rows: int,
    *,
    mesh: Any,
    batch_size: int = 128,
    file: str | os.PathLike | None = None,
) -> Cache:
    """Run the tower over all images.

    Args:
        params: the whole tree, on the mesh.
        cfg: the model.
        images: pairs of an image row and uint8[S, S, 3]; a row that is left out gets the features
            of zeros.
        num_rows: number of image rows.
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
    vit, side = cfg.vision, cfg.vision.image_size
    vision = {"vision": params["vision"]}
    out = np.empty((num_rows + 1, vit.num_patches, vit.width), np.float16)
    blank = np.zeros((batch_size, side, side, 3), np.uint8)
    out[:] = np.asarray(encode(vision, mesh_lib.put_batch(blank, mesh))[0])
    done = 0
    with progress.Progress("features", num_rows) as shown:
        for chunk in _chunks(images, batch_size):
            pixels = blank.copy()
            pixels[: len(chunk)] = [square for _, square in chunk]
            found = np.asarray(encode(vision, mesh_lib.put_batch(pixels, mesh)))
            out[[row for row, _ in chunk]] = found[: len(chunk)]
            done += len(chunk)
            shown.update(done)
    if file is not None:
        _write(out, pathlib.Path(file))
    return Cache(out)


def compute_labels(
    params: types.Params,
    cfg: config.ModelConfig,
    regions: Iterable[tuple[int, np.ndarray, graphs.Entities]],
    decode: Callable[[list[int]], str],
    num_rows: int,
    *,
    batch_size: int = 128,
    file: str | os.PathLike | None = None,
) -> list[list[str]]:
    """Label the entities of all images by the region classifier, from the pixels.

    Args:
        params: the whole tree, with `regions`.
        cfg: the model.
        regions: image row, uint8[S, S, 3] and entities, as `pipeline.Loader.regions` yields them.
        decode: token ids to text.
        num_rows: number of image rows.
        batch_size: images at a time.
        file: where the labels are kept for the next stage; read if it is there.

    Returns:
        One list a row, one label an entity; an entity that the model does not see gets "".
    """
    if file is not None and pathlib.Path(file).is_file():
        return json.loads(pathlib.Path(file).read_text())
    labels: list[list[str]] = [[] for _ in range(num_rows)]
    waiting: list[list[tuple[int, graphs.Nodes]]] = []

    def batches():
        for chunk in _chunks(regions, batch_size):
            nodes = [graphs.make_nodes(entities, cfg) for _, _, entities in chunk]
            rows = []
            for (row, _, entities), seen in zip(chunk, nodes, strict=True):
                labels[row] = [""] * len(entities)
                rows.append((row, seen))
            waiting.append(rows)
            lacking = batch_size - len(chunk)
            pixels = np.stack([square for _, square, _ in chunk])
            pixels = np.pad(pixels, ((0, lacking), (0, 0), (0, 0), (0, 0)))
            full = [*nodes, *(nodes[-1:] * lacking)]
            graph = graphs.stack(full, [[]] * batch_size, cfg, num_runs=1)
            yield pixels, graph.coverage, graph.valid

    done = 0
    with progress.Progress("labels", num_rows) as shown:
        for ids in region_text.predict_labels(params, cfg, batches()):
            rows = waiting.pop(0)
            for (row, seen), found in zip(rows, ids, strict=False):
                for source, label in zip(seen.source, found, strict=False):
                    labels[row][source] = decode(label.tolist())
            done += len(rows)
            shown.update(done)
    if file is not None:
        write = functools.partial(_write, labels, pathlib.Path(file))
        distributed.on_main(write, "keep the labels")
    return labels


def digest(params: types.Params, cfg: config.ModelConfig, *about: Any) -> str:
    """Return a digest of the tower, the region classifier and `about`, to name a file with."""
    settings = (cfg.vision, cfg.vision_lora, cfg.image_fit, cfg.compute_dtype, *about)
    total = hashlib.sha256(repr(settings).encode())
    parts = {name: params[name] for name in ("vision", "regions") if name in params}
    for path, leaf in sorted(traverse_util.flatten_dict(parts, sep="/").items()):
        total.update(path.encode())
        total.update(mesh_lib.fetch(leaf).tobytes())
    return total.hexdigest()[:16]


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _write(value: Any, file: pathlib.Path):
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{os.getpid()}-{file.name}")
    if isinstance(value, np.ndarray):
        np.save(aside, value)
    else:
        aside.write_text(json.dumps(value))
    aside.rename(file)
