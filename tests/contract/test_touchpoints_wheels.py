"""Every touchpoint of the register holds in the sources of each supported release (`make contract-wheels`)."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from contract.host_ast import HostSources
from holdfast.hosts.vllm.register import TOUCHPOINTS, touchpoints_of
from holdfast.hosts.vllm.touchpoint import Touchpoint
from holdfast.hosts.vllm.versions import SUPPORTED

CACHED_SOURCES = Path(__file__).resolve().parents[2] / ".cache" / "host-sources"


RELEASES = [f"{series}.0" for series in SUPPORTED]


@functools.cache
def sources_of(release: str) -> HostSources:
    """One supported release's sources."""
    folder = CACHED_SOURCES / release
    if not folder.is_dir():
        pytest.skip(f"the sources of vLLM {release} are not cached; `make contract-wheels` downloads them")
    return HostSources(folder)


def hosts_own(release: str) -> list[Touchpoint]:
    """Without those of torch, which the host's wheels do not contain."""
    return [t for t in touchpoints_of(release) if t.module.startswith("vllm.")]


@pytest.mark.parametrize(
    ("release", "touchpoint"),
    [pytest.param(r, t, id=f"{r}-{t.label}") for r in RELEASES for t in hosts_own(r)],
)
def test_stands_in_the_release(release: str, touchpoint: Touchpoint) -> None:
    """What the register lists for a release that is said to be supported is defined there."""
    assert sources_of(release).problem(touchpoint) is None


@pytest.mark.parametrize("touchpoint", [t for t in TOUCHPOINTS if t.since], ids=lambda t: t.label)
def test_what_is_said_to_be_newer_than_a_release_is_not_in_it(touchpoint: Touchpoint) -> None:
    """Else it would be left alone where it could be held on to."""
    for release in RELEASES:
        assert touchpoint.stands_in(release) or sources_of(release).problem(touchpoint) is not None
