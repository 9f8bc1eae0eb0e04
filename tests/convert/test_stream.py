"""Writing of exports: every tensor in its place, and nothing under the name until all is there."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors

from sgqlm import errors
from sgqlm.convert import header, manifest, stream, tensors
from tests import paths
from tests.convert import test_tensors

ARRAYS = test_tensors.ARRAYS | {
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "moved": np.arange(24, dtype=np.float16).reshape(2, 3, 4).transpose(2, 0, 1),
    "every.second": np.arange(10, dtype=np.int32)[::2],
    "layers.2": np.ones(3, np.float32),
    "layers.10": np.ones(3, np.float32),
}
SPECS = [stream.TensorSpec(name, a.dtype, a.shape) for name, a in ARRAYS.items()]


def export(out, arrays=ARRAYS, specs=SPECS, overwrite=False, **plan):
    planned = stream.plan(specs, **plan)
    needed = planned.num_bytes
    with stream.Folder(out, overwrite=overwrite, needed_bytes=needed) as folder:
        folder.write_bytes("config.json", b"{}")
        with folder.weights(planned) as weights:
            for name, array in arrays.items():
                weights.put(name, array)
        return folder.finish({"source": "here"})


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def fails(match, code=errors.CHECKPOINT):
    with pytest.raises(errors.SgqlmError, match=match) as caught:
        yield caught
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize("max_shard_size", [5_000_000_000, 64])
def test_what_is_written_is_read(tmp_path, max_shard_size):
    out = export(tmp_path / "out", max_shard_size=max_shard_size)
    with tensors.open_folder(out) as opened:
        assert opened.names == tuple(sorted(ARRAYS))
        for name, array in ARRAYS.items():
            test_tensors.same(opened.read(name), array)
    found = {}
    for file in out.glob("*.safetensors"):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        assert start % 8 == 0
        assert json.loads(data[8:start])["__metadata__"] == {"format": "pt"}
        with file.open("rb") as opened:
            infos = header.read(opened, where=file).values()
        assert not [info for info in infos if info.start % info.dtype.itemsize]
        found |= dict(safetensors.deserialize(file.read_bytes()))
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert bytes(found[name]["data"]) == array.tobytes()
    assert len(list(out.glob("*.safetensors"))) == (1 if max_shard_size > 64 else 6)


def test_the_safetensors_package_reads_it(tmp_path):
    export(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    with safetensors.safe_open(file, framework="numpy") as opened:
        for name in set(ARRAYS) - {"i.eight"}:  # its numpy side knows no float8
            test_tensors.same(opened.get_tensor(name), ARRAYS[name])
    torch = pytest.importorskip("torch")
    from safetensors import torch as safe_torch

    for name, tensor in safe_torch.load_file(file).items():
        assert tuple(tensor.shape) == ARRAYS[name].shape
        assert str(tensor.dtype).removeprefix("torch.") == str(ARRAYS[name].dtype)
        flat = tensor.reshape(-1).view(torch.uint8)
        assert flat.numpy().tobytes() == ARRAYS[name].tobytes()


def test_arrays_of_jax(tmp_path):
    arrays = {"a": jnp.arange(6.0).reshape(2, 3).T, "b": jnp.ones(3, jnp.bfloat16)}
    specs = [stream.TensorSpec(name, np.dtype(a.dtype), a.shape) for name, a in arrays.items()]
    with tensors.open_folder(export(tmp_path / "out", arrays, specs)) as opened:
        assert opened.read("a").tolist() == [[0, 3], [1, 4], [2, 5]]
        assert opened.info("b") == (np.dtype(ml_dtypes.bfloat16), (3,))


def test_a_plan_does_not_depend_on_the_order():
    for size in (64, 10**9):
        planned = stream.plan(SPECS, max_shard_size=size)
        assert planned == stream.plan(SPECS[::-1], max_shard_size=size)
        assert planned.total_size == sum(array.nbytes for array in ARRAYS.values())
        assert planned.num_bytes == planned.total_size + sum(len(s.head) for s in planned.shards)
    names = [name for shard in stream.plan(SPECS).shards for name in shard.infos]
    assert names.index("layers.2") < names.index("layers.10")


def test_shards(tmp_path):
    f32 = np.dtype(np.float32)
    sizes = {"a": 10, "b": 15, "c": 40, "d": 5, "e": 20, "f": 6}
    specs = [stream.TensorSpec(name, f32, (size,)) for name, size in sizes.items()]
    planned = stream.plan(specs, max_shard_size=100, stem="adapter_model")
    assert [list(shard.infos) for shard in planned.shards] == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    names = [f"adapter_model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert [shard.file for shard in planned.shards] == names
    arrays = {name: np.full(size, size, f32) for name, size in sizes.items()}
    out = export(tmp_path / "out", arrays, specs[::-1], max_shard_size=100, stem="adapter_model")
    index = json.loads((out / "adapter_model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * sum(sizes.values())}
    assert list(index["weight_map"]) == sorted(sizes)
    assert index["weight_map"]["e"] == names[2]
    with tensors.open_folder(out, "adapter_model") as opened:
        assert {name: opened.read(name)[-1] for name in opened.names} == sizes


@pytest.mark.parametrize(
    ("specs", "match"),
    [
        ([], "no tensor to write"),
        ([SPECS[0], SPECS[0]], "comes twice"),
        ([stream.TensorSpec("__metadata__", np.dtype("f4"), (1,))], "cannot be stored"),
        ([stream.TensorSpec("a", np.dtype("c8"), (1,))], "cannot be stored"),
        ([stream.TensorSpec("a", np.dtype(">f4"), (1,))], "cannot be stored"),
    ],
)
def test_plans_that_cannot_be(specs, match):
    with fails(match):
        stream.plan(specs)


def test_rows_in_any_order(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(6, 4)
    planned = stream.plan([stream.TensorSpec("a", array.dtype, array.shape)])
    with stream.Folder(tmp_path / "out") as folder:
        weights = folder.weights(planned)
        weights.put_rows("a", array.T.copy().T[4:], start=4)
        weights.put_rows("a", array[:1], start=0)
        weights.put_rows("a", array[1:4], start=1)
        folder.finish({})
    with tensors.open_folder(tmp_path / "out") as opened:
        test_tensors.same(opened.read("a"), array)


def test_large_arrays_are_copied_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK", 40)
    with tensors.open_folder(export(tmp_path / "out")) as opened:
        for name, array in ARRAYS.items():
            test_tensors.same(opened.read(name), array)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:5], at))
    with tensors.open_folder(export(tmp_path / "out")) as opened:
        for name, array in ARRAYS.items():
            test_tensors.same(opened.read(name), array)


WRONG = {
    "is not planned": lambda w: w.put("z", np.zeros((3, 2), np.float32)),
    "has the dtype": lambda w: w.put("a", np.zeros((3, 2))),
    "has the shape": lambda w: w.put("a", np.zeros((2, 3), np.float32)),
    "is written twice": lambda w: [w.put("a", np.zeros((3, 2), np.float32)) for _ in range(2)],
    "e is written twice": lambda w: [w.put("e", np.zeros((0, 2), np.float32)) for _ in range(2)],
    r"a is written twice from element 2": lambda w: [
        w.put_rows("a", np.zeros((2, 2), np.float32), start=i) for i in (0, 1)
    ],
    "are not in a": lambda w: w.put_rows("a", np.zeros((2, 2), np.float32), start=2),
    "from -1 on are not": lambda w: w.put_rows("a", np.zeros((2, 2), np.float32), start=-1),
    r"rows \(1, 3\)": lambda w: w.put_rows("a", np.zeros((1, 3), np.float32), start=0),
    "are not in s": lambda w: w.put_rows("s", np.zeros((), np.float32), start=0),
    "2 planned tensors": lambda w: w.put("s", np.zeros((), np.float32)),
    "3 planned tensors": lambda w: w.put_rows("a", np.zeros((2, 2), np.float32), start=0),
}


@pytest.mark.parametrize("match", WRONG)
def test_every_planned_tensor_once(tmp_path, match):
    f32 = np.dtype(np.float32)
    specs = [stream.TensorSpec(n, f32, s) for n, s in (("a", (3, 2)), ("e", (0, 2)), ("s", ()))]
    with fails(match) as caught, stream.Folder(tmp_path / "out") as folder:
        weights = folder.weights(stream.plan(specs))
        WRONG[match](weights)
        folder.finish({})
    assert not left(tmp_path)
    if match.startswith("3"):
        assert "a (4 of 6 elements)" in caught.value.why
        assert "e (0 of 0 elements)" in caught.value.why


def test_manifest_and_modes(tmp_path):
    mask = os.umask(0o077)
    try:
        planned = stream.plan(SPECS, max_shard_size=64)
        with stream.Folder(tmp_path / "out") as folder:
            folder.write_bytes("front/config.json", b"{}")
            with folder.weights(planned) as weights:
                for name, array in ARRAYS.items():
                    weights.put(name, array)
            assert not (tmp_path / "out").exists()
            folder.finish({"step": 3})
    finally:
        os.umask(mask)
    out = tmp_path / "out"
    tree = json.loads((out / stream.MANIFEST).read_text())
    names = {shard.file for shard in planned.shards}
    names |= {"front/config.json", "model.safetensors.index.json"}
    assert set(tree["files"]) == names
    assert tree["step"] == 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(ARRAYS)
    assert tree["files"]["front/config.json"] == {
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "bytes": 2,
    }
    for path in [out, *out.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    assert left(tmp_path) == ["out"]


def test_verify(tmp_path):
    out = export(tmp_path / "out")
    assert stream.verify(out) == []
    assert stream.verify(str(out)) == []
    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (out / "config.json").unlink()
    (out / "extra").touch()
    assert stream.verify(out) == [
        "config.json is missing",
        "extra is not listed",
        "model.safetensors has changed",
    ]
    for text in ("", "[]", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\0"):
        (out / stream.MANIFEST).write_text(text)
        assert "cannot be read" in stream.verify(out)[0]
    assert "cannot be read (FileNotFoundError)" in stream.verify(tmp_path)[0]
    assert manifest.faults(out, manifest="none.json") == [
        "none.json cannot be read (FileNotFoundError)"
    ]


def test_a_target_that_is_there_stays(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(out)  # empty: taken
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with fails("exists and is not empty"):
        export(out)
    (tmp_path / "file").write_text("a")
    with fails("not a folder"):
        export(tmp_path / "file")
    with fails("is not replaced"), stream.Folder(paths.ROOT / "tests", overwrite=True):
        pass
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert left(tmp_path) == ["file", "out"]


def test_overwriting_replaces_at_the_end(tmp_path):
    out = export(tmp_path / "out")
    with pytest.raises(KeyError), stream.Folder(out, overwrite=True) as folder:
        folder.write_bytes("a", b"new")
        raise KeyError
    assert stream.verify(out) == []
    with stream.Folder(out, overwrite=True) as folder:
        folder.write_bytes("a", b"new")
        assert stream.verify(out) == []
        folder.finish({})
    assert left(out) == ["a", stream.MANIFEST]
    assert stream.verify(out) == []
    assert left(tmp_path) == ["out"]


def test_the_old_export_comes_back_if_the_new_cannot_be_named(tmp_path, monkeypatch):
    out = export(tmp_path / "out")
    rename = pathlib.Path.rename

    def refuse(self, target):
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with (
        fails("could not be written", errors.RESOURCES),
        stream.Folder(out, overwrite=True) as folder,
    ):
        folder.finish({})
    assert stream.verify(out) == []
    assert left(tmp_path) == ["out"]


def test_a_target_that_appears_in_the_meantime_stays(tmp_path):
    out = tmp_path / "out"
    with fails("exists and is not empty"), stream.Folder(out) as folder:
        folder.write_bytes("a", b"1")
        out.mkdir()
        (out / "theirs").touch()
        folder.finish({})
    assert left(out) == ["theirs"]
    assert left(tmp_path) == ["out"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stream.verify(tmp_path / "real") == []


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", stream.MANIFEST, ".unfinished"])
def test_names_of_files(tmp_path, name):
    with fails("no name for a file"), stream.Folder(tmp_path / "out") as folder:
        folder.write_bytes(name, b"")
    assert not left(tmp_path)


def test_a_file_is_written_once(tmp_path):
    with fails("written twice"), stream.Folder(tmp_path / "out") as folder:
        folder.write_bytes("a", b"1")
        folder.write_bytes("a", b"2")
    with fails("written twice"), stream.Folder(tmp_path / "out") as folder:
        folder.write_bytes("model.safetensors", b"1")
        folder.weights(stream.plan(SPECS))
    assert not left(tmp_path)


def test_an_export_must_be_finished(tmp_path):
    with fails("without `finish`"), stream.Folder(tmp_path / "out") as folder:
        folder.write_bytes("a", b"1")
    assert not left(tmp_path)


def test_two_exports_to_one_name_at_a_time(tmp_path):
    with stream.Folder(tmp_path / "out") as first:
        first.write_bytes("a", b"1")
        with fails("written twice"), stream.Folder(tmp_path / "out"):
            pass
        first.finish({})
    assert stream.verify(tmp_path / "out") == []


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_disk_fills(tmp_path, monkeypatch, after):
    pwrite, calls = os.pwrite, []

    def full(file, data, at):
        calls.append(at)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with fails("could not be written", errors.RESOURCES) as caught:
        export(tmp_path / "out")
    assert "No space left" in caught.value.why
    assert not left(tmp_path)


def test_the_disk_fills_at_the_last_moment(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        fails("could not be written", errors.RESOURCES),
        stream.Folder(tmp_path / "out") as folder,
        folder.weights(stream.plan(SPECS)) as weights,
    ):
        for name, array in ARRAYS.items():
            weights.put(name, array)
        monkeypatch.setattr(os, "fsync", full)
    assert not left(tmp_path)


def test_room_is_asked_for_first(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage._replace(free=1049))
    with (
        fails("no room", errors.RESOURCES) as caught,
        stream.Folder(tmp_path / "out", needed_bytes=1000),
    ):
        pass
    assert "0.00 GB are free" in caught.value.why
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: usage._replace(free=1050))
    with stream.Folder(tmp_path / "out", needed_bytes=1000) as folder:
        folder.finish({})
    assert left(tmp_path) == ["out"]


KILLED = """
import os, sys, time
import numpy as np
from sgqlm.convert import stream

specs = [stream.TensorSpec(name, np.dtype("f4"), (1000,)) for name in "ab"]
with stream.Folder(sys.argv[1], overwrite=True) as folder:
    with folder.weights(stream.plan(specs)) as weights:
        weights.put("a", np.ones(1000, "f4"))
        print(os.getpid(), flush=True)
        time.sleep(60)
"""


def start_export(out):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)], cwd=paths.ROOT, stdout=subprocess.PIPE
    )
    process.stdout.readline()  # it is half-way
    return process


@pytest.mark.parametrize("is_there", [False, True])
def test_killed_half_way(tmp_path, capfd, is_there):
    out = tmp_path / "out"
    if is_there:
        export(out)
    process = start_export(out)
    aside = tmp_path / f"out.tmp-{process.pid}"
    try:
        with pytest.raises(KeyError), stream.Folder(out, overwrite=True):
            raise KeyError
        assert aside.exists()  # it lives, so what it writes stays
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert left(tmp_path) == (["out"] if is_there else []) + [aside.name]
    assert not is_there or stream.verify(out) == []
    export(tmp_path / "other")
    assert aside.exists()  # left by an export to another name
    assert not capfd.readouterr().err
    export(out, overwrite=True)
    assert left(tmp_path) == ["other", "out"]
    assert capfd.readouterr().err == f"{aside}: left by a killed export, removed\n"


NO_PROCESS = 2**22 + 1  # above the largest number that Linux gives


def test_only_what_is_ours_and_dead_is_removed(tmp_path):
    def folder(name, mark):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).touch()

    folder(f"out.tmp-{NO_PROCESS}", stream._MARK)
    folder(f"out.tmp-{os.getpid()}", stream._MARK)  # a container starts its numbers again
    folder(f"out.tmp-{NO_PROCESS + 1}", "somebody's")
    folder(f"out.tmp-{os.getppid()}", stream._MARK)
    folder("out.tmp-", stream._MARK)
    folder("xout.tmp-4194306", stream._MARK)
    (tmp_path / f"out.tmp-{NO_PROCESS + 2}").symlink_to("xout.tmp-4194306")
    before = set(left(tmp_path))
    export(tmp_path / "out")
    gone = {f"out.tmp-{NO_PROCESS}", f"out.tmp-{os.getpid()}"}
    assert set(left(tmp_path)) == before - gone | {"out"}


def test_killed_between_the_two_names(tmp_path, capfd):
    out, old = tmp_path / "out", tmp_path / f"out.sgqlm-old-{NO_PROCESS}"
    export(out).rename(old)
    with fails("exists and is not empty"):
        export(out)
    assert stream.verify(out) == []
    assert "put back as out" in capfd.readouterr().err
    shutil.copytree(out, old)
    export(out, overwrite=True)
    assert left(tmp_path) == ["out"]


MEMORY = """
from sgqlm.convert import stream

shape = (8192, 4096)  # 128 MiB each
specs = [stream.TensorSpec(f"t{i}", np.dtype("f4"), shape) for i in range(3)]
with stream.Folder(sys.argv[1]) as folder:
    weights = folder.weights(stream.plan(specs, max_shard_size=200_000_000))
    before = peak()
    for i in range(3):
        weights.put(f"t{i}", np.full(shape[::-1], i, np.float32).T)
    folder.finish({})
print(peak() - before)
"""


def test_a_large_export_takes_the_memory_of_one_tensor(tmp_path):
    [taken] = test_tensors.run_measured(MEMORY, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) > 300e6
    assert 120 < taken < 220  # MiB: one tensor, 64 for what is made contiguous, and spare
    shutil.rmtree(tmp_path / "out")
