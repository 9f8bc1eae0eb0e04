"""Damaged checkpoints, full and read-only disks, changed settings, numbers that are not finite.

The work directories are real ones; nothing of the program is replaced.
"""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from sgqlm import errors
from sgqlm.cli import main
from sgqlm.convert import manifest
from sgqlm.train import checkpoint, crash, metrics, replay
from tests.faults import runs


def train(plan, folder, *words):
    return main.main(["train", plan, f"--config.train.workdir={folder}", *words])


def flip_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def damage(folder, how):
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    if how == "flipped byte":
        flip_byte(largest)
        return largest
    if how == "cut file":
        os.truncate(largest, largest.stat().st_size // 2)
        return largest
    file = next(folder.rglob("_METADATA"))
    file.unlink()
    return file


@pytest.mark.parametrize("how", ["flipped byte", "cut file", "no _METADATA"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    plan, whole, halfway, capsys, how
):
    file = damage(halfway / "checkpoints" / "00-align-0000080", how)
    assert train(plan, halfway) == errors.OK
    told = capsys.readouterr().err
    assert f"DAMAGED CHECKPOINT {halfway}/checkpoints/00-align-0000080" in told
    assert str(file.relative_to(halfway / "checkpoints" / "00-align-0000080")) in told
    assert "resuming 00-align-0000040" in told
    assert "Traceback" not in told
    assert runs.same(whole, halfway)


def test_without_an_intact_checkpoint_the_run_does_not_start_again(plan, halfway, capsys):
    for folder in checkpoint.find(halfway):
        damage(folder, "flipped byte")
    assert train(plan, halfway) == errors.CHECKPOINT
    told = capsys.readouterr().err
    assert "no intact checkpoint is left" in told
    assert "Traceback" not in told


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = ["-o", "size=1m"]
    done = subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Write until the disk is full."""
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            return


@pytest.mark.slow
def test_a_disk_that_fills_up(plan, whole, small_disk, tmp_path):
    folder = small_disk / "run"
    words = ("--config.train.keep=2", "--config.train.save_every=10")
    process = runs.Process(plan, folder, *words, output=tmp_path / "output.txt")
    process.until(lambda: runs.names(folder), "a checkpoint")
    fill(small_disk)
    assert process.end() == errors.RESOURCES, process.text
    (told,) = re.findall(r"error: the checkpoint 00-align-\d+ could not be written", process.text)
    assert "No space left on device" in process.text
    assert " are free" in process.text
    assert "Traceback" not in process.text
    kept = runs.names(folder)
    assert kept
    assert not any(name in told for name in kept)
    assert all(not checkpoint.verify(found) for found in checkpoint.find(folder))
    (small_disk / "filler").unlink()
    assert train(plan, folder, "--config.train.keep=1") == errors.OK
    assert not list((folder / "checkpoints").glob(".writing-*"))
    assert runs.same(whole, folder)


def test_too_little_room_is_told_before_anything_is_made(plan, small_disk, capsys):
    fill(small_disk)
    folder = small_disk / "run"
    assert train(plan, folder) == errors.RESOURCES
    told = capsys.readouterr().err
    assert "too little room for 10 checkpoints" in told
    assert "are needed and 0.0 MB are free" in told
    assert not folder.exists()
    assert "stage align" not in told


def test_a_disk_that_cannot_be_written(plan, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert train(plan, small_disk / "run") == errors.USAGE
    told = capsys.readouterr().err
    assert "the work directory cannot be written" in told
    assert "Read-only file system" in told


def test_a_file_where_the_folder_should_be(plan, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert train(plan, tmp_path / "run") == errors.USAGE
    assert "the work directory cannot be written" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("")
    assert train(plan, tmp_path / "other") == errors.USAGE
    assert "checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "difference", "offer"),
    [
        ("--config.model.llm_lora.rank=4", "llm_lora.rank: 0 -> 4", "config.train.init"),
        ("--config.text.vocab_size=400", "text.vocab_size: 360 -> 400", "config.train.init"),
        ("--config.model.llm.width=32", "llm.width: 16 -> 32", "do not fit"),
        ("--config.train.stages.align.b1=0.5", "b1: 0.9 -> 0.5", "config.train.init"),
        ("--config.train.spike_factor=4", "spike_factor: 0.0 -> 4.0", "config.train.init"),
    ],
)
def test_changed_settings_are_refused(plan, halfway, capsys, word, difference, offer):
    assert train(plan, halfway, word) == errors.CHECKPOINT
    told = capsys.readouterr().err
    assert difference in told
    assert offer in told
    assert runs.names(halfway)[-1] == "00-align-0000080"


@pytest.mark.slow
def test_how_a_run_is_computed_may_change(plan, whole, halfway, capsys):
    shutil.rmtree(halfway / "checkpoints" / "00-align-0000040")
    kept = shutil.copytree(halfway, halfway.with_name("kept"))
    words = ["--config.train.async_save=false", "--config.train.log_every=50"]
    assert train(plan, halfway, *words) == errors.OK
    assert runs.same(whole, halfway)
    assert "not bit-identical" not in capsys.readouterr().err
    words = ["--config.train.remat=full", "--config.model.attention=xla"]
    assert train(plan, kept, *words) == errors.OK
    told = capsys.readouterr().err
    assert (
        "not bit-identical: the checkpoint was written with remat none, this run has full" in told
    )
    assert "with attention auto, this run has xla" in told
    a, b = (runs.params(folder)["projector/fc1/kernel"] for folder in (whole, kept))
    np.testing.assert_allclose(a, b, atol=1e-5)  # 40 steps that round otherwise


@pytest.fixture
def poisoned(whole, tmp_path):
    """Return a function that makes a work directory whose cached features are spoilt."""

    def make(rows, value):
        folder = tmp_path / "poisoned"
        shutil.copytree(whole / "features", folder / "features")
        (file,) = (folder / "features").iterdir()
        array = np.load(file)
        array[rows] = array[rows] * value
        np.save(file, array)
        return folder

    return make


SHORT = "--config.train.stages.align.steps=24"


def test_an_image_that_is_not_finite_costs_its_steps_only(plan, poisoned, capsys):
    folder = poisoned([5], np.nan)
    assert train(plan, folder, SHORT) == errors.OK
    told = capsys.readouterr().err
    left_out = metrics.read(folder, "left_out")["align"]
    assert len(left_out) == 8  # once in every pass of three steps
    assert all("scenes record 5" in record["records"] for record in left_out.values())
    assert all(record["why"] == "not finite" for record in left_out.values())
    assert metrics.read(folder)["align"][24]["skipped"] == 8
    assert "not finite, left out. Its records: scenes record" in told
    loaded = checkpoint.load_params(checkpoint.newest(folder)[0])
    assert np.isfinite(loaded["projector"]["fc1"]["kernel"]).all()
    assert not (folder / "crash").exists()


def test_three_steps_that_are_not_finite_end_the_run_and_can_be_replayed(
    plan, halfway, poisoned, capsys
):
    folder = poisoned(slice(None), np.nan)
    shutil.copytree(halfway / "checkpoints", folder / "checkpoints")
    good = checkpoint.load_params(folder / "checkpoints" / "00-align-0000080")
    assert train(plan, folder, "--config.train.keep=1") == errors.NON_FINITE
    told = capsys.readouterr().err
    assert "step 83 is the third in a row that is not finite" in told
    found, meta = checkpoint.newest(folder)
    assert meta.step == 80
    kept = checkpoint.load_params(found)
    assert (kept["projector"]["fc1"]["kernel"] == good["projector"]["fc1"]["kernel"]).all()
    bundle = folder / "crash" / "align-0000080"
    assert f"sgqlm replay {bundle}" in told
    about = json.loads((bundle / "bundle.json").read_text())
    assert (about["first"], len(about["reports"]), about["bad_rows"]) == (80, 3, [0, 1, 2, 3])
    assert np.isnan(about["reports"][0]["grad_norm_projector"])
    shutil.rmtree(folder / "checkpoints")
    assert main.main(["replay", str(folder)]) == errors.OK
    told = capsys.readouterr().out
    assert told.count("the same bits") == 3
    assert "row 2 alone is not finite: scenes record" in told
    assert told.endswith("\nreproduced\n")
    about["reports"][1]["loss"], about["mesh"]["processes"] = 1.0, 2
    (bundle / "bundle.json").write_text(json.dumps(about))
    listed = {"files": manifest.listing(bundle, manifest="manifest.json")}
    (bundle / "manifest.json").write_text(json.dumps(listed))
    outcome = replay.run(crash.read(bundle), tell=print)
    assert [step.differences for step in outcome.steps] == [[], ["loss"], []]
    assert not outcome.is_reproduced
    assert len(outcome.changed) == 1
    assert "processes" in outcome.changed[0]
    assert outcome.bad_rows == [0, 1, 2, 3]
    other = bundle / "step-0000081.0.npz"
    batch = dict(np.load(other))
    np.savez(other, **(batch | {"features": np.zeros_like(batch["features"])}))
    assert main.main(["replay", str(bundle)]) == errors.CHECKPOINT
    assert "step-0000081.0.npz has changed" in capsys.readouterr().err


def test_nothing_to_replay(whole, capsys):
    assert main.main(["replay", str(whole)]) == errors.CHECKPOINT
    assert "there is no crash bundle" in capsys.readouterr().err


def test_the_spike_guard_leaves_out_what_is_above_the_median(plan, tmp_path, capsys):
    factor, window = 1.25, 8
    words = (
        SHORT,
        f"--config.train.spike_factor={factor}",
        f"--config.train.spike_window={window}",
    )
    assert train(plan, tmp_path / "run", *words) == errors.OK
    told = capsys.readouterr().err
    steps = metrics.read(tmp_path / "run")["align"]
    left_out = metrics.read(tmp_path / "run", "left_out")["align"]
    good, expected = [], []
    for step in sorted(steps):
        norm = steps[step]["grad_norm"]
        if len(good) >= window and norm > factor * np.median(good[-window:]):
            expected.append(step)
        else:
            good.append(norm)
    assert sorted(left_out) == expected
    assert expected
    assert steps[24]["spikes"] == len(expected)
    assert steps[24]["skipped"] == 0
    assert all(len(record["records"]) == 4 for record in left_out.values())
    assert "is a spike, left out. Its records: scenes record" in told
