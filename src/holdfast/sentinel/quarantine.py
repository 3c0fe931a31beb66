"""Quarantine: performs the decisions of the poison detector on an engine core's requests.

Runs on the busy loop's thread. Not on the step path unless a request is suspected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass, is_of_the_process
from holdfast.core.poison.detector import PoisonDetector, Restriction
from holdfast.core.poison.memory import adapter_error, poison_request_error
from holdfast.core.poison.named import NamedRequests, Spoilt, named_by
from holdfast.core.ports import RequestHost
from holdfast.core.protocol import messages as m

logger = logging.getLogger("holdfast")


class Quarantine:
    """Quarantine of an engine core. `post` sends a message to the client; `epoch` returns the present epoch."""

    def __init__(
        self,
        engine_id: int,
        post: Callable[[m.FromEngine], None],
        epoch: Callable[[], int],
        retry_window_s: float = 60.0,
    ) -> None:
        self._engine_id = engine_id
        self._post = post
        self._epoch = epoch
        self._detector = PoisonDetector()
        self._restriction = Restriction()
        self._requests: RequestHost | None = None
        self._replaces_for_fault = False
        self._spoilt = Spoilt()
        self._recompute: tuple[str, ...] = ()
        self._named = NamedRequests(retry_window_s)
        self.search_progressed = False
        self.clears_rank = False

    def learn(self, fault: Fault | None, requests: RequestHost) -> None:
        """Learn from a fault that ended the busy loop, before requests are rewound."""
        self._requests = requests
        self.search_progressed = self._replaces_for_fault = self.clears_rank = False
        if fault is None or fault.fault_class is FaultClass.COMMUNICATOR:
            return  # it was only told to stop, or a collective was broken, for which there is another cause
        of_unknown_depth = fault.fault_class is FaultClass.UNKNOWN  # a new process is what it gets, not the last resort
        self._replaces_for_fault = is_of_the_process(fault) or of_unknown_depth
        progress, named = requests.request_progress(), named_by(fault)
        known = self._detector.adapter_fault(fault.adapter_id, progress) if fault.adapter_id else None
        self._restriction = known or self._detector.fault(
            progress, fault.request_ids if fault.names_cause else named, names_cause=fault.names_cause
        )
        self.clears_rank = self._named.take(named, progress, time.monotonic())
        self.search_progressed = self._restriction.search_progressed
        good, reached = ({i: getattr(s, what) for i, s in progress.items()} for what in ("good", "reached"))
        self._recompute = self._spoilt.due(named, reached, good)

    def carry_out(self, replaced: Collection[int]) -> None:
        """Set the rule for scheduling once requests are rewound, and before the busy loop runs again.

        May be called again after an error in this call, or in the recovery.
        """
        self.search_progressed = False
        if self._requests is None:
            return
        recompute, self._recompute = self._recompute, ()
        for request_id in recompute:
            self._requests.recompute(request_id)
        if replaced:
            self._named.forget()
            self._detector.renewed(by_ladder=not self._replaces_for_fault)
            if not self._replaces_for_fault:
                self._restriction = Restriction(
                    "faulty rank processes are replaced; earlier suspicions are dropped",
                    end=self._restriction.end,
                    unloadable=self._restriction.unloadable,
                )
        self._follow(self._requests)

    def _before_step(self) -> None:
        assert self._requests is not None
        changed = self._detector.step(self._requests.request_progress())
        if changed is not None:
            self._restriction = changed
            self._follow(self._requests)

    def _follow(self, requests: RequestHost) -> None:
        restriction = self._restriction
        for request_id in restriction.end:
            self._end(requests, request_id, restriction.reason, poison_request_error)
        for request_id in restriction.unloadable:
            self._end(requests, request_id, restriction.reason, adapter_error)
        if restriction.wants_control:
            requests.add_control()
        before_step = self._before_step if restriction.watch else None
        requests.restrict(restriction.run, restriction.excluded, before_step)
        if restriction.reason:
            logger.info("engine %d: %s", self._engine_id, restriction.reason)
            self._tell(restriction)
        self._restriction = replace(
            restriction, end=(), unloadable=(), reason="", wants_control=False
        )  # it holds on, and has been told

    def _tell(self, restriction: Restriction) -> None:
        self._post(
            m.RequestsSuspected(
                engine_id=self._engine_id, epoch=self._epoch(), suspects=restriction.suspects, reason=restriction.reason
            )
        )

    def _end(self, requests: RequestHost, request_id: str, reason: str, error: Callable[[str], str]) -> None:
        incident = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-engine{self._engine_id}-epoch{self._epoch()}"
        requests.end(request_id, error(incident))
        self._post(
            m.RequestEnded(
                engine_id=self._engine_id,
                epoch=self._epoch(),
                request_id=request_id[: m.MAX_ID_CHARS],
                incident=incident,
                reason=reason,
            )
        )


def make_quarantine(
    config: HoldfastConfig, engine_id: int, post: Callable[[m.FromEngine], None], epoch: Callable[[], int]
) -> Quarantine | None:
    """Return the quarantine of an engine core; None without the detection of poison requests."""
    return Quarantine(engine_id, post, epoch, config.retry_window_s) if config.poison_detection else None
