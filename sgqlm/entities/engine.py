"""Where shards are worked on: in this process, or by Ray actors on GPUs of one or more hosts."""

import functools
import logging
import os
import pathlib
import pickle
import re
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from sgqlm import errors
from sgqlm.entities import interfaces, shards

Make = Callable[[], interfaces.EntityExtractor]
_TRIES = 3  # of a shard whose worker dies; Ray itself would begin it again for ever
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@runtime_checkable
class Engine(Protocol):
    """Work on shards."""

    def describe(self, make: Make) -> dict[str, Any]:
        """Return `shards.describe` of the extractor, as it is where the work will be done."""
        ...

    def work(
        self, job: shards.Job, todo: Sequence[shards.Shard], tick: shards.Tick
    ) -> Generator[shards.Result]:
        """Yield the results in any order; `tick` is called after every image, if it is known."""
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


class Local:
    """One worker in this process."""

    def __init__(self):
        """Make no extractor yet."""
        self._made: interfaces.EntityExtractor | None = None

    def describe(self, make: Make) -> dict[str, Any]:
        """Make the extractor and describe it."""
        self._made = make()
        return shards.describe(self._made)

    def work(
        self, job: shards.Job, todo: Sequence[shards.Shard], tick: shards.Tick
    ) -> Generator[shards.Result]:
        """Work on the shards in order."""
        if todo:
            worker = shards.Worker(job, extractor=self._made, tick=tick)
            yield from map(worker, todo)

    def close(self) -> None:
        """Do nothing."""


class Ray:
    """A pool of Ray actors, each with its own extractor; a dead one is started again.

    Args:
        workers: actors; 0 takes as many as there are GPUs, or else cores.
        gpus_per_worker: share of a GPU for each; None is one where Ray has GPUs, else none.
        address: of a Ray cluster whose hosts share the file system; empty starts Ray here.
    """

    def __init__(
        self, workers: int = 0, *, gpus_per_worker: float | None = None, address: str = ""
    ):
        self.workers, self.gpus_per_worker, self.address = workers, gpus_per_worker, address
        self._is_mine = False  # whether Ray was started here

    def describe(self, make: Make) -> dict[str, Any]:
        """Let a worker make the extractor and describe it: this host may lack the GPU."""
        ray = self._start()
        remote = ray.remote(_describe).options(num_gpus=self._gpus(ray), max_retries=_TRIES)
        return _opened(ray.get(remote.remote(pickle.dumps(make))))

    def work(
        self, job: shards.Job, todo: Sequence[shards.Shard], tick: shards.Tick
    ) -> Generator[shards.Result]:
        """Work on the shards with Ray Data, one row a shard."""
        ray = self._start()
        try:
            if todo:
                yield from self._results(ray, job, todo)
        except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
            raise _died("the Ray workers died", " ".join(str(error).split())[:500]) from error

    def close(self) -> None:
        """Stop Ray, or leave the cluster."""
        if self._is_mine:
            import ray

            ray.shutdown()

    def _results(
        self, ray: Any, job: shards.Job, todo: Sequence[shards.Shard]
    ) -> Generator[shards.Result]:
        items = [{"shard": pickle.dumps(shard)} for shard in todo]
        gpus = self._gpus(ray)
        made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_kwargs={"job": pickle.dumps(job)},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self._count(ray, gpus), len(todo))),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        for row in made.iter_rows():
            yield _opened(row["result"])

    def _start(self) -> Any:
        """Import Ray and connect to it, or start it here, quietly and without a network."""
        os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
        self._knock()
        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise errors.SgqlmError(
                "Ray is not installed",
                where="--engine=ray",
                why=str(error),
                fix="pip install -e '.[entities]' in the clone, or use --engine=local",
                code=errors.RESOURCES,
            ) from error
        if not ray.is_initialized():
            self._connect(ray)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return ray

    def _connect(self, ray: Any) -> None:
        options: dict[str, Any] = {
            "num_cpus": max(os.cpu_count() or 1, self.workers),
            "object_store_memory": 256 * 2**20,  # it carries names of files only
            "include_dashboard": False,
        }
        options = {} if self.address else options
        address = self.address or "local"
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise self._unreachable(error) from error
        self._is_mine = True

    def _knock(self) -> None:
        """Try a given address: Ray itself would for minutes."""
        found = re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", self.address)
        if not found:
            return
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> errors.SgqlmError:
        return errors.SgqlmError(
            "Ray cannot be reached" if self.address else "Ray cannot be started",
            where=f"--address={self.address}" if self.address else "--engine=ray",
            why=" ".join(str(error).split())[:300],
            fix="give the address that `ray start --head` printed, or use --engine=local",
            code=errors.RESOURCES,
        )

    def _gpus(self, ray: Any) -> float:
        there = ray.cluster_resources().get("GPU", 0)
        wanted = min(1, there) if self.gpus_per_worker is None else self.gpus_per_worker
        if wanted * max(self.workers, 1) > there:
            raise errors.SgqlmError(
                f"{max(self.workers, 1)} workers with {wanted:g} GPUs each need more than there is",
                where="--gpus-per-worker",
                why=f"Ray has {there:g} GPUs",
                fix="use fewer --workers, or a share such as --gpus-per-worker=0.5; 0 is the CPU",
                code=errors.RESOURCES,
            )
        return float(wanted)

    def _count(self, ray: Any, gpus: float) -> int:
        there = ray.cluster_resources()
        return self.workers or int(there["GPU"] / gpus if gpus else there.get("CPU", 1)) or 1


class _Actor:
    """A worker as Ray Data calls it."""

    def __init__(self, job: bytes):
        # made at the first call: an error here would count as one of Ray's and be tried for ever
        self._job: shards.Job = pickle.loads(job)
        self._worker = functools.cache(lambda: shards.Worker(self._job))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        shard: shards.Shard = pickle.loads(batch["shard"][0])
        return {"result": [_closed(lambda: self._work(shard))]}

    def _work(self, shard: shards.Shard) -> shards.Result:
        tries = pathlib.Path(self._job.parts) / ".tries" / str(shard.index)
        tries.parent.mkdir(exist_ok=True)
        with tries.open("ab") as file:
            if file.tell() >= _TRIES:
                keys = f"{shard.sources[0].key} to {shard.sources[-1].key}"
                raise _died(f"{_TRIES} workers died over the same images", keys)
            file.write(b".")
        return self._worker()(shard)


def _died(what: str, why: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        what,
        why=why,
        fix="out of memory is the usual reason: use fewer --workers or a smaller --batch-size; the "
        "same command goes on with the shards that are not finished",
        code=errors.RESOURCES,
    )


def _describe(make: bytes) -> bytes:
    return _closed(lambda: shards.describe(pickle.loads(make)()))


def _closed(call: Callable[[], Any]) -> bytes:
    """Return the pickled result of a call, or the error that users shall see as it is."""
    try:
        return pickle.dumps(call())
    except errors.SgqlmError as error:
        return pickle.dumps(error)


def _opened(data: bytes) -> Any:
    found = pickle.loads(data)
    if isinstance(found, errors.SgqlmError):
        raise found
    return found
