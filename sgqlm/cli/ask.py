"""`sgqlm ask`: let the model ask about an image and answer itself."""

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import picture
from sgqlm.decode import ask, inputs


def run(argv: list[str]) -> int:
    """Run `sgqlm ask`; return the exit code."""
    parser = picture.parser("ask", __doc__)
    parser.add_argument("--num-questions", type=int, default=3, help="different questions to ask")
    parser.add_argument("--temperature", type=float, default=ask.SAMPLING.temperature)
    args = parser.parse_args(argv)
    if args.image is None and args.scene is None:
        raise errors.SgqlmError("there is nothing to ask about", fix="give --image or --scene")
    model = model_lib.load(args.checkpoint, base=args.base)
    image, entities = picture.open_picture(model, args)
    row = inputs.Row((), image, entities)
    found = ask.questions(
        model,
        row,
        count=args.num_questions,
        sampling=ask.SAMPLING._replace(temperature=args.temperature),
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    answers = ask.answer_own(model, [row] * len(found), found, max_new_tokens=args.max_new_tokens)
    for question, answer in zip(found, answers, strict=True):
        print(f"Q: {picture.one_line(question)}\nA: {picture.one_line(answer)}")
    return errors.OK
