"""From a folder of photographs to batches, through the command line."""

import json
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from sgqlm.cli import common, main
from sgqlm.data import batch, records, sources
from sgqlm.text import tokenizer as tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "own_data.py"


def write_folder(folder):
    """Write four photographs of one object each, and one conversation without a picture."""
    (folder / "images").mkdir(parents=True)
    found = []
    for k, colour in enumerate(["red", "green", "blue", "black"]):
        image = Image.new("RGB", (150, 100), (225, 222, 214))
        ImageDraw.Draw(image).ellipse((20 + 15 * k, 20, 90 + 15 * k, 80), fill=colour)
        image.save(folder / "images" / f"{colour}.jpg", quality=92)
        turns = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": f"It is {colour}."},
            {"from": "human", "value": "What shape is it?"},
            {"from": "gpt", "value": "It is round."},
        ]
        found.append({"id": colour, "image": f"{colour}.jpg", "conversations": turns})
    turns = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Good morning."}]
    found.append({"id": "talk", "conversations": turns})
    (folder / "talks.json").write_text(json.dumps(found))
    return found


def test_a_folder_becomes_batches_in_which_answers_and_own_questions_are_trained(tmp_path):
    write_folder(tmp_path / "photos")
    built = tmp_path / "set"
    assert main.main(["data", "check", str(tmp_path / "photos")]) == 0
    assert main.main(["data", "build", str(tmp_path / "photos"), "--out", str(built)]) == 0
    settings, rest = common.load_config([f"--config={CONFIG}:{built}"])
    assert rest == []
    [stage] = settings.train.stages
    source = sources.open_source(stage.sources[0])
    samples = [source[i] for i in range(len(source))]
    corpus = [turn["value"].replace("<image>", "") for s in samples for turn in s.turns]
    tokenizer = tokenizers.load(tokenizers.train(corpus, settings.text.vocab_size))
    made = batch.make_batch(
        samples, model=settings.model, text=settings.text, tokenizer=tokenizer, self_questioning=1.0
    )
    assert list(made.image_valid) == [True] * 4 + [False]
    assert made.graph.valid[:4].any(1).all() and not made.graph.valid[4].any()
    assert made.graph.coverage[:4].max() == 255
    trained = [
        tokenizer.decode([int(t) for t in row if t >= 0]).strip() for row in np.asarray(made.labels)
    ]
    assert trained[0] == "What colour is it?It is red.What shape is it?It is round."
    assert trained[4] == "Good morning."
    pixels = made.images[[0, 2], 56, [49, 72]].astype(int)
    assert pixels[0, 0] > 200 > pixels[0, 2] and pixels[1, 2] > 200 > pixels[1, 0]


def test_entities_extracted_on_their_own_give_the_same_data_set(tmp_path):
    write_folder(tmp_path / "photos")
    photos, store = str(tmp_path / "photos"), str(tmp_path / "store")
    words = ["--extractor=regions", f"--images={photos}/images", f"--out={store}"]
    assert main.main(["entities", "extract", *words]) == 0
    for name, entities in (("first", "regions"), ("second", store)):
        out = f"--out={tmp_path / name}"
        assert main.main(["data", "build", photos, out, f"--entities={entities}"]) == 0
    first, second = (records.EntityStore(tmp_path / n / "entities") for n in ("first", "second"))
    assert first.keys() == second.keys() and len(first) == 4
    for row in range(4):
        assert first[row].masks == second[row].masks


def test_a_rebuild_is_equal_byte_for_byte(tmp_path):
    write_folder(tmp_path / "photos")
    trees = []
    for _ in range(2):
        assert (
            main.main(["data", "build", str(tmp_path / "photos"), f"--out={tmp_path / 'set'}"]) == 0
        )
        files = sorted(p for p in (tmp_path / "set").rglob("*") if p.is_file())
        trees.append({p.relative_to(tmp_path): p.read_bytes() for p in files})
    assert trees[0] == trees[1]
