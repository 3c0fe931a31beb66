"""A replacement is made ready by the very calls with which the host made the first workers ready."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from contract.hosts import vllm_parts
from contract.hosts.rig import LONG_S
from contract.hosts.vllm_rig import VllmRig
from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool.start_calls import MEASURING, StartCalls

pytestmark = pytest.mark.host

CALLED: dict[int, list[tuple[str, Any]]] = {}  # by the object of a worker, in order


class NotedWorker(vllm_parts.PretendWorker):
    """A worker that notes which of its methods the host calls, and with what."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not callable(found) or name.startswith("_"):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            CALLED.setdefault(id(self), []).append((name, (args, kwargs)))
            return found(*args, **kwargs)

        return call


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmRig]:
    monkeypatch.setattr(vllm_parts, "PretendWorker", NotedWorker)
    CALLED.clear()
    made = VllmRig()
    yield made
    made.close()


def calls_of(rig: VllmRig, rank: int) -> list[tuple[str, Any]]:
    return CALLED.get(id(rig._core.model_executor.ranks[rank].proc.worker.worker), [])


def test_a_replacement_is_given_every_call_of_a_start_but_the_measurements(rig: VllmRig) -> None:
    """In the order and with the arguments of the host; what is left out is named, with its reason."""
    first = [call for call in calls_of(rig, 1) if call[0] not in MEASURING]
    assert {"get_kv_cache_spec", "initialize_from_config", "compile_or_warm_up_model"} <= {name for name, _ in first}
    executor = rig._core.model_executor
    executor.replace_workers([1], LONG_S, LONG_S)
    executor._prepare([1], time.monotonic() + LONG_S)
    assert calls_of(rig, 1) == first


def test_calls_after_the_start_are_no_part_of_it(rig: VllmRig) -> None:
    before = rig._core.model_executor.start_calls.calls()
    rig.add("a", 3)
    rig.run()
    rig._core.collective_rpc("compile_or_warm_up_model")
    assert rig._core.model_executor.start_calls.calls() == before


def test_ranks_that_stay_are_given_none(rig: VllmRig) -> None:
    """A second `initialize_from_config` would take the KV of a survivor away."""
    before = list(calls_of(rig, 0))
    rig._core.model_executor._prepare([1], time.monotonic() + LONG_S)
    assert calls_of(rig, 0) == before


def test_a_function_at_the_start_prevents_replacements() -> None:
    """Nobody knows what it left behind, and a function is not sent again. Measurements of the host are known."""
    noted = StartCalls()
    noted.note(_measure_on_worker, (), {})
    assert noted.unrepeatable == ""
    noted.note(change_something, (), {})
    assert noted.unrepeatable == "change_something"


def test_a_rank_is_not_ended_where_it_could_not_be_replaced(rig: VllmRig) -> None:
    executor = rig._core.model_executor
    executor.start_calls.note(change_something, (), {})
    with pytest.raises(RecoveryFailed, match="change_something"):
        super(vllm_parts.ThreadExecutor, executor).replace_workers([1], LONG_S, LONG_S)
    assert not executor.dead_ranks()


def test_arguments_are_those_of_the_call_whatever_becomes_of_them_later() -> None:
    noted, blocks = StartCalls(), [1]
    noted.note("initialize_from_config", (blocks,), {})
    blocks.append(2)
    assert noted.calls() == (("initialize_from_config", ([1],), {}),)


def _measure_on_worker(_: Any) -> None:
    """As the host's function of that name."""


def change_something(_: Any) -> None:
    """A function of a plugin."""
