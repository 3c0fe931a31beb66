"""Recoveries as the event stream tells them: phases with their durations, and how each recovery ended. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from holdfast.api.metrics.catalog import RECOVERY_FAILED, REPAIRS, SUCCEEDED, Phase
from holdfast.core.policy.ladder import Action
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.messages import RecoveryReport
from holdfast.core.states import EngineState


@dataclass(frozen=True)
class PhaseEnded:
    phase: Phase
    seconds: float


@dataclass(frozen=True)
class RecoveryEnded:
    action: str
    outcome: str


News = PhaseEnded | RecoveryEnded


@dataclass
class _Open:
    """Incident of a lockstep group; `repair_s` and `restore_s` are the longest of the engine cores so far."""

    began_at: float
    paused_at: float | None = None
    is_contained: bool = False
    action: str = Action.RETRY
    repair_s: float = 0.0
    restore_s: float = 0.0
    failed_commands: set[str | None] = field(default_factory=set)

    def note(self, report: RecoveryReport) -> None:
        """Take the figures of an engine core's recovery."""
        if report.replaced_ranks and self.action == Action.RETRY:
            self.action = Action.RESTART_WORKERS  # decided by a command
        self.repair_s = max(self.repair_s, report.replace_s + report.rebuild_s)
        self.restore_s = max(self.restore_s, report.drain_s + report.rewind_s + report.restore_s)


class Recoveries:
    """Follows the incidents of all lockstep groups. Events come in order; some may be missing."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}

    def take(self, event: Event, view: InstanceView) -> Iterator[News]:
        """Yield the phases and recoveries that have ended with an event."""
        if event.kind is EventKind.INSTANCE_DEFEATED:
            self._open.clear()
        elif event.process is not None:
            if event.kind is EventKind.PROCESS_RESTARTED:
                yield RecoveryEnded(Action.RESTART_PROCESS, SUCCEEDED)
        elif event.engine_id is not None:
            yield from self._of_group(event, view, event.engine_id)

    def _of_group(self, event: Event, view: InstanceView, engine_id: int) -> Iterator[News]:
        group = _group_of(view, engine_id)
        incident = self._open.get(group[0])
        match event.kind:
            case EventKind.FAULT_REPORTED if incident is None:
                self._open[group[0]] = _Open(event.at)
                if event.fault is not None and event.fault.at:
                    yield PhaseEnded(Phase.DETECT, max(0.0, event.at - event.fault.at))
            case EventKind.ENGINE_LOST if event.command_id is None:
                incident = self._open.setdefault(group[0], _Open(event.at))
                incident.action = Action.RESTART_ENGINE
                if event.state is EngineState.LEFT_OUT:
                    del self._open[group[0]]
            case EventKind.ENGINE_PAUSED if incident is not None:
                incident.paused_at = event.at
            case EventKind.DECISION_MADE if incident is not None:
                if event.decision is not None and event.decision.action in REPAIRS:
                    incident.action = event.decision.action
                    yield from _decided(incident, event.at)
            case EventKind.RECOVERY_STARTED if incident is not None:
                yield from _decided(incident, event.at)  # where a command decided
            case EventKind.RECOVERY_FAILED if incident is not None:
                if event.command_id not in incident.failed_commands:  # told by each engine core of the group
                    incident.failed_commands.add(event.command_id)
                    yield RecoveryEnded(incident.action, RECOVERY_FAILED)
            case EventKind.ENGINE_RECOVERED if incident is not None and event.report is not None:
                incident.note(event.report)
                yield from self._end_if_healthy(group, view)
            case EventKind.ENGINE_RESTARTED if incident is not None:
                incident.repair_s = max(incident.repair_s, event.interruption_s or 0.0)
                yield from self._end_if_healthy(group, view)

    def _end_if_healthy(self, group: tuple[int, ...], view: InstanceView) -> Iterator[News]:
        states = [engine.state for i in group if (engine := view.engine(i)) is not None]
        if all(state is EngineState.HEALTHY for state in states):
            incident = self._open.pop(group[0])
            yield PhaseEnded(Phase.REPAIR, incident.repair_s)
            yield PhaseEnded(Phase.RESTORE, incident.restore_s)
            yield RecoveryEnded(incident.action, SUCCEEDED)


def _decided(incident: _Open, at: float) -> Iterator[News]:
    if incident.paused_at is not None and not incident.is_contained:
        incident.is_contained = True
        yield PhaseEnded(Phase.CONTAIN, max(0.0, incident.paused_at - incident.began_at))
        yield PhaseEnded(Phase.DECIDE, max(0.0, at - incident.paused_at))


def _group_of(view: InstanceView, engine_id: int) -> tuple[int, ...]:
    engine = view.engine(engine_id)
    return (engine_id,) if engine is None else tuple(sorted((engine_id, *engine.lockstep_with)))
