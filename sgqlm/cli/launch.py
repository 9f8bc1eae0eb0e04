"""`sgqlm launch`: start a training run on this machine, a cluster or a cloud."""

import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sgqlm import errors
from sgqlm.cli import common

# place -> the file of launch/ that starts a run there, with its first arguments
PLACES = {
    "local": ("gpu_node.sh", "--cpu"),
    "gpu": ("gpu_node.sh",),
    "slurm": ("slurm.sbatch",),
    "tpu-vm": ("tpu_vm.sh",),
    "queued": ("queued_resource.sh",),
    "gke": ("gke.sh",),
    "sky": ("sky.sh",),
}
HELP = """usage: sgqlm launch --on PLACE [--print | --yes] [OPTIONS] -- --config=FILE.py[:ARG] ...

Shows what would start the training run at PLACE; with --yes it is started. The words after -- are
those of `sgqlm train`; they are checked here before anything is sent.

  --on local    this machine                      --workdir DIR
  --on gpu      the GPUs of this machine          --workdir DIR
  --on slurm    a Slurm cluster                   --workdir DIR --nodes N --gpus N
  --on tpu-vm   a Cloud TPU VM that exists        --workdir DIR --name TPU --zone ZONE
  --on queued   a slice that is made and deleted  --workdir DIR --name TPU --zone ZONE --type TYPE
  --on gke      a TPU slice of GKE                --workdir DIR --name RUN --type TYPE --image IMAGE
                                                  --bucket NAME
  --on sky      SkyPilot                          --workdir DIR --bucket NAME --gpus NAME

`sgqlm launch --on PLACE --help` lists all options of a place; launch/README.md compares the places.
"""


class Launch(NamedTuple):
    """What a command line asks for.

    Attributes:
        words: the launcher and its arguments.
        is_sent: whether it is really run, and not only shown.
    """

    words: list[str]
    is_sent: bool


def run(argv: Sequence[str]) -> int:
    """Run the command; the process becomes the launcher, so signals and exit code are its own.

    Args:
        argv: the words after `sgqlm launch`.

    Returns:
        The exit code, where no launcher is run.

    Raises:
        SgqlmError: the command line, or the configuration in it, is wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return errors.OK
    launch = plan(argv)
    if not launch.is_sent:
        print(f"# {shlex.join(launch.words)}")
        print("# nothing is sent; --yes in place of --print sends it", flush=True)
    sys.stdout.flush()
    # the sgqlm of this interpreter comes first, should another one be on the PATH
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.execve(launch.words[0], launch.words, {**os.environ, "PATH": path})


def plan(argv: Sequence[str]) -> Launch:
    """Return the launcher with its arguments.

    Args:
        argv: the words after `sgqlm launch`.

    Returns:
        The launch; without `--yes` its words contain `--print`.

    Raises:
        SgqlmError: as `run`.
    """
    before, separator, train = _split(argv)
    place, options = _take_place(before)
    wants = {word for word in ("--yes", "--print") if word in options}
    if len(wants) > 1:
        raise errors.SgqlmError("--print and --yes exclude each other", where=" ".join(before))
    options = [word for word in options if word not in wants]
    script, *first = PLACES[place]
    script = str(_folder() / script)
    if {"-h", "--help"} & set(options):
        return Launch([script, "--help"], is_sent=True)
    if separator:
        common.refuse_rest(common.load_config(train)[1])
    is_sent = "--yes" in wants
    first += [] if is_sent else ["--print"]
    return Launch([script, *first, *options, *separator, *train], is_sent)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at : at + 1], words[at + 1 :]


def _take_place(words: Sequence[str]) -> tuple[str, list[str]]:
    place = _value(words, "--on")
    if place not in PLACES:
        raise errors.SgqlmError(
            f"unknown place {place!r}", where="--on", fix="give one of " + ", ".join(PLACES)
        )
    rest = list(words)
    at = next(i for i, word in enumerate(rest) if word.partition("=")[0] == "--on")
    del rest[at : at + 1 + ("=" not in rest[at])]
    return place, rest


def _value(words: Sequence[str], name: str) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, has_value, value = word.partition("=")
        if key == name and (value if has_value else following):
            return value if has_value else following
    raise errors.SgqlmError(f"{name} is missing", where="sgqlm launch", fix="see --help")


def _folder() -> pathlib.Path:
    folder = pathlib.Path(__file__).resolve().parents[2] / "launch"
    if not (folder / "env.sh").is_file():
        raise errors.SgqlmError(
            "the launchers are not there",
            where=str(folder),
            why="they are part of the repository, which a run needs with its configurations,"
            " and not of the installed package",
            fix="clone the repository, run `make setup` and give the command there",
        )
    return folder
