"""From a fault to its repair: what is ordered of whom, word for word, and what a pause leaves to rebuild."""

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.deadlines import SOFT_PAUSE_S
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, Send
from holdfast.core.protocol.events import EventKind
from support.groups_bench import a_pair
from support.instance_bench import AUTO, EXTERNAL, Bench, is_keepalive

CONFIG = HoldfastConfig(max_engine_restarts=3)


def events(bench, kind):
    return [event for event in bench.events if event.kind is kind]


def paused_by_operator_and_lost(groups):
    bench = Bench(CONFIG, groups=groups)
    bench.pause("p", 0)
    for engine in groups[0]:
        bench.paused(engine)
    bench.lost(0)
    bench.attached(0, pid=9)
    return bench


def test_a_soft_pause_that_has_to_become_hard_is_ordered_anew_in_the_same_epoch():
    bench = a_pair()
    bench.pause("p", 0, soft=True)
    bench.paused(1, broken=False)
    effects = bench.tick(SOFT_PAUSE_S)
    order = m.PauseEngine(command_id="own-1", epoch=0)
    assert [e for e in effects if not is_keepalive(e)] == [Send(0, order), Send(1, order)]
    bench.paused(0, broken=False)
    bench.resume("r", 0)
    assert bench.all(BeginRecovery)[-1].rebuild


def test_a_hard_pause_of_a_peer_leaves_collectives_to_rebuild():
    bench = a_pair()
    bench.faulted(0)
    bench.paused_by_fault(0, broken=False)
    bench.paused(1, broken=False)
    assert bench.all(BeginRecovery)[-1].rebuild


def test_a_replacement_of_an_engine_core_that_an_operator_paused_is_paused_softly_with_the_reason():
    bench = paused_by_operator_and_lost([(0,)])
    [*_, order] = [e for e in bench.all(Send) if isinstance(e.message, m.PauseEngine)]
    assert order == Send(0, m.PauseEngine(command_id="own-1", epoch=0, soft=True))
    event = events(bench, EventKind.PAUSE_ORDERED)[-1]
    assert (event.command_id, event.reason) == ("own-1", "paused by operator before this process replaced another")


def test_a_replacement_that_does_not_pause_softly_is_paused_hard_after_a_while():
    bench = paused_by_operator_and_lost([(0,)])
    assert not [e for e in bench.tick(SOFT_PAUSE_S / 2) if isinstance(e, Send)]
    told = [e.message for e in bench.tick(SOFT_PAUSE_S / 2) if isinstance(e, Send)]
    assert [message.soft for message in told] == [False]


def test_a_soft_pause_of_a_replacement_does_not_make_broken_collectives_whole():
    bench = paused_by_operator_and_lost([(0, 1)])
    bench.paused(0, broken=False)
    bench.resume("r", 0)
    assert bench.all(BeginRecovery)[-1].rebuild


def test_a_change_of_policy_repairs_a_paused_group_within_the_bounds_that_every_repair_has():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    bench.configure("c", fault_policy="auto")
    assert bench.states(0) == ["recovering"]
    bench.tick(1.0)
    assert bench.states(0) == ["recovering"]


def test_after_the_timeout_of_a_command_the_ladder_repairs_within_the_bounds_that_every_repair_has():
    bench = Bench(HoldfastConfig(fault_policy="external", external_fallback="auto", engine_recovery_timeout_s=5.0))
    bench.faulted()
    bench.paused_by_fault()
    bench.tick(5.0)
    assert bench.states(0) == ["recovering"]
    bench.tick(1.0)
    assert bench.states(0) == ["recovering"]


def test_a_pause_by_an_operator_that_goes_on_after_a_change_of_settings_is_no_event():
    bench = Bench(AUTO)
    bench.pause("p", 0)
    bench.paused(0)
    bench.configure("c", max_retries=7)
    assert bench.events[-1].kind is EventKind.CONFIGURED


def test_a_wait_for_a_command_that_goes_on_after_a_change_of_settings_is_an_event():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    bench.now += 50.0
    bench.configure("c", max_retries=7)
    assert bench.events[-1].reason == "waiting up to 120 s for a command"
