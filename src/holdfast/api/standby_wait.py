"""Readiness that waits for the first standby worker of each engine core, once in the life of an API server."""

from __future__ import annotations

from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol.events import EngineStatus, InstanceView
from holdfast.core.protocol.messages import Standbys

ENOUGH_FAILURES = 3  # starts in a row; then the instance serves without a standby rather than not at all


class StandbyWait:
    """Whether readiness still waits for standbys: at the start only, as later standbys come and go."""

    def __init__(self) -> None:
        self._is_over = False

    def reason(self, config: HoldfastConfig, view: InstanceView) -> str:
        """Return what readiness waits for; empty once the wait is over."""
        if self._is_over or not (config.wait_for_standby and config.standby_workers):
            return ""
        missing = [engine.engine_id for engine in view.engines if not _has_standby(engine)]
        self._is_over = not missing
        return f"no standby worker is ready yet in engine {', '.join(map(str, missing))}" if missing else ""


def _has_standby(engine: EngineStatus) -> bool:
    """Return whether an engine core has a standby, or has tried often enough."""
    found = engine.standbys
    return isinstance(found, Standbys) and (found.ready > 0 or found.failures >= ENOUGH_FAILURES)
