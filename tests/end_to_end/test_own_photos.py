"""A tiny model learns photographs by heart through the command line, and answers from the image."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sgqlm import errors
from sgqlm.cli import main
from tests import paths

CONFIG = paths.ROOT / "configs" / "own_data.py"
SMALL = (
    "--config.model.vision.image_size=56",
    "--config.model.vision.num_layers=2",
    "--config.model.prototypes.num_prototypes=4",
    "--config.model.prototypes.iterations=1",
    "--config.model.graph.num_nodes=4",
    "--config.model.graph.num_rounds=1",
    "--config.train.stages.end_to_end.epochs=0",
    "--config.train.stages.end_to_end.min_steps=50",
    "--config.train.tensorboard=false",
)
ANSWERS = {
    "red": "a red disc on a light wall",
    "green": "one green leaf",
    "blue": "the blue lake, seen from above",
    "black": "a black cat at night",
    "orange": "an orange on a plate",
    "purple": "purple flowers in the rain",
}


def write_photographs(folder: pathlib.Path) -> pathlib.Path:
    """Write six pictures with one and the same question, and a conversation without a picture."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    talks = []
    for number, (colour, answer) in enumerate(ANSWERS.items()):
        wall = rng.integers(170, 250, (56, 56, 3)).astype(np.uint8)
        image = Image.fromarray(wall)
        left, top = 4 + 5 * number, 24 - 4 * number
        ImageDraw.Draw(image).ellipse((left, top, left + 24, top + 28), fill=colour)
        image.save(folder / "images" / f"{colour}.png")
        turns = [
            {"from": "human", "value": "<image>\nWhat does this picture show?"},
            {"from": "gpt", "value": answer},
        ]
        talks.append({"id": colour, "image": f"{colour}.png", "conversations": turns})
    turns = [{"from": "human", "value": "Good morning!"}, {"from": "gpt", "value": "Good evening."}]
    talks.append({"id": "greeting", "conversations": turns})
    file = folder / "talks.json"
    file.write_text(json.dumps(talks))
    return file


def learn_and_measure(file, images, folder, *settings):
    """Build, train and measure as a user does; return the figures of `sgqlm eval --out`."""
    built, run, figures = (str(folder / name) for name in ("set", "run", "figures.json"))
    assert main.main(["data", "build", str(file), f"--images={images}", f"--out={built}"]) == 0
    workdir = f"--config.train.workdir={run}"
    assert main.main(["train", f"--config={CONFIG}:{built}", workdir, *settings]) == errors.OK
    words = [f"--checkpoint={run}", f"--data={built}", f"--out={figures}"]
    assert main.main(["eval", *words]) == errors.OK
    return json.loads(pathlib.Path(figures).read_text())


@pytest.mark.slow
def test_drawn_pictures_are_told_apart(tmp_path, capsys):
    file = write_photographs(tmp_path / "photos")
    found = learn_and_measure(file, tmp_path / "photos" / "images", tmp_path, *SMALL)
    assert found["answers"]["count"] == 7 and found["answers"]["accuracy"] >= 0.9
    assert found["swapped"]["count"] == 6 and found["swapped"]["accuracy"] <= 0.2
    assert "all answers       1.000   7 of 7 exactly" in capsys.readouterr().out
    given = [miss["given"] for miss in found["swapped"]["wrong"]]
    assert sum(text in ANSWERS.values() for text in given) >= 5, "the other image is answered"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_question_about_fourteen_photographs(tmp_path):
    real = paths.shared("real")
    found = learn_and_measure(real / "same_question.json", real / "images", tmp_path)
    assert found["answers"]["count"] == found["swapped"]["count"] == 14
    assert found["answers"]["accuracy"] >= 0.9
    assert found["swapped"]["accuracy"] <= 0.2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_conversations_are_learnt_while_half_the_questions_are_the_models_own(tmp_path):
    real = paths.shared("real")
    found = learn_and_measure(real / "conversations.json", real / "images", tmp_path)
    asks = json.loads((tmp_path / "run" / "config.json").read_text())["text"]["self_questioning"]
    assert asks == 0.5
    assert found["answers"]["count"] > found["swapped"]["count"] > 14
    assert found["answers"]["accuracy"] >= 0.9
