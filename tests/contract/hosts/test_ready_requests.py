"""Which requests the host's scheduler could put into a step, and the reasons for which the host rightly plans none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from contract.hosts.scheduler_rig import LONG_PREFILL_IN_A_FULL_CACHE, MAX_TURNS, Core
from holdfast.core.requests.rewind import RewindPlan
from holdfast.hosts.vllm.engine import rewind
from holdfast.hosts.vllm.engine.ready_requests import ReadyRequests

pytestmark = pytest.mark.host

SERVED = {**LONG_PREFILL_IN_A_FULL_CACHE, "long_prefill_token_threshold": 0}


class Engine:
    """An engine core around a scheduler of the host with two waiting requests."""

    def __init__(self, load: dict[str, Any] = SERVED, of: Iterable[str] = "12") -> None:
        self.core = Core(load)
        self.scheduler = self.core.scheduler
        self.model_executor = SimpleNamespace(is_sleeping=False)
        for name in of:
            self.core.add(name, 5, 2, 0, False)

    @property
    def first(self) -> Any:
        return self.scheduler.requests["1"]


def ready(engine: Engine, may_run: Callable[[Any], bool] = lambda _: True) -> int:
    return ReadyRequests(engine, may_run).count()


def test_requests_that_wait_could_run() -> None:
    assert ready(Engine()) == 2


def test_while_a_step_is_in_flight_nothing_stands() -> None:
    engine = Engine()
    engine.scheduler.schedule()
    assert ready(engine) == 0


@pytest.mark.parametrize("state", [PauseState.PAUSED_ALL, PauseState.PAUSED_NEW])
def test_a_pause_of_the_host_is_a_reason(state: PauseState) -> None:
    engine = Engine()
    engine.scheduler.set_pause_state(state)
    assert ready(engine) == 0


def test_sleep_is_a_reason() -> None:
    engine = Engine()
    engine.model_executor.is_sleeping = True
    assert ready(engine) == 0


def test_a_request_that_waits_for_its_grammar_is_not_ready_and_holds_nobody_back() -> None:
    engine = Engine()
    engine.first.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    assert ready(engine) == 1


@pytest.mark.parametrize(
    "status",
    [
        RequestStatus.WAITING_FOR_REMOTE_KVS,
        RequestStatus.WAITING_FOR_STREAMING_REQ,
        RequestStatus.FINISHED_STOPPED,  # still there: a connector sends the KV away
    ],
)
def test_kv_held_for_something_outside_is_a_reason_for_all(status: RequestStatus) -> None:
    engine = Engine()
    engine.first.status = status
    assert ready(engine) == 0


@pytest.mark.parametrize("name", ["connector", "ec_connector"])
def test_a_request_that_a_connector_has_not_answered_for_is_not_ready(name: str) -> None:
    engine = Engine()
    setattr(engine.scheduler, name, object())
    assert ready(engine) == 2
    engine.scheduler.deferred_waiting.add(engine.first)
    assert ready(engine) == 1


def test_blocks_that_return_with_a_later_step_are_a_reason() -> None:
    engine = Engine()
    engine.scheduler.deferred_frees.append((1, []))
    assert ready(engine) == 0


def test_a_suspect_that_is_kept_waiting_is_not_ready() -> None:
    engine = Engine()
    assert ready(engine, lambda request: request is not engine.first) == 1


def test_a_request_in_no_queue_leaves_the_busy_loop_idle_and_is_ready() -> None:
    engine = Engine()
    watched = ReadyRequests(engine, lambda _: True)
    assert not watched.planning(0).is_idle
    lost = list(engine.scheduler.requests.values())
    engine.scheduler.waiting.remove_requests(lost)
    assert ready(engine) == 2
    assert watched.planning(0).is_idle


def test_requests_that_change_during_a_look_show_that_something_happens() -> None:
    class Changing(dict[str, Any]):
        def values(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

    engine = Engine()
    engine.scheduler.requests = Changing()
    assert ready(engine) == 0


def test_an_engine_core_that_stands_takes_turns_without_a_step_and_goes_on_without_the_kv(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a plan is wrong about: the head of the queue never fits, and KV that is given up lets it fit."""

    def release_nothing(_: Any, plan: RewindPlan, __: Any) -> RewindPlan:
        return plan

    monkeypatch.setattr(rewind, "_fitting_plan", release_nothing)
    engine = Engine(LONG_PREFILL_IN_A_FULL_CACHE, of=())
    core, watched = engine.core, ReadyRequests(engine, lambda _: True)
    for turn in range(3):
        for name, (arrives, *request) in enumerate(LONG_PREFILL_IN_A_FULL_CACHE["requests"]):
            if arrives == turn:
                core.add(str(name), *request)
        core.turn()
    core.fail()
    before = watched.planning(0)
    while core.turn():
        pass
    assert not any(core.turn() for _ in range(20))
    assert watched.planning(0).turns - before.turns >= 20
    assert watched.count() > 0
    core.fail(give_kv_up=True)
    for _ in range(MAX_TURNS):
        core.turn()
        if not core.scheduler.requests:
            return
    pytest.fail("the requests do not end")
