"""`sgqlm generate`: answer one prompt about one image."""

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import picture
from sgqlm.decode import inputs, sample


def run(argv: list[str]) -> int:
    """Run `sgqlm generate`; return the exit code."""
    parser = picture.parser("generate", __doc__)
    parser.add_argument("--prompt", required=True, help="what to ask")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the best token")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k best tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from this probability mass")
    args = parser.parse_args(argv)
    model = model_lib.load(args.checkpoint, base=args.base)
    image, entities = picture.open_picture(model, args)
    (text,) = model.respond(
        [inputs.Row([inputs.human(args.prompt)], image, entities)],
        max_new_tokens=args.max_new_tokens,
        sampling=sample.Sampling(args.temperature, args.top_k, args.top_p),
        seed=args.seed,
    )
    print(text)
    return errors.OK
