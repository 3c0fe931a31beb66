"""State that callers set at run time: a replacement repeats the calls, or no process is replaced."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import CommandConflict
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine, RestartWorkers
from holdfast.core.protocol.effects import BeginRecovery, End, LeaveOut, ReplaceEngine
from holdfast.core.protocol.events import EventKind
from support.instance_bench import AUTO, Bench, a_loss
from unit.core.test_engine_loss import lost

CONFIG = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0)
ACCEPTING = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0, accept_stale_state=True)
WEIGHTS = "weights that a trainer sent"
STALE = f"a new process would serve stale state, without {WEIGHTS}"


def state_set(bench: Bench, engine: int = 0, calls: bytes = b"", unrepeatable: str = "") -> None:
    bench.observe(m.RuntimeStateChanged(engine_id=engine, calls=calls, unrepeatable=unrepeatable))


def lose(bench: Bench, engine: int = 0) -> list:
    before = len(bench.effects)
    lost(bench, engine)
    return bench.effects[before:]


def test_a_replacement_is_given_the_calls_that_set_the_state() -> None:
    bench = Bench(CONFIG)
    state_set(bench, calls=b"first")
    state_set(bench, calls=b"first and second")
    [order] = [e for e in lose(bench) if isinstance(e, ReplaceEngine)]
    assert order.runtime_state == b"first and second"


def test_the_calls_outlast_a_replacement_that_fails_to_start() -> None:
    bench = Bench(CONFIG)
    state_set(bench, calls=b"calls")
    orders = [e for _ in range(2) for e in lose(bench) if isinstance(e, ReplaceEngine)]
    assert [order.runtime_state for order in orders] == [b"calls", b"calls"]


def test_state_that_no_call_brings_back_is_told_once_and_shown_in_the_status() -> None:
    bench = Bench(CONFIG)
    for _ in range(2):
        state_set(bench, unrepeatable=WEIGHTS)
    told = [e for e in bench.events if e.kind is EventKind.RUNTIME_STATE_CHANGED]
    assert [e.reason for e in told] == [f"a new process would lose {WEIGHTS}"]
    assert bench.view().unrepeatable_state == WEIGHTS


def test_state_that_was_set_anew_by_a_call_is_no_longer_in_the_status() -> None:
    bench = Bench(CONFIG)
    state_set(bench, unrepeatable=WEIGHTS)
    state_set(bench, calls=b"reload")
    assert bench.events[-1].reason == "a new process would lose nothing"
    assert bench.view().unrepeatable_state is msgspec.UNSET


def test_an_instance_ends_rather_than_serve_without_the_state_and_names_it() -> None:
    bench = Bench(CONFIG)
    state_set(bench, unrepeatable=WEIGHTS)
    effects = lose(bench)
    assert not [e for e in effects if isinstance(e, ReplaceEngine)]
    assert [e for e in effects if isinstance(e, End)]
    assert STALE in bench.defeat


def test_with_siblings_the_engine_core_is_left_out_and_never_started_again() -> None:
    bench = Bench(CONFIG, engines=(0, 1))
    for engine in (0, 1):
        state_set(bench, engine, unrepeatable=WEIGHTS)
    assert [e for e in lose(bench) if isinstance(e, LeaveOut)]
    assert bench.tick(CONFIG.engine_restart_window_s * 2) == []
    assert bench.view(0).state == "left-out"


def test_a_left_out_engine_core_is_started_again_as_soon_as_stale_state_is_accepted() -> None:
    bench = Bench(ACCEPTING, engines=(0, 1))
    state_set(bench, unrepeatable=WEIGHTS)
    for _ in range(4):
        lose(bench)
    assert bench.view(0).state == "left-out"
    assert [e for e in bench.tick(ACCEPTING.engine_restart_window_s * 2) if isinstance(e, ReplaceEngine)]


def test_a_left_out_engine_core_is_given_the_calls_that_its_siblings_took_meanwhile() -> None:
    config = HoldfastConfig(max_engine_restarts=1, engine_restart_window_s=100.0)
    bench = Bench(config, engines=(0, 1))
    for _ in range(2):
        lose(bench)
    state_set(bench, 1, calls=b"set meanwhile")
    [order] = [e for e in bench.tick(200.0) if isinstance(e, ReplaceEngine)]
    assert order.runtime_state == b"set meanwhile"


def test_a_left_out_engine_core_keeps_its_own_calls_while_no_sibling_runs() -> None:
    config = HoldfastConfig(max_engine_restarts=1, engine_restart_window_s=100.0)
    bench = Bench(config, engines=(0, 1))
    state_set(bench, calls=b"own")
    for _ in range(2):
        lose(bench)
    bench.now += 150.0
    lose(bench, 1)
    orders = [e for e in bench.tick(60.0) if isinstance(e, ReplaceEngine)]
    assert [order.runtime_state for order in orders] == [b"own"]


def test_with_stale_state_accepted_a_replacement_serves_without() -> None:
    bench = Bench(ACCEPTING)
    state_set(bench, unrepeatable=WEIGHTS)
    assert [e for e in lose(bench) if isinstance(e, ReplaceEngine)]


def test_a_retry_keeps_every_process_and_hence_the_state() -> None:
    bench = Bench(AUTO)
    state_set(bench, unrepeatable=WEIGHTS)
    bench.faulted()
    bench.paused_by_fault()
    [begun] = bench.all(BeginRecovery)
    assert begun.replace == {}


def test_a_lost_rank_gets_no_new_process() -> None:
    bench = Bench(CONFIG)
    state_set(bench, unrepeatable=WEIGHTS)
    bench.faulted(fault=a_loss())
    bench.paused_by_fault(fault=a_loss())
    assert not bench.all(BeginRecovery)
    assert STALE in bench.defeat


@pytest.mark.parametrize(
    "command", [RestartEngine(command_id="now", engine_id=0), RestartWorkers(command_id="now", engine_id=0)]
)
def test_an_operator_cannot_replace_a_process_without_accepting_the_loss(
    command: RestartEngine | RestartWorkers,
) -> None:
    bench = Bench(CONFIG)
    state_set(bench, unrepeatable=WEIGHTS)
    with pytest.raises(CommandConflict, match="gets no new process") as refused:
        bench.submit(command)
    assert "accept_stale_state=true" in refused.value.hint


def test_an_operator_who_accepts_the_loss_may_replace_a_process() -> None:
    bench = Bench(ACCEPTING)
    state_set(bench, unrepeatable=WEIGHTS)
    assert [e for e in bench.submit(RestartEngine(command_id="now", engine_id=0)) if isinstance(e, ReplaceEngine)]
