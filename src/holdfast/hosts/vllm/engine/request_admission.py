"""Restrict the requests that an engine core schedules, and end a poison request.

Present on the step path only while a request is suspected. A restricted request keeps its blocks. A waiting request is
skipped like a request whose grammar is not compiled yet; a running request is hidden while a step is scheduled, like a
request for which the step has no tokens left.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.request import RequestStatus

from holdfast.core.poison.detector import RequestProgress
from holdfast.hosts.vllm.engine.pacing import StepRules, replace_method
from holdfast.hosts.vllm.engine.resumed_requests import IS_ON_TRIAL
from holdfast.hosts.vllm.engine.rewind import recompute

logger = logging.getLogger("holdfast")

CONTROL_TOKENS = 16  # enough for several steps, few beside an answer


class VllmRequestHost:
    """Implements `RequestHost` on the scheduler of an engine core. Busy loop's thread."""

    def __init__(self, engine: Any, rules: StepRules) -> None:
        self._engine = engine
        self._scheduler = engine.scheduler
        self._rules = rules
        self._run: Collection[str] | None = None
        self._excluded: Collection[str] = ()
        self._before_step: Callable[[], None] | None = None
        self._controls = itertools.count(1)
        self._restore_method: Callable[[], None] | None = None  # present while requests are restricted

    def request_progress(self) -> Mapping[str, RequestProgress]:
        return {r.request_id: _progress_of(r) for r in self._scheduler.requests.values() if not r.is_finished()}

    def restrict(
        self, run: Collection[str] | None, excluded: Collection[str], before_step: Callable[[], None] | None
    ) -> None:
        self._run, self._excluded, self._before_step = run, excluded, before_step
        if before_step is None:
            self._end_restriction()
        elif self._restore_method is None:
            self._begin_restriction()

    def recompute(self, request_id: str) -> None:
        recompute(self._scheduler, request_id)

    def add_control(self) -> None:
        """Add a short request that no front end knows: front ends drop the output. Nothing for a pooling model."""
        if any(r.sampling_params is None for r in self._scheduler.requests.values()):
            return
        control = _control_request(f"holdfast-control-{next(self._controls)}")
        request, _ = self._engine.preprocess_add_request(control)
        self._scheduler.add_request(request)

    def end(self, request_id: str, why: str) -> None:
        for request in self._scheduler.finish_requests([request_id], RequestStatus.FINISHED_ERROR):
            output = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=why)
            ended = EngineCoreOutputs(finished_requests={request.request_id}, outputs=[output])
            self._engine.output_queue.put_nowait((request.client_index, ended))

    # ---- while requests are restricted

    def _begin_restriction(self) -> None:
        is_ready = self._scheduler._handle_blocked_waiting_request

        def is_allowed(request: Any) -> bool:
            return self.may_run(request) and is_ready(request)

        self._restore_method = replace_method(self._scheduler, "_handle_blocked_waiting_request", is_allowed)
        self._rules.add(self._schedule)

    def _end_restriction(self) -> None:
        self._rules.remove(self._schedule)
        if self._restore_method is not None:
            self._restore_method()
            self._restore_method = None

    def may_run(self, request: Any) -> bool:
        """Tell whether a request may be scheduled. Any thread."""
        request_id = request.request_id
        return request_id not in self._excluded and (self._run is None or request_id in self._run)

    def _schedule(self, schedule: Callable[[], Any]) -> Any:
        """Schedule a step with the restricted requests hidden from the running queue."""
        if self._before_step is not None:
            self._before_step()
        scheduler = self._scheduler
        hidden = [r for r in scheduler.running if not self.may_run(r)]
        if not hidden:
            return schedule()
        scheduler.running = [r for r in scheduler.running if self.may_run(r)]
        try:
            return schedule()
        finally:
            scheduler.running = [*scheduler.running, *hidden]


def _progress_of(request: Any) -> RequestProgress:
    reached = request.num_computed_tokens
    good, on_trial = reached - request.num_in_flight_tokens, IS_ON_TRIAL in vars(request)
    adapter_id = 0 if request.lora_request is None else request.lora_request.lora_int_id
    return RequestProgress(good, reached, request.num_output_tokens, on_trial, adapter_id)


def _control_request(request_id: str) -> Any:
    sampling = SamplingParams(max_tokens=CONTROL_TOKENS, temperature=0.0, ignore_eos=True, detokenize=False)
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1],
        mm_features=None,
        sampling_params=sampling,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
