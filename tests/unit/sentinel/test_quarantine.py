"""What is decided about requests is carried out on a host, and told."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.poison.detector import RequestProgress
from holdfast.core.poison.memory import GuiltKind, verdict_in
from holdfast.core.protocol import messages as m
from holdfast.sentinel.quarantine import Quarantine

NO_RESTRICTION = (None, frozenset(), None)


def fault(fault_class: FaultClass = FaultClass.TRANSIENT) -> Fault:
    return Fault(fault_class=fault_class, error_type="Error", message="no", engine_id=0)


class Requests:
    """Open requests that stand where the test puts them."""

    def __init__(self, *names: str) -> None:
        self.at = dict.fromkeys(names, 0)
        self.in_flight = set(names)
        self.rule: tuple[object, ...] = NO_RESTRICTION
        self.ended: dict[str, str] = {}
        self.controls = 0
        self.recomputed: list[str] = []
        self.adapters: dict[str, int] = {}

    def request_progress(self) -> dict[str, RequestProgress]:
        return {
            i: RequestProgress(at, at + (i in self.in_flight), at, adapter_id=self.adapters.get(i, 0))
            for i, at in self.at.items()
        }

    def restrict(self, run, excluded, before_step) -> None:
        self.rule = (run, excluded, before_step)

    def recompute(self, request_id: str) -> None:
        self.recomputed.append(request_id)

    def add_control(self) -> None:
        self.controls += 1
        self.at[f"control {self.controls}"] = 0

    def end(self, request_id: str, why: str) -> None:
        self.ended[request_id] = why
        self.at.pop(request_id, None)


class Bench:
    def __init__(self, *names: str) -> None:
        self.requests = Requests(*names)
        self.told: list[m.FromEngine] = []
        self.epoch = 0
        self.quarantine = Quarantine(0, self.told.append, lambda: self.epoch)

    def fails(self, in_flight: set[str], why: Fault | None = None, replaced: tuple[int, ...] = ()) -> bool:
        self.requests.in_flight = in_flight
        self.quarantine.learn(why or fault(), self.requests)
        search_progressed, self.epoch = self.quarantine.search_progressed, self.epoch + 1
        self.quarantine.carry_out(replaced)
        self.requests.in_flight = set()
        return search_progressed

    def steps(self, turns: int = 10) -> None:
        """Steps of those that may run, until others may."""
        runs = self.requests.rule[0]
        for _ in range(turns):
            _run, _, before_step = self.requests.rule
            if before_step is None:
                return
            before_step()
            if self.requests.rule[0] != runs:
                return
            for request_id in runs or ():
                self.requests.at[request_id] += 1

    def ended(self) -> list[m.RequestEnded]:
        return [t for t in self.told if isinstance(t, m.RequestEnded)]


def test_a_single_fault_restricts_no_request():
    bench = Bench("a", "b")
    assert not bench.fails({"a", "b"})
    assert (bench.requests.rule, bench.told) == (NO_RESTRICTION, [])


def test_a_poison_request_is_ended_with_an_error_that_names_the_incident_as_the_event_does():
    bench = Bench("a", "b")
    bench.fails({"a", "b"})
    bench.fails({"a", "b"})
    assert bench.requests.rule[0] == {"b"}
    bench.fails({"b"})
    for _ in range(2):
        assert bench.requests.rule[0] == {"a"}
        bench.steps()
        assert bench.requests.rule[0] == {"b"}
        assert bench.fails({"b"})
    bench.steps()
    [ended] = bench.ended()
    assert (ended.request_id, ended.epoch) == ("b", 5)
    assert ended.incident.endswith("-engine0-epoch5")
    assert ended.incident in bench.requests.ended["b"]
    bench.steps()
    assert bench.requests.rule == NO_RESTRICTION
    assert bench.told[-1].suspects == 0
    assert all(m.decode_from_engine(m.encode(told)) == told for told in bench.told)


def test_the_only_request_gets_one_of_our_own_beside_it_once():
    bench = Bench("a")
    for _ in range(3):
        bench.fails({"a"})
    assert (bench.requests.controls, bench.requests.rule[0]) == (1, frozenset())
    bench.quarantine.carry_out(())
    assert bench.requests.controls == 1
    bench.steps(1)
    assert bench.requests.rule[0] == {"control 1"}


def test_kv_of_a_request_that_a_numerical_fault_names_is_computed_anew_once_everything_is_rewound():
    bench = Bench("a", "b")
    named = msgspec.structs.replace(fault(FaultClass.NUMERICAL), request_ids=("b",))
    bench.requests.in_flight = {"a", "b"}
    bench.quarantine.learn(named, bench.requests)
    assert bench.requests.recomputed == []
    bench.quarantine.carry_out(())
    bench.quarantine.carry_out(())
    assert bench.requests.recomputed == ["b"]


def test_requests_for_an_adapter_that_cannot_be_loaded_end_with_that_error():
    bench = Bench("a", "b")
    bench.requests.adapters = {"b": 3}
    assert bench.fails({"a", "b"}, msgspec.structs.replace(fault(), adapter_id=3))
    [ended] = bench.ended()
    assert (ended.request_id, ended.reason) == ("b", "adapter 3 cannot be loaded; 1 requests are for it")
    assert verdict_in(bench.requests.ended["b"]) == (GuiltKind.ADAPTER, ended.incident)
    assert bench.requests.rule == NO_RESTRICTION
    assert not bench.fails({"a"})


def test_only_guilty_requests_clear_a_rank_of_non_finite_logits():
    bench = Bench("a", "b")
    for name, cleared in (("a", True), ("a", True), ("b", False)):
        bench.requests.in_flight = {"a", "b"}
        named = msgspec.structs.replace(fault(FaultClass.NUMERICAL), request_ids=(name,))
        bench.quarantine.learn(named, bench.requests)
        assert bench.quarantine.clears_rank is cleared
    bench.quarantine.learn(None, bench.requests)
    assert not bench.quarantine.clears_rank


def test_what_is_told_is_told_once_and_holds_on_through_recoveries_of_others():
    bench = Bench("a", "b")
    bench.fails({"a", "b"})
    bench.fails({"a", "b"})
    told, rule = list(bench.told), bench.requests.rule[:2]
    bench.quarantine.learn(None, bench.requests)
    bench.quarantine.carry_out(())
    assert (bench.told, bench.requests.rule[:2]) == (told, rule)


def test_a_broken_collective_suspects_no_request_and_clears_none():
    bench = Bench("a", "b")
    for _ in range(3):
        bench.fails({"a", "b"}, fault(FaultClass.COMMUNICATOR))
    assert bench.requests.rule == NO_RESTRICTION
    bench.fails({"a", "b"})
    bench.fails({"a", "b"})
    rule = bench.requests.rule[:2]
    bench.fails({"b"}, fault(FaultClass.COMMUNICATOR))
    assert bench.requests.rule[:2] == rule


@pytest.mark.parametrize(
    ("why", "suspected"),
    [
        (FaultClass.TRANSIENT, False),
        (FaultClass.UNKNOWN, True),
        (FaultClass.WORKER_LOST, True),
        (FaultClass.UNRESPONSIVE, True),
    ],
)
def test_suspicion_survives_workers_that_died_of_it_and_not_those_that_were_replaced_for_their_sickness(why, suspected):
    bench = Bench("a", "b")
    bench.fails({"a", "b"}, fault(why))
    bench.fails({"a", "b"}, fault(why), replaced=(0,))
    assert (bench.requests.rule[0] is not None) == suspected


def test_no_message_carries_more_than_ids_and_reasons():
    fields = {f.name for kind in (m.RequestsSuspected, m.RequestEnded) for f in msgspec.structs.fields(kind)}
    assert fields == {"engine_id", "pid", "epoch", "suspects", "reason", "request_id", "incident"}
