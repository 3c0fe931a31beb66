"""Every touchpoint of the registry holds in the sources of each supported release (`make contract-wheels`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.host_ast import HostSources
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.contract.versions import SUPPORTED

CACHED_SOURCES = Path(__file__).resolve().parents[2] / ".cache" / "host-sources"


@pytest.fixture(scope="module", params=[f"{series}.0" for series in SUPPORTED])
def release(request: pytest.FixtureRequest) -> HostSources:
    """The sources of a supported release."""
    folder = CACHED_SOURCES / request.param
    if not folder.is_dir():
        pytest.skip(f"the sources of vLLM {request.param} are not cached; `make contract-wheels` downloads them")
    return HostSources(folder)


HOSTS_OWN = [t for t in TOUCHPOINTS if t.module.startswith("vllm.")]  # its wheels do not contain torch


@pytest.mark.parametrize("touchpoint", HOSTS_OWN, ids=lambda t: t.label)
def test_stands_in_the_release(release: HostSources, touchpoint: Touchpoint) -> None:
    """A touchpoint of the registry stands in every supported release."""
    assert release.problem(touchpoint) is None
