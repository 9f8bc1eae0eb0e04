"""What the processes of one evaluation tell each other; two of them here are two threads."""

import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from sgqlm import errors
from sgqlm.evals import answers, sharing

HEAD = {"task": "gqa", "model": "m"}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(sharing, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.05)
    # a thread in place of a process must not end the process of the tests
    monkeypatch.setattr(sharing, "_end_without_waiting", lambda code: None)


def together(folder, *works, watch_seconds=20.0):
    """Run one function in every process of a team; return what each gives or raises."""

    def at_work(index, work):
        team = sharing.Team(folder, index, len(works), watch_seconds=watch_seconds)
        try:
            with team.at_work():
                return work(team)
        except (errors.SgqlmError, ValueError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(at_work, *w) for w in enumerate(works)]]


def wait(team):
    while True:
        team.check()
        threading.Event().wait(0.01)


def test_all_hear_what_the_main_one_says_and_it_waits_for_their_shares(tmp_path):
    finished = []

    def work(team):
        plan = team.agree("plan", lambda: [[0, 1], [2, 3, 4], [5], [6]])
        own = sharing.share(plan, team)
        if team.index == 2:
            threading.Event().wait(0.3)
        finished.append(team.index)
        team.done("gqa")
        return own, list(finished)

    found = together(tmp_path / "run", work, work, work)
    assert [own for own, _ in found] == [[[2, 3, 4]], [[0, 1]], [[5], [6]]]  # none is torn
    assert sorted(found[0][1]) == [0, 1, 2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_ends_all_with_its_code(tmp_path, failing):
    def fail(team):
        raise errors.SgqlmError("there is no such file", code=errors.DATA)

    works = [wait, wait, wait]
    works[failing] = fail
    found = together(tmp_path / "run", *works)
    assert found[failing].what == "there is no such file"
    for index in {0, 1, 2} - {failing}:
        assert "of the evaluation failed" in found[index].what and found[index].code == errors.DATA
    others = [found[index].why for index in {0, 1, 2} - {failing}]
    assert "there is no such file" in others


def test_an_error_that_nobody_expected_is_told_too(tmp_path):
    def fail(team):
        raise ValueError("7 apples")

    first, second = together(tmp_path / "run", wait, fail)
    assert "ValueError: 7 apples" in first.why and first.code == errors.RESOURCES
    assert isinstance(second, ValueError)


def test_a_process_that_is_gone_is_missed(tmp_path):

    # of this machine: at once
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    folder = tmp_path / "run"
    folder.mkdir()
    space = sharing.pid_space()
    about = {"host": socket.gethostname(), "space": space, "pid": gone.pid, "beat": 3}
    (folder / "beat-1").write_text(json.dumps(about))
    team = sharing.Team(folder, 0, 2)
    team.check()  # first seen
    with pytest.raises(errors.SgqlmError, match="process 1 of the evaluation is gone") as caught:
        team.check()
    assert "start the same command again" in caught.value.fix and team.has_lost
    # of another, or of another container of this name: after a while without a sign
    about |= {"space": "elsewhere"}
    (folder / "beat-1").write_text(json.dumps(about))
    team = sharing.Team(folder, 0, 2, watch_seconds=0.2)
    team.check()
    team.check()
    threading.Event().wait(0.3)
    about |= {"beat": 4}
    (folder / "beat-1").write_text(json.dumps(about))
    team.check()
    threading.Event().wait(0.3)
    with pytest.raises(errors.SgqlmError, match="is gone"):
        team.check()
    # one that never came
    team = sharing.Team(folder, 0, 3, watch_seconds=0.0)
    threading.Event().wait(0.01)
    with pytest.raises(errors.SgqlmError, match=r"process [12] .* is gone"):
        team.check()


def test_one_that_has_ended_and_waits_for_its_parent_is_gone(tmp_path, capsys):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        space = sharing.pid_space()
        about = {"host": socket.gethostname(), "space": space, "pid": other.pid, "beat": 3}
        (tmp_path / "beat-1").write_text(json.dumps(about))
        team = sharing.Team(tmp_path, 0, 2)
        team.check()
        team.check()
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # its number stays in use
        with pytest.raises(errors.SgqlmError, match="process 1 of the evaluation is gone"):
            team.done("gqa")
    assert capsys.readouterr().err == "waiting for the answers of process 1 to gqa\n"


def test_one_process_alone_leaves_nothing(tmp_path):
    with sharing.join([tmp_path / "a" / "gqa", tmp_path / "a" / "pope"]) as team:
        assert team.agree("plan", lambda: [1]) == [1] and team.is_main
        team.done("gqa")
        team.check()
        assert {path.name for path in (tmp_path / "a").iterdir()} == {"gqa", "pope"}
        (tmp_path / "a" / "gqa" / "answers.jsonl").write_text("")
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["gqa", "answers.jsonl"]
    with pytest.raises(ValueError, match="x"), sharing.join([tmp_path / "b" / "c" / "gqa"]):
        raise ValueError("x")
    assert not (tmp_path / "b").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(errors.SgqlmError, match="cannot be written"),
        sharing.join([tmp_path / "file" / "gqa"]),
    ):
        pass


def test_a_sign_that_is_gone_or_not_yet_shown_is_none(tmp_path, monkeypatch):
    team, read = sharing.Team(tmp_path, 0, 2), pathlib.Path.read_text

    def gone(path, *args, **more):
        if path.name == "beat-1":
            raise FileNotFoundError(path)  # its process ended between two looks
        return read(path, *args, **more)

    for name in ("beat-1", "failed-1"):
        (tmp_path / name).write_text("")
    team.check()
    (tmp_path / "beat-1").write_text("{}")
    monkeypatch.setattr(pathlib.Path, "read_text", gone)
    team.check()


def write(path, *keys, head=HEAD):
    with answers.AnswerFile(path, head) as out:
        out.extend([{"key": key, "text": path.name} for key in keys])


def test_answers_are_those_of_all_files(tmp_path):
    path = tmp_path / "progress.jsonl"
    assert sharing.known(path, HEAD) == {} and sharing.files(path) == []
    for name, keys in (("progress.10", "67"), ("progress", "01"), ("progress.2", "123")):
        write(tmp_path / f"{name}.jsonl", *keys)
    (tmp_path / "progress.old.jsonl").write_text("of somebody else\n")
    (tmp_path / "progress.3.jsonl").write_text('{"task": ')  # killed before its first line was out
    names = ["progress.jsonl", "progress.2.jsonl", "progress.3.jsonl", "progress.10.jsonl"]
    assert [file.name for file in sharing.files(path)] == names
    with (tmp_path / "progress.2.jsonl").open("a") as file:
        file.write('{"key": "4"}')  # whole, but its line end is not on disk
    assert set(sharing.known(path, HEAD)) == set("012367")
    found = sharing.wait_for(path, ["7", "1"])
    assert [line["text"] for line in found] == ["progress.10.jsonl", "progress.jsonl"]
    team = sharing.Team(tmp_path, 2, 4)
    # another process writes: what the disk does not show yet is waited for, and never cut
    theirs = tmp_path / "progress.2.jsonl"
    theirs.write_text(json.dumps(HEAD) + '\n{"key": "5", ')
    with theirs.open("a") as file, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waited = pool.submit(sharing.wait_for, path, ["5"])
        threading.Event().wait(0.1)
        file.write('"text": "late"}\n')
        file.flush()
        assert waited.result()[0]["text"] == "late"
    assert sharing.own_file(path, team).name == "progress.2.jsonl"
    assert sharing.own_file(path, sharing.Team(tmp_path)) == path


def test_files_of_another_evaluation_and_missing_answers_are_told(tmp_path, monkeypatch):
    path = tmp_path / "progress.jsonl"
    write(path, "0")
    with pytest.raises(errors.SgqlmError, match="1 of 2 answers are not there"):
        sharing.wait_for(path, ["0", "1"])
    write(tmp_path / "progress.1.jsonl", "1", head={**HEAD, "model": "n"})
    with pytest.raises(errors.SgqlmError, match="another evaluation") as caught:
        sharing.known(path, HEAD)
    assert "model: n, now m" in caught.value.why
    monkeypatch.setattr(sharing.distributed, "SHARED_SECONDS", 0.1)
    with pytest.raises(errors.SgqlmError, match="1 of 2 answers are not there"):
        sharing.wait_for(path, ["0", "2"])
