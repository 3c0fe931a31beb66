"""Every touchpoint of the registry holds in the sources of each supported release (`make contract-wheels`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import holdfast
from contract.host_ast import HostSources, Imported, imports_of_the_host, sources_in
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import SUPPORTED, supported_release

CACHED_SOURCES = Path(__file__).resolve().parents[2] / ".cache" / "host-sources"


@pytest.fixture(scope="module", params=[f"{series}.0" for series in SUPPORTED])
def release(request: pytest.FixtureRequest) -> HostSources:
    """The sources of a supported release."""
    folder = CACHED_SOURCES / request.param
    if not folder.is_dir():
        pytest.skip(f"the sources of vLLM {request.param} are not cached; `make contract-wheels` downloads them")
    return sources_in(folder)


@pytest.fixture
def series(release: HostSources) -> str:
    """The name of the release in the registry."""
    return supported_release(release.root.name)


IMPORTS = imports_of_the_host(Path(holdfast.__path__[0]))
HOSTS_OWN = [t for t in TOUCHPOINTS if t.module.startswith("vllm.")]  # its wheels do not contain torch


@pytest.mark.parametrize("touchpoint", HOSTS_OWN, ids=lambda t: t.label)
def test_stands_in_the_release(release: HostSources, series: str, touchpoint: Touchpoint) -> None:
    """A touchpoint stands in each supported release that the registry says has it, and in no other."""
    is_expected = not touchpoint.releases or series in touchpoint.releases
    assert (release.problem(touchpoint) is None) == is_expected, release.problem(touchpoint)


@pytest.mark.parametrize("imported", IMPORTS, ids=lambda i: f"{i.module}:{i.name}")
def test_every_imported_name_stands_in_the_release(release: HostSources, imported: Imported) -> None:
    """A name that Holdfast imports from the host stands where it is imported from."""
    assert release.defines(imported.module, imported.name)
