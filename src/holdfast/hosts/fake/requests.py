"""The open requests of the pretend engine: scheduling rules, standings, and the end of a poison request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping

from holdfast.core.poison.detector import RequestProgress
from holdfast.hosts.fake.scheduler import FakeRequest, FakeScheduler

CONTROL_TOKENS = 16


class FakeRequests:
    """Implementation of `RequestHost` in memory. `ended` maps a request id to the reason of the error."""

    def __init__(self, scheduler: FakeScheduler) -> None:
        self._scheduler = scheduler
        self.ended: dict[str, str] = {}
        self._controls = itertools.count(1)

    def request_progress(self) -> Mapping[str, RequestProgress]:
        return {
            i: RequestProgress(r.computed - r.in_flight, r.computed, len(r.output))
            for i, r in self._scheduler.requests.items()
        }

    def restrict(
        self, run: Collection[str] | None, excluded: Collection[str], before_step: Callable[[], None] | None
    ) -> None:
        if before_step is None:
            run, excluded = None, ()
        self._scheduler.before_step = before_step
        self._scheduler.may_run = lambda request_id: request_id not in excluded and (run is None or request_id in run)

    def recompute(self, request_id: str) -> None:
        self._scheduler.recompute(request_id)

    def add_control(self) -> None:
        self._scheduler.add(FakeRequest(f"control {next(self._controls)}", (1,), CONTROL_TOKENS))

    def end(self, request_id: str, why: str) -> None:
        if request_id in self._scheduler.requests:
            self._scheduler.finish(request_id)
            self.ended[request_id] = why
