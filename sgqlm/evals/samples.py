"""Pictures of sample answers while a model trains."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator

from sgqlm import config, errors
from sgqlm import model as model_lib
from sgqlm.data import images, pipeline
from sgqlm.decode import inputs
from sgqlm.evals import runner
from sgqlm.train import stage_loop
from sgqlm.viz import pages, quickstart_report

NUM_SAMPLES = 4
SEARCHED = 64  # records looked through for samples with an image


def page_writer(workdir: str | os.PathLike) -> Callable[[stage_loop.Sample], None]:
    """Return a sampler for `stage_loop.Hooks` that writes `samples/<stage>-<step>.html`.

    Each page shows the first images of the stage's validation split (of its training data where it
    has none): entities, graph and prototypes, the first question, the model's answer beside the
    reference. Stages that do not generate text write nothing.

    Args:
        workdir: the folder of the run.
    """
    folder = pathlib.Path(workdir) / "samples"

    def write(sample: stage_loop.Sample) -> None:
        settings = sample.config
        stage = next(s for s in settings.train.stages if s.name == sample.stage)
        rows = list(_rows(stage.sources[0], settings)) if stage.objective == "lm" else []
        if not rows:
            return
        model = model_lib.VisionLanguageModel(settings, sample.params, sample.tokenizer)
        answers = model.respond([row for row, _ in rows], max_new_tokens=32)
        cards = [
            quickstart_report.example_card(
                i, runner.example(model, row, answer=answer, truth=truth)
            )
            for i, ((row, truth), answer) in enumerate(zip(rows, answers, strict=True))
        ]
        page = pages.page(f"{sample.stage}, step {sample.step}", cards)
        pages.write(folder / f"{sample.stage}-{sample.step:07d}.html", page)

    return write


def _rows(source: config.SourceConfig, settings: config.Config) -> Iterator:
    opened = _open(source, settings)
    count = 0
    for index in range(min(len(opened), SEARCHED)):
        sample = opened[index]
        if sample.image is None or count == NUM_SAMPLES:
            continue
        count += 1
        question, truth = sample.turns[0]["value"], sample.turns[1]["value"]
        text = question.replace("<image>", "").strip()
        image = images.open_image(sample.image, where=sample.record_key)
        yield inputs.Row([inputs.human(text)], image, sample.entities), truth


def _open(source: config.SourceConfig, settings: config.Config) -> pipeline.Source:
    for split in ("val", source.split):
        try:
            found = pipeline.open_source(
                dataclasses.replace(source, split=split), seed=settings.train.seed
            )
        except errors.SgqlmError:
            continue
        if len(found):
            return found
    return pipeline.open_source(source, seed=settings.train.seed)
