"""A small training run as users start it: a configuration file and a process."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from flax import traverse_util

from sgqlm import config
from sgqlm.scenes import builder
from sgqlm.train import checkpoint, metrics
from tests import paths, xla
from tests.train import micro

STEPS, SAVE_EVERY = 120, 40


def settings(folder: pathlib.Path, **train) -> config.Config:
    """Return a run without graph and adapters, whose program compiles in a second or two."""
    scenes = dataclasses.replace(micro.SCENES, path=str(folder / "scenes"))
    builder.build(scenes, folder / "scenes", 1)
    row = micro.stage("align", STEPS, "projector", cache_features=True)
    whole = micro.settings(row, **({"save_every": SAVE_EVERY, "keep": 9} | train))
    return dataclasses.replace(whole, scenes=scenes, model=micro.plain(whole.model))


def write(file: pathlib.Path, values: config.Config) -> str:
    file.write_text(json.dumps(config.to_dict(values)))
    return f"--config={file}"


class Process:
    """`sgqlm train` in a process of its own; what it prints goes to a file."""

    def __init__(
        self,
        plan: str,
        workdir: pathlib.Path,
        *words: str,
        devices: int = 1,
        output: pathlib.Path | None = None,
        **environment: str,
    ):
        command = [sys.executable, "-m", "sgqlm", "train", plan]
        self.output = output or workdir.with_name(f"{workdir.name}-{time.monotonic_ns()}.txt")
        self.workdir = workdir
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                [*command, f"--config.train.workdir={workdir}", *words],
                cwd=paths.ROOT,
                env=os.environ | {"XLA_FLAGS": xla.flags(devices)} | environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def until(self, condition, what: str) -> None:
        """Wait until something can be seen from outside."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, f"ended before {what}: {self.text}"
            assert time.monotonic() - began < 100, f"waited for {what}: {self.text}"
            time.sleep(0.001)

    def until_step(self, step: int) -> None:
        self.until(lambda: last_step(self.workdir) >= step, f"step {step}")

    def until_text(self, text: str) -> None:
        self.until(lambda: text in self.text, text)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(timeout=120)


def last_step(workdir: pathlib.Path) -> int:
    """Return the last step that the log of a run tells of."""
    return max(metrics.read(workdir).get("align", {}), default=0)


def names(workdir: pathlib.Path) -> list[str]:
    return [folder.name for folder in checkpoint.find(workdir)]


def params(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the parameters of a finished run."""
    folder, meta = checkpoint.newest(workdir)
    assert (meta.step, meta.is_final) == (STEPS, True)
    flat = traverse_util.flatten_dict(checkpoint.load_params(folder), sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Tell whether two finished runs have the same parameters, bit for bit."""
    a, b = params(one), params(other)
    return a.keys() == b.keys() and all((a[path] == b[path]).all() for path in a)
