"""`sgqlm ckpt`: look after checkpoints and exports."""

import pathlib

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.convert import own, stream
from sgqlm.train import checkpoint


def run(argv: list[str]) -> int:
    """Run `sgqlm ckpt`; return the exit code."""
    parser = common.Parser(prog="sgqlm ckpt", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="{verify}")
    about = "compare every file of a checkpoint or export with its checksum"
    verify = verbs.add_parser("verify", help=about, description=about)
    text = "checkpoint, folder of a run (all of its checkpoints), or export"
    verify.add_argument("folder", type=pathlib.Path, help=text)
    verify.set_defaults(run=_verify)
    args = parser.parse_args(argv)
    return args.run(args)


def _verify(args) -> int:
    found = dict.fromkeys(checkpoint.find(args.folder), checkpoint.verify)
    if own.is_export(args.folder):
        found[args.folder] = stream.verify
    if not found:
        raise errors.SgqlmError(
            "there is nothing to verify",
            where=str(args.folder),
            why="it holds neither a checkpoint nor an export of sgqlm",
            fix="give a folder with a manifest.json or a sgqlm_export.json",
            code=errors.CHECKPOINT,
        )
    bad = 0
    for folder, verify in found.items():
        faults = verify(folder)
        bad += len(faults)
        print(f"{folder}: {'damaged' if faults else 'whole'}")
        for fault in faults:
            print(f"  {fault}")
    return errors.CHECKPOINT if bad else errors.OK
