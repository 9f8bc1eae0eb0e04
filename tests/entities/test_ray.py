"""Extraction with real Ray actors; each run has its own process and its own Ray."""

import json
import subprocess
import sys

import pytest

from sgqlm import errors
from sgqlm.entities import extract, inputs
from tests import paths
from tests.entities import drawn

pytest.importorskip("ray.data", reason="needs ray[data]")
COUNT = 200


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return drawn.draw(tmp_path_factory.mktemp("ray") / "photos", COUNT)


def python(*words):
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)


def run(photos, out, notes, deaths):
    notes.mkdir()
    done = python("tests.entities.ray_runs", photos, out, notes, deaths)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_two_actors_of_which_one_dies_write_what_one_process_writes(photos, tmp_path):
    local, ray = tmp_path / "local", tmp_path / "ray"
    extract.run(drawn.Counting(), inputs.from_folder(photos), local, shard_size=25)
    told, stderr = run(photos, ray, tmp_path / "notes", 1)
    assert len(list((tmp_path / "notes").iterdir())) == 1, "no actor died"
    assert drawn.files(ray) == drawn.files(local)
    assert (told["images"], told["reused"], told["failed"]) == (COUNT, 0, [])
    assert told["done"] == list(range(25, COUNT + 1, 25)) and told["seconds"]["segment"] > 0
    assert "WARNING" not in stderr and "Traceback" not in stderr, stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "notes", "ray"]
    again = drawn.Counting()  # what one engine has finished, the other need not do
    assert extract.run(again, inputs.from_folder(photos), ray).reused == COUNT and not again.seen


@pytest.mark.slow
def test_images_that_kill_every_worker_end_the_run(photos, tmp_path):
    told, _ = run(photos, tmp_path / "out", tmp_path / "notes", 1000)
    assert (
        told["code"] == errors.RESOURCES and "3 workers died over the same images" in told["error"]
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_with_ray(photos, tmp_path):
    out = tmp_path / "out"
    words = ["sgqlm", "entities", "extract", f"--images={photos}", f"--out={out}"]
    ray = ["--engine=ray", "--workers=2", "--shard-size=50"]
    done = python(*words, *ray)
    assert done.returncode == errors.OK, done.stderr
    assert f"{COUNT} images, {COUNT} of them new" in done.stdout and "200/200" in done.stderr
    assert python(*words, "--engine=ray", "--gpus-per-worker=2").returncode == errors.RESOURCES
