"""Bounds of time of an instance, to the tick, and the reasons that its status shows."""

from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Send, Settle
from holdfast.core.protocol.events import EngineStatus, EventKind
from holdfast.core.states import EngineState
from support.instance_bench import NO_RESTARTS, Bench, a_fault, is_keepalive

NO_RETRIES = HoldfastConfig(max_retries=0, max_worker_restarts=0, max_engine_restarts=0)
NO_PROCESS_RESTARTS = HoldfastConfig(max_api_server_restarts=0)
IMPATIENT = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=6.0, containment_timeout_s=3.0)


def test_a_paused_engine_core_is_told_three_times_within_its_patience_that_the_owner_lives():
    bench = Bench(IMPATIENT)
    bench.tick()
    bench.faulted()
    bench.paused_by_fault()
    told = [any(map(is_keepalive, bench.tick(0.5))) for _ in range(8)]
    assert told == [False] * 5 + [True] + [False] * 2


def defeat_of(bench):
    """Return the event of the end of the instance."""
    [event] = [event for event in bench.events if event.kind is EventKind.INSTANCE_DEFEATED]
    return event


def test_the_end_of_an_instance_is_an_event_with_the_fault_and_the_reason():
    bench = Bench(NO_RETRIES)
    bench.faulted(fault=a_fault(message="boom"))
    bench.paused_by_fault(fault=a_fault(message="boom"))
    assert (defeat_of(bench).fault.message, defeat_of(bench).reason) == ("boom", bench.defeat)


def test_the_end_because_of_a_process_is_an_event_with_the_reason_which_the_engine_cores_are_told():
    bench = Bench(NO_PROCESS_RESTARTS, engines=(0, 1))
    bench.did(bench.instance.process_lost("api-server-1", "exit code 3", bench.now))
    reason = "api-server-1 was lost: exit code 3; restarts of this process are off (--max-api-server-restarts 0)"
    assert (defeat_of(bench).process, defeat_of(bench).reason, bench.defeat) == ("api-server-1", reason, reason)
    told = [e.message for e in bench.all(Send) if isinstance(e.message, m.EndEngine)]
    assert [message.reason for message in told] == [reason, reason]


def test_a_fault_that_waits_to_be_armed_fails_with_the_end_of_the_instance():
    bench = Bench(NO_RESTARTS)
    bench.arm("arm")
    bench.lost()
    assert bench.all(Settle) == [Settle("arm", error=bench.defeat)]


def test_the_status_of_an_engine_core_says_why_the_instance_has_ended():
    bench = Bench(NO_RESTARTS)
    bench.lost()
    assert bench.view().reason == bench.defeat
    assert bench.defeat.startswith("engine core 0 was lost: killed by signal 9")


def test_the_status_of_an_engine_core_shows_everything_that_its_reports_said():
    bench = Bench(groups=[(0, 1)], attached=False)
    bench.attached(0, pid=7, ranks=2, unrebuildable=("a ring",))
    assert bench.view(0) == EngineStatus(
        engine_id=0,
        status="healthy",
        state=EngineState.HEALTHY,
        epoch=0,
        ranks=2,
        lockstep_with=(1,),
        paused_by_operator=False,
        unrebuildable=("a ring",),
        pid=7,
        hooks=("h",),
        worker_hooks=("w",),
        reason=None,
        recoveries=0,
        worker_restarts=0,
        faults=0,
        restarts=0,
        suspects=0,
        ended_requests=0,
    )
    standbys = m.Standbys(wanted=2, ready=1, memory_bytes=3 * 2**20)
    bench.observe(m.StandbysChanged(engine_id=0, standbys=standbys))
    assert (bench.view(0).standbys, bench.events[-1].reason) == (standbys, "1 of 2 ready, 3 MiB")
