"""`sgqlm eval`: measure a trained model on drawn test scenes, beside its controls.

With --data: how many answers of a data set it gives by heart, and how many with images swapped.
With --data and --tasks=relations: recall of the scene graphs it predicts. With --root and
--tasks=gqa,pope,...: the benchmarks of the papers. `sgqlm eval score` measures answers that are
there already.
"""

import argparse
import pathlib
import sys

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import common, eval_relations, eval_report, eval_score, eval_submit, eval_tasks
from sgqlm.data import sources
from sgqlm.evals import memorised, prior, report, runner, scenes

_FLAGS = ("--checkpoint", "--base", "--data", "--split", "--out", "--tasks")


def run(argv: list[str]) -> int:
    """Run `sgqlm eval`; return the exit code."""
    if argv[:1] == ["score"]:
        return eval_score.run(argv[1:])
    if argv[:1] == ["submit"]:
        return eval_submit.run(argv[1:])
    if argv[:1] == ["report"]:
        return eval_report.run(argv[1:])
    if argv[:1] == ["compare"]:
        return eval_report.compare(argv[1:])
    named, others = _tasks(argv)
    if named == "relations":
        return eval_relations.run(argv)
    if named not in (None, "scenes"):
        return eval_tasks.run(argv)
    argv = others
    parser = argparse.ArgumentParser(
        prog="sgqlm eval",
        description=__doc__,
        epilog="Settings such as --config.eval.num_scenes=100 change those of the checkpoint. See "
        "also `sgqlm eval --tasks=relations --help`, `sgqlm eval --tasks=gqa --help`, `sgqlm eval "
        "score --help`; `submit`, `report` and `compare` have theirs too.",
    )
    parser.add_argument("--checkpoint", help="checkpoint or work directory; else that of --config")
    parser.add_argument("--base", help="where the base weights lie, if they were moved")
    parser.add_argument("--data", type=pathlib.Path, help="built data set, folder or LLaVA json")
    parser.add_argument("--split", default="train", help="of --data")
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    args, rest = parser.parse_known_args(argv)
    settings, rest = common.load_config(rest) if _has_file(rest) else (None, rest)
    folder = args.checkpoint or (settings.train.workdir if settings else None)
    if folder is None:
        raise errors.SgqlmError("there is no model to measure", fix="give --checkpoint or --config")
    model = model_lib.load(folder, base=args.base)
    settings = settings or common.override_all(model.config, rest, _FLAGS)
    if args.data:
        result = evaluate_data(model, settings, args.data, args.split)
        print("\n".join(memorised.lines(result)))
    else:
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
        progress=_tell,
    )


def evaluate_data(
    model: model_lib.VisionLanguageModel, settings: config.Config, path: pathlib.Path, split: str
) -> dict:
    """Measure what a model has by heart of a data set; see `memorised.evaluate`."""
    named = config.SourceConfig(name=path.stem, path=str(path), split=split)
    return memorised.evaluate(
        model,
        sources.open_source(named),
        limit=settings.eval.num_scenes,
        batch_size=settings.eval.batch_size,
        seed=settings.eval.seed,
        progress=_tell,
    )


def _tell(name: str) -> None:
    print(f"{name} ...", file=sys.stderr, flush=True)


def _tasks(words: list[str]) -> tuple[str | None, list[str]]:
    """Return what --tasks names, None without it, and the words without it."""
    for at, word in enumerate(words):
        name, is_joined, value = word.partition("=")
        if name in ("--tasks", "--task"):
            end = at + (1 if is_joined else 2)
            value = value if is_joined else "".join(words[at + 1 : end])
            return value, words[:at] + words[end:]
    return None, words


def _has_file(words: list[str]) -> bool:
    return any(word == "--config" or word.startswith("--config=") for word in words)
