"""What the repairs cost the requests of a serving process: interruptions, moves, failures. On the client's event loop.

Told to `StreamReport`, which is set once something in this process wants to know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.requests.interruptions import Interruption, Interruptions
from holdfast.core.requests.journal import OpenRequest


class StreamReport(Protocol):
    """Listener to what the repairs cost the requests. Called on the event loop; never waits."""

    def interrupted(self, interruption: Interruption) -> None: ...
    def moved(self, tokens: int) -> None: ...
    def failed(self) -> None: ...


class StreamWatch:
    """Watches the streams of a router."""

    def __init__(self) -> None:
        self.report: StreamReport | None = None
        self._interruptions = Interruptions()

    def delivered(self, outputs: Iterable[Any], engine_id: int) -> None:
        """Take the outputs of an engine core that are about to be delivered."""
        now = time.monotonic()
        for output in outputs:
            if output.new_token_ids:
                ended = self._interruptions.token(output.request_id, engine_id, now)
                if ended is not None and self.report is not None:
                    self.report.interrupted(ended)
            if output.finish_reason is not None:  # what follows in a session waits for the client
                self._interruptions.closed(output.request_id)

    def closed(self, request_id: str) -> None:
        self._interruptions.closed(request_id)

    def is_news(self, view: InstanceView) -> bool:
        """Return whether `follow` would learn anything from a view. Any thread."""
        return any(self._interruptions.is_news(*_condition(engine)) for engine in view.engines)

    def follow(self, view: InstanceView, requests_of: Callable[[int], Iterable[str]]) -> None:
        """Take a later view; `requests_of` tells the open requests of an engine core."""
        for engine in view.engines:
            condition = _condition(engine)
            if self._interruptions.is_news(*condition):
                self._interruptions.follow(*condition, requests_of(engine.engine_id), time.monotonic())

    def sent(self, entry: OpenRequest[Any], *, again: bool) -> None:
        """Take a waiting request that is sent to an engine core; `again`: another one had begun the request."""
        if again and self.report is not None:
            self.report.moved(len(entry.request.prompt_token_ids or ()) + len(entry.delivered))

    def failed(self) -> None:
        """Count a request that ends with an error."""
        if self.report is not None:
            self.report.failed()


def _condition(engine: EngineStatus) -> tuple[int, bool, int]:
    """Return what an interruption depends on; a pause that an operator ordered is none."""
    is_well = engine.state.makes_progress or engine.paused_by_operator
    return engine.engine_id, is_well, engine.recoveries + engine.restarts
