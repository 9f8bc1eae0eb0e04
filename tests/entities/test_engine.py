import functools
import pickle
import socket
import sys

import pytest

from sgqlm import errors
from sgqlm.entities import engine, extract, inputs, shards
from tests.entities import drawn


def test_the_local_engine_makes_the_extractor_once_and_only_for_work(tmp_path):
    made = []

    def make():
        made.append(drawn.Counting())
        return made[-1]

    sources = inputs.from_folder(drawn.draw(tmp_path / "photos", 3))
    first = extract.run(make, sources, tmp_path / "out", shard_size=2)
    assert len(made) == 1 and made[0].seen == 3 and first.reused == 0
    assert extract.run(make, sources, tmp_path / "out", shard_size=2).reused == 3
    assert made[1].seen == 0


def test_without_ray_the_remedy_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    sources = inputs.from_folder(drawn.draw(tmp_path / "photos", 1))
    with pytest.raises(errors.SgqlmError, match="Ray is not installed") as caught:
        extract.run(drawn.Counting, sources, tmp_path / "out", engine=engine.Ray(2))
    assert caught.value.code == errors.RESOURCES and ".[entities]" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_cluster_that_does_not_answer_is_told_at_once():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"  # nobody listens
        for form in (address, f"ray://{address}"):
            with pytest.raises(errors.SgqlmError, match="Ray cannot be reached") as caught:
                engine.Ray(address=form).describe(drawn.Counting)
            assert caught.value.code == errors.RESOURCES and form in caught.value.where


class Cluster:
    """Tells what it has, as the module `ray` does."""

    def __init__(self, **resources):
        self._resources = resources

    def cluster_resources(self):
        return self._resources


def test_workers_by_default_one_a_gpu_or_one_a_core():
    eight, none = Cluster(GPU=8.0, CPU=96.0), Cluster(CPU=6.0)
    assert engine.Ray()._gpus(eight) == 1 and engine.Ray()._count(eight, 1.0) == 8
    assert engine.Ray(gpus_per_worker=0.5)._count(eight, 0.5) == 16
    assert engine.Ray()._gpus(none) == 0 and engine.Ray()._count(none, 0.0) == 6
    assert engine.Ray(3)._count(none, 0.0) == 3
    with pytest.raises(errors.SgqlmError, match="more than there is"):
        engine.Ray(9)._gpus(eight)
    with pytest.raises(errors.SgqlmError, match="more than there is"):
        engine.Ray(1, gpus_per_worker=1.0)._gpus(none)


def test_an_actor_gives_back_results_and_errors_and_counts_its_tries(tmp_path):
    sources = inputs.from_folder(drawn.draw(tmp_path / "photos", 2))
    parts = tmp_path / "parts"
    parts.mkdir()
    about = shards.describe(drawn.Counting())
    job = shards.Job(drawn.Counting, str(parts), about)
    actor = engine._Actor(pickle.dumps(job))
    batch = {"shard": [pickle.dumps(shards.Shard(0, sources, "stamp"))]}
    results = [actor(batch)["result"][0] for _ in range(4)]
    made = [engine._opened(result) for result in results[:3]]
    assert {result.name for result in made} == {path.name for path in parts.glob("[!.]*")}
    assert [result.images for result in made] == [2, 2, 2]
    with pytest.raises(errors.SgqlmError, match="3 workers died") as caught:
        engine._opened(results[3])
    assert caught.value.why == "0000.png to 0001.png"
    failing = shards.Job(functools.partial(drawn.Failing, 0), str(parts), about)
    actor = engine._Actor(pickle.dumps(failing))
    many = inputs.from_folder(drawn.draw(tmp_path / "many", 30))
    batch = {"shard": [pickle.dumps(shards.Shard(1, many, "stamp"))]}
    with pytest.raises(errors.SgqlmError, match="fails on every image"):
        engine._opened(actor(batch)["result"][0])
