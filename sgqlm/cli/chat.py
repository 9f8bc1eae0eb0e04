"""`sgqlm chat`: talk about an image.

A line is a question. Commands: /ask [n] (the model asks n questions and answers them),
/graph [file.html] (what the scene graph attends to), /image FILE, /reset, /help, /quit.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterable

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.cli import picture
from sgqlm.data import graphs
from sgqlm.decode import ask, inputs, sample
from sgqlm.viz import pages, scene_graph

_HELP = (__doc__ or "").split("\n\n", 1)[1]


def run(argv: list[str]) -> int:
    """Run `sgqlm chat`; return the exit code."""
    parser = picture.parser("chat", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--temperature", type=float, default=0.0, help="of answers; 0 is greedy")
    args = parser.parse_args(argv)
    model = model_lib.load(args.checkpoint, base=args.base)
    chat = Chat(model, args, *picture.open_picture(model, args))
    if sys.stdin.isatty():
        print(_HELP.strip())
    chat.talk(_lines())
    return errors.OK


class Chat:
    """One conversation: its image, its turns, and what each command does.

    Args:
        model: who answers.
        args: of `picture.parser`, with `temperature`.
        image: the picture, if there is one.
        entities: its entities.
    """

    def __init__(
        self,
        model: model_lib.VisionLanguageModel,
        args: argparse.Namespace,
        image: Image.Image | None,
        entities: graphs.Entities | None,
    ):
        self.model, self.args = model, args
        self.row = inputs.Row((), image, entities)

    def talk(self, lines: Iterable[str]) -> None:
        """Answer line by line; an error concerns its own line only."""
        commands = {
            "/ask": self._ask,
            "/graph": self._graph,
            "/image": self._image,
            "/reset": lambda _: self._reset(),
            "/help": lambda _: print(_HELP.strip()),
        }
        for line in lines:
            name, _, rest = line.strip().partition(" ")
            if name == "/quit":
                return
            try:
                if name.startswith("/"):
                    if name not in commands:
                        raise errors.SgqlmError(f"unknown command {name}", fix="see /help")
                    commands[name](rest.strip())
                elif name:
                    self._answer(line.strip())
            except errors.SgqlmError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def _answer(self, text: str) -> None:
        row = self._with(inputs.human(text))
        pieces = []
        for piece in self.model.stream(
            row,
            max_new_tokens=self.args.max_new_tokens,
            sampling=sample.Sampling(self.args.temperature),
            seed=self.args.seed + len(row.turns),
        ):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print(flush=True)
        self.row = row
        self.row = self._with({"from": "gpt", "value": "".join(pieces)})

    def _ask(self, count: str) -> None:
        if not (count or "1").isdecimal() or not int(count or 1):
            raise errors.SgqlmError(f"{count!r} is no number of questions", fix="give /ask 3")
        if self.row.image is None:
            raise errors.SgqlmError("there is no image to ask about", fix="give /image FILE")
        tokens = self.args.max_new_tokens
        for question in ask.questions(
            self.model,
            self.row,
            count=int(count or 1),
            max_new_tokens=tokens,
            seed=self.args.seed + len(self.row.turns),
        ):
            (answer,) = ask.answer_own(self.model, [self.row], [question], max_new_tokens=tokens)
            lines = f"Q: {picture.one_line(question)}\nA: {picture.one_line(answer)}"
            print(lines, flush=True)
            self.row = ask.own_turn(self.row, question)
            self.row = self._with({"from": "gpt", "value": answer})

    def _graph(self, path: str) -> None:
        if self.row.image is None or self.row.entities is None:
            raise errors.SgqlmError("there are no entities to show", fix="give /image FILE")
        asked = [turn["value"] for turn in self.row.turns if turn["from"] == "human"]
        found = self.model.scene_graph(
            self.row.image, asked[-1] if asked else "", self.row.entities
        )
        for line in describe(found):
            print(line, flush=True)
        if path:
            drawing = scene_graph.draw(
                self.row.image,
                found.entities,
                node_attention=found.node_attention,
                edges=found.edges,
            )
            title = f"Scene graph: {asked[-1]}" if asked else "Scene graph"
            print(pages.write(pathlib.Path(path), pages.page(title, [drawing])), flush=True)

    def _image(self, path: str) -> None:
        finder = picture.make_finder(self.model, self.args)
        self.row = inputs.Row((), *picture.read_picture(pathlib.Path(path), finder=finder))

    def _reset(self) -> None:
        self.row = inputs.Row((), self.row.image, self.row.entities)

    def _with(self, turn: dict[str, str]) -> inputs.Row:
        row = self.row
        return inputs.Row([*row.turns, turn], row.image, row.entities, vusr_turns=row.vusr_turns)


def describe(graph: model_lib.SceneGraph) -> list[str]:
    """Return a scene graph as text: one line a node, the most activated first."""
    lines = []
    for i in sorted(range(len(graph.entities)), key=lambda i: -graph.node_attention[i]):
        label = graph.entities.labels[i] if graph.entities.labels else ""
        x0, y0, x1, y1 = (round(float(v)) for v in graph.entities.boxes[i])
        sender = int(graph.edges[i].argmax())
        heard = f", listens to {sender + 1} ({graph.edges[i, sender]:.2f})"
        lines.append(
            f"{i + 1:3} {label or 'entity':24} box {x0},{y0},{x1},{y1}: attention on the question "
            f"{graph.node_attention[i]:.2f}{heard if graph.edges[i, sender] > 0 else ''}"
        )
    return lines


def _lines() -> Iterable[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
