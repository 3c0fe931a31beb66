"""What was found guilty is remembered, refused, tried again and forgotten; each change is an event."""

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.classification import ADAPTER_ID, Classifier, OwnRow, default_classifier, fault_of
from holdfast.core.faults.faults import FaultClass
from holdfast.core.poison.detector import PoisonDetector, RequestProgress, Restriction
from holdfast.core.poison.memory import (
    MAX_PERIODS,
    MAX_REMEMBERED,
    ON_TRIAL_PERIODS,
    FoundGuilty,
    GuiltKind,
    PoisonMemory,
    adapter_error,
    poison_request_error,
    verdict_in,
)
from holdfast.core.poison.named import NamedRequests
from holdfast.core.protocol.commands import Configure, RestartEngine, RestartWorkers
from holdfast.core.protocol.link_messages import GuiltReported, RequestsRefused, decode_from_link, encode
from support.instance_bench import Bench

PERIOD_S = 600.0
REMEMBERS = HoldfastConfig(poison_memory_s=PERIOD_S)


def guilty(name="f" * 32, incident="i1", kind=GuiltKind.REQUEST):
    return FoundGuilty(fingerprint=name, kind=kind, incident=incident, error=poison_request_error(incident))


def judged(bench, **about):
    return bench.did(bench.instance.take_guilt(GuiltReported(guilty=guilty(**about)), bench.now))


def later(bench, seconds):
    bench.now += seconds
    return bench.did(bench.instance.tick(bench.now))


def told(effects):
    return [(e.event.kind, e.event.reason, e.event.incident) for e in effects]


def entries(bench):
    return bench.instance.view().guilt.entries


# ---- texts


def test_a_verdict_is_read_out_of_the_text_that_the_client_gets_and_out_of_nothing_else():
    assert verdict_in(poison_request_error("20260101T000000-engine0-epoch3")) == (
        GuiltKind.REQUEST,
        "20260101T000000-engine0-epoch3",
    )
    assert verdict_in(adapter_error("i")) == (GuiltKind.ADAPTER, "i")
    for other in (None, 7, "", "Internal server error", poison_request_error("a b"), poison_request_error("i") + "x"):
        assert verdict_in(other) is None


# ---- the memory


def test_the_memory_is_bounded_and_the_oldest_makes_room():
    memory = PoisonMemory()
    for number in range(MAX_REMEMBERED + 3):
        assert memory.remember(guilty(str(number)), PERIOD_S, 0.0, 0.0)
    names = [entry.fingerprint for entry in memory.view().entries]
    assert names == [str(number) for number in range(3, MAX_REMEMBERED + 3)]


def test_each_further_verdict_doubles_the_refusal_up_to_a_bound():
    memory, now, lengths = PoisonMemory(), 0.0, []
    for number in range(7):
        assert memory.remember(guilty(incident=str(number)), PERIOD_S, now, now)
        [entry] = memory.view().entries
        lengths.append(entry.until - now)
        now = entry.until
        assert [on_trial for _, on_trial in memory.expire(now, now)] == [True]
    assert lengths == [PERIOD_S * min(2**n, MAX_PERIODS) for n in range(7)]


def test_a_verdict_that_is_told_twice_changes_nothing():
    memory = PoisonMemory()
    memory.remember(guilty(), PERIOD_S, 0.0, 0.0)
    assert not memory.remember(guilty(incident="a copy"), PERIOD_S, 1.0, 1.0)
    memory.try_again(2.0, 2.0)
    assert not memory.remember(guilty(), PERIOD_S, 3.0, 3.0)
    assert not memory.view().entries[0].is_refused


def test_the_secret_is_in_no_text_of_the_memory():
    memory = PoisonMemory(b"secret")
    memory.remember(guilty(), PERIOD_S, 0.0, 0.0)
    assert memory.view().key == b"secret"
    assert "secret" not in repr(memory.view())


# ---- the instance


def test_a_verdict_is_told_once_and_stands_in_the_view_until_it_is_tried_again_and_forgotten():
    bench = Bench(REMEMBERS)
    assert told(judged(bench)) == [
        (
            "request-remembered",
            "poison request ffffffff is remembered; repetitions are refused for 600 s (--poison-memory)",
            "i1",
        )
    ]
    assert judged(bench) == []
    [entry] = entries(bench)
    assert (entry.is_refused, entry.refusals, entry.until) == (True, 0, PERIOD_S)
    assert later(bench, PERIOD_S - 1) == []
    [(kind, reason, _)] = told(later(bench, 1))
    assert (kind, reason) == (
        "request-forgotten",
        "poison request ffffffff is no longer refused; its next failed step ends it: its time is over",
    )
    assert [e.is_refused for e in entries(bench)] == [False]
    [(_, reason, _)] = told(later(bench, ON_TRIAL_PERIODS * PERIOD_S))
    assert reason == "poison request ffffffff is forgotten: it was not found guilty again"
    assert entries(bench) == ()


def test_an_adapter_is_forgotten_without_a_trial():
    bench = Bench(REMEMBERS)
    judged(bench, kind=GuiltKind.ADAPTER)
    later(bench, PERIOD_S)
    assert entries(bench) == ()


def test_refusals_are_told_at_the_first_and_whenever_they_have_doubled():
    bench = Bench(REMEMBERS)
    judged(bench)
    reasons = []
    for _ in range(9):
        effects = bench.instance.take_guilt(RequestsRefused(fingerprint="f" * 32, count=1), bench.now)
        reasons += [(e.event.kind, e.event.reason) for e in effects]
    assert reasons == [("request-refused", f"poison request ffffffff was refused {n} times") for n in (1, 2, 4, 8)]
    assert bench.instance.take_guilt(RequestsRefused(fingerprint="unknown", count=1), bench.now) == []
    assert entries(bench)[0].refusals == 9


def test_processes_that_an_operator_has_replaced_are_a_reason_to_try_again():
    for command in (RestartWorkers(command_id="c", engine_id=0), RestartEngine(command_id="c", engine_id=0)):
        bench = Bench(REMEMBERS)
        judged(bench)
        effects = bench.instance.submit(command, bench.now)
        events = [e.event for e in effects if hasattr(e, "event") and e.event.kind == "request-forgotten"]
        assert [e.reason.partition(": ")[2] for e in events] == [
            "an operator has processes replaced, and the cause may have gone"
        ]
        assert [e.is_refused for e in entries(bench)] == [False]


def test_a_memory_of_no_length_forgets_and_remembers_nothing():
    bench = Bench(REMEMBERS)
    judged(bench)
    bench.did(bench.instance.submit(Configure(command_id="c", settings={"poison_memory": 0}), bench.now))
    assert bench.events[-1].reason == "poison request ffffffff is forgotten: ordered by operator (poison_memory 0)"
    assert entries(bench) == ()
    assert judged(bench) == []


def test_an_instance_that_has_ended_remembers_nothing():
    bench = Bench(HoldfastConfig(max_engine_restarts=0))
    bench.instance.lost(0, "gone", bench.now)
    assert bench.defeat is not None
    assert judged(bench) == []


def test_reports_survive_the_wire_and_hold_no_text_of_a_request():
    for report in (GuiltReported(guilty=guilty()), RequestsRefused(fingerprint="f", count=2)):
        assert decode_from_link(encode(report)) == report
    fields = {f.name for f in msgspec.structs.fields(FoundGuilty)}
    assert fields == {"fingerprint", "kind", "incident", "error", "output_tokens"}


# ---- on trial in an engine core


def at(*names, on_trial=(), good=0):
    return {name: RequestProgress(good, good + 1, good, name in on_trial) for name in names}


def test_the_first_failed_step_of_a_request_on_trial_ends_it_and_suspects_nobody_else():
    detector = PoisonDetector()
    found = detector.fault(at("a", "old", "b", on_trial=("old",)))
    assert (found.end, found.run, found.search_progressed) == (("old",), None, True)
    assert found.reason == "a request that was found to be a poison request before was in the failed step"
    assert detector.fault(at("a", "b")) == Restriction()


def test_a_request_on_trial_is_not_ended_for_a_fault_that_names_others():
    detector = PoisonDetector()
    assert detector.fault(at("a", "old", on_trial=("old",)), named=("a",)).end == ()


def test_a_search_goes_on_without_a_request_on_trial_that_came_in_between():
    detector = PoisonDetector()
    for _ in range(2):
        found = detector.fault(at("a", "b"))
    assert found.run == {"b"}
    waiting = RequestProgress(0, 0, 0)
    found = detector.fault({"a": waiting, **at("b", "old", on_trial=("old",))}, named=("old",))
    assert (found.end, found.run) == (("old",), {"b"})


# ---- an adapter that cannot be loaded


def test_every_request_for_an_adapter_that_cannot_be_loaded_ends_and_nobody_else_is_suspected():
    detector = PoisonDetector()
    waiting = RequestProgress(0, 0, 0, adapter_id=3)
    progress = {**at("a"), "b": waiting, "c": RequestProgress(4, 5, 1, adapter_id=3)}
    found = detector.adapter_fault(3, progress)
    assert (found.unloadable, found.end, found.search_progressed) == (("b", "c"), (), True)
    assert found.reason == "adapter 3 cannot be loaded; 2 requests are for it"
    assert detector.adapter_fault(4, progress) is None
    assert detector.fault(at("a")) == Restriction()


def test_an_adapter_that_cannot_be_loaded_leaves_a_search_as_it_is():
    detector = PoisonDetector()
    for _ in range(2):
        found = detector.fault(at("a", "b"))
    found = detector.adapter_fault(3, {**at("a", "b"), "c": RequestProgress(0, 1, 0, adapter_id=3)})
    assert (found.unloadable, found.run) == (("c",), {"b"})


# ---- a faulty rank, or guilty requests


def in_flight(*names):
    return {name: RequestProgress(4, 5, 1) for name in names}


def test_guilty_requests_that_are_named_in_turn_do_not_make_a_rank_sick():
    named = NamedRequests(60.0)
    assert named.take(("a",), in_flight("a", "x"), 0.0)
    assert named.take(("b",), {**in_flight("b", "x"), "a": RequestProgress(4, 4, 1)}, 1.0), "the first one waits"
    assert named.take(("c",), in_flight("c", "x"), 2.0), "the others have left"
    assert not named.take((), in_flight("x"), 3.0), "the fault names no request"


def test_a_rank_that_names_a_request_which_is_well_since_is_not_cleared():
    for well in (RequestProgress(9, 9, 1), RequestProgress(4, 5, 1)):
        named = NamedRequests(60.0)
        named.take(("a",), in_flight("a"), 0.0)
        assert not named.take(("b",), {**in_flight("b"), "a": well}, 59.0)
        named.forget()
        assert named.take(("b",), {**in_flight("b"), "a": well}, 59.5)


def test_a_request_that_was_named_long_ago_says_nothing_about_a_rank():
    named = NamedRequests(60.0)
    named.take(("a",), in_flight("a"), 0.0)
    assert named.take(("b",), in_flight("a", "b"), 60.0)


def test_an_error_that_names_an_adapter_is_of_no_process_unless_an_own_row_says_so():
    error = FileNotFoundError("no adapter")
    setattr(error, ADAPTER_ID, 3)
    fault = fault_of(error, default_classifier(), engine_id=0)
    assert (fault.adapter_id, fault.fault_class) == (3, FaultClass.TRANSIENT)
    own = Classifier([OwnRow(fault_class=FaultClass.DEVICE, error_type="FileNotFoundError")])
    assert fault_of(error, own, engine_id=0).fault_class is FaultClass.DEVICE


# ---- an error that names its request as the cause


def test_a_request_that_an_error_names_as_its_cause_is_retried_once_and_then_ended():
    detector = PoisonDetector()
    assert detector.fault(at("a", "b"), ("b",), names_cause=True) == Restriction()
    found = detector.fault(at("a", "b"), ("b",), names_cause=True)
    assert (found.end, found.run, found.search_progressed) == (("b",), None, True)
    assert found.reason == "the error names the request, and a retry has met the same error"


def test_a_request_that_got_further_is_retried_again():
    detector = PoisonDetector()
    detector.fault(at("a"), ("a",), names_cause=True)
    assert detector.fault(at("a", good=5), ("a",), names_cause=True) == Restriction()
