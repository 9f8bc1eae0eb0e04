"""`sgqlm quickstart`: every stage on drawn scenes, then the test and a report with pictures."""

import pathlib
import time
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm.cli import common

HELP = """usage: sgqlm quickstart [--config=FILE.py] [--config.SETTING=VALUE ...]

Draws scenes, trains a small model through every stage, measures it on scenes it has not seen and
writes report.html and report.json into the work directory (runs/quickstart). Run it again after a
stop: finished stages are kept.

  --config=configs/quickstart.py          the recipe (this is the default)
  --config.train.workdir=runs/mine        where everything goes
"""
RECIPE = pathlib.Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"
NUM_EXAMPLES = 12
TIME_FILE = "seconds.txt"


def run(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: the words after `sgqlm quickstart`.

    Returns:
        The exit code.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return errors.OK
    words = list(argv)
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        words.insert(0, f"--config={_recipe()}")
    settings, rest = common.load_config(words)
    common.refuse_rest(rest)
    common.force_host_devices(settings)
    common.keep_freed_memory()
    folder = pathlib.Path(settings.train.workdir)
    page = _train_and_report(settings, folder)
    print(f"report: {page}")
    return errors.OK


def _recipe() -> pathlib.Path:
    for found in (pathlib.Path("configs/quickstart.py"), RECIPE):
        if found.is_file():
            return found
    raise errors.SgqlmError(
        "the quickstart recipe is not here",
        where="configs/quickstart.py",
        fix="run this in a clone of the repository, or give --config=FILE.py",
    )


def _train_and_report(settings: config.Config, folder: pathlib.Path) -> pathlib.Path:
    from sgqlm import model as model_lib  # jax is imported after the devices are chosen
    from sgqlm.cli import eval_scenes
    from sgqlm.evals import report, runner, samples, scenes
    from sgqlm.train import loop, stage_loop
    from sgqlm.viz import quickstart_report

    began = time.monotonic()
    before = _seconds_before(folder)
    hooks = stage_loop.Hooks(sampler=samples.page_writer(folder))
    result = loop.run(settings, hooks=hooks)
    model = model_lib.VisionLanguageModel(result.config, result.params, result.tokenizer)
    print("\nmeasuring on test scenes")
    measured = eval_scenes.evaluate(model, result.config)
    print("\n".join(report.lines(measured)))
    cases = scenes.make_cases(settings.scenes, count=NUM_EXAMPLES, tagger=model.tag)
    examples = runner.collect_examples(model, cases, settings=settings.eval)
    seconds = before + time.monotonic() - began
    (folder / TIME_FILE).write_text(f"{seconds:.1f}\n")
    found = report.build(measured, seconds=seconds, stages=result.stages)
    report.write(folder / "report.json", found)
    losses = _losses(folder)
    return quickstart_report.write(folder, found, losses=losses, examples=examples)


def _seconds_before(folder: pathlib.Path) -> float:
    """Return what earlier calls on the same folder took, so that a resumed run adds up."""
    file = folder / TIME_FILE
    return float(file.read_text()) if file.is_file() else 0.0


def _losses(folder: pathlib.Path):
    from sgqlm.train import metrics

    names = {"loss": "loss", "answer_loss": "answers", "question_loss": "questions"}
    curves = {}
    for stage, records in metrics.read(folder).items():
        series = {}
        for key, name in names.items():
            points = [(step, r[key]) for step, r in sorted(records.items()) if r.get(key)]
            if points:
                series[name] = points
        curves[stage] = series
    return curves
