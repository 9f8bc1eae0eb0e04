"""The benchmarks: where their official files lie, how they are asked, sent and scored.

Files and folders have the names of LLaVA's playground/data/eval.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgqlm import errors
from sgqlm.evals import caption_files, joining, questions, tables
from sgqlm.evals.metrics import mmbench

Label = Callable[[Mapping[str, Any], pathlib.Path], str]
Read = Callable[[Sequence[pathlib.Path]], questions.Found]


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: of `--tasks`.
        folders: names of its folder.
        files: question files, the first that is there counts; several for `coco_pope_*`.
        images: folders of the images below that of the benchmark.
        read: question files -> the records with their questions.
        max_new_tokens: of LLaVA's program for this benchmark.
        annotations: files that together score the answers; empty where a server does.
        all_questions: file with all ids that the server wants, where it is not the question file.
        submission: end of the name of the file for the server; empty where there is none.
        label: name of the annotation of a record, of questions and annotations alike.
        may_repeat: whether an id may stand twice.
        is_rolled: whether items stand several times, with rolled options.
        is_scored_by_questions: whether the question file has the answers too.
    """

    name: str
    folders: tuple[str, ...]
    files: tuple[str, ...]
    images: tuple[str, ...]
    read: Read
    max_new_tokens: int = 128
    annotations: tuple[str, ...] = ()
    all_questions: tuple[str, ...] = ()
    submission: str = ""
    label: Label = questions.id_label
    may_repeat: bool = False
    is_rolled: bool = False
    is_scored_by_questions: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """The files of one benchmark on this machine.

    Attributes:
        task: the benchmark.
        root: the folder that was given.
        folder: that of the benchmark.
        files: the question files.
        annotations: files for scoring; empty where they are not all there.
        all_questions: see `Task`; None where it is not there.
    """

    task: Task
    root: pathlib.Path
    folder: pathlib.Path
    files: tuple[pathlib.Path, ...]
    annotations: tuple[pathlib.Path, ...] = ()
    all_questions: pathlib.Path | None = None

    def image(self, question: questions.Question) -> pathlib.Path:
        """Return where a picture lies, or would lie."""
        places = [self.folder / name / question.image for name in self.task.images]
        return next((path for path in places if path.is_file()), places[0])


def get(name: str) -> Task:
    """Return a benchmark by name.

    Raises:
        SgqlmError: there is none of that name.
    """
    if name not in TASKS:
        raise errors.SgqlmError(
            f"there is no benchmark {name!r}", where="--tasks", fix="known: " + ", ".join(TASKS)
        )
    return TASKS[name]


def locate(task: Task, root: pathlib.Path, files: Sequence[pathlib.Path] = ()) -> Place:
    """Find the files of a benchmark.

    Args:
        task: the benchmark.
        root: folder of all benchmarks, or of this one.
        files: question files, where those of the table are not meant.

    Raises:
        SgqlmError: there is no question file, or it is not clear which one is meant.
    """
    folders = [root / name for name in task.folders if (root / name).is_dir()]
    if len(files) > 1 and task.name not in _SEVERAL:
        raise errors.SgqlmError(
            f"{task.name} has one question file", where="--questions",
            why=f"{len(files)} are given", fix="give one; other splits with another --out",
        )  # fmt: skip
    if files:
        return _place(task, root, (folders or [root])[0], tuple(files))
    # below the folder of another benchmark lie its questions
    is_own = not any((root / name).is_dir() for name in _FOLDERS)
    depths = ["", "*/"]
    places = [*((folder, depths) for folder in folders), (root, depths if is_own else [""])]
    for folder, depths in places:
        for pattern in task.files:
            found = _glob(folder, pattern, depths)
            if len(found) > 1 and task.name != "pope":
                raise errors.SgqlmError(
                    f"several files can be the questions of {task.name}",
                    where=str(folder),
                    why=", ".join(path.name for path in found),
                    fix="name one with --questions",
                )
            if found:
                return _place(task, root, folder, found)
    raise errors.SgqlmError(
        f"the questions of {task.name} are not there",
        where=str(root),
        why=f"looked for {' or '.join(task.files)} in {' or '.join(task.folders)}",
        fix=f"get them as data/{task.name}/README.md says, and give their folder with --root",
        code=errors.DATA,
    )


def _glob(folder: pathlib.Path, pattern: str, depths=("", "*/", "data/*/")) -> tuple:
    for depth in depths:
        if found := sorted(folder.glob(depth + pattern)):
            return tuple(found)
    return ()


def _place(task: Task, root, folder: pathlib.Path, files: tuple[pathlib.Path, ...]) -> Place:
    is_val = any("val" in path.name for path in files)
    wanted = task.annotations
    if task.name in ("vqav2", "vizwiz") and not is_val:
        wanted = ()  # the answers of test splits are with the servers
    found = [_glob(folder, pattern) for pattern in wanted]
    annotations = [path for part in found for path in part] if all(found) else []
    if task.is_scored_by_questions:
        annotations = list(files)
    if task.name in caption_files.TASKS:
        names = [*task.annotations, *task.files]
        official = (path for name in names for path in _glob(folder, name))
        annotations = list(caption_files.annotations(files, lambda: list(official)[:1]))
    if annotations and task.name == "pope":  # LLaVA's file says which category an id is of
        annotations += [path for path in files if path not in annotations]
    whole = [path for pattern in task.all_questions for path in _glob(folder, pattern)]
    return Place(
        task, root, folder, files, tuple(annotations), whole[0] if whole and not is_val else None
    )


def read(place: Place) -> list[questions.Question]:
    """Return the questions of a benchmark in the order of its file.

    Raises:
        SgqlmError: a file is damaged or of another kind, or an id stands twice.
    """
    task, path = place.task, place.files[0]
    try:
        found = [
            dataclasses.replace(question, label=task.label(record, path))
            for record, question in task.read(place.files)
        ]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise tables.damaged(
            path, f"a record is of another kind: {type(error).__name__} {error}"
        ) from error
    counts = collections.Counter(str(question.id) for question in found)
    again = [key for key, count in counts.items() if count > 1]
    if again and not task.may_repeat:
        raise tables.damaged(path, f"ids stand twice: {joining.shown(again)}")
    if not found:
        raise tables.damaged(path, "it has no questions")
    return found


def limited(task: Task, asked: Sequence[questions.Question], limit: int) -> list[int]:
    """Return the positions of the first questions; of MMBench, of the first items, all rolls."""
    keys = [int(q.id) % mmbench.ROLL if task.is_rolled else at for at, q in enumerate(asked)]
    chosen = set(list(dict.fromkeys(keys))[: limit or None])
    return [at for at, key in enumerate(keys) if key in chosen]


_SEVERAL = ("pope", *caption_files.TASKS)  # may have several question files
CAPTION = (  # of SQ-LLaVA's question file for COCO; the other sets are asked the same
    "Provide a brief description of the given image, your answer should be in one sentence."
)


def _captions(
    name: str,
    folders: tuple[str, ...],
    files: tuple[str, ...],
    images: tuple[str, ...],
    annotations: str,
) -> Task:
    """Return a caption benchmark: one sentence on every image.

    Answers have the id of the image: the number of COCO and NoCaps, else its file. A question file
    in LLaVA's layout keeps its own ids and prompts.
    """

    def asked(paths: Sequence[pathlib.Path]) -> questions.Found:
        found = caption_files.read(name, paths)
        if found.asked:
            yield from _prompts(name, paths)
            return
        if found.is_pool and name != caption_files.CONCEPTUAL:
            raise caption_files.without_split(name, paths[0])
        for item in found.items:
            question = questions.Question(item.id, CAPTION, CAPTION, item.image)
            yield {"question_id": item.id}, question

    return Task(name, folders, files, images, asked, annotations=(annotations,), submission=".json")


def _prompts(name: str, files: Sequence[pathlib.Path]) -> questions.Found:
    """Yield the questions of LLaVA's layout; images of all but CC3M are found by their file."""
    path = next(path for path in files if caption_files.read(name, [path]).asked)
    for record in tables.items(path, ("question_id", "image", "text")):
        text, image = str(record["text"]).replace("<image>", "").strip(), str(record["image"])
        image = image if name == caption_files.CONCEPTUAL else pathlib.PurePosixPath(image).name
        yield record, questions.Question(record["question_id"], text, text, image)


_HERE = ("images", ".")
_COCO_POPE = "coco_pope_*.json"
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "vqav2",
            ("vqav2",),
            (
                "llava_vqav2_mscoco_test-dev2015.jsonl",
                "*vqav2_mscoco_test-dev2015.jsonl",
                "v2_OpenEnded_mscoco_test-dev2015_questions.json",
                "v2_OpenEnded_mscoco_val2014_questions.json",
            ),
            ("test2015", "val2014", *_HERE),
            questions.vqav2,
            annotations=("v2_mscoco_val2014_annotations.json",),
            all_questions=(
                "llava_vqav2_mscoco_test2015.jsonl",
                "v2_OpenEnded_mscoco_test2015_questions.json",
            ),
            submission=".json",
        ),
        Task(
            "gqa",
            ("gqa",),
            ("llava_gqa_testdev_balanced.jsonl", "testdev_balanced_questions.json"),
            ("data/images", *_HERE),
            questions.gqa,
            annotations=("testdev_balanced_questions.json",),
            submission=".json",
        ),
        Task(
            "vizwiz",
            ("vizwiz",),
            ("llava_test.jsonl", "test.json", "val.json"),
            ("test", "val", *_HERE),
            questions.vizwiz,
            annotations=("val.json",),
            submission=".json",
            label=questions.image_label,
        ),
        Task(
            "scienceqa",
            ("scienceqa",),
            ("llava_test_CQM-A.json", "problems.json"),
            ("images/test", "test", *_HERE),
            questions.scienceqa,
            max_new_tokens=1024,
            annotations=("problems.json", "pid_splits.json"),
        ),
        Task(
            "textvqa",
            ("textvqa",),
            ("llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"),
            ("train_images", "val_images", *_HERE),
            questions.llavas("it has no reference OCR tokens, which the papers' prompts have"),
            annotations=("TextVQA_0.5.1_val.json",),
            label=questions.textvqa_label,
            may_repeat=True,  # LLaVA's ids are those of the images
        ),
        Task(
            "pope",
            ("pope",),
            ("llava_pope_test.jsonl", _COCO_POPE),
            ("val2014", *_HERE),
            questions.pope_categories,
            annotations=(_COCO_POPE,),
            label=questions.pope_label,
        ),
        Task(
            "mmbench",
            ("mmbench",),
            ("mmbench_dev_20230712.tsv", "mmbench_dev_2*.tsv", "MMBench_DEV_EN*.tsv"),
            _HERE,
            questions.mmbench(questions.LETTER),
            max_new_tokens=1024,
            is_rolled=True,
            is_scored_by_questions=True,
            submission=".xlsx",
        ),
        Task(
            "mmbench_cn",
            ("mmbench_cn", "mmbench"),
            ("mmbench_dev_cn_20231003.tsv", "mmbench_dev_cn_*.tsv", "MMBench_DEV_CN*.tsv"),
            _HERE,
            questions.mmbench(questions.LETTER_CN),
            max_new_tokens=1024,
            is_rolled=True,
            is_scored_by_questions=True,
            submission=".xlsx",
        ),
        Task(
            "mmvet",
            ("mm-vet", "mmvet"),
            ("llava-mm-vet.jsonl", "mm-vet.json"),
            _HERE,
            questions.mmvet,
            max_new_tokens=1024,
            annotations=("mm-vet.json",),
            submission=".json",
        ),
        Task(
            "llava_wild",
            ("llava-bench-in-the-wild", "llava_wild"),
            ("questions.jsonl",),
            _HERE,
            questions.llavas("it is no questions.jsonl with `text` and `image`"),
            max_new_tokens=1024,
            annotations=("context.jsonl", "answers_gpt4.jsonl"),  # for the judge
        ),
        Task(
            "seed",
            ("seed_bench", "seed"),
            ("llava-seed-bench.jsonl", "SEED-Bench.json"),
            (".", "images"),
            questions.seed,
            annotations=("SEED-Bench.json",),
            submission=".jsonl",
        ),
        _captions(
            "coco_caption",
            ("coco_caption", "coco"),
            (
                "dataset_coco.json",
                "coco_karpathy_test.json",
                "coco_karpathy_test_gt.json",
                "captions_val2014.json",
            ),
            ("val2014", "images/val2014", *_HERE),
            "dataset_coco.json",
        ),
        _captions(
            "flickr30k",
            ("flickr30k",),
            (
                "dataset_flickr30k.json",
                "flickr30k_test.json",
                "results_20130124.token",
            ),
            ("flickr30k-images", "flickr30k_images", *_HERE),
            "dataset_flickr30k.json",
        ),
        _captions(
            "nocaps",
            ("nocaps",),
            ("nocaps_val_4500_captions.json", "nocaps_val.json"),
            ("val", "images/val", *_HERE),
            "nocaps_val_4500_captions.json",
        ),
        _captions(
            "conceptual",
            ("conceptual", "cc3m"),
            (
                "00000_stats.json",
                "conceptual_val.json",
                "conceptual_val.jsonl",
                "Validation_GCC-1.1.0-Validation.tsv",
            ),
            caption_files.CONCEPTUAL_FOLDERS,
            "Validation_GCC-1.1.0-Validation.tsv",
        ),
    )
}
# names of folders of benchmarks; POPE's own has a folder `coco`
_FOLDERS = frozenset(name for task in TASKS.values() for name in task.folders) - {"coco"}
