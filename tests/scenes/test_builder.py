import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from sgqlm import config, errors
from sgqlm.data import graphs
from sgqlm.scenes import builder, examples, render, world

CFG = config.SceneConfig(num_train=24, num_val=3, num_test=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "scenes"
    seen = []
    assert builder.build(CFG, path, 1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (31, 31)
    return path


def files(path):
    return {p.name: p.read_bytes() for p in pathlib.Path(path).iterdir()}


def test_rebuilt_by_other_processes_it_is_equal_byte_for_byte(folder, tmp_path):
    assert builder.build(CFG, tmp_path / "again", 2)
    assert files(tmp_path / "again") == files(folder)
    assert os.listdir(tmp_path) == ["again"]


def test_records_give_back_scenes_pictures_masks_and_entities(folder):
    for split, number in (("train", 24), ("val", 3), ("test", 4)):
        source = builder.SceneSource(folder, split)
        assert len(source) == number
        for index in range(0, number, 2):
            example = source[index]
            scene = world.make_scene(CFG, split, index)
            assert example.scene == scene
            assert hash(example.scene) == hash(scene)
            image, ids = render.draw(scene)
            assert np.array_equal(np.asarray(example.open_image()), np.asarray(image))
            for k, mask in enumerate(example.masks):
                assert np.array_equal(graphs.decode_rle(mask), ids == k + 1)
            entities, truth = world.detect(scene, ids, CFG)
            assert np.array_equal(example.truth, truth)
            assert np.array_equal(example.entities.boxes, entities.boxes)
            assert np.array_equal(example.entities.scores, entities.scores)
            assert np.array_equal(example.entities.dense_masks(), entities.dense_masks())
            assert list(example.entities.labels) == []


def test_a_record_without_entities_comes_back():
    cfg = config.SceneConfig(missed=1.0, spurious=0.0)
    example = examples.make_example(cfg, "train", 0)
    again = examples.from_record(examples.to_record(example))
    assert len(again.entities) == 0
    assert again.entities.dense_masks().shape == (0, 112, 112)
    assert again.scene == example.scene


def test_a_source_travels_to_other_processes(folder):
    source = pickle.loads(pickle.dumps(builder.SceneSource(folder, "val")))
    assert source[2].scene == world.make_scene(CFG, "val", 2)


def test_a_finished_set_is_left_alone_and_another_refused(folder):
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert not builder.build(CFG, folder, 1)
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    other = config.SceneConfig(num_train=25, num_val=3, num_test=4)
    with pytest.raises(errors.SgqlmError, match="something else") as caught:
        builder.build(other, folder, 1)
    assert caught.value.code == errors.DATA
    assert builder.digest(CFG) == builder.digest(config.SceneConfig("elsewhere", 112, 24, 3, 4))


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        few = config.SceneConfig(num_train=2, num_val=1, num_test=1)
        builder.build(few, tmp_path / "scenes", 1, progress=stop)
    assert os.listdir(tmp_path) == []


def test_missing_set_and_split_are_named(folder, tmp_path):
    with pytest.raises(errors.SgqlmError, match="no scene data set"):
        builder.SceneSource(tmp_path / "nothing", "train")
    with pytest.raises(errors.SgqlmError, match="dev"):
        builder.SceneSource(folder, "dev")


def test_nothing_heavy_is_imported():
    program = (
        "import sys; from sgqlm.scenes import examples, questions\n"
        "assert not {'jax', 'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules)\n"
        "from sgqlm.scenes import builder\n"
        "assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
