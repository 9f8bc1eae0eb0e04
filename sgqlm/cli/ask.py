"""`sgqlm ask`: let the model ask about an image, or a folder of them, and answer itself.

With --images, one json line an image is written to --out; a run that was stopped goes on where it
was. At the end the quality of the questions is printed: variety (distinct-n, self-BLEU), their
kinds, the share that is well formed, and with --consistency and --clip whether sampled answers
agree and whether the questions fit their images.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import common, picture
from sgqlm.data import images
from sgqlm.decode import ask, inputs, sample
from sgqlm.entities import inputs as folders
from sgqlm.evals import clip_score, report, self_questioning
from sgqlm.train import checkpoint, progress

_FOLDER_ONLY = ("out", "report", "consistency", "clip")
_OFFICIAL_TOKENS = {"question_tokens": 300, "answer_tokens": 1024, "description_tokens": 1024}


def run(argv: list[str]) -> int:
    """Run `sgqlm ask`; return the exit code."""
    args = _parser().parse_args(argv)
    settings = _settings(args)
    if args.images is None and args.image is None and args.scene is None:
        fix = "give --image or --scene, or a folder with --images"
        raise errors.SgqlmError("there is nothing to ask about", fix=fix)
    if args.images is not None:
        return _folder(args, settings)
    for name in _FOLDER_ONLY:
        if getattr(args, name):
            raise errors.SgqlmError(f"--{name} needs a folder", fix="give --images=FOLDER")
    model = model_lib.load(args.checkpoint, base=args.base)
    settings = _fitted(model, settings, args)
    image, entities = picture.open_picture(model, args)
    row = inputs.Row((), image, entities)
    (found,) = self_questioning.about_each(model, [row], settings, names=[""])
    for question, answer in zip(found["questions"], found["answers"], strict=True):
        print(f"Q: {picture.one_line(question)}\nA: {picture.one_line(answer)}")
    if (count := len(found["questions"])) < settings.count:
        told = f"{count} of {settings.count} questions: {self_questioning.FEWER}"
        print(told, file=sys.stderr)
    return errors.OK


def _parser() -> argparse.ArgumentParser:
    parser = picture.parser("ask", __doc__)
    parser.set_defaults(max_new_tokens=None)
    parser.add_argument("--images", type=pathlib.Path, help="a folder of pictures to ask about")
    parser.add_argument("--out", type=pathlib.Path, help="json lines, one an image of --images")
    parser.add_argument("--report", type=pathlib.Path, help="also write the measures as json")
    parser.add_argument(
        "--num-questions", type=int, help="about an image (3; 5 with --images)", metavar="N"
    )
    parser.add_argument(
        "--flow",
        choices=("sgqlm", "official"),
        default="sgqlm",
        help="official: describe the image first, then independent samples, as the SQ-LLaVA "
        "release does (temperature 1.2, 300 tokens); sgqlm: different questions right after the "
        "image (temperature 0.7)",
    )
    parser.add_argument("--temperature", type=float, help="of the questions; 0 is greedy")
    parser.add_argument("--top-k", type=int, default=ask.SAMPLING.top_k, help="0 keeps all (300)")
    parser.add_argument("--top-p", type=float, default=ask.SAMPLING.top_p, help="1 keeps all (.95)")
    parser.add_argument(
        "--consistency",
        type=int,
        default=0,
        metavar="K",
        help="with --images: answer every question K times more, at temperature "
        f"{self_questioning.CONSISTENCY_TEMPERATURE}, and measure how much the answers agree",
    )
    parser.add_argument(
        "--clip", type=pathlib.Path, help="with --images: CLIP folder that scores the questions"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=0,
        help="questions or answers that run at once, of several images; changes no text (default "
        "config.eval.batch_size of the checkpoint)",
    )
    return parser


def _settings(args: argparse.Namespace) -> self_questioning.Settings:
    is_official = args.flow == "official"
    if args.num_questions is None:
        args.num_questions = 3 if args.images is None else 5
    if args.temperature is None:
        args.temperature = (ask.OFFICIAL if is_official else ask.SAMPLING).temperature
    for flag, is_right, wanted in (
        ("--num-questions", args.num_questions > 0, "1 or more"),
        ("--temperature", 0 <= args.temperature < float("inf"), "0 or more"),
        ("--top-k", args.top_k >= 0, "0 (all) or more"),
        ("--top-p", 0 < args.top_p <= 1, "above 0, at most 1"),
        ("--batch-size", args.batch_size >= 0, "1 or more"),
        ("--consistency", args.consistency == 0 or args.consistency > 1, "2 or more, or 0"),
        ("--max-new-tokens", args.max_new_tokens is None or args.max_new_tokens > 0, "1 or more"),
    ):
        if not is_right:
            raise errors.SgqlmError(f"{flag} does not fit", where=flag, fix=f"give {wanted}")
    made = self_questioning.Settings(
        flow=args.flow,
        count=args.num_questions,
        sampling=sample.Sampling(args.temperature, args.top_k, args.top_p),
        consistency=args.consistency,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    if args.max_new_tokens is not None:
        tokens = dict.fromkeys(_OFFICIAL_TOKENS, args.max_new_tokens)
    else:
        tokens = _OFFICIAL_TOKENS if is_official else {}
    return dataclasses.replace(made, **tokens)


def _fitted(model, settings: self_questioning.Settings, args) -> self_questioning.Settings:
    """Return the settings with the batch size, once it is sure that the model can hold them."""
    self_questioning.check_room(model, settings, flag="--max-new-tokens")
    size = args.batch_size or model.config.eval.batch_size
    return dataclasses.replace(settings, batch_size=size)


def _folder(args: argparse.Namespace, settings: self_questioning.Settings) -> int:
    sources = {source.key: source for source in _sources(args)}
    model = model_lib.load(args.checkpoint, base=args.base)
    scorer = None if args.clip is None else clip_score.Scorer(args.clip)
    settings = _fitted(model, settings, args)
    out = self_questioning.QuestionFile(args.out, _about(args, settings, model))
    finder = picture.make_finder(model, args)

    def load(key: str) -> inputs.Row:
        try:
            data = sources[key].read()
        except OSError as error:
            raise errors.SgqlmError(
                "the image cannot be read", where=key, why=str(error), code=errors.DATA
            ) from error
        image = images.open_image(data, where=key)
        return inputs.Row((), image, picture.find_entities(finder, image, data, key))

    def ask_about(keys: Sequence[str], rows: Sequence[inputs.Row]) -> list[dict]:
        found = self_questioning.about_each(model, rows, settings, names=keys)
        for row, asked in zip(rows, found, strict=True):
            if scorer is not None and row.image is not None:
                asked["clip_score"] = scorer.score(row.image, asked["questions"])
        return found

    done = sum(key in out.done for key in sources)
    if done:
        print(f"{done} of {len(sources)} images are in {out.path}", file=sys.stderr)
    with progress.Progress("images", len(sources), done=done) as bar:
        failed = self_questioning.run(
            list(sources), out, load, ask_about, at_once=settings.images_at_once, update=bar.update
        )
    lines = [line for line in self_questioning.read(out.path) if line["image"] in sources]
    measured = self_questioning.measure(lines, wanted=settings.count)
    written = [out.path]
    if args.report:
        failures = {name: error.what for name, error in failed.items()}
        settings_told = _about(args, settings, model)
        measures = {"measures": measured, "settings": settings_told, "failed": failures}
        written.append(report.write(args.report, {"task": self_questioning.TASK, **measures}))
    print("\n".join([*self_questioning.told(measured), *map(str, written)]))
    for name, error in failed.items():
        print(f"left out {name}: {error.what} {error.why}".rstrip(), file=sys.stderr)
    return errors.DATA if failed else errors.OK


def _sources(args: argparse.Namespace) -> list[folders.Source]:
    if args.image is not None or args.scene is not None:
        raise errors.SgqlmError("--images is given beside one picture", fix="leave one of them out")
    if args.out is None:
        raise errors.SgqlmError("--images needs a file to write to", fix="give --out=FILE.jsonl")
    if args.out.is_dir():
        raise errors.SgqlmError("--out is a folder", where=str(args.out), fix="give a file")
    common.check_writable(args.out)
    if args.report:
        common.check_file(args.report, (".json",), "--report")
    if not args.images.is_dir():
        raise errors.SgqlmError(
            "there is no such folder of pictures",
            where=str(args.images),
            fix="correct the path, or give one picture with --image",
            code=errors.DATA,
        )
    found = folders.from_folder(args.images)
    folders.check(found, str(args.images))
    return found


def _about(args, settings: self_questioning.Settings, model: model_lib.VisionLanguageModel) -> dict:
    """Return what two runs must have in common to write into one file."""
    asked = {**vars(settings), "sampling": list(settings.sampling)}
    for name in ("batch_size", "template"):  # changes no text; always that of the model
        del asked[name]
    wants = picture.wants_entities(model, args)
    return {
        **asked,
        "checkpoint": str(checkpoint.resolved(args.checkpoint)),
        "entities": picture.told_entities(args) if wants else "none",
        "clip": "" if args.clip is None else str(args.clip.resolve()),
    }
