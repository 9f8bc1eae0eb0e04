import json
import os
import pathlib
import signal
import threading

import pytest

from sgqlm import config, errors
from sgqlm.cli import common


def load(*words):
    return common.load_config(words)


def test_sigterm_is_no_error_to_go_on_after():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(errors.SgqlmError, match="SIGTERM") as caught, common.stoppable("kept"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(1)
        except Exception as error:  # as where one image or judge of many may fail
            raise AssertionError from error
    assert (caught.value.code, caught.value.why) == (errors.PREEMPTED, "kept")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost(number, capsys):
    class Last:
        def __del__(self):
            os.kill(os.getpid(), number)
            threading.Event().wait(0.5)

    with pytest.raises((errors.SgqlmError, KeyboardInterrupt)) as caught, common.stoppable("kept"):
        Last()
        threading.Event().wait(1)
    assert isinstance(caught.value, KeyboardInterrupt) == (number == signal.SIGINT)
    assert capsys.readouterr().err == ""


def message(*words):
    with pytest.raises(errors.SgqlmError) as caught:
        load(*words)
    assert caught.value.code == errors.USAGE
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(arg='5'):\n"
        "    c = ml_collections.ConfigDict({'train': {'seed': int(arg)}})\n"
        "    c.train.stages = [{'name': 'align', 'learning_rates': {'projector': 1e-3}},\n"
        "                      {'name': 'instruct', 'batch_size': 4}]\n"
        "    return c\n"
    )
    return str(path)


def test_files_arguments_and_rest(file):
    assert load()[0] == config.Config()
    assert load(f"--config={file}")[0].train.seed == 5
    found, rest = load("--workers", "3", "--config", f"{file}:7", "out")
    assert found.train.seed == 7
    assert rest == ["--workers", "3", "out"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train.seed=3", 3),
        ("train.stages.1.batch_size=8", 8),
        ("train.stages.instruct.batch_size=8", 8),
        ("train.stages.align.learning_rates.projector=2e-4", 2e-4),
        ("train.stages.align.learning_rates.graph=1", 1.0),
        ("train.stages.align.self_questioning=0.25", 0.25),
        ("train.stages.align.self_questioning=none", None),
        ("train.only=align,instruct", ("align", "instruct")),
        ("train.only=", ()),
        ("train.tensorboard=false", False),
        ("train.workdir=a=b", "a=b"),
        ("data.buckets=64,128", (64, 128)),
        ("data.buckets=[64]", (64,)),
        ("data.buckets=64", (64,)),
        ("train.mesh.data=2", 2),
        ("train.mesh={'data': 1, 'fsdp': 2}", {"data": 1, "fsdp": 2}),
        ("model.compute_dtype=float32", "float32"),
        ("text.system=", ""),
    ],
)
def test_overrides_are_typed(file, words, expected):
    found, _ = load(f"--config={file}", f"--config.{words}")
    keys = words.partition("=")[0].split(".")
    for key in keys:
        if isinstance(found, tuple):
            names = [stage.name for stage in found]
            found = found[names.index(key) if key in names else int(key)]
        else:
            found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == expected
    assert type(found) is type(expected)


def test_the_value_may_be_the_next_word():
    assert load("--config.train.seed", "4")[0].train.seed == 4


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("train.sede=1", ("unknown setting config.train.sede", "did you mean config.train.seed?")),
        ("trian.seed=1", ("did you mean config.train?",)),
        ("train.seed=abc", ("--config.train.seed=abc", "give int")),
        ("train.seed=1.5", ("give int",)),
        ("train.tensorboard=yes", ("give bool",)),
        ("train.remat=ful", ("did you mean 'full'?",)),
        ("train.seed.x=1", ("config.train.seed is one value",)),
        ("train.stages.instrct.steps=1", ("unknown setting config.train.stages.instrct",)),
        ("train=1", ("give a group of settings",)),
    ],
)
def test_mistakes_are_explained(words, parts):
    text = message(f"--config.{words}")
    for part in parts:
        assert part in text


def test_mistakes_in_files(tmp_path, file):
    assert f"did you mean {tmp_path / 'mine.py'}?" in message(f"--config={tmp_path / 'mien.py'}")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\n")
    assert "get_config" in message(f"--config={broken}")
    broken.write_text("def get_config():\n    return {'train': {'sead': 1}}\n")
    assert "did you mean config.train.seed?" in message(f"--config={broken}")
    assert "twice" in message(f"--config={file}", f"--config={file}")
    assert "needs a value" in message("--config.train.seed")


def test_the_dump_is_read_again(tmp_path, file):
    found, _ = load(f"--config={file}", "--config.train.stages.align.steps=3")
    dump = tmp_path / "config.json"
    common.write_config(found, dump)
    assert load(f"--config={dump}")[0] == found
    assert json.loads(dump.read_text())["train"]["seed"] == 5
    dump.write_text("{")
    assert "not JSON" in message(f"--config={dump}")


def test_unknown_arguments_are_refused():
    common.refuse_rest([])
    with pytest.raises(errors.SgqlmError, match="unknown argument") as caught:
        common.refuse_rest(["--confg=x.py"])
    assert "did you mean --config?" in caught.value.fix


@pytest.mark.parametrize(
    ("mesh", "flags", "expected"),
    [
        ({"data": 2}, "", "--xla_force_host_platform_device_count=2"),
        ({"data": 2, "fsdp": 2}, "--a=b", "--a=b --xla_force_host_platform_device_count=4"),
        ({"data": 1, "fsdp": -1}, "", ""),
        ({"data": 1}, "", ""),
        ({"data": 2}, "--xla_force_host_platform_device_count=8", None),
    ],
)
def test_host_devices(monkeypatch, mesh, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    common.force_host_devices(config.Config(train=config.TrainConfig(mesh=mesh)))
    assert common.os.environ["XLA_FLAGS"] == (flags if expected is None else expected)


def test_host_devices_are_shared_by_the_processes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    common.force_host_devices(config.Config(train=config.TrainConfig(mesh={"data": 8})))
    assert common.os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=4"


def test_an_output_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file" / "x.json", pathlib.Path("/proc/none/x.json")):
        with pytest.raises(errors.SgqlmError, match="the output cannot be written") as caught:
            common.check_file(path, (".json",))
        assert (caught.value.code, caught.value.where) == (errors.USAGE, f"--out={path}")
    common.check_file(tmp_path / "new" / "deep" / "x.json", (".json",))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(errors.SgqlmError, match="lies in a file") as caught:
        common.check_folder(tmp_path / "file" / "a" / "b", "--unpack")
    assert caught.value.where.startswith("--unpack=")
    common.check_folder(tmp_path / "new" / "deep")


def test_mistakes_that_argparse_finds_are_told_as_all_others():
    parser = common.Parser(prog="sgqlm eval --tasks=...")
    parser.add_argument("--limit", type=int)
    parser.add_argument("answers")
    with pytest.raises(errors.SgqlmError) as caught:
        parser.parse_args(["--limit=x", "a"])
    block = "invalid int value: 'x'\n  where: --limit\n  fix: `sgqlm eval --tasks=gqa --help`"
    assert str(caught.value).startswith(block) and caught.value.code == errors.USAGE
    with pytest.raises(errors.SgqlmError, match="required: answers") as caught:
        parser.parse_args([])
    assert caught.value.where == "sgqlm eval --tasks=..."
