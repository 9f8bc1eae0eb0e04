"""A process that is killed at a place of an extraction: `python -m ... PHOTOS FOLDER`.

For every place it forks, so that all imports are done once; the child kills itself there with
SIGKILL, which leaves it no chance to clear up. The places are put into functions of the program.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable

from sgqlm.data import builders, records
from sgqlm.entities import extract, inputs, parts
from tests.entities import drawn

SHARD = 5


def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name: str, when: Callable[..., bool] = lambda *args: True):
    """Kill before a call of a function, the first for which `when` is true."""
    function = getattr(owner, name)

    def replaced(*args, **kwargs):
        if when(*args):
            kill()
        return function(*args, **kwargs)

    setattr(owner, name, replaced)


def nth(number: int, is_one: Callable[..., bool] = lambda *args: True):
    """Return a condition that holds at the n-th call for which `is_one` does."""
    calls = []

    def condition(*args):
        if is_one(*args):
            calls.append(args)
        return is_one(*args) and len(calls) == number

    return condition


def while_rows_are_written():
    write, shards_ = builders.StableWriter.write, []

    def replaced(self, path, examples):
        shards_.append(path)

        def some():
            for number, example in enumerate(examples):
                if number == 3 and len(shards_) == 2:
                    kill()
                yield example

        return write(self, path, some())

    builders.StableWriter.write = replaced


def to_shard(path, target):
    return pathlib.Path(target).parent.name.endswith(".parts")


def to_store(path, target):
    return pathlib.Path(target).name == "out"


def is_parts(path, *args):
    return pathlib.Path(path).name == ".out.parts"


def is_stamp(path, *args):
    return path.name == "stamp"


PLACES = {  # what is killed where: the images that are lost by it
    "before the first shard": (lambda: before(records, "write_entities"), 20),
    "while rows are written": (while_rows_are_written, 15),
    "between writing and renaming": (lambda: before(pathlib.Path, "rename", nth(3, to_shard)), 10),
    "between renaming and its stamp": (
        lambda: before(pathlib.Path, "write_text", nth(2, is_stamp)),
        10,
    ),
    "during the join": (lambda: before(parts, "link", nth(3)), 0),
    "before the store has its name": (lambda: before(pathlib.Path, "rename", to_store), 0),
    "before the shards are removed": (lambda: before(shutil, "rmtree", is_parts), 0),
}


def run(photos: pathlib.Path, out: pathlib.Path, extractor=None) -> extract.Summary:
    """Extract in small shards."""
    sources = inputs.from_folder(photos)
    return extract.run(extractor or drawn.Counting(), sources, out, shard_size=SHARD)


def main(photos: pathlib.Path, folder: pathlib.Path) -> dict[str, int]:
    """Return the signal by which each child ended."""
    ended = {}
    for number, (name, (arm, _)) in enumerate(PLACES.items()):
        out = folder / str(number) / "out"
        out.parent.mkdir(parents=True)
        pid = os.fork()
        if not pid:
            arm()
            run(photos, out)
            os._exit(0)
        ended[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ended


if __name__ == "__main__":
    print(json.dumps(main(*map(pathlib.Path, sys.argv[1:]))))
