"""Every touchpoint of the registry holds in the installed host: in its sources, and imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import holdfast
from contract.host_ast import HostSources, Imported, imports_of_the_host, sources_in
from holdfast.hosts.vllm.contract.hooks import is_present
from holdfast.hosts.vllm.contract.inspection import inspect_touchpoint
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint

_SPEC = importlib.util.find_spec("vllm")

pytestmark = [pytest.mark.host, pytest.mark.skipif(_SPEC is None, reason="vLLM is not installed here")]


@pytest.fixture(scope="module")
def installed() -> HostSources:
    assert _SPEC is not None
    return sources_in(Path(str(_SPEC.origin)).parent.parent)


@pytest.mark.parametrize("touchpoint", TOUCHPOINTS, ids=lambda t: t.label)
def test_stands_in_the_sources(installed: HostSources, touchpoint: Touchpoint) -> None:
    """A touchpoint stands in the installed host's sources, unless the registry says that the release has none."""
    assert (installed.problem(touchpoint) is None) == is_present(touchpoint), installed.problem(touchpoint)


IMPORTS = imports_of_the_host(Path(holdfast.__path__[0]))


@pytest.mark.parametrize("imported", IMPORTS, ids=lambda i: f"{i.module}:{i.name}")
def test_every_imported_name_stands_in_the_sources(installed: HostSources, imported: Imported) -> None:
    """A name that Holdfast imports from the host stands where it is imported from."""
    assert installed.defines(imported.module, imported.name)


ALIVE = [t for t in TOUCHPOINTS if is_present(t) and t.kind in ("wrap", "text", "name", "module")]


@pytest.mark.parametrize("touchpoint", ALIVE, ids=lambda t: t.label)
def test_stands_in_the_imported_host(touchpoint: Touchpoint) -> None:
    """A hook imports and takes the parameters of the wrapper; `holdfast doctor` finds texts and names."""
    assert inspect_touchpoint(touchpoint) is None


@pytest.mark.parametrize(
    ("touchpoint", "problem"),
    [
        (Touchpoint("vllm.gone", "", "module", None, ""), "there is no such module"),
        (Touchpoint("vllm.gone.deeper", "", "module", None, ""), "cannot be found: No module named 'vllm.gone'"),
        (Touchpoint("vllm.envs", "gone", "name", None, ""), "vllm.envs has no 'gone'"),
        (Touchpoint("vllm.envs", "VLLM_GONE", "text", None, ""), "no string of the module contains 'VLLM_GONE'"),
    ],
    ids=lambda value: value.kind if isinstance(value, Touchpoint) else "",
)
def test_a_missing_name_is_told(touchpoint: Touchpoint, problem: str) -> None:
    """The installed host is asked for modules, names and texts."""
    assert inspect_touchpoint(touchpoint) == problem


def test_the_registry_names_each_touchpoint_once() -> None:
    """Each place of the host has a single entry with a single reason."""
    labels = [t.label for t in TOUCHPOINTS]
    assert len(labels) == len(set(labels))
