"""Worlds of two ranks; each test begins with whole communicators of an epoch of its own."""

from __future__ import annotations

import importlib.util

import pytest

from contract.communicators.ranks import FakeWorld, GlooWorld, whole


@pytest.fixture(scope="session")
def torch_world():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed here")
    world = GlooWorld("torch")
    yield world
    world.close()


@pytest.fixture(scope="session")
def fake_world():
    world = FakeWorld()
    yield world
    world.close()


@pytest.fixture(params=["fake", pytest.param("torch", marks=pytest.mark.host)])
def stage(request):
    return whole(request.getfixturevalue(f"{request.param}_world"))


@pytest.fixture
def gloo(torch_world):
    return whole(torch_world)
