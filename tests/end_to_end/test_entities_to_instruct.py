"""From a published format and neural extraction to a trained model, by the commands a user types.

The relations are the genuine excerpt of Visual Genome. Its photographs are not beside it, so
pictures of their sizes are drawn, every annotated box in a colour of its own: what is shown is that
the whole path works, not that relations are seen in photographs. The extractor is RAM++,
Grounding-DINO and SAM with tiny random weights in the real layout; the photographs are real.
"""

import dataclasses
import json
import pathlib
import zlib

import pytest
from PIL import Image, ImageDraw

from sgqlm import config, errors
from sgqlm.cli import main
from sgqlm.data import records
from sgqlm.models import presets
from sgqlm.train import metrics
from tests import paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def sgqlm(*words):
    assert main.main([str(word) for word in words]) == errors.OK


def draw_photographs(relationships: pathlib.Path, folder: pathlib.Path) -> None:
    """Draw a picture for every image of a Visual Genome file."""
    folder.mkdir(parents=True)
    for entry in json.loads(relationships.read_text()):
        found = [r[end] for r in entry["relationships"] for end in ("subject", "object")]
        found.sort(key=lambda thing: -thing["w"] * thing["h"])
        width = max(thing["x"] + thing["w"] for thing in found)
        height = max(thing["y"] + thing["h"] for thing in found)
        image = Image.new("RGB", (width, height), (230, 230, 225))
        draw = ImageDraw.Draw(image)
        for thing in found:
            name = thing.get("name") or thing["names"][0]
            shade = zlib.crc32(name.encode())
            colour = tuple(40 + (shade >> 8 * k) % 200 for k in range(3))
            x, y = thing["x"], thing["y"]
            draw.rectangle((x, y, x + thing["w"], y + thing["h"]), fill=colour)
        image.save(folder / f"{entry['image_id']}.jpg", quality=92)


@pytest.fixture
def extractor(tmp_path):
    """Return the flags of the `paper` extractor with tiny random weights."""
    pytest.importorskip("torch", reason="needs torch")
    from tests.entities import tiny_detectors, tiny_segmenters

    parts = {
        "tagger": tiny_detectors.ram_plus(tmp_path / "ram_plus"),
        "detector": tiny_detectors.grounding_dino(tmp_path / "dino"),
        "segmenter": tiny_segmenters.sam(tmp_path / "sam"),
    }
    return ["--extractor=paper", *(f"--{name}-weights={path}" for name, path in parts.items())]


def settings(relations: pathlib.Path, talks: pathlib.Path, workdir: pathlib.Path) -> config.Config:
    tiny = presets.get("tiny")
    none = config.LoraConfig()
    model = dataclasses.replace(tiny, vision_lora=none, llm_lora=none, region_words=0)
    slow = dict.fromkeys(("vision", "prototypes", "projector", "graph"), 3e-4)

    def stage(name, source, steps, rates):
        path = config.SourceConfig(name=source.name, path=str(source))
        return config.StageConfig(
            name=name, sources=(path,), steps=steps, batch_size=14, learning_rates=rates, b2=0.98
        )

    return config.Config(
        model=model,
        text=config.TextConfig(tokenizer="train", system="", self_questioning=0.0),
        data=config.DataConfig(
            buckets=(128, 256, 512), cache_images=True, node_dropout=0.1, node_jitter=0.1
        ),
        train=config.TrainConfig(
            workdir=str(workdir),
            tensorboard=False,
            mesh={},
            stages=(
                stage("graph", relations, 40, {"graph": 2e-3}),
                stage("instruct", talks, 150, slow | {"llm": 2e-3}),
            ),
        ),
    )


def test_relations_then_instructions_on_extracted_entities(tmp_path, extractor):
    samples = paths.shared("samples/visual_genome")
    real = paths.shared("real")
    draw_photographs(samples / "relationships.json", tmp_path / "VG_100K")
    relations, entities, talks = (tmp_path / name for name in ("relations", "entities", "talks"))
    sgqlm(
        "data", "build", samples, "--card=visual_genome", f"--images={tmp_path}",
        f"--out={relations}", "--split", "all",
    )  # fmt: skip
    sgqlm(
        "entities", "extract", f"--images={real / 'images'}", f"--out={entities}",
        *extractor,
    )  # fmt: skip
    store = records.EntityStore(entities)
    assert len(store) == 14 and sum(len(store[row]) for row in range(14)) > 14
    assert store.manifest["about"]["entities"] == sum(len(store[row]) for row in range(14))
    sgqlm(
        "data", "build", real / "same_question.json", f"--images={real / 'images'}",
        f"--entities={entities}", f"--out={talks}",
    )  # fmt: skip
    file, run = tmp_path / "config.json", tmp_path / "run"
    file.write_text(json.dumps(config.to_dict(settings(relations, talks, run))))
    sgqlm("train", f"--config={file}")
    losses = metrics.read(run)
    first, last = (losses["graph"][step]["loss"] for step in (10, 40))
    assert last < first - 0.1, "stage graph learns with everything else frozen"
    sgqlm(
        "eval", f"--checkpoint={run}", f"--data={talks}", f"--out={tmp_path / 'figures.json'}"
    )  # fmt: skip
    found = json.loads((tmp_path / "figures.json").read_text())
    print("graph loss", first, "to", last, "; answers", found["answers"], found["swapped"])
    assert found["answers"]["accuracy"] >= 0.9 and found["swapped"]["accuracy"] <= 0.2
