"""Restricted requests are not scheduled, and the scheduler is the host's own again without a restriction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.pacing import StepRules
from holdfast.hosts.vllm.engine.request_admission import VllmRequestHost
from holdfast.hosts.vllm.engine.resumed_requests import IS_ON_TRIAL


def request(name: str, computed: int = 8, in_flight: int = 1, output: int = 3) -> Any:
    return SimpleNamespace(
        request_id=name,
        num_computed_tokens=computed,
        num_in_flight_tokens=in_flight,
        num_output_tokens=output,
        is_finished=lambda: False,
        sampling_params=object(),
        client_index=1,
        lora_request=None,
    )


class Scheduler:
    """The used part of the host's scheduler: schedules running requests, then waiting requests that are ready."""

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


def test_only_the_given_requests_are_scheduled_and_all_others_stay_in_their_queues() -> None:
    bench = Bench()
    bench.requests.restrict(frozenset("bx"), frozenset(), nothing)
    assert bench.scheduler.schedule() == "bx"
    assert {r.request_id for r in bench.scheduler.running} == set("abcx")
    assert [r.request_id for r in bench.scheduler.waiting] == ["y"]


def test_all_but_the_waiting_requests_are_scheduled() -> None:
    bench = Bench()
    bench.requests.restrict(None, frozenset("ay"), nothing)
    assert bench.scheduler.schedule() == "bcx"


def test_without_a_restriction_the_methods_are_the_hosts_own() -> None:
    bench = Bench()
    assert bench.is_the_hosts_own
    bench.requests.restrict(frozenset(), frozenset(), nothing)
    assert bench.scheduler.schedule() == ""
    bench.requests.restrict(None, frozenset(), None)
    assert bench.is_the_hosts_own
    assert bench.scheduler.schedule() == "abcxy"


def test_a_replaced_method_of_the_scheduler_is_restored() -> None:
    bench = Bench()
    others = bench.scheduler.schedule = lambda *_: "others"  # type: ignore[method-assign]
    bench.requests.restrict(frozenset(), frozenset(), nothing)
    bench.requests.restrict(None, frozenset(), None)
    assert bench.scheduler.schedule is others


def test_the_restriction_may_change_before_every_step() -> None:
    bench = Bench()
    bench.requests.restrict(
        frozenset("a"), frozenset(), lambda: bench.requests.restrict(frozenset("b"), frozenset(), nothing)
    )
    assert bench.scheduler.schedule() == "b"


def test_hidden_requests_are_back_when_scheduling_fails() -> None:
    bench = Bench()
    bench.requests.restrict(frozenset("b"), frozenset(), nothing)
    bench.scheduler.raises = True
    with pytest.raises(RuntimeError):
        bench.scheduler.schedule()
    assert {r.request_id for r in bench.scheduler.running} == set("abc")


def test_an_ended_request_carries_the_reason() -> None:
    bench = Bench()
    bench.requests.end("b", "why")
    bench.requests.end("unknown", "why")
    [(client, outputs)] = bench.sent
    [output] = outputs.outputs
    assert (client, output.request_id, str(output.finish_reason), output.stop_reason) == (1, "b", "error", "why")


def test_the_progress_of_requests_is_in_tokens() -> None:
    standing = Bench("a", "").requests.request_progress()["a"]
    assert (standing.good, standing.reached, standing.output, standing.in_flight) == (7, 8, 3, True)
    assert (standing.on_trial, standing.adapter_id) == (False, 0)


def test_the_progress_of_a_request_tells_its_adapter_and_whether_it_was_found_guilty_before() -> None:
    bench = Bench("a", "")
    [request] = bench.scheduler.running
    request.lora_request = SimpleNamespace(lora_int_id=3)
    setattr(request, IS_ON_TRIAL, True)
    standing = bench.requests.request_progress()["a"]
    assert (standing.on_trial, standing.adapter_id) == (True, 3)


def test_a_control_request_waits_like_any_request_and_asks_for_few_tokens() -> None:
    bench = Bench(waiting="")
    bench.requests.add_control()
    bench.requests.add_control()
    first, second = bench.scheduler.waiting
    assert first.request_id != second.request_id
    assert (first.prompt_token_ids, first.sampling_params.max_tokens) == ([1], 16)


def test_a_pooling_model_gets_no_control_request() -> None:
    bench = Bench(waiting="")
    bench.scheduler.running[0].sampling_params = None
    bench.requests.add_control()
    assert bench.scheduler.waiting == []
