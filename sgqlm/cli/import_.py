"""`sgqlm import`: make a checkpoint of a model that another program wrote."""

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

from flax import traverse_util

from sgqlm import config, errors
from sgqlm.cli import common
from sgqlm.convert import exporting, hf, importing, own, parity, peft, source, sq_llava, tensors
from sgqlm.convert import leaves as leaves_lib
from sgqlm.train import bundle, checkpoint, progress, state


def run(argv: list[str]) -> int:
    """Run `sgqlm import`; return the exit code."""
    args = _parser().parse_args(argv)
    if args.out.exists():
        raise errors.SgqlmError(
            "the checkpoint exists already", where=str(args.out), fix="give another --out"
        )
    with args.open(args) as found:
        importing.set_tokenizer(found, args.tokenizer)
        if args.dtype:
            dtype = exporting.DTYPES[args.dtype]
            found.leaves = {path: leaf.astype(dtype) for path, leaf in found.leaves.items()}
        if args.verify:
            print(parity.check(found, kind=args.kind, folders=_folders(args)))
        tree = traverse_util.unflatten_dict(found.leaves, sep="/")
        print(state.format_table(state.part_table(tree, {})))
        for note in found.notes:
            print(f"note: {note}")
        whole = config.Config(model=found.config, text=found.text)
        meta = checkpoint.Meta(config.to_dict(whole), "import", 0, 0, is_final=True)
        with progress.Progress("parameters", len(found.leaves)) as shown:
            found.leaves = _watched(found.leaves, shown)
            folder = bundle.write(args.out, meta, found)
    print(f"wrote {folder}")
    print(
        f"use it with --checkpoint={args.out}, or train from it with --config.train.init={args.out}"
    )
    return errors.OK


def _watched(leaves, shown: progress.Progress) -> dict[str, leaves_lib.Leaf]:
    done = 0

    def watch(leaf: leaves_lib.Leaf) -> leaves_lib.Leaf:
        def load():
            nonlocal done
            array = leaf.load()
            done += 1
            shown.update(done)
            return array

        return dataclasses.replace(leaf, load=load)

    return {path: watch(leaf) for path, leaf in leaves.items()}


def _parser() -> argparse.ArgumentParser:
    parser = common.Parser(prog="sgqlm import", description=__doc__)
    kinds = parser.add_subparsers(required=True, dest="kind", metavar="KIND")

    def kind(name: str, about: str, open_it: Callable) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=about, description=about)
        made.add_argument("source", type=pathlib.Path, help="folder")
        made.add_argument("--out", type=pathlib.Path, required=True, help="becomes the checkpoint")
        made.add_argument("--tokenizer", type=pathlib.Path, help="SentencePiece model to use")
        made.add_argument("--dtype", choices=tuple(exporting.DTYPES), default="")
        made.add_argument("--seed", type=int, default=0, help="of a projector that is made fresh")
        text = "compare logits with those of the original program (needs torch)"
        made.add_argument("--verify", action="store_true", help=text)
        made.set_defaults(open=open_it)
        return made

    made = kind("llava", "a LLaVA of transformers or of its authors", _llava)
    made.add_argument("--clip", type=pathlib.Path, help="its vision tower, where it has none")
    made = kind("clip", "a CLIP tower, with --llama: for a fresh run", _towers)
    made.add_argument("--llama", type=pathlib.Path, required=True, help="the language model")
    made = kind("llama", "a LLaMA such as Vicuna, with --clip: for a fresh run", _towers)
    made.add_argument("--clip", type=pathlib.Path, required=True, help="the vision tower")
    made = kind("sq-llava", "a released SQ-LLaVA", _sq_llava)
    made.add_argument("--base", type=pathlib.Path, help="its language model")
    made.add_argument("--clip", type=pathlib.Path, help="its vision tower")
    made.add_argument("--merge", action="store_true", help="fold the adapters into the kernels")
    made = kind("peft", "an adapter, onto a model", _peft)
    text = "checkpoint, LLaVA folder or export that the adapter belongs to"
    made.add_argument("--onto", type=pathlib.Path, required=True, help=text)
    made.add_argument("--merge", action="store_true", help="fold the adapter into the kernels")
    kind("sgqlm", "an export of sgqlm", lambda args: own.open_export(args.source))
    return parser


def _folders(args) -> dict[str, pathlib.Path]:
    named = {name: getattr(args, name, None) for name in ("clip", "llama", "base", "onto")}
    return {"source": args.source, **{name: folder for name, folder in named.items() if folder}}


def _llava(args) -> source.Source:
    if own.is_export(args.source) and not args.clip:
        return own.open_export(args.source)
    return hf.open_llava(args.source, clip=args.clip)


def _towers(args) -> source.Source:
    clip, llama = getattr(args, "clip", args.source), getattr(args, "llama", args.source)
    found = hf.open_towers(clip, llama)
    importing.add_projector(found, seed=args.seed)
    return found


def _sq_llava(args) -> source.Source:
    return sq_llava.open_release(args.source, base=args.base, clip=args.clip, merge=args.merge)


def _peft(args) -> source.Source:
    if checkpoint.find(args.onto):
        found = bundle.open_model(args.onto)[1]
    else:
        found = importing.open_any(args.onto)
    with contextlib.ExitStack() as undo:
        undo.callback(found.files.close)
        given = found.files.enter_context(tensors.open_folder(args.source, "adapter_model"))
        peft.attach(found, given, peft.read_settings(args.source), where=args.source)
        if args.merge:
            found.leaves, found.config = leaves_lib.merge_lora(found.leaves, found.config)
        leaves_lib.check_shapes(found.leaves, found.config, where=str(args.source))
        undo.pop_all()
    return found
