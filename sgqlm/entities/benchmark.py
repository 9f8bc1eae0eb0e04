"""How fast an extractor is on this machine, and how large its records are."""

import dataclasses
import pathlib
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import images, records
from sgqlm.entities import inputs, interfaces, parts


@dataclasses.dataclass(frozen=True)
class Measured:
    """Timings of one process.

    Attributes:
        images: measured, without those of the warm-up.
        batch_size: images the extractor got at once.
        stages: milliseconds per image of each stage, the median over batches; `decode` is reading
            and decoding, `write` making the record and writing it.
        images_per_second: all of it one after the other; a run decodes beside the extractor.
        entities: found per image, on average.
        record_bytes: of one image, on average.
        disk_bytes: of one image in a store of these images; its blocks are large, so a small
            store takes more than its records.
        host_peak_bytes: largest memory of this process so far.
        device_peak_bytes: largest memory of tensors on the GPU; 0 without one.
    """

    images: int
    batch_size: int
    stages: Mapping[str, float]
    images_per_second: float
    entities: float
    record_bytes: float
    disk_bytes: float
    host_peak_bytes: int
    device_peak_bytes: int


def measure(
    extractor: interfaces.EntityExtractor,
    sources: Sequence[inputs.Source],
    *,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Extract from some images and take the times; writes nothing that stays.

    The first batch warms up. It does not count, unless there is no other.

    Args:
        extractor: with its weights.
        sources: images; those that cannot be decoded are left out.
        batch_size: images the extractor gets at once.
        progress: called with the images that are done, after every batch.

    Returns:
        The times.

    Raises:
        SgqlmError: no image can be decoded, or the extractor fails.
    """
    times: list[dict[str, float]] = []
    counts: list[int] = []
    rows = []
    for start in range(0, len(sources), batch_size):
        spent, made = _batch(extractor, sources[start : start + batch_size])
        if made:
            times.append(spent)
            counts.append(len(made))
            rows += made
        progress(min(start + batch_size, len(sources)))
    if not rows:
        raise errors.SgqlmError(
            "no image could be decoded", where=sources[0].key, code=errors.DATA,
            fix="give a folder that holds photographs",
        )  # fmt: skip
    if len(times) > 1:
        times, counts = times[1:], counts[1:]
    per_image = [
        {name: 1000 * seconds / count for name, seconds in spent.items()}
        for spent, count in zip(times, counts, strict=True)
    ]
    stages = {name: statistics.median(spent[name] for spent in per_image) for name in times[0]}
    write, record_bytes, disk_bytes = _written(rows)
    stages["write"] = write
    return Measured(
        images=sum(counts),
        batch_size=batch_size,
        stages=stages,
        images_per_second=1000 / sum(stages.values()),
        entities=sum(len(found) for _, found in rows) / len(rows),
        record_bytes=record_bytes,
        disk_bytes=disk_bytes,
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_peak_bytes=_device_peak(),
    )


def _batch(extractor: interfaces.EntityExtractor, sources: Sequence[inputs.Source]):
    """Return seconds of each stage, and key and entities of each image that can be decoded."""
    began = time.perf_counter()
    pictures = {}
    for source in sources:
        try:
            pictures[source.key] = images.open_image(source.read(), where=source.key)
        except (errors.SgqlmError, OSError, ValueError):
            continue
    decoded, before = time.perf_counter(), dict(extractor.seconds)
    found = extractor.extract_batch(list(pictures.values())) if pictures else []
    _synchronise()
    whole = time.perf_counter() - decoded
    stages = {k: v - before.get(k, 0.0) for k, v in extractor.seconds.items()}
    other = max(whole - sum(stages.values()), 0.0)
    spent = {"decode": decoded - began, **stages, "other": other}
    coded = [dataclasses.replace(item, masks=item.coded_masks()) for item in found]
    return spent, list(zip(pictures, coded, strict=True))


def _written(rows: Sequence[tuple[str, Any]]) -> tuple[float, float, float]:
    """Return milliseconds, bytes of the record and bytes on disk, each of one image."""
    with tempfile.TemporaryDirectory() as folder:
        store, began = pathlib.Path(folder) / "entities", time.perf_counter()
        records.write_entities(store, rows)
        spent = time.perf_counter() - began
        disk = sum(path.stat().st_size for path in store.glob("*array_record*"))
        size = parts.row_bytes(store)
    return 1000 * spent / len(rows), size / len(rows), disk / len(rows)


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return torch.cuda.max_memory_allocated()
