"""Who may not run is not scheduled, and the scheduler is the host's own again when nobody is excluded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.request_admission import VllmRequestHost
from holdfast.hosts.vllm.engine.step_rules import StepRules


def request(name: str, computed: int = 8, in_flight: int = 1, output: int = 3) -> Any:
    return SimpleNamespace(
        request_id=name,
        num_computed_tokens=computed,
        num_in_flight_tokens=in_flight,
        num_output_tokens=output,
        is_finished=lambda: False,
        sampling_params=object(),
        client_index=1,
    )


class Scheduler:
    """As much of the host's as is asked for: schedules who runs, and then who waits and is ready."""

    def __init__(self, running: str, waiting: str) -> None:
        self.running = [request(name) for name in running]
        self.waiting = [request(name) for name in waiting]
        self.raises = False

    @property
    def requests(self) -> dict[str, Any]:
        return {r.request_id: r for r in (*self.running, *self.waiting)}

    def schedule(self, throttle_prefills: bool = False) -> str:
        if self.raises:
            raise RuntimeError("no")
        for ready in [r for r in self.waiting if self._handle_blocked_waiting_request(r)]:
            self.waiting.remove(ready)
            self.running.append(ready)
        return "".join(r.request_id for r in self.running)

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        return True

    def add_request(self, request: Any) -> None:
        self.waiting.append(request)

    def finish_requests(self, request_ids: list[str], status: Any) -> list[Any]:
        return [self.requests[i] for i in request_ids if i in self.requests]


class Bench:
    def __init__(self, running: str = "abc", waiting: str = "xy") -> None:
        self.scheduler = Scheduler(running, waiting)
        self.sent: list[Any] = []
        queue = SimpleNamespace(put_nowait=self.sent.append)
        engine = SimpleNamespace(
            scheduler=self.scheduler, output_queue=queue, preprocess_add_request=lambda asked: (asked, 0)
        )
        self.requests = VllmRequestHost(engine, StepRules(self.scheduler))

    @property
    def is_the_hosts_own(self) -> bool:
        return vars(self.scheduler).keys() == {"running", "waiting", "raises"}


def nothing() -> None: ...


def test_only_those_on_trial_are_scheduled_and_nobody_else_leaves_its_place() -> None:
    bench = Bench()
    bench.requests.restrict(frozenset("bx"), frozenset(), nothing)
    assert bench.scheduler.schedule() == "bx"
    assert {r.request_id for r in bench.scheduler.running} == set("abcx")
    assert [r.request_id for r in bench.scheduler.waiting] == ["y"]


def test_everybody_but_those_held_is_scheduled() -> None:
    bench = Bench()
    bench.requests.restrict(None, frozenset("ay"), nothing)
    assert bench.scheduler.schedule() == "bcx"


def test_without_a_rule_the_methods_are_the_hosts_own() -> None:
    bench = Bench()
    assert bench.is_the_hosts_own
    bench.requests.restrict(frozenset(), frozenset(), nothing)
    assert bench.scheduler.schedule() == ""
    bench.requests.restrict(None, frozenset(), None)
    assert bench.is_the_hosts_own
    assert bench.scheduler.schedule() == "abcxy"


def test_what_others_had_put_in_their_places_is_put_back() -> None:
    bench = Bench()
    others = bench.scheduler.schedule = lambda *_: "others"  # type: ignore[method-assign]
    bench.requests.restrict(frozenset(), frozenset(), nothing)
    bench.requests.restrict(None, frozenset(), None)
    assert bench.scheduler.schedule is others


def test_the_rule_may_change_before_every_step() -> None:
    bench = Bench()
    bench.requests.restrict(
        frozenset("a"), frozenset(), lambda: bench.requests.restrict(frozenset("b"), frozenset(), nothing)
    )
    assert bench.scheduler.schedule() == "b"


def test_who_was_out_of_sight_is_back_when_scheduling_fails() -> None:
    bench = Bench()
    bench.requests.restrict(frozenset("b"), frozenset(), nothing)
    bench.scheduler.raises = True
    with pytest.raises(RuntimeError):
        bench.scheduler.schedule()
    assert {r.request_id for r in bench.scheduler.running} == set("abc")


def test_one_that_ends_takes_its_reason_along() -> None:
    bench = Bench()
    bench.requests.end("b", "why")
    bench.requests.end("nobody", "why")
    [(client, outputs)] = bench.sent
    [output] = outputs.outputs
    assert (client, output.request_id, str(output.finish_reason), output.stop_reason) == (1, "b", "error", "why")


def test_where_everybody_stands_is_told_in_tokens() -> None:
    standing = Bench("a", "").requests.request_progress()["a"]
    assert (standing.good, standing.reached, standing.output, standing.in_flight) == (7, 8, 3, True)


def test_a_request_of_our_own_waits_like_any_other_and_asks_for_few_tokens() -> None:
    bench = Bench(waiting="")
    bench.requests.add_control()
    bench.requests.add_control()
    first, second = bench.scheduler.waiting
    assert first.request_id != second.request_id
    assert (first.prompt_token_ids, first.sampling_params.max_tokens) == ([1], 16)


def test_a_model_that_generates_nothing_gets_none() -> None:
    bench = Bench(waiting="")
    bench.scheduler.running[0].sampling_params = None
    bench.requests.add_control()
    assert bench.scheduler.waiting == []
