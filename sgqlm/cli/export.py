"""`sgqlm export`: write a trained model for transformers, peft or vLLM."""

import argparse
import pathlib

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.convert import exporting
from sgqlm.train import bundle


def run(argv: list[str]) -> int:
    """Run `sgqlm export`; return the exit code."""
    args = _parser().parse_args(argv)
    meta, model = bundle.open_model(args.checkpoint, base=args.base)
    options = exporting.Options(
        dtype=args.dtype,
        merge=args.merge,
        drop_extras=args.drop_extras,
        overwrite=args.overwrite,
        max_shard_size=round(args.max_shard_size * 1e9),
        base=args.base_model,
        check_text=not args.no_check_text,
    )
    with model:
        facts = bundle.facts(args.checkpoint, meta)
        report = exporting.write(model, args.format, args.out, facts=facts, options=options)
    for note in report.notes:
        print(f"note: {note}")
    if found := report.probe:
        if found.different is None:
            print(f"token ids {found.checked_with}")
        else:
            text = f"{found.different} of {found.total} probe prompts get other token ids than ours"
            print(f"{text} ({found.checked_with})")
    print(f"wrote {report.folder}; README.md in it says how to load it")
    return errors.OK


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="sgqlm export", description=__doc__)
    text = "llava: a standard LLaVA, adapters merged; peft: the adapters; sgqlm: the whole model"
    parser.add_argument("format", choices=exporting.FORMATS, help=text)
    parser.add_argument("checkpoint", type=pathlib.Path, help="checkpoint, or folder of a run")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="becomes the folder")
    parser.add_argument("--base", help="where the base of the checkpoint lies now")
    parser.add_argument("--dtype", choices=tuple(exporting.DTYPES), default="", help="of weights")
    parser.add_argument("--merge", action="store_true", help="sgqlm: fold the adapters in")
    text = "leave out what the format cannot hold; the export is another model then"
    parser.add_argument("--drop-extras", action="store_true", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    text = "gigabytes of one file of weights"
    parser.add_argument("--max-shard-size", type=float, default=5.0, help=text)
    parser.add_argument("--base-model", default="", help="peft: hub id or folder of the base")
    text = "do not compare the token ids of the export's own processor with ours"
    parser.add_argument("--no-check-text", action="store_true", help=text)
    return parser
