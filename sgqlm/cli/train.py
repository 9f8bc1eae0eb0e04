"""`sgqlm train`: train the stages of a configuration."""

import logging
import sys
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm.cli import common

HELP = """usage: sgqlm train --config=FILE.py[:ARG] [--config.SETTING=VALUE ...]

Trains the stages of a configuration one after the other. Run the same command again to go on after
a stop. All settings of the run are written to WORKDIR/config.json, which --config takes again.

  --config=configs/base.py:tiny         the configuration, with its argument
  --config=WORKDIR/config.json          the settings of an earlier run
  --config.train.workdir=runs/mine      where checkpoints and figures go
  --config.train.only=align,instruct    these stages only
  --config.train.stages.align.steps=50  a setting of the stage named align
  --config.train.init=FOLDER            start from a checkpoint or a Hugging Face LLaVA folder
  --config.train.resume=auto            or `must`, `never`
"""


def run(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after `sgqlm train`.

    Returns:
        The exit code.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return errors.OK
    settings, rest = common.load_config(argv)
    common.refuse_rest(rest)
    hook, sys.unraisablehook = sys.unraisablehook, _tell_unraisable
    try:
        with common.stoppable("nothing to save yet"):  # until the run has its own handler
            return _train(settings)
    finally:
        sys.unraisablehook = hook


def _train(settings: config.Config) -> int:
    common.force_host_devices(settings)
    common.keep_freed_memory()
    for name in ("absl", "asyncio"):  # orbax logs what it raises, with tracebacks of its threads
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from sgqlm.evals import samples  # jax is imported after the devices are chosen
    from sgqlm.train import loop, stage_loop

    hooks = stage_loop.Hooks(sampler=samples.page_writer(settings.train.workdir))
    result = loop.run(settings, hooks=hooks)
    for name, stage in result.stages.items():
        losses = f"loss {stage['first_loss']:.4f} -> {stage['last_loss']:.4f}"
        print(f"{name}: {stage['steps']} steps, {losses}")
    print(f"checkpoint: {result.checkpoint}")
    return errors.OK


def _tell_unraisable(unraisable):
    # after a write that failed, orbax leaves the others of a checkpoint to a loop that is closed
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
