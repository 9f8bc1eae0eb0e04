"""Extractions with Ray, in a process of their own: `python -m ... PHOTOS OUT NOTES DEATHS`."""

import dataclasses
import functools
import json
import pathlib
import sys

from sgqlm import errors
from sgqlm.entities import engine, extract, inputs
from tests.entities import drawn


def main(photos: str, out: str, notes: str, deaths: str) -> dict:
    """Run two actors, of which so many die over a picture."""
    states = []
    try:
        summary = extract.run(
            functools.partial(drawn.Dying, notes, int(deaths)),
            inputs.from_folder(pathlib.Path(photos)),
            pathlib.Path(out),
            shard_size=25,
            engine=engine.Ray(2),
            progress=states.append,
        )
    except errors.SgqlmError as error:
        return {"error": str(error), "code": error.code}
    return dataclasses.asdict(summary) | {"done": [state.done for state in states]}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
