"""Pictures during training: one page a call, only for stages that generate text."""

import dataclasses

from sgqlm import config
from sgqlm.evals import samples
from sgqlm.scenes import builder
from sgqlm.train import stage_loop
from tests import tiny_model


def test_a_page_shows_questions_answers_and_references(tmp_path):
    world = dataclasses.replace(tiny_model.SCENES, num_train=3, num_val=2, num_test=1)
    builder.build(world, tmp_path / "scenes", workers=1)
    source = config.SourceConfig(path=str(tmp_path / "scenes"), tasks=("chat",))
    stages = (
        config.StageConfig(name="instruct", sources=(source,)),
        config.StageConfig(name="regions", sources=(source,), objective="region_text"),
    )
    model = tiny_model.make()
    settings = dataclasses.replace(model.config, train=config.TrainConfig(stages=stages))
    write = samples.page_writer(tmp_path)
    told = stage_loop.Sample("instruct", 7, model.params, settings, model.tokenizer)
    write(told)
    write(told._replace(stage="regions"))
    pages = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert pages == ["instruct-0000007.html"]
    page = (tmp_path / "samples" / pages[0]).read_text()
    opened = samples._open(source, settings)
    assert len(opened) == 2  # the validation split
    for index in range(2):
        turns = opened[index].turns
        assert turns[0]["value"].removeprefix("<image>\n") in page
        assert f"truth: {turns[1]['value']}" in page
