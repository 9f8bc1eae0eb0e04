"""Configuration on the command line: `--config=file.py:arg --config.train.seed=1`."""

import argparse
import ast
import contextlib
import ctypes
import dataclasses
import difflib
import importlib.util
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from sgqlm import config, errors

_FLAG = "--config"
_AGAIN_SECONDS = 0.05
# endings by which somebody means a file
_FILES = {".json", ".jsonl", ".html", ".md", ".txt", ".csv", ".tsv", ".xlsx", ".gz"}


class Terminated(KeyboardInterrupt):
    """SIGTERM where the program was; nothing that goes on after an error takes it for one."""

    what, code = "stopped by SIGTERM", errors.PREEMPTED


class Parser(argparse.ArgumentParser):
    """A parser whose errors are told as all others are."""

    def error(self, message: str) -> typing.NoReturn:
        """Refuse a command line.

        Args:
            message: as argparse words it, such as `argument --limit: invalid int value: 'x'`.

        Raises:
            SgqlmError: always.
        """
        named = re.match(r"argument (\S+): ", message)
        what = message[named.end() :] if named else message
        fix = f"`{self.prog.replace('...', 'gqa')} --help` explains it"
        raise errors.SgqlmError(what, where=named[1] if named else self.prog, fix=fix)


@contextlib.contextmanager
def stoppable(
    why: str, fix: str = "run it again: the same command goes on from there"
) -> Iterator[None]:
    """End the work at SIGTERM with the exit code after which a launcher starts it again.

    Python drops an exception that a signal raises in a callback of its garbage collector, such as
    that of jax: SIGTERM and Ctrl-C are then given again. Signals can be caught in the main thread
    only; in another one nothing changes.

    Args:
        why: the work may end there, for the message.
        fix: what to do then.

    Raises:
        SgqlmError: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise Terminated

    def again(dropped):
        number = numbers.get(dropped.exc_type)
        if number is None:
            hook(dropped)
        else:  # later, and not here, where it would be dropped as well
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()

    numbers = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
    before = signal.signal(signal.SIGTERM, stop)
    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    except Terminated as stopped:
        raise errors.SgqlmError(stopped.what, why=why, fix=fix, code=stopped.code) from None
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def load_config(argv: Sequence[str]) -> tuple[config.Config, list[str]]:
    """Build the configuration that a command line describes.

    Args:
        argv: words such as `--config=configs/x.py:arg`, `--config=run/config.json`,
            `--config.train.seed=1`, `--config.train.stages.instruct.steps=100` (a stage by name or
            number), in any order; the value may also be the next word.

    Returns:
        The configuration, the defaults if no file is given, and the words that are not its.

    Raises:
        SgqlmError: a file cannot be read, a setting is unknown (the nearest name is told) or a
            value does not fit (the type is told).
    """
    files, overrides, rest = _sort(argv)
    if len(files) > 1:
        raise errors.SgqlmError("--config is given twice", where=" ".join(files))
    loaded = read_config(files[0]) if files else config.Config()
    for path, text in overrides:
        loaded = override(loaded, path, text)
    return loaded, rest


def read_config(location: str) -> config.Config:
    """Read `file.py:arg`, whose `get_config(arg)` makes the settings, or a `.json` dump."""
    name, _, arg = location.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*")], n=1)
        fix = f"did you mean {file.parent / near[0]}?" if near else "give an existing file"
        raise errors.SgqlmError("there is no such configuration file", where=name, fix=fix)
    if file.suffix == ".json":
        try:
            tree = json.loads(file.read_text())
        except ValueError as error:
            fix = "give a config.json that a run wrote"
            raise errors.SgqlmError(
                "the configuration is not JSON", where=name, why=str(error), fix=fix
            ) from error
    else:
        tree = _call_get_config(file, arg)
    return tree if isinstance(tree, config.Config) else config.from_config_dict(_plain(tree))


def write_config(settings: config.Config, file: str | os.PathLike) -> None:
    """Write the resolved configuration as JSON that `--config` reads again."""
    pathlib.Path(file).write_text(json.dumps(config.to_dict(settings), indent=2) + "\n")


def override(settings: config.Config, path: str, text: str) -> config.Config:
    """Return `settings` with the value at the dotted `path` replaced by what `text` says."""
    return _assign(settings, config.Config, path.split("."), text, "config")


def override_all(
    settings: config.Config, words: Sequence[str], known: Sequence[str]
) -> config.Config:
    """Apply `--config.a.b=value` words to settings; `known` are the other flags, for messages.

    Raises:
        SgqlmError: a word is something else, or does not fit.
    """
    for word in words:
        path, has_value, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not has_value:
            refuse_rest([word], known)
        settings = override(settings, path, value)
    return settings


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system.

    XLA on a CPU frees and allocates the same large buffers every step; without this every page of
    them is asked for and zeroed again (a training step of the tiny model took 1.5 times as long).
    Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
        mallopt(parameter, value)  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h


def force_host_devices(settings: config.Config) -> None:
    """Let the CPU backend show as many devices as a mesh of fixed sizes needs.

    Call it before jax makes its first array. Accelerators are not affected, and a count that the
    user set in XLA_FLAGS stays.
    """
    count = 1
    for size in settings.train.mesh.values():
        count *= size
    processes = os.environ.get("JAX_NUM_PROCESSES", "1")  # each of them shows its own share
    count //= max(int(processes), 1) if processes.isdecimal() else 1
    force_devices(count)


def force_devices(count: int) -> None:
    """Let the CPU backend show that many devices; see `force_host_devices`."""
    flags = os.environ.get("XLA_FLAGS", "")
    if count > 1 and "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


def parse_mesh(text: str) -> dict[str, int]:
    """Return the sizes that `--mesh data=1,fsdp=8,tensor=1` names.

    Raises:
        SgqlmError: a word is no axis with a size.
    """
    found = {}
    for word in text.split(","):
        name, _, size = word.partition("=")
        if not size.removeprefix("-").isdecimal():
            raise errors.SgqlmError(
                f"{word!r} is no axis of a mesh",
                where=f"--mesh {text}",
                fix="write --mesh data=1,fsdp=8,tensor=1",
            )
        found[name.strip()] = int(size)
    return found


def check_folder(path: pathlib.Path, flag: str = "--out") -> None:
    """Refuse an output that must be a folder, and is a file, has the name of one or lies in one.

    Raises:
        SgqlmError: it is.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        fix = "name a folder elsewhere"
        raise errors.SgqlmError("the output lies in a file", where=f"{flag}={path}",
                                why=f"{above} is no folder", fix=fix)  # fmt: skip
    if not path.is_dir() and (path.exists() or path.suffix.lower() in _FILES):
        what = "the output is a file" if path.exists() else "the output has the name of a file"
        fix = f"name a folder, such as {path.with_suffix('')}"
        raise errors.SgqlmError(what, where=f"{flag}={path}", why="a folder is written", fix=fix)


def check_file(path: pathlib.Path, suffixes: Sequence[str], flag: str = "--out") -> None:
    """Refuse an output that must be a file, and is a folder, ends otherwise or cannot be written.

    Args:
        path: the output.
        suffixes: of which the file has one.
        flag: the flag that names it, for messages.

    Raises:
        SgqlmError: see above.
    """
    if path.is_dir() or path.suffix.lower() not in suffixes:
        what = "the output is a folder" if path.is_dir() else "the output has another ending"
        good = path / f"report{suffixes[0]}" if path.is_dir() else path.with_suffix(suffixes[0])
        why = f"one file is written, {' or '.join(dict.fromkeys(suffixes))}"
        fix = f"name a file, such as {good}"
        raise errors.SgqlmError(what, where=f"{flag}={path}", why=why, fix=fix)
    check_writable(path, flag)


def check_writable(path: pathlib.Path, flag: str = "--out") -> None:
    """Refuse a file that cannot be written, before any work; nothing is left behind.

    Raises:
        SgqlmError: it cannot.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise errors.SgqlmError(
            "the output cannot be written", where=f"{flag}={path}", why=str(error),
            fix="name a file in a folder that can be written",
        ) from error  # fmt: skip
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def refuse_rest(rest: Sequence[str], known: Sequence[str] = ()) -> None:
    """Refuse words of the command line that nothing understood.

    Raises:
        SgqlmError: there is such a word; the nearest known one is told.
    """
    if rest:
        word = rest[0].split("=", 1)[0]
        near = difflib.get_close_matches(word, (_FLAG, *known), n=1)
        fix = f"did you mean {near[0]}?" if near else "see --help"
        raise errors.SgqlmError(f"unknown argument {rest[0]!r}", where=rest[0], fix=fix)


def _sort(argv: Sequence[str]):
    files, overrides, rest = [], [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        if name != _FLAG and not name.startswith(_FLAG + "."):
            rest.append(word)
            continue
        if not has_value:
            if not words:
                raise errors.SgqlmError(f"{name} needs a value", where=name, fix=f"{name}=...")
            value = words.pop(0)
        if name == _FLAG:
            files.append(value)
        else:
            overrides.append((name.removeprefix(_FLAG + "."), value))
    return files, overrides, rest


def _call_get_config(file: pathlib.Path, arg: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file.absolute())
    if spec is None or spec.loader is None:
        raise errors.SgqlmError("a configuration is a .py or .json file", where=str(file))
    module = importlib.util.module_from_spec(spec)
    folder, known = str(file.absolute().parent), set(sys.modules)
    # a configuration may import its neighbours, by their names or as `configs.name`
    added = [folder, str(pathlib.Path(folder).parent)]
    sys.path[:0] = added
    try:
        spec.loader.exec_module(module)
        return module.get_config(arg) if arg else module.get_config()
    except (AttributeError, SyntaxError, ImportError, TypeError) as error:
        raise errors.SgqlmError(
            "the configuration file cannot be used",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            fix="it must define get_config(arg), which returns a ConfigDict",
        ) from error
    finally:
        for name in added:
            sys.path.remove(name)
        for name in set(sys.modules) - known:  # another folder may have neighbours of these names
            where = getattr(sys.modules[name], "__file__", "") or ""
            if where.startswith(folder + os.sep) or name == file.parent.name:
                del sys.modules[name]


def _plain(value: Any) -> Any:
    """Turn a ConfigDict, which is no Mapping, into plain dicts."""
    if hasattr(value, "keys"):
        return {key: _plain(value[key]) for key in value.keys()}  # noqa: SIM118
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _assign(node: Any, hint: Any, keys: list[str], text: str, where: str) -> Any:
    if not keys:
        return _parse(text, hint, where)
    key, rest, below = keys[0], keys[1:], f"{where}.{keys[0]}"
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        hints = typing.get_type_hints(type(node))
        _check_known(key, list(hints), where)
        value = _assign(getattr(node, key), hints[key], rest, text, below)
        return dataclasses.replace(node, **{key: value})
    if isinstance(node, Mapping):
        inner = typing.get_args(hint)[1]
        return {**node, key: _assign(node.get(key), inner, rest, text, below)}
    if isinstance(node, tuple):
        names = [getattr(item, "name", str(i)) for i, item in enumerate(node)]
        index = int(key) if key.isdecimal() and int(key) < len(node) else None
        if index is None:
            _check_known(key, names, where)
            index = names.index(key)
        inner = typing.get_args(hint)[0]
        value = _assign(node[index], inner, rest, text, below)
        return (*node[:index], value, *node[index + 1 :])
    raise errors.SgqlmError(f"{where} is one value, it has no {key}", where=f"--{where}.{key}")


def _check_known(key: str, known: list[str], where: str):
    if key not in known:
        fix = "known: " + ", ".join(known)
        if near := difflib.get_close_matches(key, known, n=1):
            fix = f"did you mean {where}.{near[0]}?"
        else:  # perhaps it belongs to another group
            places = dict(_settings(config.Config, "config"))
            near = difflib.get_close_matches(key, places, n=1)
            fix = f"did you mean {places[near[0]]}? {fix}" if near else fix
        raise errors.SgqlmError(f"unknown setting {where}.{key}", where=f"--{where}.{key}", fix=fix)


def _settings(group: type, where: str) -> Iterator[tuple[str, str]]:
    """Yield (name, dotted path) of every setting; `NAME` stands for that of a stage or source."""
    for name, hint in typing.get_type_hints(group).items():
        path = f"{where}.{name}"
        yield name, path
        inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else (hint,)
        if inner and dataclasses.is_dataclass(inner[0]) and isinstance(inner[0], type):
            yield from _settings(inner[0], path if inner[0] is hint else f"{path}.NAME")


def _parse(text: str, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null"):
            return None
        return _parse(text, next(a for a in args if a is not type(None)), where)
    if hint is str:
        return text
    if origin is Literal:
        if text not in map(str, args):
            near = difflib.get_close_matches(text, [str(a) for a in args], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise _mismatch(text, "one of " + ", ".join(map(str, args)) + hint_text, where)
        return next(a for a in args if str(a) == text)
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if origin is tuple and args[0] is str and not text.startswith(("[", "(")):
        return tuple(word for word in text.split(",") if word)
    value = _literal(text, hint, where)
    if origin is tuple and not isinstance(value, list | tuple):
        value = (value,)
    try:
        return config.convert(value, hint, where)
    except errors.SgqlmError as error:
        raise _mismatch(text, error.fix.removeprefix("give "), where) from error


def _literal(text: str, hint: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise _mismatch(text, _kind(hint), where) from error


def _kind(hint: Any) -> str:
    """Say what values a setting takes."""
    if typing.get_origin(hint) is tuple:
        return f"one or several {_kind(typing.get_args(hint)[0])}, with commas between them"
    return getattr(hint, "__name__", str(hint))


def _mismatch(text: str, expected: str, where: str) -> errors.SgqlmError:
    return errors.SgqlmError(
        f"--{where}={text} does not fit", where=f"--{where}", fix=f"give {expected}"
    )
