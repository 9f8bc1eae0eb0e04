r"""Conversations as token ids, labels and graph prompts; prompts for generation; expansion.

A sample with an image looks like this (v1_sq, `|` between tokens of different kinds):

    {system} USER: <image>\nWhat? ASSISTANT:| A cat.</s>|VUSER:| Asleep?</s>| ASSISTANT:| Yes.</s>
    not trained                             |answer     |      |question    |           |answer

A first human turn that the model asks itself keeps the image in front of everything that is
trained: `{system} USER: <image>\nVUSER:| Asleep?</s>| ASSISTANT:| Yes.</s>`. So the image has
the same tokens before it in both cases, every self-asked question follows `VUSER:`, and
`prompt([], open_role="vuser", ...)` gives exactly the prefix that training saw.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from sgqlm import errors, types
from sgqlm.text import official, rules, templates
from sgqlm.text import tokenizer as tokenizers

Turn = Mapping[str, str]
_IMAGE_LEAD = f"{templates.USER}: {templates.IMAGE}\n"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A conversation as ids; all lists of per-position values have one length.

    Attributes:
        input_ids: token ids, -200 where an image stands.
        labels: the ids to learn, -100 elsewhere (not shifted).
        prompt_ids: what the first human turn asks, for the graph; empty when it is self-asked.
        kinds: per position `types.NOT_TRAINED`, `ANSWER` or `QUESTION`.
        asked: for each USER turn from the image on, the position right after its question and
            that question as prompt ids.
        text: the rendered conversation.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int]
    kinds: list[int]
    asked: tuple[tuple[int, list[int]], ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Expanded:
    """A conversation with one position for each image and graph token.

    Attributes:
        tokens: token ids; -200 once per image token, -201 once per graph token.
        labels: as `Encoded.labels`; placeholders are never trained.
        kinds: as `Encoded.kinds`.
        prompts: prompt ids of each run of graph tokens, in order; empty without graph tokens.
    """

    tokens: list[int]
    labels: list[int]
    kinds: list[int]
    prompts: list[list[int]]


def encode(
    turns: Sequence[Turn],
    template: str = "vicuna_v1",
    *,
    tokenizer: tokenizers.Tokenizer,
    has_image: bool = True,
    vusr_turns: Sequence[int] = (),
    max_length: int | None = None,
    compat: Literal["strict", "official"] = "strict",
    system: str | None = None,
    vusr_marker: Literal["role", "token"] = "role",
) -> Encoded:
    """Tokenise and label a conversation.

    `strict` labels by segment, refuses what the official programs train wrongly or ignore, and is
    equal to them otherwise. `official` repeats them, faults included.

    Args:
        turns: the LLaVA json list, `{"from": "human" | "gpt", "value": str}`.
        template: `plain` (image and caption), `vicuna_v1` or `v1_sq`.
        tokenizer: text to ids.
        has_image: whether the sample has an image.
        vusr_turns: indices into `turns` of human turns that the model asks itself.
        max_length: text-only samples are cut here; samples with an image are cut in `expand`,
            once the image has its length. `official` takes 2048 for None.
        compat: see above.
        system: another system text; empty for none.
        vusr_marker: write the self-questioning role as `VUSER` or as the token `[vusr]`.

    Returns:
        Ids, labels, kinds and graph prompts.

    Raises:
        SgqlmError: the conversation breaks a rule (exit code `DATA`, naming it).
    """
    form = templates.get(template)
    if compat == "official":
        return _encode_official(
            turns, form, tokenizer, has_image, vusr_turns, max_length or official.MAX_LENGTH, system
        )
    _refuse_faults(turns, form, tokenizer, has_image, for_training=True)
    if template == "plain":
        _check_asked([], form, has_image, vusr_turns)
        segments, first = _plain_segments(turns), None
    else:
        messages = _messages(turns, form, has_image, vusr_turns)
        segments = _rendered(messages, form, tokenizer, system, vusr_marker)
        first = messages[0]
    return _assemble(segments, first, tokenizer, has_image, max_length)


def prompt(
    turns: Sequence[Turn],
    template: str = "vicuna_v1",
    *,
    tokenizer: tokenizers.Tokenizer,
    has_image: bool = True,
    vusr_turns: Sequence[int] = (),
    open_role: Literal["assistant", "vuser"] = "assistant",
    system: str | None = None,
    vusr_marker: Literal["role", "token"] = "role",
) -> Encoded:
    """Render a conversation up to where the model goes on.

    Args:
        turns: the conversation so far. It ends with the question to answer, or for
            `open_role="vuser"` with an answer, or is empty (ask about the image alone; for `plain`
            caption it). Where no turn has `<image>`, the image goes in front of the first question.
        template: conversation format; `plain` writes the human text and a line break.
        tokenizer: text to ids.
        has_image: whether there is an image.
        vusr_turns: indices of human turns that the model asked itself.
        open_role: `assistant` ends with `ASSISTANT:`, `vuser` with `VUSER:`.
        system: another system text; empty for none.
        vusr_marker: as in `encode`.

    Returns:
        Ids without labels; `prompt_ids` and `asked` as in `encode`, so that generation sees the
        graph that training would.

    Raises:
        SgqlmError: the conversation cannot be continued, or breaks a rule.
    """
    form = templates.get(template)
    turns = list(turns)
    if turns:
        _refuse_faults(turns, form, tokenizer, has_image, for_training=False)
    turns = _place_image(turns) if has_image else turns
    _check_open(turns, form, has_image, open_role)
    if template == "plain":
        text = templates.image_first(turns[0]["value"]) + "\n" if turns else templates.IMAGE
        segments = [templates.Segment(text, types.NOT_TRAINED)]
        first = templates.Message(templates.USER, text)
    else:
        messages = _messages(turns, form, has_image, vusr_turns)
        role = templates.VUSER if open_role == "vuser" else templates.ASSISTANT
        messages.append(templates.Message(role, None, "" if messages else _IMAGE_LEAD))
        segments = _rendered(messages, form, tokenizer, system, vusr_marker)
        first = messages[0]
    out = _assemble(segments, first, tokenizer, has_image, None)
    size = len(out.input_ids)
    return dataclasses.replace(out, labels=[types.IGNORE] * size, kinds=[types.NOT_TRAINED] * size)


def expand(
    encoded: Encoded,
    num_image_tokens: int,
    num_graph_tokens: int,
    *,
    placement: Literal["after_image", "after_question"] = "after_image",
    max_length: int | None = None,
) -> Expanded:
    """Give every image and graph token its own position.

    Example: with 2 image and 1 graph token, `[1, -200, 13, 7]` becomes
    `[1, -200, -200, -201, 13, 7]`. `after_question` adds a run after each asked question; the run
    after the image then has an empty prompt.

    Args:
        encoded: the conversation.
        num_image_tokens: positions of one image.
        num_graph_tokens: positions of one run, the number of valid entities; 0 for no graph.
        placement: where graph runs stand.
        max_length: cut tokens, labels and kinds here, and drop runs that are cut off whole.

    Returns:
        Tokens, labels, kinds and the prompt of each run.
    """
    first = encoded.prompt_ids if placement == "after_image" else []
    asked = dict(encoded.asked) if placement == "after_question" else {}
    image = [types.IMAGE_TOKEN_ID] * num_image_tokens
    graph = [types.GRAPH_TOKEN_ID] * num_graph_tokens
    out = Expanded([], [], [], [])

    def put(tokens, label=types.IGNORE, kind=types.NOT_TRAINED):
        out.tokens.extend(tokens)
        out.labels.extend([label] * len(tokens))
        out.kinds.extend([kind] * len(tokens))

    def put_graph(ids):
        if graph and (max_length is None or len(out.tokens) < max_length):
            out.prompts.append(list(ids))
        put(graph)

    columns = zip(encoded.input_ids, encoded.labels, encoded.kinds, strict=True)
    for position, (token, label, kind) in enumerate(columns):
        if position in asked:
            put_graph(asked[position])
        if token == types.IMAGE_TOKEN_ID:
            put(image)
            put_graph(first)
        else:
            put([token], label, kind)
    if len(encoded.input_ids) in asked:
        put_graph(asked[len(encoded.input_ids)])
    return Expanded(
        out.tokens[:max_length], out.labels[:max_length], out.kinds[:max_length], out.prompts
    )


def expanded_length(
    encoded: Encoded,
    num_image_tokens: int,
    num_graph_tokens: int,
    *,
    placement: Literal["after_image", "after_question"] = "after_image",
    max_length: int | None = None,
) -> int:
    """Return `len(expand(...).tokens)` without building it; for length indices.

    Args:
        encoded: the conversation.
        num_image_tokens: positions of one image.
        num_graph_tokens: positions of one graph run.
        placement: where graph runs stand.
        max_length: upper limit.

    Returns:
        Number of positions.
    """
    images = encoded.input_ids.count(types.IMAGE_TOKEN_ID)
    runs = images + (len(encoded.asked) if placement == "after_question" else 0)
    length = len(encoded.input_ids) + images * (num_image_tokens - 1) + runs * num_graph_tokens
    return length if max_length is None else min(length, max_length)


def graph_prompt(text: str, tokenizer: tokenizers.Tokenizer) -> list[int]:
    """Return the ids with which a human text prompts the graph.

    Args:
        text: a human turn; `<image>` and trailing answer-format lines are left out.
        tokenizer: text to ids.

    Returns:
        Token ids without a start token; empty when nothing is asked.
    """
    return tokenizer.encode(templates.graph_prompt(text), bos=False)


def segments(encoded: Encoded, tokenizer: tokenizers.Tokenizer) -> list[tuple[str, int]]:
    """Return the text of a conversation in stretches of one kind, for display.

    Args:
        encoded: the conversation.
        tokenizer: the tokenizer that made it.

    Returns:
        Pairs of text (as the tokens spell it, special tokens and `<image>` included) and kind; a
        position counts as trained where its label is set.
    """
    labelled = (
        kind if label != types.IGNORE else types.NOT_TRAINED
        for kind, label in zip(encoded.kinds, encoded.labels, strict=True)
    )
    columns = zip(labelled, encoded.input_ids, strict=True)
    runs = itertools.groupby(columns, key=lambda column: column[0])
    return [(tokenizer.surface([token for _, token in run]), kind) for kind, run in runs]


def _encode_official(turns, form, tokenizer, has_image, vusr_turns, max_length, system) -> Encoded:
    found = rules.faults(turns, template=form.name, has_image=has_image)
    stops = {"turn shape", "plain pair"} | ({"alternating"} if form.name == "vicuna_v1" else set())
    rules.refuse([fault for fault in found if fault.rule in stops])
    if vusr_turns and (not form.can_ask or not has_image or 0 in vusr_turns):
        raise _asked_error("compat=official asks later turns of v1_sq samples with an image only")
    if has_image:
        turns = [{**turn, "value": templates.image_first(turn["value"])} for turn in turns]
    if form.name == "plain":
        return _assemble(_plain_segments(turns), None, tokenizer, has_image, max_length)
    messages = official.messages(turns, template=form.name, vusr_turns=vusr_turns)
    rendered = _rendered(messages, form, tokenizer, system, "role")
    first = messages[0] if messages else None
    out = _assemble(rendered, first, tokenizer, has_image, max_length)
    labels = official.round_labels(
        out.input_ids,
        out.text,
        template=form.name,
        tokenizer=tokenizer,
        count=lambda text: len(_tokenise(text, tokenizer, has_image)[0]),
        max_length=max_length,
    )
    kinds = [
        (kind or types.ANSWER) if label != types.IGNORE else types.NOT_TRAINED
        for kind, label in zip(out.kinds, labels, strict=True)
    ]
    return dataclasses.replace(out, labels=labels, kinds=kinds)


def _refuse_faults(turns, form, tokenizer, has_image, *, for_training: bool) -> None:
    rules.refuse(
        rules.faults(
            turns,
            template=form.name,
            has_image=has_image,
            for_training=for_training,
            control_tokens={*rules.CONTROL_TOKENS, *tokenizer.special_ids},
        )
    )


def _messages(turns, form, has_image, vusr_turns) -> list[templates.Message]:
    skip = rules.opening(turns, form)
    _check_asked(turns, form, has_image, vusr_turns)
    found = []
    for index, turn in enumerate(turns[skip:], start=skip):
        text = templates.image_first(turn["value"])
        if index not in vusr_turns:
            role = templates.USER if turn["from"] == "human" else templates.ASSISTANT
            found.append(templates.Message(role, text))
        elif text.startswith(templates.IMAGE):
            text = templates.without_image(text)
            found.append(templates.Message(templates.VUSER, text, _IMAGE_LEAD))
        else:
            found.append(templates.Message(templates.VUSER, text))
    return found


def _plain_segments(turns: Sequence[Turn]) -> list[templates.Segment]:
    caption = templates.Segment(turns[1]["value"] + "\n", types.ANSWER)
    return [templates.Segment(templates.IMAGE, types.NOT_TRAINED), caption]


def _rendered(messages, form, tokenizer, system, vusr_marker) -> list[templates.Segment]:
    if vusr_marker == "token" and templates.VUSR_TOKEN not in tokenizer.special_ids:
        raise errors.SgqlmError(
            f"the tokenizer has no token {templates.VUSR_TOKEN}",
            fix="load it with .with_token, or set vusr_marker=role",
        )
    system = form.system if system is None else system
    return templates.render(messages, system=system, vusr_marker=vusr_marker)


def _assemble(parts, first, tokenizer, has_image, max_length) -> Encoded:
    text = "".join(part.text for part in parts)
    ids, starts = _tokenise(text, tokenizer, has_image)
    ends = list(itertools.accumulate(len(part.text) for part in parts))
    kinds = [
        parts[bisect.bisect_right(ends, start)].kind if start >= 0 else types.NOT_TRAINED
        for start in starts
    ]
    labels = [
        token if kind != types.NOT_TRAINED else types.IGNORE
        for token, kind in zip(ids, kinds, strict=True)
    ]
    asked, prompt_ids = [], []
    if first is not None and first.role == templates.USER and first.text:
        prompt_ids = graph_prompt(first.text, tokenizer)
    for part, end in zip(parts, ends, strict=True):
        position = bisect.bisect_left(starts, end)
        if part.question is not None and types.IMAGE_TOKEN_ID in ids[:position]:
            asked.append((position, graph_prompt(part.text, tokenizer)))
    limit = None if has_image else max_length
    return Encoded(ids[:limit], labels[:limit], prompt_ids, kinds[:limit], tuple(asked), text)


def _tokenise(text, tokenizer, has_image) -> tuple[list[int], list[int]]:
    """Return ids with a start token, and the character each begins with (-1 for the start).

    As upstream, each side of an `<image>` is a string of its own with its own dummy prefix.
    """
    ids, starts, offset = [tokenizer.bos_id], [-1], 0
    for chunk in text.split(templates.IMAGE) if has_image else [text]:
        if offset:
            ids.append(types.IMAGE_TOKEN_ID)
            starts.append(offset - len(templates.IMAGE))
        chunk_ids, chunk_starts = tokenizer.encode_with_starts(chunk)
        ids += chunk_ids
        starts += [offset + start for start in chunk_starts]
        offset += len(chunk) + len(templates.IMAGE)
    return ids, starts


def _place_image(turns: Sequence[Turn]) -> list[Turn]:
    if any(templates.IMAGE in turn["value"] for turn in turns):
        return list(turns)
    human = next((i for i, turn in enumerate(turns) if turn["from"] == "human"), None)
    tagged = [{**turn, "value": f"{templates.IMAGE}\n{turn['value']}"} for turn in turns]
    return [tagged[i] if i == human else turn for i, turn in enumerate(turns)]


def _check_asked(turns, form, has_image, vusr_turns) -> None:
    if vusr_turns and not form.can_ask:
        raise _asked_error(f"the template {form.name} has no {templates.VUSER} role; use v1_sq")
    if vusr_turns and not has_image:
        raise _asked_error("self-questioning is about an image, and the sample has none")
    images = [index for index, turn in enumerate(turns) if templates.IMAGE in turn["value"]]
    for index in vusr_turns:
        if not 0 <= index < len(turns) or turns[index]["from"] != "human":
            raise _asked_error(f"turn {index} is not from human")
        if not templates.without_image(turns[index]["value"]).strip():
            raise _asked_error(f"turn {index} asks nothing")
        if index < images[0]:
            raise _asked_error(f"turn {index} comes before the image")
        if index and index in images:
            raise _asked_error(f"an image would stand inside the trained question of turn {index}")


def _check_open(turns, form, has_image, open_role) -> None:
    last = turns[-1]["from"] if turns else None
    if open_role == "vuser":
        if not form.can_ask:
            raise _asked_error(f"the template {form.name} has no {templates.VUSER} role; use v1_sq")
        if not has_image:
            raise _asked_error("self-questioning is about an image, and there is none")
        if last == "human":
            raise _asked_error("the last turn is a question that has no answer yet")
    elif form.name == "plain" and turns:
        if len(turns) > 1:
            raise errors.SgqlmError("a plain prompt has at most one turn", code=errors.DATA)
    elif last != "human" and not (form.name == "plain" and has_image):
        raise errors.SgqlmError(
            "there is no question to answer", fix="end with a human turn", code=errors.DATA
        )


def _asked_error(reason: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        "a turn cannot be self-asked",
        why=reason,
        fix="take the turns from sgqlm.text.self_questioning.choose_turns",
        code=errors.DATA,
    )
