"""Readiness waits for the first standby of each engine core, once; failures end the wait."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from holdfast.api.standby_wait import ENOUGH_FAILURES, StandbyWait
from holdfast.core.config import HoldfastConfig, RuntimeSettings
from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.protocol.messages import Standbys
from holdfast.core.states import EngineState
from support.control_plane import MemoryControl
from support.http_app import Connect

WAITING = HoldfastConfig(standby_workers=1, wait_for_standby=True)


def view(*standbys: Standbys | None) -> InstanceView:
    engines = tuple(
        EngineStatus(engine_id=i, status="healthy", state=EngineState.HEALTHY, standbys=UNSET if one is None else one)
        for i, one in enumerate(standbys)
    )
    return InstanceView(engines=engines, settings=RuntimeSettings())


def of(ready: int, failures: int = 0) -> Standbys:
    return Standbys(wanted=1, ready=ready, memory_bytes=0, failures=failures)


@pytest.mark.parametrize("config", [HoldfastConfig(standby_workers=1), HoldfastConfig(wait_for_standby=True)])
def test_nothing_is_waited_for_unless_asked(config: HoldfastConfig) -> None:
    assert StandbyWait().reason(config, view(None)) == ""


def test_every_engine_core_is_waited_for_and_named_and_later_losses_are_none() -> None:
    wait = StandbyWait()
    assert wait.reason(WAITING, view(of(1), None)) == "no standby worker is ready yet in engine 1"
    assert wait.reason(WAITING, view(of(0), of(0))) == "no standby worker is ready yet in engine 0, 1"
    assert wait.reason(WAITING, view(of(1), of(1))) == ""
    assert wait.reason(WAITING, view(of(0), of(0))) == ""


def test_standbys_that_fail_again_and_again_do_not_keep_the_instance_from_serving() -> None:
    assert StandbyWait().reason(WAITING, view(of(0, ENOUGH_FAILURES - 1))) != ""
    assert StandbyWait().reason(WAITING, view(of(0, ENOUGH_FAILURES))) == ""


def test_the_endpoint_says_what_it_waits_for(
    control: MemoryControl, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(control), "config", WAITING)
    client = connect()
    answer = client.get("/fault_tolerance/ready")
    reason = "no standby worker is ready yet in engine 0"
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "state": "healthy", "reason": reason})
    control.standbys()
    assert client.get("/fault_tolerance/ready").status_code == 200
    control.standbys(ready=0)
    assert client.get("/fault_tolerance/ready").status_code == 200
