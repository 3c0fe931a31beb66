"""Bounds of time of an instance, to the tick, and the reasons that its status shows."""

from holdfast.core.config import HoldfastConfig
from support.instance_bench import NO_RESTARTS, Bench, is_keepalive

IMPATIENT = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=6.0, containment_timeout_s=3.0)


def test_a_paused_engine_core_is_told_three_times_within_its_patience_that_the_owner_lives():
    bench = Bench(IMPATIENT)
    bench.tick()
    bench.faulted()
    bench.paused_by_fault()
    told = [any(map(is_keepalive, bench.tick(1.0))) for _ in range(5)]
    assert told == [False, False, True, False, False]


def test_the_status_of_an_engine_core_says_why_the_instance_has_ended():
    bench = Bench(NO_RESTARTS)
    bench.lost()
    assert bench.view().reason == bench.defeat
    assert bench.defeat.startswith("engine core 0 was lost: killed by signal 9")
