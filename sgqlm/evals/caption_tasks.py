"""Questions of the caption benchmarks: one sentence on every image."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgqlm.evals import caption_files, questions, tables

# of SQ-LLaVA's question file for COCO; the other sets are asked the same
PROMPT = "Provide a brief description of the given image, your answer should be in one sentence."


def reader(task: str) -> Callable[[Sequence[pathlib.Path]], questions.Found]:
    """Return what reads the images of a caption benchmark as questions.

    Answers have the id of the image: the number of COCO and NoCaps, else its file. A question file
    in LLaVA's layout keeps its own ids and prompts.
    """

    def asked(files: Sequence[pathlib.Path]) -> questions.Found:
        found = caption_files.read(task, files)
        if found.asked:
            yield from _prompts(task, files)
            return
        if found.is_pool and task != caption_files.CONCEPTUAL:
            raise caption_files.without_split(task, files[0])
        for item in found.items:
            yield {"label": str(item.id)}, questions.Question(item.id, PROMPT, PROMPT, item.image)

    return asked


def _prompts(task: str, files: Sequence[pathlib.Path]) -> questions.Found:
    """Yield the questions of LLaVA's layout; images of all but CC3M are found by their file."""
    path = next(path for path in files if caption_files.read(task, [path]).asked)
    for record in tables.items(path, ("question_id", "image", "text")):
        text, image = str(record["text"]).replace("<image>", "").strip(), str(record["image"])
        name = image if task == caption_files.CONCEPTUAL else pathlib.PurePosixPath(image).name
        found = questions.Question(record["question_id"], text, text, name)
        yield {"label": str(record["question_id"])}, found


def label(record: Mapping[str, Any], path: pathlib.Path) -> str:
    """Return the id of a question."""
    return str(record["label"])
