"""Extraction: images in, an entity store out; what is finished is never done again."""

import contextlib
import dataclasses
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.data import lock, records
from sgqlm.entities import engine as engines
from sgqlm.entities import inputs, interfaces, parts, regions, shards

EXTRACTORS = ("regions",)  # those that need no weights
SHARD_SIZE, MAX_SHARDS = 256, 512
ANNOTATED = "annotated"  # extractor of the nodes of relation data, see `data.relations.build`
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        done: images finished; an unfinished shard counts with the images that were worked on.
        total: images altogether.
        reused: finished images that an earlier run had worked on.
        extracted: images of finished shards that the extractor worked on.
        failed: images without a result so far.
        seconds: spent in each stage of the extractor for `extracted` images, over all workers.
    """

    done: int
    total: int
    reused: int = 0
    extracted: int = 0
    failed: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


Progress = Callable[[State], None]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        images: images altogether.
        reused: those that an earlier run had finished.
        failed: key and reason of each image that could not be worked on.
        entities: entities found, over all images.
        empty: images in which nothing was found.
        seconds: spent in each stage of the extractor, over all workers.
        wall_seconds: of the whole run.
    """

    images: int
    reused: int
    failed: tuple[tuple[str, str], ...]
    entities: int
    empty: int = 0
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    wall_seconds: float = 0.0


def make(name: str) -> interfaces.EntityExtractor:
    """Return the extractor called `name`, one that needs no weights, with its default settings.

    Raises:
        SgqlmError: there is no such extractor.
    """
    if name == "regions":
        return regions.RegionsExtractor()
    known = ", ".join(EXTRACTORS)
    raise errors.SgqlmError(f"there is no extractor {name!r}", fix=f"use one of {known}")


def run(
    extractor: interfaces.EntityExtractor | engines.Make,
    sources: Sequence[inputs.Source],
    out: pathlib.Path,
    *,
    shard_size: int = 0,
    batch_size: int = 8,
    fault_budget: float = 0.05,
    overwrite: bool = False,
    engine: engines.Engine | None = None,
    progress: Progress = lambda state: None,
) -> Summary:
    """Extract entities and write an entity store, one row per source in the given order.

    Shards are written to `.<out>.parts` beside `out`, each complete or not at all, and joined at
    the end. A shard is named by the extractor's settings and the contents of its images, so a run
    that was stopped goes on where it was, and one with nothing new to do extracts nothing. An
    image whose file has not been touched is not even read; after a change, an image whose content
    is known keeps its entities wherever it lies now.

    Args:
        extractor: finds the entities, or a function that makes it (and pickles, for Ray).
        sources: images with distinct keys.
        out: becomes the store.
        shard_size: images of one shard; 0 takes 256, or more where there are very many images.
        batch_size: images the extractor gets at once.
        fault_budget: share of images that may fail, once there are at least 20.
        overwrite: also replace annotated nodes, results of other settings, and absent images.
        engine: does the work; by default this process.
        progress: called after every image, or shard where only that is known.

    Returns:
        What was done. An image that cannot be read has a row without entities and a status.

    Raises:
        SgqlmError: there are no images, too many fail, the disk is full, another process writes
            the same store, or `out` holds something else, or more than the new store would.
    """
    began, out = time.perf_counter(), out.absolute()
    inputs.check(sources, str(out))
    size = _shard_size(len(sources), shard_size)
    refuse_other(out)
    is_made = isinstance(extractor, interfaces.EntityExtractor)
    maker: Any = _Made(extractor) if is_made else extractor
    with _claim(out) as folder, contextlib.closing(engine or engines.Local()) as engine:
        about = engine.describe(maker)
        _refuse_loss(out, about, sources, overwrite=overwrite)
        todo = _shards(sources, size, about["config"])
        if parts.stamps(out) == [shard.stamp for shard in todo]:
            progress(State(len(sources), len(sources), len(sources)))
            summary = dataclasses.replace(_summary(out), reused=len(sources))
        else:
            job = shards.Job(maker, str(folder), about, batch_size, fault_budget)
            tally = _Tally(len(sources), fault_budget, progress)
            places = _work(engine, job, todo, out, tally)
            _finish(places, out, about)
            made = {"reused": tally.done - tally.extracted, "seconds": tally.seconds}
            summary = dataclasses.replace(_summary(out), **made)
        shutil.rmtree(folder)
    return dataclasses.replace(summary, wall_seconds=time.perf_counter() - began)


def refuse_other(out: pathlib.Path, store: str = "") -> None:
    """Refuse to replace a folder that sgqlm did not write.

    Args:
        out: a folder that is about to be replaced.
        store: the sub-folder by which such a folder is known; empty for `out` itself.

    Raises:
        SgqlmError: `out` is a file, or a folder with other content.
    """
    if out.is_dir() and (not any(out.iterdir()) or (out / store / records.MANIFEST).is_file()):
        return
    if out.exists() or out.is_symlink():
        raise errors.SgqlmError(
            "the output would replace something else",
            where=str(out),
            fix="name a folder that does not exist yet with --out",
        )


def _refuse_loss(
    out: pathlib.Path,
    about: Mapping[str, Any],
    sources: Sequence[inputs.Source],
    *,
    overwrite: bool,
) -> None:
    """Refuse to replace a finished store by one that lacks what it holds; views are made anew."""
    before = parts.about(out)
    if overwrite or not before:
        return
    what = why = ""
    if before.get("extractor") == ANNOTATED:
        what, why = "the output holds annotated nodes", "they belong to a data set of relations"
    elif before.get("masks") != about["masks"]:
        what = "the output was extracted with other settings"
        why = "; ".join(_differences(before, about))
    else:
        failed = {key for key, _ in before.get("failed", [])}
        there = {source.key for source in sources} | failed
        gone = [key for key in parts.keys(out) if key not in there]
        if gone:
            what = f"{len(gone)} images of the output are not among those to work on"
            why = ", ".join(gone[:5]) + ", ..." * (len(gone) > 5)
    if what:
        raise errors.SgqlmError(
            what, where=str(out), why=why,
            fix="name another folder with --out, or replace the store with --overwrite",
        )  # fmt: skip


def _differences(before: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    flat = [
        {"extractor": told.get("extractor"), "engine version": told.get("version")}
        | {name: value for name, value in told.get("settings", {}).items() if name != "views"}
        for told in (before, about)
    ]
    names = [name for name in flat[0] | flat[1] if flat[0].get(name) != flat[1].get(name)]
    return [f"{n}: {str(flat[0].get(n))[:60]}, now {str(flat[1].get(n))[:60]}" for n in names]


@dataclasses.dataclass(frozen=True)
class _Made:
    """Gives an extractor that is made already; pickles with it."""

    extractor: interfaces.EntityExtractor

    def __call__(self) -> interfaces.EntityExtractor:
        return self.extractor


class _Tally:
    """Counts what is done, tells it, and stops a run in which too much fails."""

    def __init__(self, total: int, budget: float, progress: Progress):
        self._total, self._budget, self._progress = total, budget, progress
        self.done = self.extracted = self._seen = 0
        self._failed: list[Sequence[str]] = []
        self.seconds: dict[str, float] = {}

    def tick(self, images: int, extracted: int, seconds: Mapping[str, float]) -> None:
        """Count what is done of a shard that is not finished."""
        reused = self.done - self.extracted + images - extracted
        self._progress(
            State(
                *(self.done + images, self._total, reused, self.extracted + extracted),
                failed=len(self._failed), seconds=_sum(self.seconds, seconds),
            )
        )  # fmt: skip

    def add(self, result: shards.Result) -> None:
        self.done += result.images
        self.extracted += result.extracted
        self._seen += result.seen
        self._failed += result.failed
        self.seconds = _sum(self.seconds, result.seconds)
        self.tick(0, 0, {})
        if self.done >= shards.ENOUGH and len(self._failed) > self._budget * self.done:
            raise shards.over_budget(self._failed, self.done, self._budget)

    def check(self) -> None:
        """Refuse a run, a small one too, in which the extractor or the images all failed."""
        broken = [pair for pair in self._failed if pair[1].startswith(shards.FAILED)]
        if broken and len(broken) == self._seen:
            raise shards.broken(broken[0][1], len(broken), broken[0][0])
        if len(self._failed) == self._total:
            raise shards.over_budget(self._failed, self._total, self._budget)


def _work(
    engine: engines.Engine,
    job: shards.Job,
    wanted: Sequence[shards.Shard],
    out: pathlib.Path,
    tally: _Tally,
) -> list[pathlib.Path]:
    """Return the folders of all shards in order, once each of them is there."""
    folder = pathlib.Path(job.parts)
    before = parts.about(out)
    if before.get("masks") == job.about["masks"]:
        parts.take_apart(out, folder)
    there = parts.find(folder, job.about)
    names: dict[int, str] = {}
    todo = []
    for shard in wanted:
        if name := there.by_stamp.get(shard.stamp):
            names[shard.index] = name
            failed = parts.about(folder / name)["failed"]
            tally.add(shards.Result(shard.index, name, len(shard.sources), 0, 0, failed, {}))
        else:
            keys = (source.key for source in shard.sources)
            old = dict.fromkeys(there.by_key[key] for key in keys if key in there.by_key)
            todo.append(dataclasses.replace(shard, old=tuple(old)))
    with contextlib.closing(engine.work(job, todo, tally.tick)) as results:
        for result in results:
            names[result.index] = result.name
            tally.add(result)
    tally.check()
    return [folder / names[shard.index] for shard in wanted]


def _finish(places: Sequence[pathlib.Path], out: pathlib.Path, about: Mapping[str, Any]) -> None:
    identity = parts.identity(about["config"], [place.name for place in places])
    is_there = parts.about(out).get("identity") == identity and not records.verify(out)
    is_there = is_there and parts.has_shards(records.read_manifest(out))
    if is_there:  # only the times of the image files have changed
        parts.write_stamps(out, places, identity)
    else:
        parts.join(places, out, about, identity)


@contextlib.contextmanager
def _claim(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Make the folder of the shards and keep other processes out of it."""
    folder = parts.folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LOCK).open("a").close()
    except OSError as error:
        raise errors.SgqlmError(
            "the output cannot be written", where=str(out), why=str(error),
            fix="give another folder with --out",
        ) from error  # fmt: skip
    with lock.hold(folder / _LOCK, "the output", "give another --out"):
        parts.recover(out)
        try:
            yield folder
        finally:
            if folder.exists() and [path.name for path in folder.iterdir()] == [_LOCK]:
                shutil.rmtree(folder)


def _shards(sources: Sequence[inputs.Source], size: int, config: str) -> list[shards.Shard]:
    found = []
    for index, start in enumerate(range(0, len(sources), size)):
        mine = tuple(sources[start : start + size])
        stamp = shards.digest([config, [[source.key, source.stamp()] for source in mine]])
        found.append(shards.Shard(index, mine, stamp))
    return found


def _shard_size(images: int, wanted: int) -> int:
    """Return the size of a shard: a power of two times 256, so that it seldom changes."""
    size = wanted or SHARD_SIZE
    while not wanted and size * MAX_SHARDS < images:
        size *= 2
    if size * MAX_SHARDS < images:
        raise errors.SgqlmError(
            f"{size} images a shard make {-(-images // size)} files",
            where="--shard-size",
            why=f"a process that reads the store opens each of them; {MAX_SHARDS} is the limit",
            fix=f"leave it out, or give {-(-images // MAX_SHARDS)} or more",
        )
    return size


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {stage: one.get(stage, 0.0) + other.get(stage, 0.0) for stage in (*one, *other)}


def _summary(out: pathlib.Path) -> Summary:
    manifest = records.read_manifest(out, kind="entities")
    about = manifest["about"]
    failed = tuple((key, reason) for key, reason in about["failed"])
    empty = about["status"].get("empty", 0)
    return Summary(manifest["rows"][records.ALL], 0, failed, about["entities"], empty)
