"""Run a model on a benchmark: answers in LLaVA's layout, the submission, and the figures."""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.data import graphs, images, records
from sgqlm.decode import inputs
from sgqlm.evals import answers, questions, sharing
from sgqlm.evals import tasks as tasks_lib

PROGRESS, ANSWERS, ASKED, REPORT = (
    "progress.jsonl", "answers.jsonl", "questions.jsonl", "report.json",
)  # fmt: skip
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_TOGETHER = 64  # questions about one image that one process asks
_CHECKED = 64  # images that are compared with the entity store before anything is asked


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the answers depend on, beside the model and the files.

    Attributes:
        checkpoint: of the model, as a path.
        model_id: name of the model in the answers.
        template: of the conversation, with its own system text; `trained` for both of the model.
        max_new_tokens: of every task; 0 for those of LLaVA's programs.
    """

    checkpoint: str
    model_id: str
    template: str = "vicuna_v1"
    max_new_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """One benchmark with all it needs.

    Attributes:
        place: its files.
        questions: all of them.
        chosen: positions of those to ask.
        entities: of the images; None for none.
    """

    place: tasks_lib.Place
    questions: Sequence[questions.Question]
    chosen: Sequence[int]
    entities: "Entities | None" = None


class Said(NamedTuple):
    """What the model said to one question.

    Attributes:
        text: the answer; empty after an error.
        error: why there is none.
        metadata: json values that the answer file keeps beside it.
    """

    text: str
    error: str = ""
    metadata: Mapping[str, Any] = types.MappingProxyType({})


# positions of questions and their rows, or why one has none -> one `Said` each, in their order
Respond = Callable[[Sequence[int], Sequence[inputs.Row | str]], Sequence[Said]]


class Entities:
    """Entities of the images of a benchmark, by the names of the images.

    Args:
        folder: the store; or a folder with one of the name of the benchmark.
        job: whose images it must have.

    Raises:
        SgqlmError: an image that is there has no row, or some are not those of the store.
    """

    def __init__(self, folder: pathlib.Path, job: Job):
        """Find the row of every image."""
        self.store = _store(folder, job.place.task.name)
        known = {key: row for row, key in enumerate(self.store.keys())}
        self._rows: dict[str, int] = {}
        missing = []
        for question in (job.questions[at] for at in job.chosen):
            names = _keys(job.place, question)
            row = next((known[name] for name in names if name in known), None)
            if row is not None:
                self._rows[question.image] = row
            elif question.image and (question.data or job.place.image(question).is_file()):
                missing.append(question.image)
        if missing := list(dict.fromkeys(missing)):
            raise errors.SgqlmError(
                f"the entity store lacks {len(missing)} images of {job.place.task.name}",
                where=str(self.store.folder),
                why=f"for instance {missing[0]}",
                fix="run `sgqlm entities extract --images=FOLDER` on the images of the benchmark"
                + ("; --unpack=FOLDER writes those of MMBench" if job.place.task.is_rolled else ""),
                code=errors.DATA,
            )
        self._place = job.place
        there = list({q.image: q for q in (job.questions[at] for at in job.chosen)}.values())
        for question in there[:: max(1, len(there) // _CHECKED)]:  # the others as they are asked
            self._check(question)

    def get(self, question: questions.Question) -> graphs.Entities | None:
        """Return the entities of the image of a question; None where the extraction failed.

        Raises:
            SgqlmError: the image is not the one in which they were found.
        """
        row = self._rows.get(question.image)
        if row is None or self.store.status(row).startswith("error"):
            return None
        self._check(question)
        return self.store[row]

    def _check(self, question: questions.Question) -> None:
        row, path = self._rows.get(question.image), self._place.image(question)
        known = "" if row is None else self.store.image_digest(row)
        if not known or (question.data is None and not path.is_file()):
            return
        held = question.data
        found = records.file_digest(path) if held is None else hashlib.sha256(held).hexdigest()
        if found != known:
            raise errors.SgqlmError(
                "the entities are those of another image",
                where=f"{self.store.folder}: {question.image}",
                why="the file has changed since, or another one has its name",
                fix="extract the entities of these images again",
                code=errors.DATA,
            )


def _store(folder: pathlib.Path, task: str) -> records.EntityStore:
    """Open the store of a benchmark, in the folder of several or alone."""
    own, others = folder / task, sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    if others and not any((path / records.MANIFEST).is_file() for path in (own, folder)):
        raise errors.SgqlmError(
            f"the folder of entity stores has none of {task}",
            where=str(own),
            why=f"there are {', '.join(others)}",
            fix=f"`sgqlm entities extract` writes it: give it --out={own}",
            code=errors.DATA,
        )
    return records.EntityStore(own if (own / records.MANIFEST).is_file() else folder)


def _keys(place: tasks_lib.Place, question: questions.Question) -> list[str]:
    """Return what a store may call an image: extracted from its folder, or one above that."""
    if not question.image:
        return []
    path = place.image(question)
    above = [folder for folder in (place.folder, place.root) if folder in path.parents]
    return [question.image, *(path.relative_to(folder).as_posix() for folder in above)]


def prepare(place: tasks_lib.Place, *, limit: int = 0) -> Job:
    """Read the questions of a benchmark and look for their images.

    Raises:
        SgqlmError: the questions cannot be read, or none of the images is there.
    """
    found = tasks_lib.read(place)
    job = Job(place, found, tasks_lib.limited(place.task, found, limit))
    seen = [found[at] for at in job.chosen if found[at].image and found[at].data is None]
    if seen and not any(place.image(question).is_file() for question in seen):
        raise errors.SgqlmError(
            f"none of the images of {place.task.name} is there",
            where=str(place.image(seen[0])),
            why=f"looked in {', '.join(place.task.images)} of {place.folder}",
            fix=f"put them there, see data/{place.task.name}/README.md",
            code=errors.DATA,
        )
    return job


def unpack(job: Job, folder: pathlib.Path) -> int:
    """Write the pictures that a question file holds to a folder; return their number."""
    found = {q.image: q.data for q in job.questions if q.data}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in found.items():
        (folder / name).write_bytes(data)
    return len(found)


def with_template(
    model: model_lib.VisionLanguageModel, template: str
) -> model_lib.VisionLanguageModel:
    """Return the model as the papers ask it: another conversation format, the same weights."""
    if template == "trained":
        return model
    text = dataclasses.replace(model.config.text, template=template, system=None)
    settings = dataclasses.replace(model.config, text=text)
    return model_lib.VisionLanguageModel.from_parts(settings, model.params, model.tokenizer)


def header(model: model_lib.VisionLanguageModel, job: Job, settings: Settings) -> dict[str, Any]:
    """Return all that the answers depend on; answers to anything else are not mixed with them."""
    store, text = job.entities, model.config.text
    return {
        "task": job.place.task.name,
        "format": 1,
        "checkpoint": settings.checkpoint,
        "model_id": settings.model_id,
        "questions": questions.digest(job.questions),
        "entities": store.store.manifest_digest if store else "none",
        "template": text.template,
        "system": text.system,
        "max_new_tokens": _room(job, settings),
        "image_fit": model.config.model.image_fit,
    }


def _room(job: Job, settings: Settings) -> int:
    return settings.max_new_tokens or job.place.task.max_new_tokens


def check_room(model: model_lib.VisionLanguageModel, job: Job, settings: Settings) -> None:
    """Refuse a model that can hold no question with as many new tokens.

    Raises:
        SgqlmError: it cannot.
    """
    config, room = model.config.model, _room(job, settings)
    if config.num_image_tokens + room >= config.llm.max_positions:
        raise errors.SgqlmError(
            f"the model has {config.llm.max_positions} positions, too few for "
            f"{config.num_image_tokens} image tokens and {room} new ones",
            where=job.place.task.name,
            fix=_fitting(model, job),
        )


def _fitting(model: model_lib.VisionLanguageModel, job: Job) -> str:
    """Return what to do about too many new tokens: the most beside the longest question."""
    settings = model.config.model
    question = max((job.questions[at] for at in job.chosen), key=lambda one: len(one.text))
    row = inputs.Row([_turn(question)], Image.new("RGB", (8, 8)))
    used = inputs.prepare(row, model.config, model.tokenizer).length
    if settings.graph.enabled:
        used += settings.graph.num_nodes * (1 + (settings.graph.placement == "after_question"))
    most = settings.llm.max_positions - used
    if most < 1:
        return "take a model with more positions: its longest question leaves no room to answer"
    return (
        f"give --max-new-tokens={most} or less, which leaves room for the longest question; it "
        "holds for all tasks of --tasks"
    )


def plan(
    job: Job, folder: pathlib.Path, about: Mapping[str, Any], *, retry: bool = False
) -> list[int]:
    """Return the positions of the chosen questions without an answer, in the order of `by_image`.

    Args:
        job: what to ask.
        folder: of this benchmark's results, with the answers of all processes so far.
        about: see `header`.
        retry: answers with an error are taken out of the files, so that they are asked again.

    Raises:
        SgqlmError: the folder has answers to another evaluation, or to all questions where only
            some are chosen.
    """
    done = sharing.known(folder / PROGRESS, about)
    if len(job.chosen) < len(job.questions) <= len(done):
        raise errors.SgqlmError(
            f"all {len(done)} questions of {job.place.task.name} have an answer already",
            where=str(folder),
            why="figures of a part would take the place of the whole",
            fix="leave --limit out, or give another --out",
        )
    if retry:
        forget_errors(folder / PROGRESS, about)
        done = sharing.known(folder / PROGRESS, about)
    todo = [at for at in job.chosen if str(at) not in done]
    return [at for about in by_image(job, todo) for at in about]


def by_image(job: Job, todo: Sequence[int]) -> list[list[int]]:
    """Return positions of questions by their image, those with long text first.

    What the questions of a batch share is run once (see `decode.prefixes`), and a batch is as long
    as its longest question. More than 64 about one image are several lists, so that processes can
    share them.

    Args:
        job: of the questions.
        todo: positions of questions; one without an image stands alone.
    """
    about: dict[str | int, list[int]] = {}
    for at in sorted(todo, key=lambda at: -len(job.questions[at].text)):
        about.setdefault(job.questions[at].image or at, []).append(at)
    return [
        image[start : start + _TOGETHER]
        for image in about.values()
        for start in range(0, len(image), _TOGETHER)
    ]


def run(
    job: Job,
    todo: Sequence[int],
    out: answers.AnswerFile,
    respond: Respond,
    *,
    model_id: str,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Answer questions where `out` has no answer yet.

    Answers are appended batch by batch. A question whose image cannot be read, or that the model
    cannot hold, gets an empty answer with `metadata.error`.

    Args:
        job: what to ask.
        todo: positions of the questions, those of one batch beside each other.
        out: receives one line a question; its header is that of `header`.
        respond: answers a batch, see `greedy`.
        model_id: name of the model in the answers.
        batch_size: questions that run at once; the answers do not depend on it.
        progress: told how many of `todo` have an answer.
    """
    left = [at for at in todo if str(at) not in out.done]
    done = len(todo) - len(left)
    batches = [left[i : i + batch_size] for i in range(0, len(left), batch_size)]
    for batch, rows in _ahead(job, batches):
        given = respond(batch, rows)
        out.extend(
            [
                _line(at, job.questions[at], said, model_id)
                for at, said in zip(batch, given, strict=True)
            ]
        )
        done += len(batch)
        progress(done)


def greedy(
    model: model_lib.VisionLanguageModel, job: Job, settings: Settings, *, batch_size: int
) -> Respond:
    """Return what answers a batch of `run` greedily, as the papers do.

    Args:
        model: the model, see `with_template`.
        job: of the questions.
        settings: see the class.
        batch_size: questions that run at once.
    """
    room = _room(job, settings)
    return lambda batch, rows: _respond(model, rows, room, batch_size)


def forget_errors(path: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Take answers with an error out of the files of all processes.

    Args:
        path: of the main process's file.
        about: what the answers must be to.

    Raises:
        SgqlmError: a file has answers to another evaluation; none is changed.
    """
    sharing.known(path, about)
    for file in sharing.files(path):
        if answers.cut_unfinished(file):
            head, lines = answers.read(file)
            kept = [line for line in lines if not line.get("metadata", line).get("error")]
            answers.write(file, [head, *kept])


def count_errors(job: Job, folder: pathlib.Path) -> int:
    """Return how many of the chosen questions have an error in place of an answer so far."""
    found = sharing.known(folder / PROGRESS, is_idle=False)
    lines = [found[str(at)] for at in job.chosen if str(at) in found]
    return sum(bool(line.get("metadata", {}).get("error")) for line in lines)


def collect(job: Job, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Write the answers of `PROGRESS` to `ANSWERS`, in the order of the questions.

    Args:
        job: what was asked.
        folder: of this benchmark's results; all processes have finished their share.

    Returns:
        The answers.
    """
    found = sharing.wait_for(folder / PROGRESS, [str(at) for at in job.chosen])
    ordered = [{k: v for k, v in line.items() if k != "key"} for line in found]
    answers.write(folder / ANSWERS, ordered)
    return ordered


def _ahead(job: Job, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], list]]:
    """Yield batches with their rows; the next is read while the model works on one."""

    def load(batch: Sequence[int]) -> list[inputs.Row | str]:
        seen: dict[str, Any] = {}
        return [_row(job, job.questions[at], seen) for at in batch]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load, batches[0]) if batches else None
        for number, batch in enumerate(batches, 1):
            rows = coming.result() if coming else []
            coming = pool.submit(load, batches[number]) if number < len(batches) else None
            yield batch, rows


def _row(job: Job, question: questions.Question, seen: dict[str, Any]) -> inputs.Row | str:
    """Return what the model sees, or why it cannot; `seen` keeps the images of a batch."""
    try:
        image, found = seen.get(question.image, (None, None))
        if question.image and image is None:
            source = job.place.image(question) if question.data is None else question.data
            image = images.open_image(source, where=question.image)
            found = job.entities.get(question) if job.entities else None
            seen[question.image] = image, found
        return inputs.Row([_turn(question)], image, found)
    except errors.SgqlmError as error:
        return error.line


def _turn(question: questions.Question) -> dict[str, str]:
    """Return the question as a turn; half of a surrogate pair has no place in a conversation."""
    return inputs.human(_HALF_PAIR.sub("\N{REPLACEMENT CHARACTER}", question.text))


def _respond(model, rows: Sequence[inputs.Row | str], room: int, size: int) -> list[Said]:
    """Answer every row; one that the model refuses does not stop the others."""
    out = [Said("", row if isinstance(row, str) else "") for row in rows]
    good = [at for at, row in enumerate(rows) if not isinstance(row, str)]
    try:
        chosen = [rows[at] for at in good]
        found = model.respond(chosen, max_new_tokens=room, batch_size=size) if good else []
        given = [Said(text) for text in found]
    except errors.SgqlmError as error:
        if error.code not in (errors.USAGE, errors.DATA):
            raise
        if len(good) > 1:
            given = [_respond(model, [rows[at]], room, size)[0] for at in good]
        else:
            given = [Said("", error.line)]
    for at, said in zip(good, given, strict=True):
        out[at] = said
    return out


def _line(at: int, question: questions.Question, said: Said, model_id: str) -> dict[str, Any]:
    about = json.dumps([model_id, at, str(question.id), said.text]).encode()
    return {
        "key": str(at),
        "question_id": question.id,
        "prompt": question.prompt,
        "text": said.text,
        "answer_id": hashlib.sha256(about).hexdigest()[:22],
        "model_id": model_id,
        "metadata": {**said.metadata, **({"error": said.error} if said.error else {})},
        **question.more,
    }
