"""What follows when a process beside the engine cores is gone: the coordinator, one of several API servers.

Another process takes its place, or the instance ends. No engine core stops for it. Pure: whoever watches the
processes says what became of them, and is told what to start.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.decision import Interventions
from holdfast.core.instance.event_log import EventLog
from holdfast.core.instance.roster import Roster
from holdfast.core.instance.settings import Settings
from holdfast.core.policy.actions import Replacement, growing_pause_s, recent
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, ReplaceProcess, Send
from holdfast.core.protocol.events import EventKind, ProcessView

COORDINATOR = "coordinator"
_API_SERVER = "api-server-"
# Told once only, what an engine core says could reach a new coordinator before the word of its peers does.
TELL_AGAIN_AFTER_S = (1.0, 5.0)


def api_server(index: int) -> str:
    """The name of one of several API servers."""
    return f"{_API_SERVER}{index}"


def index_of_api_server(name: str) -> int | None:
    """Which API server that is; none for another process."""
    return int(name.removeprefix(_API_SERVER)) if name.startswith(_API_SERVER) else None


def decide_restart(tried_at: tuple[float, ...], config: HoldfastConfig) -> Replacement:
    """Whether another process takes the place of one that is gone; `tried_at` are the times before that count.

    Whatever the policy: no instruction is about such a process, and without it requests are lost that none has hurt.
    """
    limit = config.max_api_server_restarts
    if not limit:
        return Replacement(False, "such a process is not restarted here (--max-api-server-restarts 0)")
    tries = len(tried_at)
    if tries >= limit:
        window = f"{config.api_server_restart_window_s:g} s"
        return Replacement(False, f"{tries} restarts within {window} did not last (--max-api-server-restarts {limit})")
    reason = f"another one takes its place; restart {tries + 1} of {limit}"
    return Replacement(True, reason, growing_pause_s(tries))


@dataclass
class _Process:
    restarted_at: tuple[float, ...] = ()
    lost_at: float | None = None  # none while it is there


@dataclass
class FrontEndProcesses:
    """The processes of one instance that are neither engine cores nor workers, each known by its name."""

    roster: Roster
    event_log: EventLog
    interventions: Interventions
    settings: Settings
    _known: dict[str, _Process] = field(default_factory=dict)
    _tell_at: tuple[float, ...] = ()

    def attached(self, name: str, pid: int | None) -> list[Effect]:
        """A process is there and is watched."""
        self.roster.processes[name] = ProcessView(name=name, pid=pid)
        return [self.event_log.publish_of(name, EventKind.PROCESS_ATTACHED)]

    def lost(self, name: str, why: str, unrecoverable_reason: str, now: float) -> list[Effect]:
        """A process is gone, or what was to take its place did not start.

        `unrecoverable_reason` says why nobody could start another; empty where somebody can.
        """
        if self.roster.defeat is not None:
            return []
        process = self._known.setdefault(name, _Process())
        window_s = self.settings.config.api_server_restart_window_s
        tried_at = recent(process.restarted_at, now, window_s, process.lost_at)
        plan = decide_restart(tried_at, self.settings.config)
        if unrecoverable_reason:
            plan = Replacement(False, unrecoverable_reason)
        reason = f"{name} is gone: {why}; {plan.reason}"
        if not plan.is_possible:
            return self.interventions.end_for(name, reason)
        process.lost_at = now if process.lost_at is None else process.lost_at
        self._show(name, None)
        process.restarted_at = (*tried_at, now)
        told = self.event_log.publish_of(name, EventKind.PROCESS_LOST, reason=reason)
        return [*self._forget_requests_of(name), told, ReplaceProcess(name, plan.after_s)]

    def returned(self, name: str, now: float, pid: int | None = None) -> list[Effect]:
        """Another process is in its place and does its work."""
        process = self._known.get(name)
        if self.roster.defeat is not None or process is None or process.lost_at is None:
            return []
        interruption_s, process.lost_at = now - process.lost_at, None
        self._show(name, pid, restarts=1)
        told = self.event_log.publish_of(name, EventKind.PROCESS_RESTARTED, interruption_s=interruption_s)
        if name != COORDINATOR:
            return [told]
        self._tell_at = tuple(now + after_s for after_s in TELL_AGAIN_AFTER_S)
        return [*self._introduce_coordinator(), told]

    def _show(self, name: str, pid: int | None, restarts: int = 0) -> None:
        was = self.roster.processes.get(name, ProcessView(name=name))
        self.roster.processes[name] = ProcessView(name=name, pid=pid, restarts=was.restarts + restarts)

    def tick(self, now: float) -> list[Effect]:
        """Call a few times a second."""
        if self.roster.defeat is not None or not self._tell_at or now < self._tell_at[0]:
            return []
        self._tell_at = tuple(at for at in self._tell_at if at > now)
        return self._introduce_coordinator()

    def _forget_requests_of(self, name: str) -> list[Effect]:
        """Its clients are gone with it: nobody takes what is computed for them."""
        index = index_of_api_server(name)
        if index is None:
            return []
        return [Send(engine_id, m.ClientLost(client_index=index)) for engine_id in self.roster.engine_ids]

    def _introduce_coordinator(self) -> list[Effect]:
        """It knows nothing of what its predecessor was told: every engine core says again where it stands."""
        return [Send(engine_id, m.CoordinatorReplaced()) for engine_id in self.roster.engine_ids]
