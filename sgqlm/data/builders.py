"""TFDS builders of the three stores: ArrayRecord files, rows in the order given, no TensorFlow."""

import contextlib
import io
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

Row = Mapping[str, Any]


class StableWriter(tfds_writer.ExampleWriter):
    """Writes records with their fields in sorted order.

    A record is a protocol buffer with a map, which serialises in an order that changes from process
    to process. Return one from `_example_writer` of a builder for byte-identical rebuilds.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Write (key, serialised record) pairs to `path`."""
        return super().write(path, ((key, self._stable(record)) for key, record in examples))

    @staticmethod
    def _stable(record: bytes) -> bytes:
        kind: Any = tf_example_pb2  # generated: its classes are not in the source
        example = kind.Example.FromString(record)
        return example.SerializeToString(deterministic=True)


class _Store(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A store whose rows are handed in; row i of a split is the i-th row given."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: str, splits: Mapping[str, Iterable[Row]]):
        """Build under `data_dir` the rows of each split."""
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split):
        yield from enumerate(self._splits[split])

    def _example_writer(self):
        file_format: Any = self.info.file_format
        return StableWriter(file_format)

    def _described(self, description: str, features: Mapping[str, Any]):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=description,
            disable_shuffling=True,
        )


class Images(_Store):
    """One row per distinct image: the file as it was found."""

    def _info(self) -> tfds.core.DatasetInfo:
        f = tfds.features
        return self._described(
            "Images, each once, as the bytes of their files.",
            {"key": f.Text(), "image": f.Image(), "size": f.Tensor(shape=(2,), dtype=np.int32)},
        )


class Entities(_Store):
    """One row per image: flat arrays.

    Masks are COCO counts joined by newlines; alternatives are json; coverage is the uint8[n, P] of
    each view in the order of `views`, joined and compressed by zlib.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        f = tfds.features
        return self._described(
            "Entities of images: masks, boxes, scores and labels in original pixels.",
            {
                "key": f.Text(),
                "size": f.Tensor(shape=(2,), dtype=np.int32),
                "boxes": f.Tensor(shape=(None, 4), dtype=np.float32),
                "scores": f.Tensor(shape=(None,), dtype=np.float32),
                "labels": f.Sequence(f.Text()),
                "masks": f.Scalar(np.object_),
                "status": f.Text(),
                "sha256": f.Text(),
                "alternatives": f.Text(),
                "mask_scores": f.Tensor(shape=(None,), dtype=np.float32),
                "tags": f.Sequence(f.Text()),
                "tag_scores": f.Tensor(shape=(None,), dtype=np.float32),
                "views": f.Sequence(f.Text()),
                "coverage": f.Scalar(np.object_),
            },
        )


class Conversations(_Store):
    """One row per conversation, with row numbers into the two other stores (-1: none)."""

    def _info(self) -> tfds.core.DatasetInfo:
        f = tfds.features
        return self._described(
            "Conversations in LLaVA's form; image_row and entity_row name rows of other stores.",
            {
                "id": f.Text(),
                "image_row": f.Scalar(np.int32),
                "entity_row": f.Scalar(np.int32),
                "conversations": f.Sequence({"from": f.Text(), "value": f.Text()}),
            },
        )


def write(
    kind: str, folder: pathlib.Path, splits: Mapping[str, Iterable[Row]], *, num_shards: int = 0
) -> dict[str, int]:
    """Write the files of a store.

    Args:
        kind: `images`, `entities` or `conversations`.
        folder: an existing empty folder, which receives the files.
        splits: rows of each split, as the builder of `kind` describes them; splits without a row
            are left out.
        num_shards: files per split; 0 lets TFDS choose by size.

    Returns:
        Number of rows of each split.
    """
    counts = dict.fromkeys(splits, 0)
    filled = {}
    for split, rows in splits.items():
        rows = iter(rows)
        with contextlib.suppress(StopIteration):
            filled[split] = _counted([next(rows)], rows, counts, split)
    if filled:
        _prepare(kind, folder, filled, num_shards)
    return counts


def read(folder: pathlib.Path, split: str) -> Any:
    """Open a split of a store for random access; images stay encoded. The result pickles."""
    builder = tfds.builder_from_directory(str(folder))
    features, decode = cast(Any, builder.info.features), cast(Any, tfds.decode)
    decoders = {"image": decode.SkipDecoding()} if "image" in features else None
    return cast(Any, builder).as_data_source(split, decoders=decoders)


def _counted(first: list[Row], rest: Iterator[Row], counts, split) -> Iterator[Row]:
    for rows in (first, rest):
        for row in rows:
            counts[split] += 1
            yield row


def _prepare(kind, folder, splits, num_shards) -> None:
    tfds.disable_progress_bar()
    maker = {"images": Images, "entities": Entities, "conversations": Conversations}[kind]
    inner = folder / "tfds"
    config = tfds.download.DownloadConfig(num_shards=num_shards or None)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
        builder = maker(data_dir=str(inner), splits=splits)
        builder.download_and_prepare(download_config=config)
    made = pathlib.Path(builder.data_dir)
    for path in sorted(made.iterdir()):
        path.rename(folder / path.name)
    shutil.rmtree(inner)
