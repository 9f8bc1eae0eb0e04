"""The model that `sgqlm eval` measures: where it lies, and the settings it is measured with."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import common, devices
from sgqlm.train import checkpoint


@dataclasses.dataclass(frozen=True)
class Source:
    """What a command line says about the model, before anything is loaded.

    Attributes:
        path: checkpoint, export or work directory.
        base: where the base weights lie, if they were moved.
        settings: those of --config; None for those of the checkpoint.
        words: `--config.NAME=VALUE` that change those of the checkpoint.
        flags: known flags, for messages.
        mesh: devices of a process, as --mesh gives them.
    """

    path: str
    base: str | None
    settings: config.Config | None
    words: Sequence[str]
    flags: Sequence[str]
    mesh: str = ""

    @property
    def checkpoint(self) -> pathlib.Path:
        """Return the checkpoint that a work directory stands for, as `model.load` takes it."""
        return checkpoint.resolved(self.path)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name the model."""
    parser.add_argument("--checkpoint", help="checkpoint, export or work directory; else that of "
                        "--config")  # fmt: skip
    parser.add_argument("--base", help="where the base weights lie, if they were moved")
    parser.add_argument("--mesh", default="", help=devices.HELP)


def find(args: argparse.Namespace, rest: Sequence[str], flags: Sequence[str]) -> Source:
    """Return what the command line says about the model.

    Args:
        args: with the flags of `add_flags`.
        rest: words that are no flags of the command.
        flags: the command's flags, for messages.

    Raises:
        SgqlmError: a word is unknown, or changes what the checkpoint alone says; no model is named;
            the batch is empty.
    """
    for word in rest:
        if word.startswith(("--config.model.", "--config.text.")):
            raise errors.SgqlmError(
                "the checkpoint says what the model is and how it is asked",
                where=word,
                fix="leave it out",
            )
    has_file = any(word == "--config" or word.startswith("--config=") for word in rest)
    settings, rest = common.load_config(rest) if has_file else (None, rest)
    common.refuse_rest([word for word in rest if not word.startswith("--config.")], flags)
    if settings:
        _check(settings)
    path = args.checkpoint or (settings.train.workdir if settings else None)
    if path is None:
        raise errors.SgqlmError("there is no model to measure", fix="give --checkpoint or --config")
    return Source(path, args.base, settings, rest, flags, args.mesh)


def load(source: Source) -> tuple[model_lib.VisionLanguageModel, config.Config]:
    """Load the model; return it with the settings of the evaluation."""
    mesh = devices.choose(source.mesh, source.settings)
    model = model_lib.load(source.path, base=source.base, mesh=mesh)
    settings = source.settings or common.override_all(model.config, source.words, source.flags)
    _check(settings)
    return model, settings


def _check(settings: config.Config) -> None:
    if settings.eval.batch_size < 1:
        raise errors.SgqlmError(
            f"a batch of {settings.eval.batch_size}",
            where="--config.eval.batch_size",
            fix="give 1 or more",
        )
