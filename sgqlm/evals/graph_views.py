"""What the scene graphs of trained models made of questions that they answered."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from sgqlm import errors
from sgqlm import model as model_lib
from sgqlm.evals import benchmark, measured, pictures, self_asked_rounds
from sgqlm.train import checkpoint
from sgqlm.viz import scene_graph

_STRONGEST = 6  # edges that a report keeps as numbers


@dataclasses.dataclass(frozen=True)
class View:
    """An answered question as the model saw it.

    Attributes:
        image: the picture, upright.
        graph: its nodes, what the question activates, who listens to whom.
        words: on the picture.
    """

    image: Image.Image
    graph: model_lib.SceneGraph
    words: str

    def told(self) -> dict[str, Any]:
        """Return nodes and the strongest edges as json values."""
        graph = self.graph
        edges = scene_graph.arrows(graph.edges, len(graph.edges))[: -_STRONGEST - 1 : -1]
        labels = graph.entities.labels or [""] * len(graph.entities)  # none where nothing is tagged
        nodes = zip(labels, graph.node_attention.tolist(), strict=True)
        return {
            "nodes": [{"label": label, "attention": round(value, 4)} for label, value in nodes],
            "edges": [
                {"from": e.sender, "to": e.receiver, "weight": round(float(e.weight), 4)}
                for e in edges
            ],
        }


class Viewer:
    """Show the graphs behind answers, with the model that gave them.

    One model is in memory at a time, loaded when its first report comes.
    """

    def __init__(self, runs: Sequence[str], *, base: str | None = None):
        """Find the checkpoints.

        Args:
            runs: checkpoints, exports or work directories.
            base: where the base weights lie, if they were moved.

        Raises:
            SgqlmError: there is no such folder.
        """
        for run in runs:
            if not pathlib.Path(run).is_dir():
                fix = "give a checkpoint, an export or a work directory"
                raise errors.SgqlmError(
                    "there is no such model", where=f"--checkpoint={run}", fix=fix
                )
        self._runs = {run: checkpoint.resolved(run) for run in runs}
        self._base = base
        self._loaded: tuple[str, model_lib.VisionLanguageModel] | None = None

    def why_not(self, report: measured.Report) -> str:
        """Return why the graphs behind a report cannot be shown, empty where they can."""
        if report.settings.get("entities") == "none":
            return "no graphs: it was answered without entities"
        if report.settings.get(self_asked_rounds.KEY):
            return "no graphs: the model read self-asked rounds too, which the report does not have"
        if self._run(report):
            return ""
        of = report.settings.get("checkpoint")
        return f"no graphs: the answers are those of {of or 'an unknown checkpoint'}"

    def _run(self, report: measured.Report) -> str | None:
        of = report.settings.get("checkpoint")
        if of is None:  # another program's answers, or scored from a file
            return next(iter(self._runs)) if len(self._runs) == 1 else None
        same = [run for run, path in self._runs.items() if _is_same(path, pathlib.Path(of))]
        return same[0] if same else None

    def views(
        self,
        report: measured.Report,
        items: Mapping[str, measured.Item],
        drawer: pictures.Pictures,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[dict[str, View], list[str]]:
        """Return what the model saw of some questions.

        Args:
            report: whose answers they are.
            items: the questions, by id.
            drawer: has pictures and entities.
            progress: told how many are done.

        Returns:
            Id -> view of those that have a graph, and why others have none, one line a reason.
        """
        if why := self.why_not(report):
            return {}, [why]
        out: dict[str, View] = {}
        reasons: list[str] = []
        model = None
        for done, (key, item) in enumerate(items.items(), 1):
            found = drawer.find(item, report.task)
            if found.image is None or found.entities is None:
                reasons.append("without the picture or its entities")
            else:
                try:
                    asked = item.asked or item.question
                    model = model or self._model(report)
                    graph = model.scene_graph(found.image, asked, found.entities)
                    out[key] = View(found.image, graph, found.words)
                except errors.SgqlmError as error:
                    if error.code not in (errors.USAGE, errors.DATA):
                        raise
                    reasons.append(error.line)
                if found.store != report.settings.get("entities", found.store):
                    reasons.append("the entities are not those of the answers: another store")
            progress(done)
        return out, _counted(reasons, len(items))

    def _model(self, report: measured.Report) -> model_lib.VisionLanguageModel:
        run, template = self._run(report), str(report.settings.get("template") or "trained")
        assert run is not None
        if self._loaded is None or self._loaded[0] != run:
            self._loaded = None  # free the one before
            model = model_lib.load(run, base=self._base)
            if not model.config.model.graph.enabled:
                raise errors.SgqlmError(
                    "this model has no scene graph", where=f"--checkpoint={run}",
                    why="it was trained with graph.enabled off", code=errors.CHECKPOINT,
                )  # fmt: skip
            self._loaded = run, model
        return benchmark.with_template(self._loaded[1], template)


def _counted(reasons: Sequence[str], total: int) -> list[str]:
    return [f"graphs: {reasons.count(why)} of {total}: {why}" for why in dict.fromkeys(reasons)]


def _is_same(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Return whether two paths are one checkpoint, here or in a copy of its run elsewhere."""
    is_step = a.parent.name == checkpoint.FOLDER
    return a == b or (a.parts[-3:] == b.parts[-3:] if is_step else a.name == b.name)
