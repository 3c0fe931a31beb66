"""Every touchpoint of the register holds in the installed host: by its sources, and alive."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from contract.host_ast import HostSources
from holdfast.hosts.vllm.contract.inspection import inspect_touchpoint
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint

_SPEC = importlib.util.find_spec("vllm")

pytestmark = [pytest.mark.host, pytest.mark.skipif(_SPEC is None, reason="vLLM is not installed here")]


@pytest.fixture(scope="module")
def installed() -> HostSources:
    assert _SPEC is not None
    return HostSources(Path(str(_SPEC.origin)).parent.parent)


@pytest.mark.parametrize("touchpoint", TOUCHPOINTS, ids=lambda t: t.label)
def test_stands_in_the_sources(installed: HostSources, touchpoint: Touchpoint) -> None:
    """What the register lists is defined in the installed host's sources."""
    assert installed.problem(touchpoint) is None


@pytest.mark.parametrize("touchpoint", [t for t in TOUCHPOINTS if t.kind == "wrap"], ids=lambda t: t.label)
def test_hook_can_be_wrapped(touchpoint: Touchpoint) -> None:
    """A hook imports, and takes the parameters its wrapper expects."""
    assert inspect_touchpoint(touchpoint) is None


def test_register_names_each_touchpoint_once() -> None:
    """One place of the host has one entry, so that there is one reason for it."""
    labels = [t.label for t in TOUCHPOINTS]
    assert len(labels) == len(set(labels))
