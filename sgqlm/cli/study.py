"""`sgqlm study clipscore`: how much questions and answers of a data set have to do with its images.

The mean CLIPScore (2.5 times the cosine of CLIP's vectors, not below 0) of the questions and of the
answers of an instruction file in LLaVA's json, with any CLIP folder in the Hugging Face layout.
"""

import pathlib
import sys

from sgqlm import errors
from sgqlm.cli import common
from sgqlm.data import llava_json
from sgqlm.evals import clip_score, report
from sgqlm.train import progress


def run(argv: list[str]) -> int:
    """Run `sgqlm study`; return the exit code."""
    parser = common.Parser(prog="sgqlm study", description=__doc__)
    parser.add_argument("what", choices=["clipscore"])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="LLaVA json or jsonl")
    parser.add_argument("--images", type=pathlib.Path, help="image folder; beside --data if left")
    parser.add_argument("--clip", type=pathlib.Path, required=True, help="folder of a whole CLIP")
    parser.add_argument(
        "--n", type=int, default=1000, help="records with an image, drawn at random; 0: all (1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--prefix", default="", help='in front of every text; the authors took "A photo depicts"'
    )
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures to this json file")
    args = parser.parse_args(argv)
    if args.n < 0:
        raise errors.SgqlmError("--n is below 0", where="--n", fix="give 0 for all records")
    for path in (args.images, args.clip):
        if path is not None and not path.is_dir():
            raise errors.SgqlmError(
                "there is no such folder", where=str(path), fix="correct the path"
            )
    if args.out:
        common.check_file(args.out, (".json",))
    data, beside = llava_json.find(args.data)
    scorer = clip_score.Scorer(args.clip, prefix=args.prefix)
    print(f"reading {data}", file=sys.stderr)
    records, counts = clip_score.pick(data, args.images or beside, limit=args.n, seed=args.seed)
    told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())
    print(f"{told}; scored {len(records)}", file=sys.stderr)
    with progress.Progress("records", len(records)) as bar:
        found = clip_score.study(records, scorer, update=bar.update)
    written = []
    if args.out:
        settings = {"data": str(data), "clip": str(args.clip), "n": args.n, "seed": args.seed}
        head = {"study": args.what, "settings": {**settings, "prefix": args.prefix}}
        written = [report.write(args.out, {**head, "data": counts, **found})]
    print("\n".join([*clip_score.lines(found), *map(str, written)]))
    for name, why in found["broken"].items():
        print(f"left out {name}: {why}", file=sys.stderr)
    return errors.OK
