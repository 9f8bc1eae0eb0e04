"""`scenes` and `relations` in a list of tasks: measured on what is drawn, or built by `sgqlm data`.

They are measured after the benchmarks, by the first process of several alone, with the template
that the model was trained with.
"""

import argparse
import dataclasses
import difflib
import pathlib
from collections.abc import Sequence

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.cli import eval_model, eval_relations, eval_scenes
from sgqlm.evals import judging, scene_graphs, scoring
from sgqlm.evals import tasks as tasks_lib

NAMES = (eval_scenes.TASK, scene_graphs.TASK)
# flags that all tasks have; those of relations are told, and the rest is the benchmarks'
_OF_ALL = (
    "help", "tasks", "checkpoint", "base", "mesh", "entities", "out", "limit", "batch_size",
    "model_id", "retry",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Own:
    """The tasks of `NAMES` that are measured.

    Attributes:
        names: of them.
        relations: what is asked and compared; None where it is not among them.
        folders: of the results, one a name.
    """

    names: tuple[str, ...]
    relations: eval_relations.Prepared | None
    folders: tuple[pathlib.Path, ...]

    def measure(
        self,
        model: model_lib.VisionLanguageModel,
        settings: config.Config,
        source: eval_model.Source,
        args: argparse.Namespace,
    ) -> None:
        """Measure a model on them, and write answers and reports to their folders."""
        if args.batch_size:
            changed = dataclasses.replace(settings.eval, batch_size=args.batch_size)
            settings = dataclasses.replace(settings, eval=changed)
        for name, folder in zip(self.names, self.folders, strict=True):
            if name == eval_scenes.TASK:
                eval_scenes.measure(model, settings, source, folder, limit=args.limit)
            elif self.relations:
                found = dataclasses.replace(self.relations, folder=folder)
                eval_relations.measure(found, model, settings, source, args)


def names_of(tasks: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the benchmarks of official files that --tasks names, and those of `NAMES`.

    Raises:
        SgqlmError: it names none, or one that is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise errors.SgqlmError("no task is named", where="--tasks")
    files = [name for name in names if name not in NAMES]
    known = (*tasks_lib.TASKS, *NAMES)
    for name in files:
        if name not in known:
            raise _unknown(name, known)
    return files, tuple(name for name in names if name in NAMES)


def _unknown(name: str, known: Sequence[str]) -> errors.SgqlmError:
    if name in (*scoring.TASKS, *judging.TASKS):
        return errors.SgqlmError(
            f"{name} can be scored, but not asked",
            where="--tasks",
            fix=f"`sgqlm eval score ANSWERS --task {name}` measures answers of any model",
        )
    others = {folder: task.name for task in tasks_lib.TASKS.values() for folder in task.folders}
    words = {**others, "sqa": "scienceqa", **{word: word for word in known}}
    near = difflib.get_close_matches(name.lower(), words, n=1)
    return errors.SgqlmError(
        f"there is no benchmark {name!r}",
        where="--tasks",
        fix=(f"did you mean {words[near[0]]}? " if near else "") + "known: " + ",".join(known),
    )


def prepare(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    of_relations: Sequence[str],
    out: pathlib.Path,
) -> Own:
    """Check the flags of each kind of task, and read what the own ones need.

    Args:
        args: the parsed flags.
        parser: that parsed them.
        of_relations: what `eval_relations.add_flags` returned.
        out: folder of all results.

    Raises:
        SgqlmError: a flag belongs to a task that is not named, or what it names is wrong.
    """
    files, names = names_of(args.tasks)
    if not files:
        known = {*_OF_ALL, *of_relations}
        others = [action.dest for action in parser._actions if action.dest not in known]
        _refuse(args, parser, others, "benchmarks of official files, such as gqa")
    if scene_graphs.TASK not in names:
        _refuse(args, parser, of_relations, "relations")
        if not files:
            _refuse(args, parser, ("entities", "retry"), "benchmarks and relations")
    is_alone = not files and len(names) == 1
    found = None
    if scene_graphs.TASK in names:
        found = eval_relations.prepare(args, is_alone=is_alone, has_files=bool(files))
    place = found.folder if found and is_alone else out
    folders = tuple(place / name for name in names)
    return Own(names, found, folders)


def _refuse(args, parser: argparse.ArgumentParser, names: Sequence[str], owner: str) -> None:
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            raise errors.SgqlmError(
                f"{flag} is a flag of {owner}, and none is measured",
                where=flag,
                fix="leave it out, or name the task in --tasks",
            )
