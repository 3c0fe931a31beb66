"""Which repair counts against which budget, and what a decision and a recovery say of themselves."""

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery
from holdfast.core.protocol.events import DecisionRecord, EventKind
from support.instance_bench import AUTO, DEEP, Bench, a_fault

SHORT = HoldfastConfig(
    max_retries=2, retry_window_s=60.0, max_worker_restarts=2, worker_restart_window_s=60.0, max_engine_restarts=0
)
NO_WORKERS = msgspec.structs.replace(SHORT, max_worker_restarts=0)


def decided(bench):
    """Return the actions that were decided, in order."""
    return [event.decision.action for event in bench.events if event.kind is EventKind.DECISION_MADE]


def last_reason(bench):
    return [event.reason for event in bench.events if event.kind is EventKind.DECISION_MADE][-1]


def faulted_and_recovered(bench, fault):
    bench.faulted(fault=fault)
    bench.paused_by_fault(fault=fault)
    bench.recovered()


def test_a_second_unknown_error_gives_the_rank_a_new_process():
    bench = Bench(AUTO)
    for _ in range(2):
        faulted_and_recovered(bench, a_fault(fault_class=FaultClass.UNKNOWN))
    assert decided(bench) == ["retry", "restart-workers"]


def test_an_unknown_error_after_a_known_one_is_still_retried():
    bench = Bench(AUTO)
    faulted_and_recovered(bench, a_fault())
    faulted_and_recovered(bench, a_fault(fault_class=FaultClass.UNKNOWN))
    assert decided(bench) == ["retry", "retry"]


def test_a_second_unknown_error_after_the_window_is_retried_again():
    bench = Bench(AUTO)
    for _ in range(3):
        faulted_and_recovered(bench, a_fault(fault_class=FaultClass.UNKNOWN))
        bench.now += AUTO.retry_window_s
    assert decided(bench) == ["retry"] * 3


def test_unknown_errors_of_one_incident_count_however_long_it_takes():
    bench = Bench(AUTO)
    unknown = a_fault(fault_class=FaultClass.UNKNOWN)
    bench.faulted(fault=unknown)
    bench.paused_by_fault(fault=unknown)
    bench.now += 2 * AUTO.retry_window_s
    bench.aborted(fault=unknown)
    assert decided(bench) == ["retry", "restart-workers"]


def test_non_finite_logits_of_one_request_and_then_of_another_give_the_rank_a_new_process():
    bench = Bench(AUTO)
    for request in ("a", "b"):
        named = msgspec.structs.replace(a_fault(fault_class=FaultClass.NUMERICAL), request_ids=(request,))
        faulted_and_recovered(bench, named)
        bench.now += 1.0
    assert decided(bench) == ["retry", "restart-workers"]


def test_non_finite_logits_long_after_others_are_retried():
    bench = Bench(AUTO)
    for request in ("a", "b"):
        named = msgspec.structs.replace(a_fault(fault_class=FaultClass.NUMERICAL), request_ids=(request,))
        faulted_and_recovered(bench, named)
        bench.now += AUTO.retry_window_s
    assert decided(bench) == ["retry", "retry"]


def fails_slowly(bench, fault):
    """Let every recovery of one incident fail after twice the windows, until the instance ends."""
    bench.faulted(fault=fault)
    bench.paused_by_fault(fault=fault)
    for _ in range(5):
        if bench.defeat is None:
            bench.now += 120.0
            bench.aborted(fault=fault)
            if bench.states(0) == ["paused"]:  # until the backoff is over
                bench.tick(60.0)
    return bench.defeat


def test_retries_of_one_incident_count_however_long_each_takes():
    bench = Bench(NO_WORKERS)
    fails_slowly(bench, a_fault())
    assert decided(bench) == ["retry", "retry", "end-instance"]
    assert bench.defeat.startswith("2 retries within 60 s did not last (--max-retries 2)")


def test_worker_restarts_of_one_incident_count_however_long_each_takes():
    bench = Bench(SHORT)
    fails_slowly(bench, DEEP)
    assert decided(bench) == ["restart-workers", "restart-workers", "end-instance"]
    assert "2 worker restarts within 60 s did not last (--max-worker-restarts 2)" in bench.defeat


def test_a_fault_during_a_pause_by_an_operator_counts_as_a_retry_once_resumed():
    bench = Bench(AUTO)
    bench.pause("p")
    bench.faulted()
    bench.paused_by_fault()
    bench.resume("r")
    bench.recovered()
    faulted_and_recovered(bench, a_fault())
    assert last_reason(bench) == "exception with state intact; retry 2 of 3"


def test_a_pause_by_an_operator_counts_as_no_retry():
    bench = Bench(AUTO)
    bench.pause("p")
    bench.paused()
    bench.resume("r")
    bench.recovered()
    faulted_and_recovered(bench, a_fault())
    assert last_reason(bench) == "exception with state intact; retry 1 of 3"


def test_a_pause_without_a_fault_or_an_operator_counts_as_a_retry():
    bench = Bench(AUTO)
    bench.paused()
    bench.recovered()
    faulted_and_recovered(bench, a_fault())
    assert last_reason(bench) == "exception with state intact; retry 2 of 3"


def test_a_decision_records_the_policy_the_fault_and_the_figures():
    bench = Bench(HoldfastConfig(fault_policy="dry-run"), groups=[(0,)], attached=False)
    bench.attached(0, ranks=3)
    lost = a_fault(0, "illegal memory access", FaultClass.DEVICE, rank=2)
    bench.faulted(fault=lost)
    bench.paused_by_fault(fault=lost)
    assert bench.events[-1].decision == DecisionRecord(
        action="await-instruction",
        rung=0,
        policy="dry-run",
        fault_class=FaultClass.DEVICE,
        rank=2,
        tries=0,
        limit=0,
        ranks_out=1,
        would="restart-workers",
    )


def test_a_recovery_with_new_workers_waits_for_their_start_and_one_without_does_not():
    bench = Bench(HoldfastConfig(worker_start_timeout_s=77.0, max_engine_restarts=0))
    faulted_and_recovered(bench, a_fault())
    faulted_and_recovered(bench, DEEP)
    orders = [(e.command_id, e.epoch, e.rebuild, e.replace, e.extra_wait_s) for e in bench.all(BeginRecovery)]
    assert orders == [("own-1", 1, False, {}, 0.0), ("own-2", 2, False, {0: (0,)}, 77.0)]
    started = [event.command_id for event in bench.events if event.kind is EventKind.RECOVERY_STARTED]
    assert started == ["own-1", "own-2"]


def test_the_hooks_that_every_worker_has_are_shown_in_order():
    bench = Bench(attached=False)
    workers = (
        m.WorkerAttached(rank=0, pid=8, hooks=("b", "a", "only here")),
        m.WorkerAttached(rank=1, pid=9, hooks=("a", "b")),
    )
    bench.observe(m.EngineAttached(engine_id=0, pid=7, hooks=("h",), workers=workers))
    assert bench.view().worker_hooks == ("a", "b")
    bench = Bench(attached=False)
    bench.observe(m.EngineAttached(engine_id=0, pid=7, hooks=("h",), workers=()))
    assert (bench.view().worker_hooks, bench.view().ranks) == ((), 0)


def paused_long(bench, fault, after_s):
    """Let an engine core fault, and be paused so long after that."""
    bench.faulted(fault=fault)
    bench.now += after_s
    bench.paused_by_fault(fault=fault)


def test_a_retry_counts_from_when_it_was_made_and_not_from_the_fault():
    bench = Bench(AUTO)
    paused_long(bench, a_fault(), 50.0)
    bench.recovered()
    bench.now += 20.0
    faulted_and_recovered(bench, a_fault())
    assert last_reason(bench) == "exception with state intact; retry 2 of 3"


def test_a_retry_of_an_unknown_error_counts_from_when_it_was_made():
    bench = Bench(AUTO)
    paused_long(bench, a_fault(fault_class=FaultClass.UNKNOWN), 50.0)
    bench.recovered()
    bench.now += 20.0
    faulted_and_recovered(bench, a_fault(fault_class=FaultClass.UNKNOWN))
    assert decided(bench) == ["retry", "restart-workers"]


def test_a_worker_restart_counts_from_when_it_was_made():
    bench = Bench(SHORT)
    paused_long(bench, DEEP, 50.0)
    bench.recovered()
    bench.now += 20.0
    faulted_and_recovered(bench, DEEP)
    assert "worker restart 2 of 2" in last_reason(bench)


def test_an_engine_core_restart_counts_from_when_it_was_made():
    bench = Bench(HoldfastConfig(max_retries=0, max_worker_restarts=0, engine_restart_window_s=60.0))
    paused_long(bench, a_fault(), 20.0)
    bench.attached(0, pid=9)
    bench.now += 50.0
    bench.lost()
    assert "engine core restart 2 of 5" in last_reason(bench)


def test_a_loss_during_a_pause_by_an_operator_ends_the_pause_in_the_status():
    bench = Bench(HoldfastConfig())
    bench.pause("p")
    bench.lost()
    assert bench.view().paused_by_operator is False


def test_an_engine_core_that_is_left_out_by_a_repair_is_tried_again_in_time():
    config = HoldfastConfig(max_retries=0, max_worker_restarts=0, max_engine_restarts=1, engine_restart_window_s=100.0)
    bench = Bench(config, engines=(0, 1))
    bench.lost(0)
    bench.attached(0, pid=9)
    bench.faulted(0)
    bench.paused_by_fault(0)
    assert bench.states(0) == ["left-out"]
    bench.tick(99.0)
    assert bench.states(0) == ["left-out"]
    bench.tick(1.0)
    assert bench.states(0) == ["restarting"]
