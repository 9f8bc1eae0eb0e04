"""A json of the size of a published one is read in seconds and in little memory."""

import json
import subprocess
import sys

import pytest

from sgqlm.data import llava_json
from tests import paths

READ = """
import resource, sys
from sgqlm.data import llava_json
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan = llava_json.examine(sys.argv[1], sys.argv[2], decode=False)
last = scan.records[-1]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(scan.records), len(last.turns), len(scan.folders), (after - before) * 1024)
"""


def _write(folder, count):
    answer = "A short answer to the question, of the length that is usual in these conversations. "
    turns = [
        {"from": "human", "value": "What is in the picture?"},
        {"from": "gpt", "value": answer * 2},
    ] * 5
    first = {"from": "human", "value": "<image>\nWhat is it?"}
    (folder / "images" / "coco").mkdir(parents=True)
    for number in range(500):
        (folder / "images" / "coco" / f"{number:012}.jpg").touch()
    with (folder / "mix.json").open("w") as file:
        for number in range(count):
            image = f"coco/{number % 500:012}.jpg"
            value = {"id": str(number), "image": image, "conversations": [first, *turns[1:]]}
            file.write(("[" if not number else ",\n") + json.dumps(value, indent=1))
        file.write("]")
    return folder / "mix.json"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    file = _write(tmp_path, 60_000)
    assert file.stat().st_size > 80e6
    done = subprocess.run(
        [sys.executable, "-c", READ, file, tmp_path / "images"],
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    records, turns, folders, grown = map(int, done.stdout.split())
    assert (records, turns, folders) == (60_000, 10, 1)
    # places, names and pieces of the file; reading it whole takes four times its size
    assert grown < 60e6


def test_images_are_listed_and_not_asked_for_one_by_one(tmp_path, monkeypatch):
    file = _write(tmp_path, 600)
    asked = []
    monkeypatch.setattr(
        llava_json.image_tree.Tree, "_ask", lambda self, image: asked.append(image) or 1 / 0
    )
    scan = llava_json.examine(file, tmp_path / "images", decode=False)
    assert len(scan.records) == 600 and not asked
