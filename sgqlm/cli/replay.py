"""`sgqlm replay`: take the steps again that ended a run with exit code 5."""

import pathlib
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm.cli import common

NOT_REPRODUCED = 1


def run(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after `sgqlm replay`.

    Returns:
        0 if the steps come out as they did in the run, 1 if not.
    """
    about = "Takes the steps again that ended a run with exit code 5 and tells what is not finite."
    parser = common.Parser(prog="sgqlm replay", description=about)
    text = "work directory, whose newest crash bundle is taken, or a bundle below its folder crash"
    parser.add_argument("folder", type=pathlib.Path, help=text)
    folder = parser.parse_args(argv).folder
    from sgqlm.train import crash, replay

    bundle = crash.read(folder)
    common.force_host_devices(config.from_config_dict(bundle.about["config"]))
    print(f"{bundle.folder}: stage {bundle.about['stage']}; figures of the run in brackets")
    outcome = replay.run(bundle, tell=print)
    for row in outcome.bad_rows:
        name = outcome.records[row] if row < len(outcome.records) else ""
        print(f"row {row} alone is not finite: {name}")
    for line in outcome.changed:
        print(f"not compared bit for bit, {line}")
    print("reproduced" if outcome.is_reproduced else "NOT reproduced")
    return errors.OK if outcome.is_reproduced else NOT_REPRODUCED
