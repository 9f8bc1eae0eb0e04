"""Answers are not given with the entities of another picture of the same name."""

import hashlib

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.data import graphs, records
from sgqlm.evals import benchmark, tasks
from tests.evals import benchmark_files


@pytest.fixture
def job(tmp_path):
    root = benchmark_files.make(tmp_path / "root", ["seed", "mmbench"])
    return lambda name: benchmark.prepare(tasks.locate(tasks.get(name), root))


def store(folder, job, change=""):
    """Write entities of the pictures of a benchmark; `change` has another digest."""
    rows = {}
    for question in job.questions:
        held, path = question.data, job.place.image(question)
        data = path.read_bytes() if held is None else held
        digest = hashlib.sha256(b"old" if question.image == change else data).hexdigest()
        box = np.array([[0, 0, 9, 9]], np.float32)
        found = graphs.Entities(
            np.ones((1, 40, 40), bool), box, ["a"], np.ones(1, np.float32), (40, 40)
        )
        rows[question.image] = (question.image, found, digest)
    records.write_entities(folder, list(rows.values()), about={})
    return folder


@pytest.mark.parametrize("name", ["seed", "mmbench"])
def test_a_changed_picture_is_refused_before_anything_is_asked(job, tmp_path, name):
    asked = job(name)
    good = benchmark.Entities(store(tmp_path / "good", asked), asked)
    assert len(good.get(asked.questions[0])) == 1
    name = asked.questions[1].image
    with pytest.raises(errors.SgqlmError, match="those of another image") as told:
        benchmark.Entities(store(tmp_path / "bad", asked, change=name), asked)
    assert told.value.code == errors.DATA and name in told.value.where


def test_a_picture_that_changes_during_the_run_gets_no_entities(job, tmp_path):
    asked = job("seed")
    ready = benchmark.Entities(store(tmp_path / "s", asked), asked)
    question = asked.questions[0]
    asked.place.image(question).write_bytes(benchmark_files.picture(3))
    with pytest.raises(errors.SgqlmError, match="those of another image"):
        ready.get(question)
