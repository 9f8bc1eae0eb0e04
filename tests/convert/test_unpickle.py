"""Pickles of torch: read in another process, and nothing in them is run."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors import numpy as safe_numpy

from sgqlm import errors
from sgqlm.convert import header, tensors, unpickle
from sgqlm.convert.hf_code import read_pickle
from tests import paths

NEEDS_TORCH = "reads or writes pickles of torch"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason=NEEDS_TORCH)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Copies go to a folder of this test; it must be empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tensors.tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def in_process(monkeypatch):
    """Run the other process in this one, which spares seconds of importing torch."""

    def run(command, **_):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = read_pickle.main(command[-2:])
        return subprocess.CompletedProcess(command, code, out.getvalue().encode(), b"")

    monkeypatch.setattr(read_pickle, "_limit_memory", lambda spare: None)
    monkeypatch.setattr(unpickle.subprocess, "run", run)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Own:
    """A class of another module than torch."""


def refused(file, why):
    with pytest.raises(errors.SgqlmError, match="is refused") as caught:
        tensors.open_files(file)
    assert caught.value.code == errors.CHECKPOINT
    assert caught.value.where == str(file)
    assert "weights_only" not in str(caught.value)  # torch advises to switch it off
    assert why in caught.value.why, caught.value.why


def pickle_inside_zip(torch, folder, value):
    """Write `value` where torch.save puts its pickle."""
    torch.save({"a": torch.zeros(2)}, folder / "good.bin")
    with zipfile.ZipFile(folder / "good.bin") as good, zipfile.ZipFile(folder / "b.bin", "w") as z:
        for item in good.infolist():
            data = good.read(item)
            z.writestr(item, pickle.dumps(value, 2) if item.filename.endswith(".pkl") else data)
    return folder / "b.bin"


def test_every_kind_of_tensor_arrives_bit_equal(in_process, torch, tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    held = {
        "f32": base.reshape(4, 6),
        "transposed": base.reshape(4, 6).T,
        "part": base[5:9],
        "parameter": torch.nn.Parameter(base.reshape(2, 12)),
        "bf16": base.to(torch.bfloat16),
        "f16": base.to(torch.float16),
        "i64": torch.arange(-2, 3),
        "bool": torch.tensor([True, False]),
        "u8": torch.arange(5, dtype=torch.uint8),
        "f8": torch.arange(4).to(torch.float8_e5m2),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    held["tied"] = held["f32"]
    for is_zip in (True, False):
        if not is_zip:
            del held["f8"]  # younger than that format
        torch.save(held, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
        with tensors.open_folder(tmp_path) as opened:
            assert opened.names == tuple(sorted(held))
            assert opened.source == (tmp_path / "pytorch_model.bin",)
            for name, tensor in held.items():
                found = opened.read(name)
                assert found.shape == tuple(tensor.shape)
                assert str(found.dtype) == str(tensor.dtype).removeprefix("torch.")
                flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
                assert found.tobytes() == flat.numpy().tobytes()


def test_real_checkpoints_of_llava(in_process, torch):
    folder = paths.fixture("sq_llava/tiny_ckpt/base/pytorch_model.bin").parent.parent
    lora = folder / "sqllava-lora-tiny"
    cases = [
        (folder / "base", "model", "pytorch_model.bin"),
        (folder / "clip", "model", "pytorch_model.bin"),
        (lora, "adapter_model", "adapter_model.bin"),
        (lora, "non_lora_trainables", "non_lora_trainables.bin"),
        (lora / "Vit-lora", "adapter_model", "adapter_model.bin"),
    ]
    for where, stem, name in cases:
        expected = torch.load(where / name, map_location="cpu", weights_only=True)
        with tensors.open_folder(where, stem) as opened:
            assert opened.names == tuple(sorted(expected))
            for key, tensor in expected.items():
                found = opened.read(key)
                assert found.tobytes() == tensor.detach().contiguous().numpy().tobytes()


def test_shards_of_pickles(in_process, torch, tmp_path):
    parts = {"pytorch_model-1.bin": {"a": 1.0}, "pytorch_model-2.bin": {"b": 2.0, "c": 3.0}}
    for file, held in parts.items():
        torch.save({name: torch.tensor([v]) for name, v in held.items()}, tmp_path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with tensors.open_folder(tmp_path) as opened:
        assert opened.source == (index, *(tmp_path / file for file in parts))
        assert [opened.read(name)[0] for name in opened.names] == [1, 2, 3]


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrappers(in_process, torch, tmp_path, wrapper):
    torch.save({wrapper: {"a": torch.ones(2)}}, tmp_path / "a.pth")
    with tensors.open_files(tmp_path / "a.pth") as opened:
        assert opened.names == ("a",)
    torch.save({wrapper: {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", f"{wrapper} is not a tensor but a dict")


def hostile(made):
    """Return what unpickled as usual makes the file `made`, by the name torch knows it under."""
    statement = f"open({str(made)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, f"touch {made}"),
        "eval": Call(eval, statement),
        "exec": Call(exec, statement),
        "os.mkdir": Call(os.mkdir, str(made)),
        "getattr": Call(getattr, Call(getattr, "text", "upper"), "__call__"),
        "test_unpickle.Own": Own(),
    }


def test_code_is_not_run(in_process, torch, tmp_path):
    made = tmp_path / "made"
    for name, value in hostile(made).items():
        for is_bare in (False, True):
            file = pickle_inside_zip(torch, tmp_path, {"a": value})
            if is_bare:
                file.write_bytes(pickle.dumps({"a": value}, 2))
            refused(file, "" if is_bare else name.removeprefix("os."))
            assert not made.exists()


def test_code_is_not_run_in_the_other_process(torch, tmp_path):
    made = tmp_path / "made"
    value = hostile(made)["eval"]
    refused(pickle_inside_zip(torch, tmp_path, {"a": value}), "it holds eval; loading that could")
    assert not made.exists()
    pickle.loads(pickle.dumps(value))
    assert made.exists()  # it works, if let


def test_no_setting_of_the_user_lets_code_run(torch, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    made = tmp_path / "made"
    refused(pickle_inside_zip(torch, tmp_path, {"a": Call(os.system, f"touch {made}")}), "system")
    assert not made.exists()


def test_what_the_current_folder_holds_is_not_imported(torch, tmp_path, monkeypatch):
    for name in ("torch", "json", "sgqlm"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2)}, "a.bin")
    with tensors.open_files("a.bin") as opened:
        assert opened.read("a").tolist() == [1, 1]
    assert not (tmp_path / "made").exists()


def test_only_tensors_by_name_are_taken(in_process, torch, tmp_path):
    loop = {}
    loop["a"] = loop
    one = torch.ones(2)
    for value, why in [
        ([one], "one list"),
        (one, "one Tensor"),
        ({"a": one, "b": 3}, "b is not a tensor but a int"),
        ({"a": {"b": one}}, "a is not a tensor but a dict"),
        ({1: one}, "not the name of a tensor"),
        ({"__metadata__": one}, "not the name of a tensor"),
        (loop, "a is not a tensor but a dict"),
        ({"a": one.to_sparse()}, "a is not a plain tensor"),
        ({"a": one.to("meta")}, "a is not a plain tensor"),
        ({"a": one.to(torch.complex64)}, "a has the dtype complex64"),
        ({"a": one[:1].expand(10**9)}, "a declares more data than the file has"),
    ]:
        torch.save(value, tmp_path / "a.bin")
        refused(tmp_path / "a.bin", why)


def test_a_large_file_is_told(in_process, torch, tmp_path, monkeypatch, capfd):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    tensors.open_files(tmp_path / "a.bin").close()
    assert not capfd.readouterr().err
    monkeypatch.setattr(tensors, "_SAY_FROM", 100)
    tensors.open_files(tmp_path / "a.bin").close()
    assert capfd.readouterr().err == "a.bin: 0.0 GB are turned into safetensors first\n"


def test_the_same_bytes_under_many_names(in_process, torch, tmp_path):
    big = torch.ones(100_000)
    torch.save({f"n{i}": big for i in range(4)}, tmp_path / "a.bin")
    with tensors.open_files(tmp_path / "a.bin") as opened:
        assert len(opened.names) == 4
    torch.save({f"n{i}": big for i in range(5)}, tmp_path / "a.bin")
    refused(tmp_path / "a.bin", "more than 4 times the bytes")


def test_bombs(in_process, torch, tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "good.bin")
    file = tmp_path / "b.bin"
    with zipfile.ZipFile(tmp_path / "good.bin") as good:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for item in good.namelist():
                is_data = item.endswith("data/0")
                packed.writestr(item, bytes(10**8) if is_data else good.read(item))
        refused(file, "it is compressed")
        with zipfile.ZipFile(file, "w") as stored:
            for item in good.namelist():
                stored.writestr(item, good.read(item))
    data = file.read_bytes()
    place = data.rindex(b"PK\x01\x02")  # the last entry of the directory declares 3 GB
    bad = data[: place + 20] + (3 * 10**9).to_bytes(4, "little") * 2 + data[place + 28 :]
    file.write_bytes(bad)
    refused(file, "declares more data")
    # 16 GB of storage that is not there, by the pickle itself
    text = (tmp_path / "good.bin").read_bytes()
    counts = [i for i in range(len(text)) if text[i : i + 3] == b"M" + (1000).to_bytes(2, "little")]
    assert counts
    file.write_bytes(text.replace(b"M" + (1000).to_bytes(2, "little"), b"M\xff\xff"))
    refused(file, "torch cannot read it")


def test_memory_is_limited(torch, tmp_path):
    file = pickle_inside_zip(torch, tmp_path, {"a": Call(bytearray, 2**33)})
    refused(file, "more memory")


def test_nested_pickles(in_process, torch, tmp_path):
    deep = b"\x80\x02" + b"(" * 200_000 + b"}" + b"t" * 200_000 + b"."
    (tmp_path / "a.bin").write_bytes(deep)
    refused(tmp_path / "a.bin", "")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no zip or pickle"),
        (b"cos\nsystem\n(S'true'\ntR.", "no zip or pickle"),
        (b"\x93NUMPY", "no zip or pickle"),
        (b"<html>", "no zip or pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
    ],
)
def test_files_that_are_none(tmp_path, monkeypatch, data, why):
    monkeypatch.setattr(unpickle.subprocess, "run", None)  # no process is started for them
    (tmp_path / "a.bin").write_bytes(data)
    refused(tmp_path / "a.bin", why)


def test_files_that_are_cut_off(in_process, torch, tmp_path):
    file = tmp_path / "a.bin"
    for is_zip in (True, False):
        torch.save({"a": torch.ones(1000)}, file, _use_new_zipfile_serialization=is_zip)
        os.truncate(file, file.stat().st_size - 500)
        refused(file, "torch cannot read it")


def stub(monkeypatch, folder, text):
    """Put another `torch` before the installed one."""
    (folder / "stub").mkdir()
    (folder / "stub" / "torch.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder / "stub"))
    (folder / "a.bin").write_bytes(b"\x80\x02.")
    return folder / "a.bin"


def test_torch_is_not_installed(tmp_path, monkeypatch):
    file = stub(monkeypatch, tmp_path, "raise ImportError('none')")
    with pytest.raises(errors.SgqlmError, match="torch is not installed") as caught:
        tensors.open_files(file)
    assert "pip install -e '.[hf]'" in caught.value.fix


def test_a_process_that_dies_or_hangs_is_told(tmp_path, monkeypatch):
    file = stub(monkeypatch, tmp_path, "import os; os.kill(os.getpid(), 9)")
    refused(file, "ended with -9")
    (tmp_path / "stub" / "torch.py").write_text("raise SystemError('broken')")
    refused(file, "ended with 1: SystemError: broken")
    (tmp_path / "stub" / "torch.py").write_text("import time; time.sleep(60)")
    with pytest.raises(errors.SgqlmError, match="refused") as caught:
        unpickle.to_safetensors(file, tmp_path / "out", timeout=0.5)
    assert "not read after" in caught.value.why


def test_no_room_for_the_copy(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"\x80\x02." + bytes(1000))
    usage = unpickle.shutil.disk_usage(tmp_path)._replace(free=1020)
    monkeypatch.setattr(unpickle.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(errors.SgqlmError, match="no room") as caught:
        tensors.open_files(file)
    assert caught.value.code == errors.RESOURCES
    assert "TMPDIR" in caught.value.fix


def test_the_disk_fills_while_the_copy_is_written(tmp_path, monkeypatch):
    text = "import errno\ndef set_num_threads(n): raise OSError(errno.ENOSPC, 'full')"
    with pytest.raises(errors.SgqlmError, match="no room") as caught:
        tensors.open_files(stub(monkeypatch, tmp_path, text))
    assert caught.value.code == errors.RESOURCES


def test_the_caller_does_not_import_torch():
    code = "import sys; from sgqlm.convert import tensors; sys.exit('torch' in sys.modules)"
    done = unpickle.subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, check=False)
    assert done.returncode == 0


def test_the_copy_is_what_the_safetensors_package_reads(in_process, torch, tmp_path):
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(1)}, tmp_path / "a.bin")
    out = tmp_path / "out.safetensors"
    unpickle.to_safetensors(tmp_path / "a.bin", out)
    found = safe_numpy.load_file(out)
    np.testing.assert_array_equal(found["a"], np.arange(6.0, dtype=np.float32).reshape(2, 3).T)
    with out.open("rb") as stream:
        assert set(header.read(stream, where=out)) == {"a", "b"}
