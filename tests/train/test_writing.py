import os
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgqlm import errors
from sgqlm.train import checkpoint, writing
from tests.train import toys


@jax.jit
def doubled(tree):
    return jax.tree.map(lambda x: 2 * x, tree)


def meta(step):
    return checkpoint.Meta({}, "toy", 0, step, False)


def test_steps_that_follow_do_not_reach_into_a_checkpoint(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"graph": {"out": {"kernel": jnp.zeros((2000, 1000), jnp.float32)}}}
    with writing.Writer(is_async=True) as writer:
        for index in (1, 2):
            tree = step(tree)
            checkpoint.save(tmp_path, meta(index), tree, writer=writer, keep=9)
            for _ in range(20):
                tree = step(tree)  # the arrays that are being written are given away
    found = [
        np.asarray(checkpoint.load_params(p)["graph"]["out"]["kernel"])
        for p in checkpoint.find(tmp_path)
    ]
    assert [(leaf.min(), leaf.max()) for leaf in found] == [(1, 1), (22, 22)]


def test_it_appears_when_it_is_committed_and_an_error_comes_at_the_next_check(tmp_path):
    writer, gate = writing.Writer(is_async=True), threading.Event()
    trees = {"params": toys.params()}

    def commit(aside: pathlib.Path):
        gate.wait()
        aside.rename(tmp_path / "no" / "such" / "folder")

    writer.start(tmp_path / "one", trees, commit)
    writer.check()  # not done yet
    assert not (tmp_path / "one").exists()
    gate.set()
    with pytest.raises(errors.SgqlmError, match="the checkpoint one could not be") as caught:
        while True:
            writer.check()
    assert caught.value.code == errors.RESOURCES
    assert list(tmp_path.iterdir()) == []
    writer.start(tmp_path / "two", trees, lambda aside: aside.rename(tmp_path / "two"))
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_an_error_on_the_way_out_does_not_hide_the_first_one(tmp_path, capsys):
    def commit(aside):
        raise OSError("no more disk")

    with pytest.raises(ZeroDivisionError), writing.Writer(is_async=True) as writer:
        writer.start(tmp_path / "one", {"params": toys.params()}, commit)
        raise ZeroDivisionError
    assert "no more disk" in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    writer = writing.Writer()
    with pytest.raises(errors.SgqlmError, match="could not be written"):
        writer.start(tmp_path / "file" / "one", {"params": toys.params()}, os.fspath)
    writer.wait()


def test_sizes_in_words():
    assert writing.megabytes(1_500_000) == "1.5 MB"
    assert writing.megabytes(2 * 10**10) == "20.0 GB"
    assert writing.existing(pathlib.Path("/no/such")) == pathlib.Path("/")
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # so that a limit is an OSError
