import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from sgqlm import config, errors
from sgqlm.train import checkpoint, state, workdir
from tests.train import toys

HOLD = """
import pathlib, sys
from sgqlm.train import workdir
with workdir.claim(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def owner(folder, **fields):
    about = {"pid": 1, "host": "elsewhere", "since": "yesterday"} | fields
    (folder / workdir.LOCK).write_text(json.dumps(about))


def test_a_living_process_keeps_others_out_and_a_dead_one_does_not(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(errors.SgqlmError, match="is locked by") as caught,
            workdir.claim(tmp_path),
        ):
            raise AssertionError
        assert f"process {holder.pid} on {socket.gethostname()} since 2" in str(caught.value)
        assert str(tmp_path / workdir.LOCK) in caught.value.fix
        assert caught.value.code == errors.USAGE
        holder.kill()
    with workdir.claim(tmp_path):
        assert json.loads((tmp_path / workdir.LOCK).read_text())["pid"] == os.getpid()
    assert f"taken over from process {holder.pid}" in capsys.readouterr().err
    assert (tmp_path / workdir.LOCK).read_text() == ""
    with workdir.claim(tmp_path):
        assert capsys.readouterr().err == ""


def test_another_host_is_asked_for_a_sign_of_life(tmp_path, capsys):
    owner(tmp_path)
    file, stopped = tmp_path / workdir.LOCK, threading.Event()

    def beat():
        while not stopped.wait(0.01):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        known = pytest.raises(errors.SgqlmError, match="process 1 on elsewhere since yesterday")
        with known, workdir.claim(tmp_path, watch_seconds=2.0):
            raise AssertionError
    finally:
        stopped.set()
        thread.join()
    with workdir.claim(tmp_path, watch_seconds=0.1):
        assert "taken over from process 1 on elsewhere" in capsys.readouterr().err


def test_an_unreadable_lock_is_that_of_an_unknown_process(tmp_path, capsys):
    (tmp_path / workdir.LOCK).write_text("{")
    with workdir.claim(tmp_path, watch_seconds=0.1):
        assert "taken over from process ? on ?" in capsys.readouterr().err


def test_room_counts_what_will_be_replaced(tmp_path):
    free = workdir.shutil.disk_usage(tmp_path).free
    workdir.check_room(tmp_path / "new", 1000, "it")
    with pytest.raises(errors.SgqlmError, match="too little room for it") as caught:
        workdir.check_room(tmp_path, 2 * free, "it")
    assert caught.value.code == errors.RESOURCES
    assert not list(tmp_path.iterdir())
    large = tmp_path / checkpoint.FOLDER / "large"
    large.parent.mkdir()
    with large.open("wb") as stream:
        stream.truncate(2 * free)  # a sparse file
    workdir.check_room(tmp_path, 2 * free, "it")


def test_the_size_of_a_checkpoint():
    params = toys.params()
    rows = (toys.stage(), toys.stage(name="b", learning_rates={"graph": 1.0}))
    projector, graph = 20 * 4, 4 * 4
    assert {row.part: row.bytes for row in state.part_table(params, {})} == {
        "projector": projector,
        "graph": graph,
    }
    assert workdir.checkpoint_bytes(params, rows, has_base=False) == 3 * projector + graph
    assert workdir.checkpoint_bytes(params, rows[1:], has_base=True) == 3 * graph
    assert config.TrainConfig().keep == 2
