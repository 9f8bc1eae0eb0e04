"""Processor of a sgqlm folder: images, entities and text to what the model takes."""

import functools
import os
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_sgqlm import as_namespace
from .pictures_sgqlm import coverage, open_image, read_entities, to_square, window
from .tokenization_sgqlm import (
    CONTROL_TOKENS,
    GRAPH_TOKEN_ID,
    IMAGE,
    IMAGE_TOKEN_ID,
    Prompt,
    conversation,
    graph_question,
    read_prompt,
)

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


class Nodes(NamedTuple):
    """The entities of one image that the graph sees, the surest first."""

    coverage: np.ndarray  # uint8[n, P]: share of a patch under the mask, 255 = all of it
    boxes: np.ndarray  # float32[n, 4] in the model's square, 0..1
    label_ids: np.ndarray  # int64[n, L], -1 padding
    needs_labels: bool  # the model is to predict the labels from the pixels


class SgqlmInputs(BatchFeature):
    """Inputs of the model; boxes stay float32 when the batch is cast to a short type."""

    def to(self, *args, **kwargs):
        """Move, and cast pixels, as `BatchFeature.to` does."""
        boxes = self.get("node_boxes")
        super().to(*args, **kwargs)
        if boxes is not None and hasattr(boxes, "to"):
            self["node_boxes"] = boxes.to(self["node_boxes"].device)
        return self


class SgqlmProcessor(ProcessorMixin):
    """Make model inputs from images, entities and conversations.

    Args:
        tokenizer: of the model.
        model: the model's settings.
        text: `template`, `system` and `vusr_marker` of its conversations.
        chat_template: not used; conversations are written by `conversation`.
    """

    attributes: ClassVar = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer, model=None, text=None, chat_template=None):
        if not model or not text:
            raise ValueError("processor_config.json has no settings of the model")
        self.model, self.text = model, text
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images=None,
        text=None,
        entities=None,
        prompts=None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ) -> SgqlmInputs:
        """Prepare a batch; rows are texts.

        Args:
            images: pictures (PIL, file names, bytes or uint8 arrays): one a text, None for texts
                without; or one for each text that has `<image>`.
            text: conversations as `conversation` writes them, with `<image>` where it stands.
            entities: one a text, or None: `masks` (bool[n, h, w] or COCO run-length codes of the
                upright picture's size), `boxes` (float[n, 4], x0 y0 x1 y1 in its pixels),
                optionally `labels` and `scores`. Without masks the boxes are the masks.
            prompts: the question that each row's graph hears; None takes it from the text.
            padding: False refuses texts of different lengths.
            padding_side: `left` for `generate`, either for a plain forward pass.
            return_tensors: `pt` or `np`.

        Returns:
            The arguments of the model.

        Raises:
            ValueError: images, texts and entities do not fit together.
        """
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise ValueError("give at least one text")
        pictures = self._pictures(images, texts)
        found = self._nodes(pictures, entities, len(texts))
        heard = [prompts] if isinstance(prompts, str) else list(prompts or [None] * len(texts))
        if len(heard) != len(texts):
            raise ValueError(f"{len(heard)} prompts do not fit {len(texts)} texts")
        rows = [self._row(*parts) for parts in zip(texts, found, heard, strict=True)]
        lengths = {len(ids) for ids, _ in rows}
        if not padding and len(lengths) > 1:
            raise ValueError(f"texts have the lengths {sorted(lengths)}; set padding=True")
        data: dict[str, np.ndarray] = self._padded([ids for ids, _ in rows], padding_side)
        if any(picture is not None for picture in pictures):
            data["pixel_values"] = np.stack([self._pixels(picture) for picture in pictures])
        if any(nodes is not None and len(nodes.boxes) for nodes in found):
            data |= self._graph(found, [prompt for _, prompt in rows])
        return SgqlmInputs(data, tensor_type=return_tensors)

    def conversation(self, turns, has_image=True, vusr_turns=(), open_role="assistant") -> Prompt:
        """Write turns in the format the model was trained on.

        Args:
            turns: a question, or turns `{"from": "human" | "gpt", "value": str}`.
            has_image: put `<image>` in front of the first question where no turn has it.
            vusr_turns: indices of human turns that the model asked itself.
            open_role: `assistant` to answer, `vuser` to ask.

        Returns:
            The text for `processor(text=...)`.
        """
        if isinstance(turns, str):
            turns = [{"from": "human", "value": turns}]
        special = self.tokenizer.special_ids
        if self.text["vusr_marker"] == "token" and "[vusr]" not in special:
            raise ValueError("the tokenizer has no token [vusr], which the text format asks for")
        return conversation(
            turns,
            template=self.text["template"],
            system=self.text["system"],
            has_image=has_image,
            vusr_turns=vusr_turns,
            open_role=open_role,
            vusr_marker=self.text["vusr_marker"],
            control_tokens=sorted({*CONTROL_TOKENS, *special}),
        )

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        add_generation_prompt=True,
        tokenize=False,
        return_dict=True,
        continue_final_message=False,
        open_role="assistant",
        processor_kwargs=None,
        **kwargs,
    ):
        """Write messages `{"role", "content"}` as `conversation` does, and tokenise them on demand.

        Args:
            conversation: one list of messages, or several; the role is `user`, `assistant` or
                `vuser` (a question that the model asked), the content a text or a list of
                `{"type": "text", "text"}` and `{"type": "image", "image"}`.
            chat_template: not supported.
            add_generation_prompt: has to be True: the format ends where the answer begins.
            tokenize: return model inputs instead of text.
            return_dict: False returns the token ids alone.
            continue_final_message: not supported.
            open_role: `assistant` to answer, `vuser` to ask.
            processor_kwargs: of `processor(...)`.
            **kwargs: the same.
        """
        if chat_template is not None or not add_generation_prompt or continue_final_message:
            raise ValueError("the conversation format is fixed and ends where the answer begins")
        is_batch = bool(conversation) and not isinstance(conversation[0], Mapping)
        read = [_turns(messages) for messages in (conversation if is_batch else [conversation])]
        texts = [
            self.conversation(turns, has_image, asked, open_role)
            for turns, has_image, asked, _ in read
        ]
        if not tokenize:
            return texts if is_batch else texts[0]
        options = {**(processor_kwargs or {}), **kwargs}
        found = self(images=[picture for *_, picture in read], text=texts, **options)
        return found if return_dict else found["input_ids"]

    @property
    def image_token_id(self) -> int:
        """Id that stands for each image token."""
        return IMAGE_TOKEN_ID

    @property
    def model_input_names(self) -> list[str]:
        """Names of the arrays that `processor(...)` can return."""
        graph = ["coverage", "boxes", "label_ids", "valid"]
        names = ["input_ids", "attention_mask", "pixel_values", *(f"node_{n}" for n in graph)]
        return [*names, "needs_labels", "prompt_ids", "prompt_valid"]

    @functools.cached_property
    def _settings(self):
        return as_namespace(self.model)

    @property
    def _num_image_tokens(self):
        cfg = self._settings
        if cfg.prototypes.compress:
            return cfg.prototypes.num_prototypes
        return (cfg.vision.image_size // cfg.vision.patch_size // cfg.projector.merge) ** 2

    def _pictures(self, images, texts):
        """Return the opened picture of every text and its original size, or None."""
        if images is None or isinstance(images, bytes | str | os.PathLike | Image.Image):
            images = [] if images is None else [images]
        given = [i[0] if isinstance(i, list | tuple) and len(i) == 1 else i for i in images]
        wanted = [IMAGE in text for text in texts]
        if len(given) != len(texts):
            if len(given) != sum(wanted) or any(image is None for image in given):
                raise ValueError(
                    f"{len(given)} images for {len(texts)} texts, of which {sum(wanted)} have "
                    f"{IMAGE}: every text with {IMAGE} needs one image"
                )
            rest = iter(given)
            given = [next(rest) if has_image else None for has_image in wanted]
        for row, (image, has_image) in enumerate(zip(given, wanted, strict=True)):
            if has_image != (image is not None):
                what = f"has {IMAGE} but no image" if has_image else f"has an image but no {IMAGE}"
                raise ValueError(f"text {row} {what}")
        return [None if image is None else open_image(image) for image in given]

    def _nodes(self, pictures, entities, count):
        if isinstance(entities, Mapping) or hasattr(entities, "boxes"):
            entities = [entities]
        entities = [None] * count if entities is None else list(entities)
        if len(entities) != count:
            raise ValueError(f"{len(entities)} sets of entities do not fit {count} texts")
        found = []
        for row, (picture, item) in enumerate(zip(pictures, entities, strict=True)):
            if item is not None and picture is None:
                raise ValueError(f"text {row} has entities but no image")
            is_used = item is not None and self._settings.graph.enabled
            found.append(self._make_nodes(item, picture[1], row) if is_used else None)
        return found

    def _make_nodes(self, item, size, row):
        cfg = self._settings
        masks, boxes, labels, scores = read_entities(item, size, f"the entities of text {row}")
        square = window(size, cfg.image_fit, cfg.vision.image_size)
        cover = coverage(masks, size, cfg.vision.image_size // cfg.vision.patch_size, square)
        origin, extent = np.tile(square[:2], 2), np.tile(square[2:] - square[:2], 2)
        boxes = ((boxes - origin) / extent).clip(0, 1).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        seen = np.asarray(cover.any(1))
        order = order[seen[order]][: cfg.graph.num_nodes]
        label_ids = np.full((len(order), cfg.graph.label_tokens), -1, np.int64)
        uses_labels = cfg.graph.labels == "predicted"
        if uses_labels and labels:
            for ids, index in zip(label_ids, order, strict=True):
                tokens = self.tokenizer.encode_with_starts(labels[index])[0][: len(ids)]
                ids[: len(tokens)] = tokens
        needs = uses_labels and cfg.region_words > 0 and not any(labels)
        return Nodes(cover[order], boxes[order], label_ids, needs)

    def _row(self, text, nodes, heard):
        """Return the ids of a text with all placeholders, and the prompt of each graph run."""
        prompt = read_prompt(text, self.text["template"])
        after_image = self._settings.graph.placement == "after_image"
        if heard is not None and not after_image:
            raise ValueError(
                "this model's graph follows each question and hears it from the text; "
                "leave prompts out"
            )
        first = self._heard(prompt.first if heard is None else heard) if after_image else []
        ids, starts = self._tokenise(prompt)
        asked = {}
        for end, question in () if after_image else prompt.questions:
            position = sum(start < end for start in starts)
            if IMAGE_TOKEN_ID in ids[:position]:
                asked[position] = self._heard(question)
        graph = [GRAPH_TOKEN_ID] * (0 if nodes is None else len(nodes.boxes))
        out, runs = [], []
        for position, token in enumerate([*ids, None]):
            if position in asked:
                out += graph
                runs.append(asked[position])
            if token == IMAGE_TOKEN_ID:
                out += [IMAGE_TOKEN_ID] * self._num_image_tokens + graph
                runs.append(first)
            elif token is not None:
                out.append(token)
        return out, runs if graph else []

    def _heard(self, question):
        return self.tokenizer.encode_with_starts(graph_question(question))[0]

    def _tokenise(self, text):
        """Encode each side of `<image>` as a string of its own."""
        ids, starts, offset = [self.tokenizer.bos_token_id], [-1], 0
        for chunk in text.split(IMAGE):
            if offset:
                ids.append(IMAGE_TOKEN_ID)
                starts.append(offset - len(IMAGE))
            chunk_ids, chunk_starts = self.tokenizer.encode_with_starts(chunk)
            ids += chunk_ids
            starts += [offset + start for start in chunk_starts]
            offset += len(chunk) + len(IMAGE)
        return ids, starts

    def _padded(self, rows, side):
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {side!r}; use left or right")
        shape = (len(rows), max(map(len, rows)))
        ids, mask = np.full(shape, self.tokenizer.pad_token_id, np.int64), np.zeros(shape, np.int64)
        for b, row in enumerate(rows):
            part = slice(shape[1] - len(row), None) if side == "left" else slice(len(row))
            ids[b, part], mask[b, part] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def _pixels(self, picture):
        side = self._settings.vision.image_size
        if picture is None:
            return np.zeros((3, side, side), np.float32)
        square = to_square(picture[0], side, self._settings.image_fit).astype(np.float32)
        return np.ascontiguousarray(((square / np.float32(255) - MEAN) / STD).transpose(2, 0, 1))

    def _graph(self, found, prompts):
        cfg, graph, size = self._settings, self._settings.graph, len(found)
        patches = (cfg.vision.image_size // cfg.vision.patch_size) ** 2
        slots, runs = (size, graph.num_nodes), (size, max(1, *map(len, prompts), 1))
        data = {
            "node_coverage": np.zeros((*slots, patches), np.uint8),
            "node_boxes": np.zeros((*slots, 4), np.float32),
            "node_label_ids": np.full((*slots, graph.label_tokens), -1, np.int64),
            "node_valid": np.zeros(slots, bool),
            "needs_labels": np.array([n is not None and n.needs_labels for n in found]),
            "prompt_ids": np.zeros((*runs, graph.prompt_tokens), np.int64),
            "prompt_valid": np.zeros((*runs, graph.prompt_tokens), bool),
        }
        for b, (nodes, row) in enumerate(zip(found, prompts, strict=True)):
            if nodes is not None:
                n = len(nodes.boxes)
                data["node_coverage"][b, :n], data["node_boxes"][b, :n] = nodes[:2]
                data["node_label_ids"][b, :n], data["node_valid"][b, :n] = nodes.label_ids, True
            for r, prompt in enumerate(row):
                ids = prompt[: graph.prompt_tokens]
                data["prompt_ids"][b, r, : len(ids)] = ids
                data["prompt_valid"][b, r, : len(ids)] = True
        return data


def _turns(messages):
    """Return turns, whether they show an image, the turns that the model asked, and the image."""
    turns, pictures, has_image = [], [], False
    roles = {"user": "human", "vuser": "human", "assistant": "gpt"}
    for message in messages:
        content = message["content"]
        if message["role"] not in roles:
            raise ValueError(f"the role {message['role']!r} is none of {', '.join(roles)}")
        value = ""
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] not in ("text", "image"):
                raise ValueError(f"content of the type {part['type']!r} is not supported")
            if part["type"] == "text":
                value += part["text"]
                continue
            value, has_image = f"{IMAGE}\n{value}", True
            pictures += [part[key] for key in ("image", "path") if part.get(key) is not None]
        turns.append({"from": roles[message["role"]], "value": value})
    if len(pictures) > 1:
        raise ValueError(f"a conversation is about one image, not {len(pictures)}")
    has_image = has_image or any(IMAGE in turn["value"] for turn in turns)
    asked = [index for index, message in enumerate(messages) if message["role"] == "vuser"]
    return turns, has_image, asked, pictures[0] if pictures else None
