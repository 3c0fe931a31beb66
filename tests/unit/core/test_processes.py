"""A process beside the engine cores that is gone: another one takes its place, or the instance ends."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.processes import (
    COORDINATOR,
    TELL_AGAIN_AFTER_S,
    api_server,
    decide_restart,
    index_of_api_server,
)
from holdfast.core.policy.ladder import Action, Decision
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import End, ReplaceProcess, Send
from holdfast.core.protocol.events import EventKind, ProcessStatus
from holdfast.core.states import EngineState
from support.instance_bench import Bench, kinds

CONFIG = HoldfastConfig(max_api_server_restarts=3, api_server_restart_window_s=100.0)
SECOND = api_server(1)


def make_bench(config=CONFIG):
    return Bench(config, engines=(0, 1))


def lost(bench, name, unrecoverable_reason=""):
    return bench.did(bench.instance.process_lost(name, "exit code -9", bench.now, unrecoverable_reason))


def returned(bench, name, after_s=0.0):
    bench.now += after_s
    return bench.did(bench.instance.process_returned(name, bench.now))


def introductions(effects):
    return [e.engine_id for e in effects if isinstance(e, Send) and isinstance(e.message, m.CoordinatorReplaced)]


@pytest.mark.parametrize("name", [COORDINATOR, SECOND])
def test_a_lost_process_is_replaced_at_once_and_no_engine_stops_for_it(name):
    bench = make_bench()
    [order] = [e for e in lost(bench, name) if isinstance(e, ReplaceProcess)]
    assert order == ReplaceProcess(name, 0.0)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_the_loss_of_an_old_process_is_no_loss_of_its_replacement():
    bench = make_bench()
    bench.did(bench.instance.process_attached(SECOND, 7))
    lost(bench, SECOND)
    bench.did(bench.instance.process_returned(SECOND, bench.now, 9))
    assert bench.instance.process_lost(SECOND, "exit code -9", bench.now, pid=7) == []
    assert kinds(bench.instance.process_lost(SECOND, "exit code -9", bench.now, pid=9))[-1] == "ReplaceProcess"


def test_events_name_the_process_and_how_long_it_was_missing():
    bench = make_bench()
    lost(bench, SECOND)
    returned(bench, SECOND, after_s=12.5)
    gone, back = bench.events[-2:]
    assert (gone.kind, gone.process, gone.engine_id, gone.state) == (EventKind.PROCESS_LOST, SECOND, None, None)
    assert gone.reason == "api-server-1 was lost: exit code -9; starting a replacement; restart 1 of 3"
    assert (back.kind, back.process, back.interruption_s) == (EventKind.PROCESS_RESTARTED, SECOND, 12.5)


def test_the_status_says_of_each_process_whether_it_is_there_and_how_often_it_was_replaced():
    bench = make_bench()
    bench.did(bench.instance.process_attached(COORDINATOR, 11))
    bench.did(bench.instance.process_attached(SECOND, 12))
    assert bench.instance.view().processes == (
        ProcessStatus(name=COORDINATOR, pid=11),
        ProcessStatus(name=SECOND, pid=12),
    )
    lost(bench, SECOND)
    assert bench.instance.view().processes[1] == ProcessStatus(name=SECOND)
    bench.did(bench.instance.process_returned(SECOND, bench.now, 13))
    assert bench.instance.view().processes[1] == ProcessStatus(name=SECOND, pid=13, restarts=1)


def test_what_is_missing_since_before_a_start_that_failed_is_missing_that_long():
    bench = make_bench()
    lost(bench, SECOND)
    bench.now += 10.0
    lost(bench, SECOND)
    returned(bench, SECOND, after_s=10.0)
    assert bench.events[-1].interruption_s == 20.0


def test_pauses_between_restarts_grow_until_the_budget_is_used_up():
    bench = make_bench()
    orders = [e.after_s for _ in range(3) for e in lost(bench, SECOND) if isinstance(e, ReplaceProcess)]
    assert orders == [0.0, 1.0, 2.0]
    assert kinds(lost(bench, SECOND)) == ["instance-defeated", "Send", "Send", "End"]
    assert bench.defeat == (
        "api-server-1 was lost: exit code -9; 3 restarts within 100 s did not last (--max-api-server-restarts 3)"
    )
    assert bench.events[-1].process == SECOND


def test_each_process_has_a_budget_of_its_own():
    bench = make_bench()
    for name in (SECOND, SECOND, SECOND, COORDINATOR, api_server(0)):
        lost(bench, name)
    assert bench.defeat is None


def test_starts_that_fail_one_after_another_count_however_long_they_take():
    bench = make_bench()
    for _ in range(3):
        lost(bench, COORDINATOR)
        bench.now += 100.0
    lost(bench, COORDINATOR)
    assert "3 restarts within 100 s did not last" in bench.defeat


def test_restarts_of_long_ago_do_not_count():
    bench = make_bench()
    for _ in range(3):
        lost(bench, COORDINATOR)
        bench.did(bench.instance.process_returned(COORDINATOR, bench.now))
    bench.now += 100.0
    assert [e.after_s for e in lost(bench, COORDINATOR) if isinstance(e, ReplaceProcess)] == [0.0]


def test_where_nothing_may_be_restarted_the_instance_ends_and_says_why():
    bench = make_bench(HoldfastConfig(max_api_server_restarts=0))
    assert isinstance(lost(bench, COORDINATOR)[-1], End)
    assert bench.defeat.endswith("restarts of this process are off (--max-api-server-restarts 0)")
    assert bench.states(0, 1) == [EngineState.DEAD, EngineState.DEAD]


@pytest.mark.parametrize("policy", ["external", "dry-run"])
@pytest.mark.parametrize("name", [COORDINATOR, SECOND])
def test_such_a_process_is_replaced_whoever_decides_about_faults(policy, name):
    """No instruction is about it, and no engine core has a fault."""
    bench = make_bench(HoldfastConfig(fault_policy=policy))
    assert isinstance(lost(bench, name)[-1], ReplaceProcess)
    assert bench.defeat is None


def test_where_nothing_can_be_started_the_instance_ends():
    bench = make_bench()
    lost(bench, COORDINATOR, unrecoverable_reason="processes are forked here")
    assert bench.defeat == "coordinator was lost: exit code -9; processes are forked here"


def test_when_the_instance_has_ended_nothing_is_started_any_more():
    bench = make_bench(HoldfastConfig(max_engine_restarts=0))
    lost(bench, SECOND)
    bench.lost(0)
    bench.lost(1)
    assert bench.defeat is not None
    assert lost(bench, COORDINATOR) == []
    assert returned(bench, SECOND) == []


def test_engine_cores_drop_the_requests_of_an_api_server_that_is_gone():
    sent = [e for e in lost(make_bench(), SECOND) if isinstance(e, Send)]
    assert sent == [Send(0, m.ClientLost(client_index=1)), Send(1, m.ClientLost(client_index=1))]


def test_a_new_coordinator_is_told_at_once_and_twice_more_where_every_engine_core_stands():
    bench = make_bench()
    assert introductions(lost(bench, COORDINATOR)) == []
    assert introductions(returned(bench, COORDINATOR, after_s=3.0)) == [0, 1]
    assert introductions(bench.tick(TELL_AGAIN_AFTER_S[0] / 2)) == []
    assert introductions(bench.tick(TELL_AGAIN_AFTER_S[0] / 2)) == [0, 1]
    assert introductions(bench.tick(TELL_AGAIN_AFTER_S[1])) == [0, 1]
    assert introductions(bench.tick(TELL_AGAIN_AFTER_S[1])) == []


def test_the_return_of_what_was_never_lost_is_no_news():
    assert returned(make_bench(), COORDINATOR) == []


def test_only_an_api_server_has_an_index():
    assert [index_of_api_server(name) for name in (SECOND, COORDINATOR)] == [1, None]


def test_a_decision_to_replace_a_process_says_which_try_it_is_of_how_many():
    config = HoldfastConfig(max_api_server_restarts=5)
    reason = "starting a replacement; restart 2 of 5"
    assert decide_restart(1, config) == Decision(Action.RESTART_PROCESS, reason, after_s=1.0, tries=2, limit=5)


def test_every_restart_of_a_process_is_counted_and_named_in_events():
    bench = Bench(HoldfastConfig(max_api_server_restarts=5))
    bench.did(bench.instance.process_attached("api-server-0", 11))
    for pid in (12, 13):
        bench.did(bench.instance.process_lost("api-server-0", "exit code 3", bench.now))
        bench.did(bench.instance.process_returned("api-server-0", bench.now, pid))
    told = [(event.kind.value, event.process, event.reason) for event in bench.events if event.process]
    assert told == [
        ("process-attached", "api-server-0", None),
        ("process-lost", "api-server-0", "api-server-0 was lost: exit code 3; starting a replacement; restart 1 of 5"),
        ("process-restarted", "api-server-0", None),
        ("process-lost", "api-server-0", "api-server-0 was lost: exit code 3; starting a replacement; restart 2 of 5"),
        ("process-restarted", "api-server-0", None),
    ]
    [status] = bench.instance.view().processes
    assert (status.name, status.pid, status.restarts) == ("api-server-0", 13, 2)


def test_a_process_that_is_lost_before_it_was_ever_attached_is_shown_by_its_name():
    bench = Bench(HoldfastConfig())
    bench.did(bench.instance.process_lost("coordinator", "exit code 3", bench.now))
    [status] = bench.instance.view().processes
    assert (status.name, status.pid) == ("coordinator", None)
