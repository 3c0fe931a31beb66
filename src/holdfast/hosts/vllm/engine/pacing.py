"""Rules around a step of the scheduler, and the rule that paces prefills.

Paced prefill: requests computed again after a loss get a bounded part of each step while further requests decode.
Such requests come from a lost engine core, or lost their KV with a rank while the peers in lockstep kept theirs. The
host prefills as much as fits into a step. The bound lowers the limit of a step for as long as the next prefill is a
paced request. Otherwise, and where prompts cannot be cut, a step is the host's own.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from holdfast.hosts.vllm.engine.rewind import only_full_attention

logger = logging.getLogger("holdfast")


Rule = Callable[[Callable[[], Any]], Any]  # given the function that schedules the step; returns the output of the step


class StepRules:
    """The rules of a scheduler. Busy loop's thread. A rule may be removed while running."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._rules: list[Rule] = []
        self._restore: Callable[[], None] = lambda: None

    def add(self, rule: Rule) -> None:
        """Put a rule around the present rules. Idempotent."""
        if not self._rules:
            self._restore = replace_method(self._scheduler, "schedule", self._around(self._scheduler.schedule))
        if rule not in self._rules:
            self._rules.append(rule)

    def remove(self, rule: Rule) -> None:
        """Remove a rule; restore the host's method after the last rule. Idempotent."""
        if rule in self._rules:
            self._rules.remove(rule)
            if not self._rules:
                self._restore()

    def _around(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        def schedule_by_rules(*args: Any, **kwargs: Any) -> Any:
            call = functools.partial(schedule, *args, **kwargs)
            for rule in tuple(self._rules):
                call = functools.partial(rule, call)
            return call()

        return schedule_by_rules


def replace_method(owner: Any, name: str, by: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of a single object; return a function that restores the method."""
    own = vars(owner).get(name)
    setattr(owner, name, by)
    return functools.partial(delattr, owner, name) if own is None else functools.partial(setattr, owner, name, own)


# ---- paced prefill


class Pacing:
    """Requests of an engine core whose histories are computed again. Pure; owned by a single thread.

    A step takes as long as its tokens, and every request in the step waits for the end. Without a bound, requests that
    lost nothing would get one token per full step of another request's history.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._until: dict[str, int] = {}

    def begin(self, request_id: str, tokens: int) -> None:
        """Pace a request until so many tokens are computed."""
        self._until[request_id] = tokens

    def note(self, computed: Mapping[str, int]) -> None:
        """Take the number of computed tokens of every open request; forget requests that have caught up."""
        self._until = {i: until for i, until in self._until.items() if computed.get(i, until) < until}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._until

    @property
    def is_over(self) -> bool:
        return not self._until

    def step_tokens(self, whole_step: int, beside: int) -> int:
        """Return how many tokens a step may have, when `beside` tokens are for requests that lost nothing."""
        return min(whole_step, beside + self._tokens_per_step)


class PacedPrefill:
    """The paced prefills of an engine core. Busy loop's thread, except for `expect`.

    Args:
        tokens_per_step: bound of the tokens of paced prefills in a step; 0 turns pacing off.
    """

    def __init__(self, engine: Any, rules: StepRules, tokens_per_step: int, *, in_lockstep: bool) -> None:
        self._engine = engine
        self._scheduler = engine.scheduler
        self._rules = rules
        self._pacing = Pacing(tokens_per_step)
        self._expected: set[str] = set()
        self._paced: dict[str, int] = {}  # tokens of each request since pacing began, for the log
        self._began = 0.0
        self._can_cut = self._scheduler.scheduler_config.enable_chunked_prefill and tokens_per_step > 0
        self._in_lockstep = in_lockstep

    def expect(self, request_id: str) -> None:
        """Pace a request from another engine core once it reaches the busy loop. Any thread."""
        self._expected.add(request_id)

    def arrived(self, request: Any) -> None:
        """Begin to pace a request that is expected."""
        if request.request_id in self._expected:
            self._expected.discard(request.request_id)
            self.begin([request])

    def begin(self, requests: Iterable[Any]) -> None:
        """Begin to pace requests that are computed again."""
        if not self._can_cut or only_full_attention(self._scheduler) is None:
            return
        if self._pacing.is_over:
            self._began, self._paced = time.monotonic(), {}
        for request in requests:
            self._pacing.begin(request.request_id, request.num_tokens)
            self._paced[request.request_id] = request.num_tokens
        if not self._pacing.is_over:
            self._rules.add(self._step)

    def _step(self, schedule: Any) -> Any:
        scheduler = self._scheduler
        self._pacing.note({i: r.num_computed_tokens for i, r in scheduler.requests.items()})
        if self._pacing.is_over:
            self._end()
            return schedule()
        decoding = self._decode_tokens()
        if not (decoding or self._in_lockstep) or not self._is_next():
            return schedule()
        limit = scheduler.max_num_scheduled_tokens
        scheduler.max_num_scheduled_tokens = self._pacing.step_tokens(limit, decoding)
        try:
            return schedule()
        finally:
            scheduler.max_num_scheduled_tokens = limit

    def _decode_tokens(self) -> int:
        """Count the tokens that a step computes here for requests that decode and are not paced."""
        scheduler = self._scheduler
        decoding = sum(r.request_id not in self._pacing and not r.is_prefill_chunk for r in scheduler.running)
        return int(decoding * (1 + scheduler.num_spec_tokens))

    def _is_next(self) -> bool:
        """Tell whether the next prefill is a paced request: a prompt that cannot be cut must not wait for the bound."""
        scheduler = self._scheduler
        first = [queue.peek_request() for queue in (scheduler.kv_holding_waiting, scheduler.waiting) if queue]
        return any(r.request_id in self._pacing for r in (*scheduler.running, *first))

    def _end(self) -> None:
        self._rules.remove(self._step)
        logger.info(
            "engine %d: %d requests of %d tokens in all were computed again within %.1f s",
            self._engine.engine_index,
            len(self._paced),
            sum(self._paced.values()),
            time.monotonic() - self._began,
        )
