"""Arguments of API servers and the coordinator are kept, since a started process forgets them."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.owner.api_servers import ApiServerProcess, save_api_server_arguments
from holdfast.hosts.vllm.owner.coordinator import save_coordinator_arguments
from holdfast.hosts.vllm.process.settings import handed_down


def start_two(manager: Any, args: str) -> None:
    """Make processes as the host's manager does, without starting them."""
    context = multiprocessing.get_context("spawn")
    manager.processes = [
        context.Process(target=print, name=f"ApiServer_{i}", args=("address", args, {"client_index": i}))
        for i in range(2)
    ]


def test_every_process_of_a_protected_instance_can_be_replaced() -> None:
    manager = SimpleNamespace()
    with handed_down(HoldfastConfig()):
        save_api_server_arguments(start_two, manager, "args")
    assert [saved["args"] for saved in manager.holdfast_arguments] == [
        ("address", "args", {"client_index": 0}),
        ("address", "args", {"client_index": 1}),
    ]
    assert [process.name for process in manager.processes] == ["ApiServer_0", "ApiServer_1"]


def test_processes_are_made_as_before_afterwards() -> None:
    context = multiprocessing.get_context("spawn")
    with handed_down(HoldfastConfig()):
        save_api_server_arguments(start_two, SimpleNamespace(), "args")
    assert context.Process is type(context).Process


def test_an_unprotected_instance_is_left_alone() -> None:
    manager = SimpleNamespace()
    save_api_server_arguments(start_two, manager, "args")
    assert not hasattr(manager, "holdfast_arguments")


@pytest.mark.parametrize("counters", [None, [3] * 16])
def test_a_lost_api_server_gets_no_connection_and_its_requests_do_not_count(counters: list[int] | None) -> None:
    shared: dict[str, Any] = {"api_server_loads": [4, 5]}
    if counters is not None:
        shared["mp_admission_counters"] = counters
    manager = SimpleNamespace(processes=[None, None], holdfast_arguments=[{"args": (shared,)}] * 2)
    ApiServerProcess(manager, 1, SimpleNamespace()).note_loss()  # type: ignore[arg-type]
    assert shared["api_server_loads"] == [4, 2**31 - 1]
    assert counters is None or (counters[0], counters[8]) == (3, 0)


def test_the_arguments_of_the_coordinator_are_kept_with_their_defaults() -> None:
    def start(coordinator: Any, parallel_config: str, enable_wave_coordination: bool = True) -> None:
        coordinator.started = parallel_config

    coordinator = SimpleNamespace()
    with handed_down(HoldfastConfig()):
        save_coordinator_arguments(start, coordinator, "parallel")
    assert coordinator.started == "parallel"
    assert coordinator.holdfast_arguments["parallel_config"] == "parallel"
    assert coordinator.holdfast_arguments["enable_wave_coordination"] is True
