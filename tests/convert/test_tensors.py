"""Reading of weights: every way they are stored, and every way a file may lie about itself."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safe_numpy

from sgqlm import errors
from sgqlm.convert import header, tensors
from tests import paths

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.arange(5).astype(ml_dtypes.bfloat16),
    "c.half": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
    "d.ids": np.arange(-3, 4),
    "e.mask": np.array([True, False, True]),
    "f.image": np.arange(7, dtype=np.uint8),
    "g.scalar": np.array(2.5, np.float32),
    "h.empty": np.zeros((0, 3), np.float32),
    "i.eight": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
}


def same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def file_of(folder, tree, data=b"", name="model.safetensors"):
    """Write a file with any header: a dict, or the bytes of it."""
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    path = folder / name
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def shards(folder, parts, weight_map=None, stem="model"):
    for name, arrays in parts.items():
        safe_numpy.save_file(arrays, folder / name)
    if weight_map is None:
        weight_map = {key: name for name, arrays in parts.items() for key in arrays}
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_one_file_of_every_dtype(tmp_path):
    file = tmp_path / "model.safetensors"
    safe_numpy.save_file(ARRAYS, file)
    with tensors.open_folder(tmp_path) as opened:
        assert opened.names == tuple(sorted(ARRAYS))
        assert opened.source == (file,)
        for name, array in ARRAYS.items():
            assert opened.info(name) == (array.dtype, array.shape)
            found = opened.read(name)
            same(found, array)
            assert found.flags.c_contiguous
            assert found.flags.writeable
            assert found.flags.owndata or found.base is not None


def test_rows(tmp_path):
    safe_numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with tensors.open_folder(tmp_path) as opened:
        for name in ("a.weight", "c.half", "d.ids", "h.empty"):
            for rows in (slice(1, 3), slice(None, 2), slice(-1, None), slice(2, 1), slice(0, 99)):
                same(opened.read(name, rows), ARRAYS[name][rows])
        for name, rows in (("a.weight", slice(0, 3, 2)), ("g.scalar", slice(0, 1))):
            with pytest.raises(ValueError, match="no such rows"):
                opened.read(name, rows)


def test_large_reads_are_done_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_MAX_READ", 7)
    safe_numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with tensors.open_folder(tmp_path) as opened:
        for name, array in ARRAYS.items():
            same(opened.read(name), array)


def test_shards(tmp_path):
    parts = {
        "x-1.safetensors": {k: ARRAYS[k] for k in list(ARRAYS)[::2]},
        "x-2.safetensors": {k: ARRAYS[k] for k in list(ARRAYS)[1::2]},
    }
    index = shards(tmp_path, parts)
    for opened in (tensors.open_folder(tmp_path), tensors.open_files(index)):
        with opened:
            assert opened.source == (index, *(tmp_path / name for name in parts))
            assert opened.names == tuple(sorted(ARRAYS))
            for name, array in ARRAYS.items():
                same(opened.read(name), array)


def test_files_by_name(tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    safe_numpy.save_file({"a": ARRAYS["a.weight"]}, one)
    safe_numpy.save_file({"b": ARRAYS["d.ids"]}, two)
    with tensors.open_files(str(one)) as opened:
        assert opened.names == ("a",)
    with tensors.open_files([one, two]) as opened:
        assert opened.names == ("a", "b")
        same(opened.read("b"), ARRAYS["d.ids"])
    with pytest.raises(errors.SgqlmError, match="no file of weights"):
        tensors.open_files([])
    (tmp_path / "a.h5").touch()
    with pytest.raises(errors.SgqlmError, match="no file of weights"):
        tensors.open_files(tmp_path / "a.h5")


@pytest.mark.parametrize("stem", ["adapter_model", "non_lora_trainables", "mm_projector"])
def test_other_stems(tmp_path, stem):
    safe_numpy.save_file({"a": ARRAYS["a.weight"]}, tmp_path / f"{stem}.safetensors")
    with tensors.open_folder(tmp_path, stem) as opened:
        assert opened.names == ("a",)
    with pytest.raises(errors.SgqlmError, match=r"weights model\.safetensors are missing"):
        tensors.open_folder(tmp_path)


def test_safetensors_are_preferred_and_two_sets_are_refused(tmp_path):
    safe_numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with tensors.open_folder(tmp_path) as opened:
        assert [file.name for file in opened.source] == ["model.safetensors"]
    shards(tmp_path, {"x.safetensors": ARRAYS})
    with pytest.raises(errors.SgqlmError, match="two sets of weights"):
        tensors.open_folder(tmp_path)


def test_unknown_names_and_closed_files(tmp_path):
    safe_numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with tensors.open_folder(tmp_path) as opened:
        with pytest.raises(errors.SgqlmError, match="no tensor z"):
            opened.read("z")
        with pytest.raises(errors.SgqlmError, match="no tensor z"):
            opened.info("z")
    with pytest.raises(ValueError, match="closed"):
        opened.read("a.weight")


def test_a_file_that_shrinks_while_open(tmp_path):
    file = tmp_path / "model.safetensors"
    safe_numpy.save_file(ARRAYS, file)
    with tensors.open_folder(tmp_path) as opened:
        os.truncate(file, file.stat().st_size - 1)
        last = max(ARRAYS, key=lambda name: opened._place(name).info.stop)
        with pytest.raises(errors.SgqlmError, match="ends inside"):
            opened.read(last)


def deep(depth):
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("tree", "data", "why"),
    [
        (b"", b"", "not a JSON object"),
        (b"[1]", b"", "not a JSON object"),
        (b'{"a":', b"", "cannot be parsed"),
        (b'{"\xff":1}', b"", "cannot be parsed"),
        (deep(100_000), b"", "too deep"),
        (b'{"a": 1e999999}', b"", "does not have dtype"),
        (b'{"a": NaN}', b"", "has NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "4300"),
        (b'{"a":{"dtype":"F32","dtype":"F32"}}', b"", "key dtype twice"),
        (b'{"\\u001b[2J":1,"\\u001b[2J":1}', b"", r"key '\\x1b\[2J' twice"),
        ({"__metadata__": []}, b"", "not text by name"),
        ({"__metadata__": {"a": 1}}, b"", "not text by name"),
        ({"a": 1}, b"", "does not have dtype"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "does not have dtype"),
        ({"a": {**entry(), "more": 1}}, b"....", "does not have dtype"),
        ({"a": entry("F99")}, b"....", "a dtype F99; known: BOOL, U8"),
        ({"a": entry(["F32"])}, b"....", "no text"),
        ({"a": entry(shape=[-1])}, b"....", "shape of a are not whole"),
        ({"a": entry(shape=[1.0])}, b"....", "shape of a are not whole"),
        ({"a": entry(shape=[True])}, b"....", "shape of a are not whole"),
        ({"a": {**entry(), "shape": 1}}, b"....", "shape of a are not whole"),
        ({"a": entry(offsets=[-4, 0])}, b"....", "offsets of a are not whole"),
        ({"a": entry(offsets=[0, 4, 8])}, b"....", "do not match"),
        ({"a": entry(offsets=[4, 0])}, b"....", "do not match"),
        ({"a": entry(shape=[2**62])}, b"....", "larger than any"),
        ({"a": entry(shape=[2**33, 2**33])}, b"....", "larger than any"),
        ({"a": entry(shape=[0, 2**62], offsets=[0, 0])}, b"", "larger than any"),
        ({"a": entry(shape=[1] * 33)}, b"....", "larger than any"),
        ({"a": entry(shape=[2**30], offsets=[0, 2**32])}, b"....", "end at byte"),
        ({"a": entry(shape=[2])}, b"....", "do not match"),
        ({"a": entry("F64")}, b"....", "do not match"),
        ({"a": entry(), "b": entry(offsets=[2, 6])}, b"." * 6, "overlap before b"),
        ({"a": entry(), "b": entry()}, b"." * 4, "overlap before b"),
        ({"a": entry(), "b": entry(offsets=[5, 9])}, b"." * 9, "a gap before b"),
        ({"a": entry(offsets=[4, 8])}, b"." * 8, "a gap before a"),
        ({"a": entry()}, b"...", "end at byte"),
        ({"a": entry()}, b".....", "end at byte"),
    ],
)
def test_headers_that_lie(tmp_path, tree, data, why):
    file = file_of(tmp_path, tree, data)
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        tensors.open_folder(tmp_path)
    assert re.search(why, caught.value.why), caught.value.why
    assert caught.value.where == str(file)
    assert caught.value.fix
    assert caught.value.code == errors.CHECKPOINT


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it has 0 bytes"),
        (b"\x02\0\0", "it has 3 bytes"),
        (b"\xff" * 8 + b"{}", "header alone would take"),
        ((2**40).to_bytes(8, "little") + b"{}", "header alone would take"),
        (b"\x03\0\0\0\0\0\0\0{}", "header alone would take"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "header alone"),
    ],
)
def test_files_that_are_none(tmp_path, data, why):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(errors.SgqlmError, match="cannot be read") as caught:
        tensors.open_folder(tmp_path)
    assert why in caught.value.why


def test_a_long_header_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((2**33).to_bytes(8, "little") + b"{")
        stream.truncate(2**34)  # sparse
    with pytest.raises(errors.SgqlmError) as caught:
        tensors.open_folder(tmp_path)
    assert f"more than {header.MAX_JSON}" in caught.value.why


@pytest.mark.parametrize(
    "shard",
    ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "..", ".", "", "b\\a", "a\0", "a\n"],
)
def test_an_index_cannot_leave_the_folder(tmp_path, shard):
    inner = tmp_path / "inner"
    inner.mkdir()
    safe_numpy.save_file({"a": ARRAYS["a.weight"]}, tmp_path / "a.safetensors")
    index = shards(inner, {}, {"a": shard})
    with pytest.raises(errors.SgqlmError, match="index") as caught:
        tensors.open_folder(inner)
    assert "not a plain file name" in caught.value.why
    assert caught.value.where == str(index)


def test_an_index_cannot_leave_the_folder_by_a_link(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    safe_numpy.save_file({"a": ARRAYS["a.weight"]}, tmp_path / "a.safetensors")
    (inner / "a.safetensors").symlink_to("../a.safetensors")
    shards(inner, {}, {"a": "a.safetensors"})
    with pytest.raises(errors.SgqlmError) as caught:
        tensors.open_folder(inner)
    assert "a link to a file outside" in caught.value.why


def test_links_of_the_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    safe_numpy.save_file({"a": ARRAYS["a.weight"]}, blobs / "c0ffee")
    (snapshot / "a.safetensors").symlink_to("../../blobs/c0ffee")
    shards(snapshot, {}, {"a": "a.safetensors"})
    with tensors.open_folder(snapshot) as opened:
        same(opened.read("a"), ARRAYS["a.weight"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "cannot be parsed"),
        (b"[]", "not an object"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": {}}', "no weight_map"),
        (b'{"weight_map": ["a"]}', "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "does not name files"),
        (b'{"weight_map": {"a": "x", "a": "x"}}', "key a twice"),
        (b'{"weight_map": {"a": "' + b"x" * header.MAX_JSON + b'"}}', "more than"),
        (deep(100_000), "too deep"),
    ],
)
def test_a_broken_index(tmp_path, text, why):
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(errors.SgqlmError, match="index of the weights") as caught:
        tensors.open_folder(tmp_path)
    assert why in caught.value.why
    assert caught.value.code == errors.CHECKPOINT


def test_index_and_shards_must_agree(tmp_path):
    a, b = {"a": ARRAYS["a.weight"], "b": ARRAYS["d.ids"]}, {"b": ARRAYS["d.ids"]}
    one, two = "1.safetensors", "2.safetensors"
    shards(tmp_path, {one: a, two: b})
    with pytest.raises(errors.SgqlmError, match="1 tensors are not") as caught:
        tensors.open_folder(tmp_path)
    assert "twice      b (2.safetensors) and in 1.safetensors" in caught.value.why
    shards(tmp_path, {one: a, two: {"c": ARRAYS["d.ids"]}}, {"a": one, "c": one, "d": two})
    with pytest.raises(errors.SgqlmError, match="3 tensors are not") as caught:
        tensors.open_folder(tmp_path)
    for line in (f"unlisted   b ({one})", f"missing    c ({one})", f"missing    d ({two})"):
        assert line in caught.value.why
    shards(tmp_path, {one: a}, {f"x{i}": one for i in range(30)})
    with pytest.raises(errors.SgqlmError) as caught:
        tensors.open_folder(tmp_path)
    assert caught.value.why.endswith("... 12 more")


def test_a_missing_shard_and_two_files_with_one_name(tmp_path):
    shards(tmp_path, {"1.safetensors": ARRAYS}, {"a.weight": "2.safetensors"})
    with pytest.raises(errors.SgqlmError, match=r"weights 2\.safetensors are missing"):
        tensors.open_folder(tmp_path)
    safe_numpy.save_file({"e.mask": ARRAYS["e.mask"]}, tmp_path / "2.safetensors")
    with pytest.raises(errors.SgqlmError) as caught:
        tensors.open_files([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert "twice      e.mask" in caught.value.why


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(errors.SgqlmError, match="are missing"):
        tensors.open_folder(tmp_path)


def test_names_are_shown_without_control_characters():
    assert header.show("a\x1b[2Jb") == r"'a\x1b[2Jb'"
    assert header.show("\ud800") == r"'\ud800'"
    assert header.show("x" * 500) == "x" * 120 + "..."


def test_random_damage_gives_an_error_or_what_the_file_says(tmp_path):
    file = tmp_path / "model.safetensors"
    safe_numpy.save_file(ARRAYS, file)
    good = file.read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    draw, opened_files, likely = random.Random(0), 0, b'0123456789abcx{}[]",:'
    for i in range(300):
        bad = bytearray(good)
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = draw.randrange(8) if i % 10 == 0 else draw.randrange(length)
            bad[place] = draw.choice((draw.randrange(256), draw.choice(likely)))
        if i % 5 == 0:
            bad = bad[: draw.randrange(len(bad))]
        file.write_bytes(bad)
        try:
            with tensors.open_folder(tmp_path) as opened:
                found = {name: opened.read(name) for name in opened.names}
        except errors.SgqlmError as error:
            assert error.code == errors.CHECKPOINT
            continue
        opened_files += 1
        theirs = dict(safetensors.deserialize(bytes(bad)))  # a second reading of the same bytes
        assert set(theirs) == set(found)
        for name, array in found.items():
            assert array.tobytes() == bytes(theirs[name]["data"])
            assert array.shape == tuple(theirs[name]["shape"])
            assert header.CODES[array.dtype] == theirs[name]["dtype"]
    assert 5 < opened_files < 200  # both happen: renamed tensors open, most damage does not


# VmHWM, as ru_maxrss starts from the peak of the process that forked this one
PEAK = """
import pathlib, re, sys
import numpy as np

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
"""
MEMORY = """
from sgqlm.convert import tensors

with tensors.open_folder(sys.argv[1]) as opened:
    opened.read("small")
    before = peak()
    array = opened.read("t5")
    assert array[0, 0] == 5, array[0, 0]
    whole = peak() - before
    del array
    assert opened.read("t6", slice(0, 10))[0, 0] == 6
print(whole, peak() - before)
"""


def run_measured(script, *arguments):
    """Run a script that prints numbers; `peak()` gives it its memory so far, in MiB."""
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc, which this system lacks")
    done = subprocess.run(
        [sys.executable, "-c", PEAK + script, *map(str, arguments)],
        cwd=paths.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(word) for word in done.stdout.split()]


def test_one_tensor_of_a_large_file_takes_its_own_memory(tmp_path):
    shape = (2560, 1024)  # 10 MiB each
    specs = [("small", "F32", (1,)), *((f"t{i}", "F32", shape) for i in range(30))]
    first, infos = header.encode(specs)
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(first)
        for i in range(30):
            stream.seek(infos[f"t{i}"].start)
            stream.write(np.full(shape, i, np.float32))
        stream.truncate(max(info.stop for info in infos.values()))
    assert (tmp_path / "model.safetensors").stat().st_size > 300e6
    whole, after = run_measured(MEMORY, tmp_path)
    assert 5 < whole < 20  # MiB; the tensor has 10
    assert after < 20
    pathlib.Path(tmp_path / "model.safetensors").unlink()
