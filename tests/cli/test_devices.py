"""The mesh of a model that only answers; several devices are in test_eval_hosts.py."""

import dataclasses
import os

import jax
import pytest

from sgqlm import config, errors
from sgqlm.cli import devices


def settings(**mesh):
    whole = config.Config()
    return dataclasses.replace(whole, train=dataclasses.replace(whole.train, mesh=mesh))


def test_one_device_needs_no_mesh():
    assert devices.choose("") is None
    assert devices.choose("data=-1") is None
    assert devices.choose("", settings(data=4, fsdp=8, tensor=1)) is None


def test_all_local_devices_share_the_questions(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices() * 4)
    assert devices.choose("") == {"data": 4, "fsdp": 1, "tensor": 1}
    assert devices.choose("tensor=2,data=-1") == {"data": 2, "fsdp": 1, "tensor": 2}
    assert devices.choose("", settings(fsdp=64, tensor=2)) == {"data": 2, "fsdp": 1, "tensor": 2}
    with pytest.raises(errors.SgqlmError, match="does not fit 4 devices") as caught:
        devices.choose("", settings(fsdp=8, tensor=8))
    assert "--mesh" in caught.value.where


def test_a_cpu_shows_as_many_devices_as_are_asked_for(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for text in ("", "data=-1", "data=1"):
        devices.force(text)
        assert "XLA_FLAGS" not in os.environ
    devices.force("data=2,tensor=3")
    assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=6"
    with pytest.raises(errors.SgqlmError, match="no axis of a mesh"):
        devices.force("data=two")
