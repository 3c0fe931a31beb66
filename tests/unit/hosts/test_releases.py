"""What differs between the supported releases of the host is told apart by the registry alone."""

from __future__ import annotations

import threading

import pytest

from holdfast.hosts.vllm.contract import hooks
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS, touchpoints_of
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, call, only, wrap
from holdfast.hosts.vllm.contract.versions import SUPPORTED, supported_release


@pytest.mark.parametrize(
    ("version", "release"),
    [("0.32.0", "0.32"), ("0.33.0+cpu", "0.33"), ("0.99.1", "0.33"), (None, "0.33")],
)
def test_an_unknown_version_is_taken_for_the_newest_release(version: str | None, release: str) -> None:
    assert supported_release(version) == release


def test_every_limited_touchpoint_names_supported_releases() -> None:
    """An entry of a release that is no longer supported goes."""
    assert [t.label for t in TOUCHPOINTS if not set(t.releases) <= set(SUPPORTED)] == []


def test_a_release_has_its_own_touchpoints_and_the_common_ones() -> None:
    older, newer = (set(touchpoints_of(release)) for release in SUPPORTED)
    assert {t.releases for t in older - newer} == {SUPPORTED[:1]}
    assert {t.releases for t in newer - older} == {SUPPORTED[1:]}
    assert older | newer == set(TOUCHPOINTS)


@pytest.fixture
def as_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "host_version", lambda: "0.32.0")
    monkeypatch.setattr(hooks, "_attached", {})


@pytest.mark.usefixtures("as_release")
def test_a_hook_of_another_release_is_not_attached() -> None:
    """A hook of the installed release attaches or raises; a hook of another release is left out."""
    hooks.attach(only("0.33", wrap("threading", "no_such_function", (), "")), lambda original: None)
    assert hooks.attached() == ()


@pytest.mark.usefixtures("as_release")
def test_a_moved_function_is_found_where_the_release_has_it() -> None:
    def moved(release: str, module: str) -> Touchpoint:
        return only(release, call(module, "current_thread", (), ""))

    assert hooks.look_up(moved("0.33", "no_such_module"), moved("0.32", "threading")) is threading.current_thread
