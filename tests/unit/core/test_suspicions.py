"""What an engine core finds out about its requests: told, shown, and no reason to give up on it."""

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Send
from holdfast.core.protocol.link_messages import PoisonRequestEnded
from support.instance_bench import Bench, a_fault, kinds


def test_what_an_engine_core_finds_out_about_its_requests_is_told_and_stands_in_the_status():
    bench = Bench()
    bench.observe(m.RequestsSuspected(engine_id=0, epoch=0, suspects=4, reason="two of them run"))
    assert bench.view().suspects == 4
    said = bench.observe(m.RequestEnded(engine_id=0, epoch=0, request_id="r", incident="i", reason="it fails alone"))
    assert kinds(said) == ["request-ended"]
    assert (said[0].event.request_id, said[0].event.incident) == ("r", "i")
    bench.observe(m.RequestsSuspected(engine_id=0, epoch=0, suspects=0, reason="over"))
    assert (bench.view().suspects, bench.view().ended_requests) == (0, 1)


def test_a_request_that_an_api_server_ended_is_told_like_one_that_an_engine_core_did():
    bench = Bench()
    [said] = bench.instance.poison_request_ended(
        PoisonRequestEnded(engine_id=0, request_id="r", incident="i", reason="deadly")
    )
    assert (said.event.kind, said.event.request_id, said.event.incident) == ("request-ended", "r", "i")
    assert bench.view().ended_requests == 1
    nobody = PoisonRequestEnded(engine_id=7, request_id="r", incident="i", reason="deadly")
    assert bench.instance.poison_request_ended(nobody) == []


def test_what_was_found_out_in_another_epoch_changes_nothing():
    bench = Bench()
    assert bench.observe(m.RequestsSuspected(engine_id=0, epoch=7, suspects=4, reason="late")) == []
    ended = m.RequestEnded(engine_id=0, epoch=7, request_id="r", incident="i", reason="late")
    assert bench.observe(ended) == []
    assert (bench.view().suspects, bench.view().ended_requests) == (0, 0)


def tried(bench, *, search_progressed=False):
    """One fault and its recovery; the reason for what was done."""
    bench.faulted()
    held = m.EnginePaused(
        engine_id=0,
        epoch=bench.view().epoch,
        fault=a_fault(),
        unfinished_requests=2,
        search_progressed=search_progressed,
    )
    decided = next(e.event for e in bench.observe(held) if getattr(e, "event", None) and e.event.reason)
    bench.recovered()
    return decided.reason


def test_faults_that_bring_a_search_on_use_up_no_retries():
    bench = Bench()
    reasons = [tried(bench, search_progressed=index > 1) for index in range(30)]
    assert "retry 2 of" in reasons[1]
    assert all("not counted" in reason for reason in reasons[2:])
    assert "retry 3 of" in tried(bench)


def test_the_tries_that_an_ended_request_cost_are_taken_back():
    bench = Bench()
    for _ in range(2):
        tried(bench)
    epoch = bench.view().epoch
    bench.observe(m.RequestEnded(engine_id=0, epoch=epoch, request_id="r", incident="i", reason="why"))
    assert "retry 1 of" in tried(bench)


def test_a_fault_that_is_armed_for_a_request_is_armed_in_the_next_engine_core_too():
    bench = Bench(HoldfastConfig())
    spec = InjectionSpec(phase=Phase.SCHEDULE_END, request="bad")
    bench.arm(spec=spec)
    bench.lost()
    said = bench.attached(pid=4711)
    assert [e.message.spec for e in said if isinstance(e, Send) and isinstance(e.message, m.ArmFault)] == [spec]
