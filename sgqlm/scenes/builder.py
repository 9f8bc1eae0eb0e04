"""The data set of scenes on disk: built and read with TFDS in ArrayRecord, without TensorFlow."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from sgqlm import config, errors
from sgqlm.data import builders
from sgqlm.scenes import examples

FORMAT = 1  # raise it whenever the same configuration no longer gives the same records
MANIFEST = "manifest.json"
SPLITS = ("train", "val", "test")

Progress = Callable[[int, int], None]


class Scenes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of the three splits; record i of a split is scene i."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, scenes: config.SceneConfig, records: "Records", data_dir: str):
        """Build under `data_dir` the scenes that `records` makes."""
        self._scenes, self._records = scenes, records
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        side = self._scenes.image_size

        def table(columns, dtype):
            return features.Tensor(shape=(None, columns) if columns else (None,), dtype=dtype)

        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(side, side, 3), encoding_format="png"),
                    "split": features.Text(),
                    "index": features.Scalar(np.int32),
                    "image_size": features.Scalar(np.int32),
                    "object_words": table(4, np.int32),
                    "object_place": table(4, np.float32),
                    "object_boxes": table(4, np.float32),
                    "object_masks": features.Scalar(np.object_),
                    "relations": table(3, np.int32),
                    "entity_boxes": table(4, np.float32),
                    "entity_scores": table(0, np.float32),
                    "entity_truth": table(0, np.int32),
                    "entity_masks": features.Scalar(np.object_),
                }
            ),
            description="Procedural scenes with drawn relations, masks and noisy entities.",
            license="CC0-1.0",
            disable_shuffling=True,
        )

    def _example_writer(self):
        return builders.StableWriter(tfds.core.FileFormat.ARRAY_RECORD)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str):
        yield from enumerate(self._records.of(split))


class Records:
    """The records of all splits in order, made by some processes ahead of the writer."""

    CHUNK = 64

    def __init__(self, cfg: config.SceneConfig, pool, progress: Progress):
        """Make records of `cfg` in `pool`, or here where it is None."""
        self._cfg, self._pool, self._progress, self._done = cfg, pool, progress, 0

    def of(self, split: str) -> Iterator[examples.Record]:
        """Yield the records of one split."""
        stop = num_scenes(self._cfg, split)
        chunks = [(i, min(i + self.CHUNK, stop)) for i in range(0, stop, self.CHUNK)]
        for chunk in self._chunks(split, chunks):
            yield from chunk
            self._done += len(chunk)
            self._progress(self._done, sum(num_scenes(self._cfg, s) for s in SPLITS))

    def _chunks(self, split, chunks):
        if self._pool is None:
            yield from (examples.make_records(self._cfg, split, *chunk) for chunk in chunks)
            return
        ahead: collections.deque = collections.deque()
        for chunk in chunks:
            ahead.append(self._pool.submit(examples.make_records, self._cfg, split, *chunk))
            if len(ahead) > 8:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class SceneSource:
    """Random access to the scenes of one split; picklable."""

    def __init__(self, folder: str | pathlib.Path, split: str):
        """Open `split` of the data set in `folder`.

        Raises:
            SgqlmError: there is no data set, or it has no such split.
        """
        if not (pathlib.Path(folder) / MANIFEST).is_file():
            raise errors.SgqlmError(
                "there is no scene data set", where=str(folder), fix="build it", code=errors.DATA
            )
        if split not in SPLITS:
            raise errors.SgqlmError(
                f"scenes have no split {split!r}", where=str(folder), fix="one of " + str(SPLITS)
            )
        skip = {"image": tfds.decode.SkipDecoding()}
        builder = tfds.builder_from_directory(str(folder))
        self._source = builder.as_data_source(split, decoders=skip)  # pyright: ignore

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self._source)

    def __getitem__(self, index: int) -> examples.Example:
        """Return scene `index` with its picture, entities and masks."""
        return examples.from_record(self._source[index])


def num_scenes(cfg: config.SceneConfig, split: str) -> int:
    """Return the number of scenes of a split."""
    return {"train": cfg.num_train, "val": cfg.num_val, "test": cfg.num_test}[split]


def digest(cfg: config.SceneConfig) -> str:
    """Return a hash of all that decides what is built; the folder does not."""
    plain = dataclasses.asdict(cfg) | {"path": "", "format": FORMAT}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def build(
    cfg: config.SceneConfig,
    folder: str | pathlib.Path,
    workers: int = 2,
    *,
    progress: Progress | None = None,
) -> bool:
    """Build the data set of a configuration, unless it is there already.

    It is written beside its place and renamed into it, so that `folder` is whole or absent. Two
    builds of one configuration are equal byte for byte, whatever the number of workers.

    Args:
        cfg: the scenes.
        folder: becomes the data set.
        workers: processes that draw scenes; fewer than 2 means this one.
        progress: called with (scenes done, scenes in all).

    Returns:
        Whether something was built.

    Raises:
        SgqlmError: `folder` holds something else.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        _check_same(cfg, folder)
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.building-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        built = _write(cfg, aside, workers, progress)
        _write_manifest(cfg, built)
        try:
            built.rename(folder)
        except OSError:  # another process was faster
            _check_same(cfg, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _write(cfg, aside: pathlib.Path, workers: int, progress) -> pathlib.Path:
    tfds.disable_progress_bar()
    stdout, pool = sys.stdout, None

    def report(done: int, total: int):
        with contextlib.redirect_stdout(stdout):
            if progress:
                progress(done, total)

    if workers > 1:
        # spawned, not forked: the caller may have started jax, whose threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        maker = Scenes(scenes=cfg, records=Records(cfg, pool, report), data_dir=str(aside))
        with contextlib.redirect_stdout(io.StringIO()):  # it would print where files lie aside
            maker.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=1))
        return pathlib.Path(maker.data_dir)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _write_manifest(cfg: config.SceneConfig, folder: pathlib.Path) -> None:
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    counts = {split: num_scenes(cfg, split) for split in SPLITS}
    manifest = {"digest": digest(cfg), "scenes": counts, "sha256": files}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def _check_same(cfg: config.SceneConfig, folder: pathlib.Path) -> None:
    manifest = folder / MANIFEST
    found = (
        json.loads(manifest.read_text("utf-8"))["digest"] if manifest.is_file() else "no data set"
    )
    if found != digest(cfg):
        raise errors.SgqlmError(
            "the folder for the scenes holds something else",
            where=str(folder),
            why=f"found {found[:12]}, wanted {digest(cfg)[:12]}",
            fix="remove the folder, or set scenes.path to another one",
            code=errors.DATA,
        )
