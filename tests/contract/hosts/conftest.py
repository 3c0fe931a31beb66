"""Both hosts, fresh for each test: the fake and, where vLLM is installed, vLLM's."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

HOSTS = ("fake", pytest.param("vllm", marks=pytest.mark.host))


@pytest.fixture(scope="session", params=HOSTS)
def host(request):
    """Return the module that makes the rig of a host."""
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")
    return importlib.import_module(f"contract.hosts.{request.param}_rig")


@pytest.fixture
def rig(host):
    """Make an engine core of two ranks."""
    made = host.rig()
    yield made
    made.close()


@pytest.fixture
def waiting_rank(host):
    """Make a rank of two whose main thread is the main thread of the test."""
    return host.waiting_rank()
