"""The pretend scheduler: continuous batching, chunked prefill, preemption, and the rewind after a fault.

Keeps the order of the host: counters advance and blocks enter the prefix cache when a step is scheduled, long before
the step writes KV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from holdfast.core.protocol.messages import RecoveryReport
from holdfast.core.requests.rewind import (
    RequestBlocks,
    given_up,
    given_up_blocks,
    plan_restart,
    plan_rewind,
    release_until_rest_fits,
)
from holdfast.hosts.fake.blocks import BlockPool
from holdfast.hosts.fake.worker import Part


@dataclass(eq=False)
class FakeRequest:
    """A request; `expected` counts tokens that a step in flight samples."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    output: list[int] = field(default_factory=list)
    client_index: int = 0
    computed: int = 0
    in_flight: int = 0
    expected: int = 0
    cached: int = 0
    blocks: list[int] = field(default_factory=list)
    known_to_workers: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and output."""
        return (*self.prompt, *self.output)

    @property
    def total(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def to_compute(self) -> int:
        """The number of tokens that a step could compute now."""
        if len(self.output) + self.expected >= self.max_tokens:
            return 0
        return self.total + self.expected - self.computed

    def held(self) -> RequestBlocks:
        return RequestBlocks(self.request_id, self.total, self.computed, self.in_flight, tuple(self.blocks))


class FakeScheduler:
    """The scheduler of a pretend engine core."""

    def __init__(self, pool: BlockPool, *, step_tokens: int, max_running: int) -> None:
        self.requests: dict[str, FakeRequest] = {}
        self._pool = pool
        self._step_tokens = step_tokens
        self._max_running = max_running
        self._running: list[FakeRequest] = []
        self._holding: deque[FakeRequest] = (
            deque()
        )  # rewound requests that wait with their good blocks; scheduled first
        self._waiting: deque[FakeRequest] = deque()
        # Requests that ended with a step in flight: their blocks may be suspect too.
        self._left: list[tuple[int, RequestBlocks]] = []
        self.turns = 0
        self._scheduled_steps = 0
        self._processed_steps = 0
        self.may_run: Callable[[str], bool] = lambda _: True
        self.before_step: Callable[[], None] | None = None

    @property
    def processed_steps(self) -> int:
        return self._processed_steps

    def ready(self) -> int:
        """Return how many requests could be in a step; 0 while a step is in flight."""
        if any(r.in_flight for r in self.requests.values()):
            return 0
        return sum(bool(r.to_compute) and self.may_run(i) for i, r in self.requests.items())

    # ---- adding and ending requests

    def add(self, request: FakeRequest) -> None:
        self.requests[request.request_id] = request
        self._waiting.append(request)

    def finish(self, request_id: str) -> None:
        """End a request, done or aborted. The blocks are free at once, also with a step in flight."""
        request = self.requests.pop(request_id)
        if request.in_flight:
            self._left.append((self._scheduled_steps, request.held()))
        self._pool.free(request.blocks)
        for queue in (self._running, self._holding, self._waiting):
            if request in queue:
                queue.remove(request)

    # ---- a step

    def schedule(self) -> list[Part]:
        self.turns += 1
        if self.before_step is not None:
            self.before_step()
        parts: list[Part] = []
        left = self._step_tokens
        for request in list(self._running):
            if left and request in self._running and request.to_compute and self.may_run(request.request_id):
                left -= self._schedule(request, left, parts)
        self._admit(left, parts)
        self._scheduled_steps += bool(parts)
        return parts

    def _admit(self, left: int, parts: list[Part]) -> None:
        while left and len(self._running) < self._max_running:
            queue, request = self._first_waiting()
            if request is None:
                return
            self._start_from_cache(request)
            taken = self._schedule(request, left, parts, may_preempt=False)
            if not taken:
                if queue is self._waiting:
                    self._release(request)
                return
            queue.remove(request)
            self._running.append(request)
            left -= taken

    def _first_waiting(self) -> tuple[deque[FakeRequest], FakeRequest | None]:
        for queue in (self._holding, self._waiting):
            for request in queue:
                if self.may_run(request.request_id):
                    return queue, request
        return self._waiting, None

    def processed(self, part: Part, token: int | None) -> bool:
        """Take the result of a request in a step; return False for a request that has ended."""
        request = self.requests.get(part.request_id)
        if request is None:
            return False
        request.in_flight -= part.count
        if token is not None:
            request.expected -= 1
            request.output.append(token)
            if len(request.output) == request.max_tokens:
                self.finish(request.request_id)
        return True

    def step_processed(self) -> None:
        self._processed_steps += 1
        self._left = [(step, held) for step, held in self._left if step > self._processed_steps]

    def _schedule(self, request: FakeRequest, left: int, parts: list[Part], *, may_preempt: bool = True) -> int:
        count = min(request.to_compute, left)
        if not self._make_room(request, request.computed + count, may_preempt):
            return 0
        start = request.computed
        request.computed += count
        request.in_flight += count
        samples = request.computed == request.total + request.expected
        request.expected += samples
        self._cache_full_blocks(request)
        history = None if request.known_to_workers else request.tokens
        request.known_to_workers = True
        parts.append(Part(request.request_id, start, count, tuple(request.blocks), samples, history))
        return count

    def _start_from_cache(self, request: FakeRequest) -> None:
        if not request.blocks:
            request.blocks = self._pool.hit(request.tokens)
            request.cached = len(request.blocks)
            request.computed = request.cached * self._pool.block_size

    def _make_room(self, request: FakeRequest, tokens: int, may_preempt: bool) -> bool:
        missing = -(-tokens // self._pool.block_size) - len(request.blocks)
        while (new := self._pool.allocate(max(0, missing))) is None:
            last = self._running[-1] if self._running else request
            if not may_preempt or last.in_flight:  # a request cannot be preempted before its step has ended
                return False
            self._preempt(last)
            if last is request:
                return False
        request.blocks += new
        return True

    def _preempt(self, request: FakeRequest) -> None:
        self._running.remove(request)
        self._release(request)
        self._waiting.appendleft(request)

    def _release(self, request: FakeRequest) -> None:
        self._pool.free(request.blocks)
        request.blocks, request.cached, request.computed = [], 0, 0
        request.known_to_workers = False

    def _cache_full_blocks(self, request: FakeRequest) -> None:
        tokens, size = request.tokens, self._pool.block_size
        full = min(request.computed, request.total) // size
        for index in range(request.cached, full):
            self._pool.cache(request.blocks[index], tokens[: (index + 1) * size])
        request.cached = max(request.cached, full)

    # ---- after a fault

    def rewind(
        self, *, keep_suspect_blocks: bool, memory_lost: bool = False, give_kv_up: bool = False
    ) -> RecoveryReport:
        """Put every request back to the tokens that were written for certain, with nothing in flight."""
        requests = [*self._running, *self._holding]
        held = [r.held() for r in requests]
        plan = plan_rewind([*held, *self._gone_in_flight()], self._pool.block_size)
        evicted = 0
        if memory_lost:
            plan = plan_restart(held, self._pool.block_size)
            evicted = self._pool.evict_all()
        free = self._pool.free_blocks + given_up_blocks(plan, held)
        plan = given_up(plan) if give_kv_up else release_until_rest_fits(plan, held, free, self._step_tokens)
        if not keep_suspect_blocks:
            evicted += self._pool.evict(plan.suspect_blocks)
        self._running, self._holding, self._left = [], deque(), []
        self._processed_steps = self._scheduled_steps
        for request in reversed(requests):
            self._put_back(request, plan.good_tokens[request.request_id])
        return RecoveryReport(
            requests=len(requests),
            kept_blocks=sum(len(r.blocks) for r in requests),
            evicted_blocks=evicted,
            tokens_to_recompute=sum(r.total - r.computed for r in requests),
        )

    def recompute(self, request_id: str) -> None:
        """Give up the KV of a rewound request, also in the prefix cache."""
        request = self.requests.get(request_id)
        if request is not None and request in self._holding:
            self._pool.evict(request.blocks)
            self._holding.remove(request)
            self._put_back(request, 0)

    def _gone_in_flight(self) -> Iterable[RequestBlocks]:
        """Yield departed requests under new names: a departed request may have been added again."""
        for index, (_, held) in enumerate(self._left):
            yield RequestBlocks(f"left {index}", held.total, held.computed, held.in_flight, held.blocks, False)

    def _put_back(self, request: FakeRequest, good: int) -> None:
        request.in_flight = request.expected = 0
        if not good:
            self._release(request)
            self._waiting.appendleft(request)
            return
        kept = -(-good // self._pool.block_size)
        self._pool.free(request.blocks[kept:])
        del request.blocks[kept:]
        request.computed, request.cached = good, min(request.cached, good // self._pool.block_size)
        request.known_to_workers = True  # a restore gives the workers every history
        self._holding.appendleft(request)
