"""The bound of a step while moved requests are computed again beside requests that decode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine import pacing
from holdfast.hosts.vllm.engine.pacing import PacedPrefill, StepRules

WHOLE_STEP = 2048


class Queue(list[Any]):
    def peek_request(self) -> Any:
        return self[0]


def request(name: str, tokens: int, computed: int = 0) -> Any:
    left = computed < tokens
    return SimpleNamespace(request_id=name, num_tokens=tokens, num_computed_tokens=computed, is_prefill_chunk=left)


class Scheduler:
    """Prefills waiting requests as the host does: in order, as much as fits. Returns tokens per request."""

    max_num_scheduled_tokens = WHOLE_STEP

    def __init__(self, decoding: int = 0, spec_tokens: int = 0, chunked: bool = True) -> None:
        self.running = [request(f"own {i}", 10, 10) for i in range(decoding)]
        self.waiting, self.kv_holding_waiting = Queue(), Queue()
        self.num_spec_tokens = spec_tokens
        self.scheduler_config = SimpleNamespace(enable_chunked_prefill=chunked)

    @property
    def requests(self) -> dict[str, Any]:
        return {r.request_id: r for r in (*self.running, *self.waiting)}

    def schedule(self) -> dict[str, int]:
        room, given = self.max_num_scheduled_tokens, dict[str, int]()
        self.running += [self.waiting.pop(0) for _ in range(len(self.waiting))]
        for one in self.running:
            wanted = one.num_tokens - one.num_computed_tokens or 1 + self.num_spec_tokens
            if given_now := min(wanted, room):
                given[one.request_id] = given_now
                room -= given_now
                one.num_computed_tokens = min(one.num_tokens, one.num_computed_tokens + given_now)
        return given


class Bench:
    def __init__(
        self, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tokens: int = 512, in_lockstep: bool = False
    ) -> None:
        monkeypatch.setattr(pacing, "only_full_attention", lambda _: object())
        self.scheduler = scheduler
        engine = SimpleNamespace(scheduler=scheduler, engine_index=1)
        self.paced = PacedPrefill(engine, StepRules(scheduler), tokens, in_lockstep=in_lockstep)

    def move(self, name: str, tokens: int) -> None:
        """Add a request from another engine core."""
        self.paced.expect(name)
        self.add(name, tokens)

    def add(self, name: str, tokens: int) -> None:
        arrived = request(name, tokens)
        self.paced.arrived(arrived)
        self.scheduler.waiting.append(arrived)

    @property
    def is_the_hosts_own(self) -> bool:
        return "schedule" not in vars(self.scheduler) and self.scheduler.max_num_scheduled_tokens == WHOLE_STEP


def test_decoding_requests_are_in_every_step_and_histories_share_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(Scheduler(decoding=3), monkeypatch)
    bench.move("a", 700)
    bench.move("b", 400)
    steps = [bench.scheduler.schedule() for _ in range(3)]
    assert all(steps[i][f"own {k}"] == 1 for i in range(3) for k in range(3))
    assert [sum(step.get(name, 0) for name in "ab") for step in steps] == [512, 512, 77]  # 76, and a token of `a`


def test_a_draft_of_each_decoding_request_has_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Scheduler(decoding=3, spec_tokens=4), monkeypatch)
    bench.move("a", 2000)
    assert bench.scheduler.schedule() == {"own 0": 5, "own 1": 5, "own 2": 5, "a": 512}


def test_the_scheduler_is_the_hosts_own_once_histories_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Scheduler(decoding=1), monkeypatch)
    assert bench.is_the_hosts_own
    bench.move("a", 600)
    bench.scheduler.schedule()
    bench.scheduler.schedule()
    bench.scheduler.schedule()
    assert bench.is_the_hosts_own


def test_without_decoding_requests_histories_get_the_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Scheduler(), monkeypatch)
    bench.move("a", 2000)
    assert bench.scheduler.schedule() == {"a": 2000}


def test_in_lockstep_the_bound_holds_for_decoding_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Scheduler(), monkeypatch, in_lockstep=True)
    bench.move("a", 2000)
    assert bench.scheduler.schedule() == {"a": 512}


def test_a_new_request_is_not_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Scheduler(decoding=1), monkeypatch)
    bench.add("new", 2000)
    assert bench.scheduler.schedule() == {"own 0": 1, "new": 2000}


def test_a_request_that_waits_before_a_history_gets_the_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host would never begin an uncut prompt, of a picture for instance, within the bound."""
    bench = Bench(Scheduler(decoding=1), monkeypatch)
    bench.add("uncut", 1500)
    bench.move("a", 300)
    assert bench.scheduler.schedule()["uncut"] == 1500


@pytest.mark.parametrize(("tokens", "chunked"), [(0, True), (512, False)])
def test_without_the_bound_and_where_prompts_are_not_cut_steps_are_the_hosts_own(
    monkeypatch: pytest.MonkeyPatch, tokens: int, chunked: bool
) -> None:
    bench = Bench(Scheduler(decoding=1, chunked=chunked), monkeypatch, tokens=tokens)
    bench.move("a", 2000)
    assert bench.is_the_hosts_own
    assert bench.scheduler.schedule()["a"] == 2000


def test_a_step_that_fails_leaves_the_bound_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(decoding=1)

    def fails() -> None:
        raise RuntimeError("no")

    scheduler.schedule = fails  # type: ignore[method-assign,assignment]
    bench = Bench(scheduler, monkeypatch)
    bench.move("a", 2000)
    with pytest.raises(RuntimeError):
        scheduler.schedule()
    assert scheduler.max_num_scheduled_tokens == WHOLE_STEP
