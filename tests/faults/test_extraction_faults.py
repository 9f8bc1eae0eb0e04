"""Extractions that are killed, stopped, run out of disk or meet another one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.data import records
from sgqlm.entities import parts
from tests import paths
from tests.entities import drawn
from tests.faults import extraction_kills as kills

COUNT = 4 * kills.SHARD


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return drawn.draw(tmp_path_factory.mktemp("extraction") / "photos", COUNT)


@pytest.fixture(scope="module")
def whole(photos):
    """The files of a store that nothing disturbed."""
    kills.run(photos, photos.parent / "whole")
    return drawn.files(photos.parent / "whole")


@pytest.fixture(scope="module")
def killed(photos):
    """Return the folder of what a SIGKILL at each place left, and how each process ended."""
    folder = photos.parent / "killed"
    command = [sys.executable, "-m", "tests.faults.extraction_kills", str(photos), str(folder)]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("place", kills.PLACES)
def test_a_kill_loses_and_doubles_nothing(photos, whole, killed, place):
    folder, ended = killed
    out = folder / str(list(kills.PLACES).index(place)) / "out"
    assert ended[place] == -signal.SIGKILL
    left = sorted(path.name for path in out.parent.iterdir())
    assert left != ["out"], "it was killed too late"
    assert not out.exists() or records.verify(out) == []
    extractor = drawn.Counting()
    summary = kills.run(photos, out, extractor)
    lost = kills.PLACES[place][1]
    assert (extractor.seen, summary.reused, summary.images) == (lost, COUNT - lost, COUNT)
    assert drawn.files(out) == whole
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    keys = records.EntityStore(out).keys()
    assert keys == sorted(set(keys)) == [f"{k:04d}.png" for k in range(COUNT)]


def test_a_kill_between_the_two_renames_gives_the_old_store_back(photos, tmp_path):
    """`out` has another name for a moment while it is replaced."""
    mine, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, mine)
    kills.run(mine, out)
    before = drawn.files(out)
    out.rename(tmp_path / ".out.replaced-1234")
    (tmp_path / ".out.building-1234").mkdir()
    again = drawn.Counting()
    assert kills.run(mine, out, again).reused == COUNT and again.seen == 0
    assert drawn.files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Photographs that take longer than their first shard."""
    return drawn.draw(tmp_path_factory.mktemp("many") / "photos", 150)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, errors.INTERRUPTED), (signal.SIGTERM, errors.PREEMPTED)],
)
def test_a_signal_stops_it_and_finished_shards_are_kept(many, tmp_path, capsys, number, code):
    out = tmp_path / "out"
    words = ["entities", "extract", f"--images={many}", f"--out={out}", "--shard-size=15"]
    with subprocess.Popen(
        [sys.executable, "-m", "sgqlm", *words], cwd=paths.ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        began = time.monotonic()
        while not list(parts.folder(out).glob("[!.]*")):
            assert process.poll() is None and time.monotonic() - began < 60
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)  # it shall not finish while the next line is tried
        assert main.main(words) == errors.USAGE  # another one meanwhile
        told = capsys.readouterr().err
        assert f"locked by process {process.pid} on" in told and "another --out" in told
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        told = process.stderr.read()
        assert process.wait(timeout=60) == code, told
    assert "finished shards are kept" in told and "Traceback" not in told
    assert not out.exists()
    finished = len(list(parts.folder(out).glob("[!.]*")))
    assert not list(parts.folder(out).glob(".*.building-*"))
    assert main.main(words) == errors.OK
    shown = capsys.readouterr()
    assert f"150 images, {150 - 15 * finished} of them new" in shown.out
    assert "taken over" not in shown.err  # it had ended in order
    assert len(records.EntityStore(out)) == 150


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KiB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_nothing_that_is_finished(photos, whole, small_disk, capsys):
    out = small_disk / "out"
    words = ["entities", "extract", f"--images={photos}", f"--out={out}", "--shard-size=5"]
    assert main.main(words) == errors.RESOURCES
    told = capsys.readouterr().err
    assert "the disk is full" in told and "Traceback" not in told
    finished = len(list(parts.folder(out).glob("[!.]*")))
    assert 0 < finished < COUNT // kills.SHARD
    resize = ["mount", "-o", "remount,size=4m", str(small_disk)]
    subprocess.run(resize, check=True)
    assert main.main(words) == errors.OK
    assert f"{COUNT - finished * kills.SHARD} of them new" in capsys.readouterr().out
    assert len(records.EntityStore(out)) == COUNT
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_where_nothing_can_be_written_nothing_is_worked_on(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["entities", "extract", f"--images={photos}", f"--out={tmp_path / 'file' / 'out'}"]
    assert main.main(words) == errors.USAGE
    assert "the output cannot be written" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["file"]
