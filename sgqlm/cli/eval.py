"""`sgqlm eval`: measure a trained model on drawn test scenes, beside its controls."""

import argparse
import pathlib
import sys

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import common
from sgqlm.evals import prior, report, runner, scenes


def run(argv: list[str]) -> int:
    """Run `sgqlm eval`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="sgqlm eval",
        description=__doc__,
        epilog="Settings such as --config.eval.num_scenes=100 change those of the checkpoint.",
    )
    parser.add_argument("--checkpoint", help="checkpoint or work directory; else that of --config")
    parser.add_argument("--base", help="where the base weights lie, if they were moved")
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    args, rest = parser.parse_known_args(argv)
    settings, rest = common.load_config(rest) if _has_file(rest) else (None, rest)
    if settings is None and args.checkpoint is None:
        raise errors.SgqlmError("there is no model to measure", fix="give --checkpoint or --config")
    model = model_lib.load(args.checkpoint or settings.train.workdir, base=args.base)
    settings = settings or _overridden(model.config, rest)
    result = evaluate(model, settings)
    print("\n".join(report.lines(result)))
    if args.out:
        print(report.write(args.out, result))
    return errors.OK


def evaluate(model: model_lib.VisionLanguageModel, settings: config.Config) -> dict:
    """Measure a model on the test scenes of `settings`; see `runner.evaluate_scenes`."""
    known = prior.fit(scenes.train_questions(settings.scenes))
    tagger = model.tag if settings.model.region_words else None
    count = min(settings.eval.num_scenes, settings.scenes.num_test)
    cases = scenes.make_cases(settings.scenes, count=count, tagger=tagger)
    return runner.evaluate_scenes(
        model,
        cases,
        answer_prior=known,
        settings=settings.eval,
        progress=lambda name: print(f"{name} ...", file=sys.stderr, flush=True),
    )


def _has_file(words: list[str]) -> bool:
    return any(word == "--config" or word.startswith("--config=") for word in words)


def _overridden(settings: config.Config, words: list[str]) -> config.Config:
    """Apply `--config.a.b=value` words to the settings that the checkpoint holds."""
    for word in words:
        path, has_value, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not has_value:
            common.refuse_rest([word], ("--checkpoint", "--base", "--out"))
        settings = common.override(settings, path, value)
    return settings
