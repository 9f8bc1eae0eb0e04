"""Weights of any folder, read tensor by tensor: safetensors, and pickles through another process.

Nothing of a file is trusted: the whole header is checked before the first tensor, an index may
name files of its own folder only, and a read never asks for more memory than its tensor has.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from sgqlm.convert import header, unpickle

_INDEX = ".index.json"
_PICKLES = (".bin", ".pt", ".pth")
_MAX_READ = 2**30  # one call of the system reads at most 2**31 - 4096 bytes
_SAY_FROM = 10**9


class TensorFiles:
    """The tensors of one or more files, by name; use it as a context.

    Attributes:
        names: names of all tensors, sorted.
        source: the files that are read, the index first where there is one.
    """

    def __init__(self, files: Sequence[pathlib.Path], *, index: pathlib.Path | None = None):
        weight_map = _read_index(index) if index else None
        if index:
            files = [index.parent / shard for shard in sorted(set((weight_map or {}).values()))]
        self.source = (*((index,) if index else ()), *files)
        self._places: dict[str, _Place] = {}
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:  # closes what is open if a later file is refused
            found = [(file, *_open(file, opened)) for file in files]
            self._join(found, weight_map, index)
            self._stack = opened.pop_all()
        self.names = tuple(sorted(self._places))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Return dtype and shape of a tensor without reading it."""
        info = self._place(name).info
        return info.dtype, info.shape

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Read one tensor.

        Args:
            name: its name.
            rows: of its leading axis, without a step; None: all.

        Returns:
            An array of its own, contiguous and writable.

        Raises:
            SgqlmError: there is no such tensor, or the file has become shorter.
        """
        file, stream, info = self._place(name)
        shape, start = info.shape, info.start
        if rows is not None:
            if not shape or rows.step not in (None, 1):
                raise ValueError(f"{name} {shape} has no such rows: {rows}")
            first, last, _ = rows.indices(shape[0])
            start += first * ((info.stop - info.start) // max(shape[0], 1))
            shape = (max(last - first, 0), *shape[1:])
        array = np.empty(shape, info.dtype)
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            part = view[done : done + _MAX_READ]
            if not (count := os.preadv(stream.fileno(), [part], start + done)):
                raise header.fault(
                    f"the file ends inside {header.show(name)}",
                    file,
                    why="it has become shorter since it was opened",
                    fix="let nothing write to the folder while it is read",
                )
            done += count
        return array

    def _place(self, name: str) -> "_Place":
        if name not in self._places:
            fix = "give the complete folder"
            raise header.fault(f"there is no tensor {header.show(name)}", self.source[0], fix=fix)
        return self._places[name]

    def _join(self, found, weight_map, index):
        wrong = []
        for file, stream, infos in found:
            for name, info in infos.items():
                shown = f"{header.show(name)} ({file.name})"
                if name in self._places:
                    wrong.append(f"twice      {shown} and in {self._places[name].file.name}")
                elif weight_map is not None and name not in weight_map:
                    wrong.append(f"unlisted   {shown}")
                self._places[name] = _Place(file, stream, info)
        for name, shard in (weight_map or {}).items():
            if name not in self._places or self._places[name].file.name != shard:
                wrong.append(f"missing    {header.show(name)} ({shard})")
        if wrong:
            raise header.fault(
                f"{len(wrong)} tensors are not where they should be",
                index or found[0][0],
                why=header.table(wrong),
                fix="fetch the complete folder again; files of two models may be mixed",
            )


class _Place(NamedTuple):
    file: pathlib.Path
    stream: BinaryIO
    info: header.Info


def open_folder(folder: str | os.PathLike, stem: str = "model") -> TensorFiles:
    """Open the weights of a folder.

    Args:
        folder: holds `<stem>.safetensors`, or `.bin`, or the shards of one of both and their
            index. Safetensors are taken where both exist; `source` tells what was taken.
        stem: `model` (its pickles are called `pytorch_model`), `adapter_model`,
            `non_lora_trainables`, `mm_projector`.

    Raises:
        SgqlmError: nothing or too much is found, or a file is refused.
    """
    folder = pathlib.Path(folder)
    old = "pytorch_model" if stem == "model" else stem
    for name in (f"{stem}.safetensors", f"{old}.bin"):
        single, index = folder / name, folder / (name + _INDEX)
        if single.exists() and index.exists():
            raise header.fault(
                f"there are two sets of weights: {single.name} and {index.name}",
                folder,
                fix="remove one of both, or give the file itself",
            )
        if single.exists() or index.exists():
            return open_files(single if single.exists() else index)
    raise header.fault(
        f"the weights {stem}.safetensors are missing",
        folder,
        why=f"nor is there {old}.bin, or an index of shards of either",
        fix="give the complete folder of the model",
    )


def open_files(files: str | os.PathLike | Sequence[str | os.PathLike]) -> TensorFiles:
    """Open weights by the names of their files.

    Args:
        files: one `.safetensors`, `.bin`, `.pt`, `.pth` or `.index.json`, or several of the former.

    Raises:
        SgqlmError: a file is missing or refused, or two hold the same name.
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    paths = [pathlib.Path(file) for file in files]
    if not paths:
        raise header.fault("no file of weights is given", "", fix="give at least one")
    if len(paths) == 1 and paths[0].name.endswith(_INDEX):
        return TensorFiles((), index=paths[0])
    return TensorFiles(paths)


def _open(file: pathlib.Path, stack: contextlib.ExitStack):
    """Open a file and check its header; a pickle is first turned into safetensors."""
    is_pickle = file.suffix in _PICKLES
    if not is_pickle and file.suffix != ".safetensors":
        kinds = ", ".join((".safetensors", *_PICKLES))
        raise header.fault(f"{file.name} is no file of weights", file, fix=f"known: {kinds}")
    if not file.is_file():
        what = f"the weights {file.name} are missing"
        raise header.fault(what, file, fix="give the complete folder")
    try:
        if not is_pickle:
            stream = stack.enter_context(file.open("rb", buffering=0))
            return stream, header.read(stream, where=file)
        if (size := file.stat().st_size) >= _SAY_FROM:
            message = f"{file.name}: {size / 1e9:.1f} GB are turned into safetensors first"
            print(message, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="sgqlm-") as folder:
            copy = pathlib.Path(folder) / "copy.safetensors"
            unpickle.to_safetensors(file, copy)
            # the name goes at once: its bytes go with the stream, also if this process is killed
            stream = stack.enter_context(copy.open("rb", buffering=0))
        return stream, header.read(stream, where=file)
    except OSError as error:
        why = error.strerror or type(error).__name__
        fix = "check its permissions and the disk"
        raise header.fault(f"{file.name} cannot be read", file, why=why, fix=fix) from error


def _read_index(index: pathlib.Path) -> dict[str, str]:
    try:
        with index.open("rb") as stream:
            text = stream.read(header.MAX_JSON + 1)
        if len(text) > header.MAX_JSON:
            raise ValueError(f"it has more than {header.MAX_JSON} bytes")
        weight_map = header.parse_json(text).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("the index has no weight_map")
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("its weight_map does not name files")
        for shard in sorted(set(weight_map.values())):
            _check_shard(index.parent, shard)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        fix = "fetch the complete folder again"
        what = "the index of the weights cannot be used"
        raise header.fault(what, index, why=why or "", fix=fix) from None
    return weight_map


def _check_shard(folder: pathlib.Path, shard: str) -> None:
    """Refuse what leaves the folder, by its name or by a link."""
    is_plain = shard == pathlib.PurePath(shard).name and "\\" not in shard and shard.isprintable()
    if not is_plain or shard in ("", ".", ".."):
        raise ValueError(f"the index names {header.show(shard)}, which is not a plain file name")
    inside = folder.resolve()
    homes = {inside}
    if inside.parent.name == "snapshots":  # the cache of huggingface_hub: links into its blobs
        homes.add(inside.parent.parent / "blobs")
    if (folder / shard).resolve().parent not in homes:
        raise ValueError(f"the index names {shard}, a link to a file outside the folder")
