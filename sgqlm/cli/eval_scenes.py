"""`sgqlm eval` on drawn test scenes, beside controls, and on what a model has by heart.

With --data: how many answers of a data set it gives by heart, and how many with images swapped.
With --tasks=scenes the answers are kept in a folder; with --data and --tasks=relations: recall of
the scene graphs it predicts. With --root and --tasks=gqa,pope,...: the benchmarks of the papers;
names of all kinds can be mixed. `sgqlm eval score` measures answers that are there already.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import common, devices, eval_model
from sgqlm.data import sources
from sgqlm.decode import ask
from sgqlm.evals import (
    answers,
    descriptions,
    kept,
    memorised,
    prior,
    report,
    runner,
    scenes,
)

TASK = "scenes"
ANSWERS, REPORT = "answers.jsonl", "report.json"


def run(argv: list[str]) -> int:
    """Run `sgqlm eval` without --tasks, on scenes or on --data; return the exit code."""
    parser = common.Parser(
        prog="sgqlm eval",
        description=__doc__,
        epilog="Settings such as --config.eval.num_scenes=100 change those of the checkpoint. See "
        "also `sgqlm eval --tasks=relations --help`, `sgqlm eval --tasks=gqa --help`, `sgqlm eval "
        "score --help`; `submit`, `report` and `compare` have theirs too.",
    )
    eval_model.add_flags(parser)
    parser.add_argument("--data", type=pathlib.Path, help="built data set, folder or LLaVA json")
    parser.add_argument("--split", default="train", help="of --data")
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    args, rest = parser.parse_known_args(argv)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    source = eval_model.find(args, rest, [*flags, "--tasks"])
    if args.out and args.out.is_dir():
        common.check_file(args.out, (".json",))
    if args.out:
        common.check_writable(args.out)
    devices.force(args.mesh)
    model, settings = eval_model.load(source)
    if args.data:
        result = evaluate_data(model, settings, args.data, args.split)
        lines = memorised.lines(result)
    else:
        responder = kept.Kept(model, name=TASK)
        result = _measured(responder, _cases(model, settings), settings)
        lines = _lines(result, settings)
    if args.out:
        lines.append(str(report.write(args.out, result)))
    print("\n".join(lines))
    return errors.OK


def measure(
    model: model_lib.VisionLanguageModel,
    settings: config.Config,
    source: eval_model.Source,
    folder: pathlib.Path,
    *,
    limit: int = 0,
) -> None:
    """Measure a model on test scenes, and write answers and report to a folder.

    Args:
        model: the model.
        settings: of the scenes and of the evaluation.
        source: where the model came from.
        folder: of the results; a run that was stopped goes on there.
        limit: scenes at most; 0 for those of the settings.
    """
    if limit:
        count = min(limit, settings.eval.num_scenes)
        changed = dataclasses.replace(settings.eval, num_scenes=count)
        settings = dataclasses.replace(settings, eval=changed)
    about, cases = _header(model, settings, source), _cases(model, settings)
    with answers.AnswerFile(folder / ANSWERS, about) as out:
        responder = kept.Kept(model, out, TASK)
        result = _measured(responder, cases, settings)
    told = report.score(result, cases, responder.texts("test"), settings).report()
    whole = {"task": TASK, "settings": about, **result, "score": told}
    path = report.write(folder / REPORT, whole)
    print("\n".join([TASK, *_lines(result, settings), str(path)]), flush=True)


def evaluate(model: model_lib.VisionLanguageModel, settings: config.Config) -> dict:
    """Measure a model on the test scenes of `settings`; see `runner.evaluate_scenes`."""
    return _answered(model, _cases(model, settings), settings, _tell)


def _measured(
    responder: kept.Kept, cases: Sequence[scenes.SceneCase], settings: config.Config
) -> dict[str, Any]:
    """Return what `evaluate` does, and what descriptions have that is not there."""
    result = _answered(responder, cases, settings, responder.begin)
    if few := cases[: settings.eval.num_described]:
        result["described"] = descriptions.evaluate(
            responder, few, settings=settings.eval, progress=responder.begin
        )
    return result


def _answered(responder: ask.Responder, cases, settings: config.Config, tell) -> dict[str, Any]:
    known = prior.fit(scenes.train_questions(settings.scenes))
    return runner.evaluate_scenes(
        responder, cases, answer_prior=known, settings=settings.eval, progress=tell
    )


def _cases(model, settings: config.Config) -> list[scenes.SceneCase]:
    tagger = model.tag if settings.model.region_words else None
    count = min(settings.eval.num_scenes, settings.scenes.num_test)
    return scenes.make_cases(settings.scenes, count=count, tagger=tagger)


def _lines(result: dict, settings: config.Config) -> list[str]:
    out = report.lines(result)
    if "described" in result:
        out += descriptions.lines(result["described"], settings.train.stages)
    return out


def _header(model, settings: config.Config, source: eval_model.Source) -> dict[str, Any]:
    """Return all that the answers depend on; answers to anything else are not mixed with them."""
    about = dataclasses.asdict(settings.eval)
    about.pop("batch_size")
    about["num_scenes"] = min(settings.eval.num_scenes, settings.scenes.num_test)
    return {
        "task": TASK,
        "format": 1,
        "checkpoint": str(source.checkpoint),
        "world": report.world_digest(settings.scenes),
        "template": model.config.text.template,
        **about,
    }


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
