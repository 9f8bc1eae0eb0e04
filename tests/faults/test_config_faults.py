"""Mistakes in a configuration stop `sgqlm train` with exit code 2 before anything is compiled."""

import json
import logging
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from sgqlm import errors
from sgqlm.cli import common, main
from tests import paths
from tests.train import micro

COMPILES = ("Compiling ", "XLA compilation of")
STAGE = "--config.train.stages.instruct"
MISTAKES = [  # words, what the message says
    ("--config.train.learing_rate=1", "did you mean config.train.stages.NAME.learning_rates?"),
    ("--config.train.workdr=x", "did you mean config.train.workdir?"),
    ("--config.zzz=1", "known: model, text, data, scenes, train, eval"),
    ("--config.train.stages.instrct.steps=1", "did you mean config.train.stages.instruct?"),
    ("--config.train.only=instrct", "did you mean 'instruct'? known: instruct"),
    (f"{STAGE}.learning_rates.projectr=1e-3", "did you mean 'projector'? known: vision,"),
    (f"{STAGE}.learning_rates.regions=1e-3", "trains regions, which this model does not have"),
    (f"{STAGE}.learning_rates={{}}", "stage instruct trains nothing"),
    (f"{STAGE}.template=plane", "did you mean 'plain'? known: plain, vicuna_v1, v1_sq"),
    (f"{STAGE}.objective=region", "one of lm, region_text; did you mean 'region_text'?"),
    ("--config.train.resume=maybe", "give one of auto, never, must"),
    ("--config.train.seed=first", "give int"),
    ("--config.train.tensorboard=2", "give bool"),
    ("--config.data.buckets=640,many", "give one or several int, with commas between them"),
    ("--config.data.buckets=[]", "has no lengths to pad to"),
    ("--config.data.graph_dropout=5", "give a share from 0 to 1"),
    (f"{STAGE}.self_questioning=-1", "config.train.stages.instruct.self_questioning is -1.0"),
    (f"{STAGE}.batch_size=0", "give at least 1 for batch_size and accumulation"),
    (f"{STAGE}.accumulation=3", "give a multiple of 3"),
    ("--config.train.mesh.fsp=2", "the axes are data, fsdp, tensor"),
    ("--config.train.mesh={'data': 3, 'fsdp': -1}", "does not fit 1 devices"),
    (f"{STAGE}.sources.scenes.name=coco", "'coco' has no path"),
    (f"{STAGE}.sources.scenes.path=HERE/phtos", "did you mean HERE/photos?"),
    (f"{STAGE}.sources.scenes.tasks=captoin", "did you mean 'caption'? known: caption,"),
    (f"{STAGE}.sources.scenes.weight=0", "source weights must be positive"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "photos").mkdir()
    settings = micro.settings(micro.stage("instruct", 1, "projector"), mesh={"data": -1})
    common.write_config(settings, folder / "config.json")
    return folder


def words_of(folder, word):
    run = f"--config.train.workdir={folder / 'run'}"
    return ["train", f"--config={folder / 'config.json'}", run, word.replace("HERE", str(folder))]


@pytest.mark.parametrize(("word", "message"), MISTAKES, ids=[word[9:45] for word, _ in MISTAKES])
def test_a_mistake_is_explained_and_nothing_is_compiled(
    word, message, folder, capsys, caplog, monkeypatch
):
    # else the CPU shows as many devices as the mesh asks for
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        code = main.main(words_of(folder, word))
    said = capsys.readouterr().err
    assert code == errors.USAGE, said
    assert message.replace("HERE", str(folder)) in said
    assert "where: " in said and "Traceback" not in said
    assert not any(sign in caplog.text for sign in COMPILES)
    assert not (folder / "run").exists()


def test_a_compilation_would_be_seen(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x * 3.25 - 1)(jnp.arange(7.0))
    assert all(sign in caplog.text for sign in COMPILES)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.train.learing_rate=1", "unknown setting config.train.learing_rate"),
        (f"{STAGE}.sources.scenes.name=coco", "the data source 'coco' has no path"),
        (f"{STAGE}.batch_size=3", "batch size 3 does not divide over 2 devices"),
    ],
)
def test_the_program_stops_within_five_seconds(word, message, folder):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = words_of(folder, word)
    if "batch_size" in word:
        words.append("--config.train.mesh.data=2")
    done = subprocess.run(
        [sys.executable, "-m", "sgqlm", *words],
        cwd=paths.ROOT,
        env={**os.environ, "JAX_LOG_COMPILES": "1", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == errors.USAGE and message in done.stderr
    assert not any(sign in done.stderr for sign in COMPILES)
    # time on the processor: what else the machine does is left out
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


def test_a_mistake_in_a_file_is_named_too(folder, capsys):
    tree = json.loads((folder / "config.json").read_text())
    tree["train"]["stages"][0]["batchsize"] = 4
    (folder / "typo.json").write_text(json.dumps(tree))
    assert main.main(["train", f"--config={folder / 'typo.json'}"]) == errors.USAGE
    assert "did you mean config.train.stages[0].batch_size?" in capsys.readouterr().err
