"""What becomes of answers: scored over the questions that were asked, sent only as a whole."""

import json

import pytest

from sgqlm.evals import answers, benchmark, finishing, tasks
from tests.evals import benchmark_files as files


@pytest.fixture
def place(tmp_path):
    root = files.make(tmp_path / "root", files.OURS)
    return tasks.locate(tasks.get("seed"), root)


def done(place, folder, *, limit=0):
    job = benchmark.prepare(place, limit=limit)
    lines = [
        {"question_id": job.questions[at].id, "prompt": "", "text": "A", "metadata": {}}
        for at in job.chosen
    ]
    folder.mkdir()
    answers.write(folder / benchmark.ANSWERS, lines)
    return finishing.finish(job, lines, folder)


def test_a_part_is_scored_against_its_own_annotations_and_not_sent(place, tmp_path):
    part = done(place, tmp_path / "part", limit=2)
    assert part.score
    assert part.score.report()["count"] == 2 and not part.score.faults.is_mismatch
    assert part.submission is None and "--limit" in part.notes[0]
    whole = done(place, tmp_path / "whole")
    assert (
        whole.score.report()["count"] == 3 and len(whole.submission.read_text().splitlines()) == 3
    )


def test_the_report_names_the_file_it_measured(place, tmp_path):
    found = done(place, tmp_path / "out")
    path = tmp_path / "out" / benchmark.REPORT
    finishing.write_report(found, {"checkpoint": "here"}, path)
    told = json.loads(path.read_text())
    assert told["settings"] == {"checkpoint": "here"} and told["failed"] == []
    assert set(told["score"]["sha256"]) == {benchmark.ANSWERS}
