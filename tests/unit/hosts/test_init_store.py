"""The rendezvous file of workers is in the instance's folder, where killed workers may leave files."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process.init_store import _in_own_folder
from holdfast.hosts.vllm.process.settings import handed_down
from holdfast.hosts.vllm.process.sockets import VARIABLE


def address() -> str:
    return "file:///tmp/vllm_dist_1"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_file_is_beside_the_sockets_of_its_engine_core() -> None:
    with handed_down(HoldfastConfig(runtime_dir="/tmp/holdfast-1"), sockets="/tmp/holdfast-1/e0"):
        assert _in_own_folder(address) == "file:///tmp/holdfast-1/e0/vllm_dist_1"


def test_the_file_is_in_the_instances_folder_when_the_operator_names_a_folder_for_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "/run/sockets")
    with handed_down(HoldfastConfig(runtime_dir="/tmp/holdfast-1")):
        assert _in_own_folder(address) == "file:///tmp/holdfast-1/vllm_dist_1"


def test_an_unprotected_engine_core_is_left_alone() -> None:
    assert _in_own_folder(address) == "file:///tmp/vllm_dist_1"
