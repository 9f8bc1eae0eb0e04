"""One shard of an extraction: images are read and decoded ahead, worked on in batches, written."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

import sgqlm
from sgqlm import errors
from sgqlm.data import graphs, images, records
from sgqlm.entities import composite, inputs, interfaces

VERSION = 1  # of the engine; raise it when the same settings begin to give other entities
STAMP = "stamp"  # file beside a manifest: what the image files looked like, see `Shard`
UNREADABLE, FAILED = "the image file cannot be read", "the extractor failed"
ENOUGH = 20  # images after which a share of failures means something
_PACKAGES = ("numpy", "pillow", "pycocotools", "scikit-image", "torch", "transformers")
_THREADS = 4
_ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>|0x[0-9a-f]{6,}")

Found = graphs.Entities | str  # what is in an image, or why nothing is known
Tick = Callable[[int, int, Mapping[str, float]], None]  # images, new ones, seconds of each stage


@dataclasses.dataclass(frozen=True)
class Job:
    """What all shards of a run have in common; pickles, and is small.

    Attributes:
        make: returns the extractor, with its weights.
        parts: folder that takes the finished shards.
        about: of `describe`.
        batch_size: images the extractor gets at once.
        fault_budget: share of the images of a shard that may fail.
    """

    make: Callable[[], interfaces.EntityExtractor]
    parts: str
    about: Mapping[str, Any]
    batch_size: int = 8
    fault_budget: float = 0.05


@dataclasses.dataclass(frozen=True)
class Shard:
    """Images that become one file.

    Attributes:
        index: place in the store.
        sources: the images.
        stamp: digest of the settings, the keys and the stamps of the images.
        old: names of finished shards that may hold some of these images.
    """

    index: int
    sources: Sequence[inputs.Source]
    stamp: str
    old: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished shard.

    Attributes:
        index: of the shard.
        name: its folder, named by settings, keys and contents of the images.
        images: how many it has.
        extracted: how many of them are new, rather than taken from an earlier run.
        seen: how many of the new ones could be decoded and came before the extractor.
        failed: key and reason of each image without a result.
        seconds: spent in each stage of the extractor.
    """

    index: int
    name: str
    images: int
    extracted: int
    seen: int
    failed: Sequence[Sequence[str]]
    seconds: Mapping[str, float]


class Row(NamedTuple):
    """The result of one image; `is_new` where it was not taken from an earlier run."""

    key: str
    found: Found
    digest: str
    is_new: bool

    @property
    def is_seen(self) -> bool:
        """Whether the extractor worked on it now."""
        return self.is_new and not (
            isinstance(self.found, str) and not self.found.startswith(FAILED)
        )


class Worker:
    """Works on one shard after another.

    Args:
        job: of the run.
        extractor: if it is made already.
        tick: called after every image with what is done of the shard.
    """

    def __init__(
        self,
        job: Job,
        *,
        extractor: interfaces.EntityExtractor | None = None,
        tick: Tick = lambda images, new, seconds: None,
    ):
        self._job, self._tick = job, tick
        self._extractor = extractor or job.make()
        self._batches = _Batches(self._extractor, job.batch_size)
        if extractor is None and (about := describe(self._extractor)) != job.about:
            raise errors.SgqlmError(
                "a worker would find other entities than the rest of the run",
                why=_difference(job.about, about),
                fix="give all machines the same weights, and --device and --dtype by name",
            )

    def __call__(self, shard: Shard) -> Result:
        """Write the shard, unless it is there: the result is the same however often it is called.

        Raises:
            SgqlmError: too many images failed (code `DATA`; the shard is not written), or the disk
                is full.
        """
        parts, before = pathlib.Path(self._job.parts), dict(self._extractor.seconds)
        rows: list[Row] = []
        new = seen = 0
        views = self._job.about["settings"].get("views", [])
        old = _Old([parts / name for name in shard.old], views)
        for row in self._batches.rows(shard.sources, old):
            rows.append(row)
            new, seen = new + row.is_new, seen + row.is_seen
            self._tick(len(rows), new, self._spent(before))
            if seen == ENOUGH and all(isinstance(r.found, str) for r in rows if r.is_seen):
                raise broken(str(row.found), seen, row.key)  # a million such rows help nobody
        check_budget(rows, self._job.fault_budget)
        # an image that may end otherwise at another try makes another shard when it does
        named = [[row.key, row.digest, row.found if _may_pass(row.found) else ""] for row in rows]
        identity = digest([self._job.about["config"], named])
        self._write(parts / identity, rows, shard.stamp)
        seconds = self._spent(before)
        return Result(shard.index, identity, len(rows), new, seen, failures(rows), seconds)

    def _spent(self, before: Mapping[str, float]) -> dict[str, float]:
        return {k: v - before.get(k, 0.0) for k, v in self._extractor.seconds.items()}

    def _write(self, folder: pathlib.Path, rows: Sequence[Row], stamp: str) -> None:
        about = {
            "identity": folder.name,
            "entities": sum(len(row.found) for row in rows if not isinstance(row.found, str)),
            "failed": failures(rows),
            "status": dict(sorted(collections.Counter(_status(row) for row in rows).items())),
            "versions": versions(),
        }
        try:
            if not is_whole(folder):
                entities = (row[:3] for row in rows)
                records.write_entities(folder, entities, about=dict(self._job.about) | about)
            if not any(_may_pass(row.found) for row in rows):
                (folder / STAMP).write_text(stamp)
        except (OSError, RuntimeError) as error:
            raise _not_written(folder, error) from error


def describe(extractor: interfaces.EntityExtractor) -> dict[str, Any]:
    """Return what a store remembers of how it was made.

    `config` is the digest of it all, `masks` that of all but the views, which follow from masks.
    """
    settings = json.loads(json.dumps(dict(extractor.settings())))
    config = {"extractor": extractor.name, "settings": settings, "version": VERSION}
    found = {name: value for name, value in settings.items() if name != "views"}
    return config | {"config": digest(config), "masks": digest(config | {"settings": found})}


def digest(value: Any) -> str:
    """Return 32 hexadecimal digits that name a json value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Return the versions, and the device, of what can change a result in its last digits."""
    torch = sys.modules.get("torch")
    is_gpu = torch is not None and torch.cuda.is_initialized()
    found = {"device": torch.cuda.get_device_name() if torch and is_gpu else "cpu"}
    found |= {"sgqlm": sgqlm.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def extract_rows(
    extractor: interfaces.EntityExtractor, sources: Iterable[inputs.Source], *, batch_size: int = 8
) -> Iterator[Row]:
    """Yield the result of every image, in order; a broken image costs nothing but itself."""
    return _Batches(extractor, batch_size).rows(sources, _Old([], []))


def failures(rows: Iterable[Row]) -> list[list[str]]:
    """Return key and reason of the rows without a result (lists, as json has them)."""
    return [[row.key, row.found] for row in rows if isinstance(row.found, str)]


def is_whole(folder: pathlib.Path) -> bool:
    """Tell whether a finished shard is there and none of its bytes has changed."""
    return (folder / records.MANIFEST).is_file() and not records.verify(folder)


def check_budget(rows: Sequence[Row], budget: float) -> None:
    """Refuse rows of which too many have failed.

    Raises:
        SgqlmError: more than the share `budget` of at least `ENOUGH` rows.
    """
    failed = failures(rows)
    if len(rows) >= ENOUGH and len(failed) > budget * len(rows):
        raise over_budget(failed, len(rows), budget)


def over_budget(failed: Sequence[Sequence[str]], total: int, budget: float) -> errors.SgqlmError:
    """Return the error of a run in which too many images failed."""
    listed = "; ".join(f"{key}: {reason}" for key, reason in failed[:5])
    return errors.SgqlmError(
        f"{len(failed)} of {total} images have no entities, more than the budget of {budget:.1%}",
        where=failed[0][0],
        why=listed + ("; ..." if len(failed) > 5 else ""),
        fix="repair or remove them, or allow more with --fault-budget; the same command goes on "
        "with the shards that are not finished",
        code=errors.DATA,
    )


def broken(reason: str, total: int, where: str) -> errors.SgqlmError:
    """Return the error of an extractor that failed on every image."""
    return errors.SgqlmError(
        f"the extractor fails on every image ({total} of {total})",
        where=where,
        why=reason.removeprefix(f"{FAILED}: "),
        fix="check the weights and settings of the models; --benchmark --n 1 tries one image",
        code=errors.DATA,
    )


class _Batches:
    """Feeds an extractor; what it fails on as a batch it gets again image by image."""

    def __init__(self, extractor: interfaces.EntityExtractor, size: int):
        self._extractor, self._size = extractor, size

    def rows(self, sources: Iterable[inputs.Source], old: "_Old") -> Iterator[Row]:
        waiting: list[_Loaded] = []
        new = 0  # those among `waiting` that the extractor has to see
        for item in _loaded(sources, old, ahead=2 * self._size):
            waiting.append(item)
            new += item.image is not None
            if new >= self._size:
                yield from self._work(waiting)
                waiting, new = [], 0
        yield from self._work(waiting)

    def _work(self, waiting: Sequence["_Loaded"]) -> Iterator[Row]:
        pictures = [item.image for item in waiting if item.image is not None]
        made = iter(self._extract(pictures) if pictures else [])
        for item in waiting:
            found = item.found if item.image is None else next(made)
            yield Row(item.key, found, item.digest, item.is_new)

    def _extract(self, pictures: Sequence[Image.Image]) -> list[Found]:
        try:
            return _checked(self._extractor.extract_batch(pictures), pictures)
        except Exception as error:
            if isinstance(error, errors.SgqlmError) and error.code != errors.DATA:
                raise  # settings or weights, which no other image makes right
            if len(pictures) == 1:
                return [_reason(error)]
            step = 1
            if _is_out_of_memory(error):
                step = self._size = max(1, len(pictures) // 2)
        _release_memory()
        chunks = [pictures[i : i + step] for i in range(0, len(pictures), step)]
        return [found for chunk in chunks for found in self._extract(chunk)]


class _Loaded(NamedTuple):
    key: str
    digest: str
    image: Image.Image | None  # None: `found` is known already
    found: Found = ""
    is_new: bool = True


class _Old:
    """Results of earlier runs that found the same, by key; coverage is made of the masks anew."""

    def __init__(self, folders: Sequence[pathlib.Path], views: Sequence[str]):
        self._lock, self._views = threading.Lock(), views
        self._places: dict[str, tuple[records.EntityStore, int]] = {}
        for folder in folders:
            if is_whole(folder):
                store = records.EntityStore(folder)
                self._places |= {key: (store, row) for row, key in enumerate(store.keys())}

    def find(self, key: str, content: str) -> Found | None:
        """Return the result if the image had this content, and None to work on it."""
        if key not in self._places:
            return None
        store, row = self._places[key]
        with self._lock:
            if store.image_digest(row) != content:
                return None
            status = store.status(row)
            if status.startswith("error"):
                found = status.removeprefix("error: ")
                return None if _may_pass(found) else found
            kept = store[row]
        if set(kept.coverage) == set(self._views):
            return kept
        return composite.add_coverage(dataclasses.replace(kept, coverage={}), self._views)


def _loaded(sources: Iterable[inputs.Source], old: _Old, *, ahead: int) -> Iterator[_Loaded]:
    """Read and decode in threads, at most `ahead` images before the one that is yielded."""
    threads = min(_THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads, "decode")
    try:
        pending: collections.deque[concurrent.futures.Future[_Loaded]] = collections.deque()
        for source in sources:
            pending.append(pool.submit(_load, source, old))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(source: inputs.Source, old: _Old) -> _Loaded:
    content = ""
    try:
        data = source.read()
        content = hashlib.sha256(data).hexdigest()
        if (found := old.find(source.key, content)) is not None:
            return _Loaded(source.key, content, None, found, is_new=False)
        return _Loaded(source.key, content, images.open_image(data, where=source.key))
    except errors.SgqlmError as error:
        reason = _line(f"{error.what}: {error.why}")
    except MemoryError:
        reason = "the image cannot be decoded: out of memory"
    except (OSError, ValueError) as error:
        reason = _line(f"{UNREADABLE}: {getattr(error, 'strerror', None) or error}")
    return _Loaded(source.key, content, None, reason)


def _checked(found: Sequence[graphs.Entities], pictures: Sequence[Image.Image]) -> list[Found]:
    sizes = [(picture.height, picture.width) for picture in pictures]
    if [tuple(item.size) for item in found] != sizes:
        raise ValueError(f"it answers for images of {[tuple(f.size) for f in found]}, not {sizes}")
    # as run-length codes: dense masks of a shard are gigabytes
    return [dataclasses.replace(item, masks=item.coded_masks()) for item in found]


def _reason(error: Exception) -> str:
    if isinstance(error, errors.SgqlmError):
        return _line(f"{FAILED}: {error.what}: {error.why}")
    return _line(f"{FAILED}: {type(error).__name__}: {error}")


def _line(text: str) -> str:
    text = _ADDRESS.sub("", text)  # another one at every run
    return " ".join(text.split()).rstrip(": ")[:300]


def _may_pass(found: Found) -> bool:
    """Tell whether another try may end better; what is wrong with a file's content will not."""
    return isinstance(found, str) and found.startswith((UNREADABLE, FAILED))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _release_memory() -> None:
    """Give back what the failed batch held on a GPU, if torch is in use at all."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _status(row: Row) -> str:
    return "error" if isinstance(row.found, str) else "ok" if len(row.found) else "empty"


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    flat = [{**about, **about["settings"]} for about in (one, other)]
    names = [name for name in flat[0] | flat[1] if flat[0].get(name) != flat[1].get(name)]
    parts = [f"{n}: {flat[0].get(n)} and here {flat[1].get(n)}" for n in names if n != "settings"]
    return "; ".join(parts)[:500]


def _not_written(folder: pathlib.Path, error: Exception) -> errors.SgqlmError:
    why = _line(f"{type(error).__name__}: {error}")
    return errors.SgqlmError(
        "the disk is full" if "No space left" in why else "a shard cannot be written",
        where=str(folder),
        why=why,
        fix="free some space, or mend the disk, then run the same command again: finished shards "
        "are kept",
        code=errors.RESOURCES,
    )
