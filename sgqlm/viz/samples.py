"""What a model is trained on, sample by sample: as a page and as text for a terminal."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sgqlm import types
from sgqlm.data import graphs
from sgqlm.text import conversation
from sgqlm.text import tokenizer as tokenizers
from sgqlm.viz import overlay, pages

KINDS = {types.NOT_TRAINED: "prompt", types.ANSWER: "answer", types.QUESTION: "question"}
LEGEND = (
    ("prompt: not trained", "prompt"),
    ("answer: trained", "answer"),
    ("question the model asks itself: trained", "question"),
    ("image and graph tokens", "place"),
)
_ANSI = {"prompt": "\x1b[90m", "answer": "\x1b[32m", "question": "\x1b[33m", "place": "\x1b[34m"}
_MARKS = {"prompt": "", "answer": "answer", "question": "question", "place": ""}
_RESET = "\x1b[0m"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample as training takes it.

    Attributes:
        title: its id and the key of its image.
        image: RGB, None for text only.
        entities: of the image, None where there are none.
        encoded: the conversation as ids and labels.
        num_image_tokens: positions that the image takes.
        num_graph_tokens: positions that one run of graph tokens takes.
        system: the system text that the conversation begins with; pages fold it.
    """

    title: str
    image: Image.Image | None
    entities: graphs.Entities | None
    encoded: conversation.Encoded
    num_image_tokens: int
    num_graph_tokens: int
    system: str = ""

    def counts(self) -> dict[str, int]:
        """Count the tokens of the sequence.

        Returns:
            `text`, `image` and `graph`, which sum to `all`; and of the text those that are trained
            as `answer` and as `question`.
        """
        encoded = self.encoded
        images = encoded.input_ids.count(types.IMAGE_TOKEN_ID)
        image, graph = images * self.num_image_tokens, images * self.num_graph_tokens
        text = len(encoded.input_ids) - images
        trained = np.asarray(encoded.labels) != types.IGNORE
        kinds = np.asarray(encoded.kinds)
        return {
            "all": text + image + graph,
            "text": text,
            "image": image,
            "graph": graph,
            "answer": int(np.sum(trained & (kinds == types.ANSWER))),
            "question": int(np.sum(trained & (kinds == types.QUESTION))),
        }


def pieces(sample: Sample, tokenizer: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    """Return (text, kind) of every token, in the kinds of `pages.tokens`.

    Bytes of one character are joined, so that it can be read.
    """
    encoded, out = sample.encoded, []
    columns = zip(encoded.input_ids, encoded.labels, encoded.kinds, strict=True)
    waiting: list[int] = []
    for token, label, kind in columns:
        name = KINDS[kind if label != types.IGNORE else types.NOT_TRAINED]
        if token == types.IMAGE_TOKEN_ID:
            out.append((f"image x {sample.num_image_tokens}", "place"))
            if sample.num_graph_tokens:
                out.append((f"graph x {sample.num_graph_tokens}", "place"))
            continue
        waiting.append(token)
        text = tokenizer.surface(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4:
            continue
        out.append((text, name))
        waiting = []
    return [*out, (tokenizer.surface(waiting), name)] if waiting else out


def page(
    title: str,
    samples: Sequence[Sample],
    tokenizer: tokenizers.Tokenizer,
    *,
    subtitle: str = "",
) -> str:
    """Return a page with the image, entities, coloured tokens and token counts of each sample.

    Args:
        title: of the page.
        samples: what to show.
        tokenizer: the one that made the ids.
        subtitle: a line under the title.

    Returns:
        The HTML document.
    """
    body = [pages.legend(LEGEND), *(_card(sample, tokenizer) for sample in samples)]
    return pages.page(title, body, subtitle=subtitle)


def text(sample: Sample, tokenizer: tokenizers.Tokenizer, *, colour: bool = False) -> str:
    """Return a sample for a terminal.

    Args:
        sample: what to show.
        tokenizer: the one that made the ids.
        colour: use terminal colours; otherwise trained text stands in `[answer: ...]` brackets.

    Returns:
        A few lines: title, token counts, conversation.
    """
    runs: list[tuple[str, str]] = []
    for piece, kind in pieces(sample, tokenizer):
        if runs and runs[-1][1] == kind and kind != "place":
            runs[-1] = (runs[-1][0] + piece, kind)
        else:
            runs.append((f"<{piece}>" if kind == "place" else piece, kind))
    if colour:
        body = "".join(f"{_ANSI[kind]}{piece}{_RESET}" for piece, kind in runs)
    else:
        body = "".join(f"[{_MARKS[k]}:{piece}]" if _MARKS[k] else piece for piece, k in runs)
    return f"== {sample.title}\n   {_count_words(sample)}; {_entity_words(sample)}\n{body}\n"


def _card(sample: Sample, tokenizer: tokenizers.Tokenizer) -> str:
    system, talk = _split_system(pieces(sample, tokenizer), sample.system)
    right = pages.fold(f"system text, {len(system)} tokens", pages.tokens(system)) if system else ""
    right += pages.tokens(talk) + _prompt_line(sample, tokenizer)
    right += pages.note(_count_words(sample))
    if sample.image is None:
        return pages.card(sample.title, pages.note("text only"), right)
    picture, caption = overlay.fit(sample.image, 560), _entity_words(sample)
    if sample.entities is not None and len(sample.entities):
        picture = overlay.draw_entities(sample.image, sample.entities, side=560, boxes=False)
    left = pages.figure(picture, caption=caption, alt=f"image of {sample.title}")
    return pages.card(sample.title, pages.split(left, right))


def _split_system(
    found: list[tuple[str, str]], system: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pieces that spell the system text, the start token included, and the others."""
    spelled = itertools.accumulate(piece for piece, _ in found)
    ends = (i for i, text_ in enumerate(spelled, 1) if system and system in text_)
    end = next(ends, 0)
    return found[:end], found[end:]


def _count_words(sample: Sample) -> str:
    n = sample.counts()
    return (
        f"{n['all']} tokens: {n['text']} text, {n['image']} image, {n['graph']} graph; "
        f"trained: {n['answer']} answer, {n['question']} question"
    )


def _entity_words(sample: Sample) -> str:
    if sample.entities is None:
        return "no entities"
    used, count = sample.num_graph_tokens, len(sample.entities)
    noun = "entity" if count == 1 else "entities"
    best = f"; the {used} best become graph tokens" if used < count else ""
    return f"{count} {noun}{best}"


def _prompt_line(sample: Sample, tokenizer: tokenizers.Tokenizer) -> str:
    if not sample.num_graph_tokens:
        return ""
    prompt = tokenizer.decode(sample.encoded.prompt_ids)
    return pages.note(f"the graph is asked: {prompt}" if prompt else "the graph has no prompt")
