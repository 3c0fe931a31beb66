"""Metrics of the instance, told by its owner: a sink of the event stream, beside every decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from msgspec import UNSET

from holdfast.api.metrics import catalog as c
from holdfast.api.metrics.exposition import Exposition
from holdfast.core.config import RuntimeSettings
from holdfast.core.policy.ladder import Action
from holdfast.core.protocol.events import EngineStatus, Event, EventKind, InstanceView
from holdfast.core.protocol.messages import RecoveryReport
from holdfast.core.states import EngineState

NO_ENGINE = "none"  # of a fault beside the engine cores


class DroppedItems:
    """Counter of what the consumers in this process lost; `lost` tells the totals by consumer."""

    def __init__(self, exposition: Exposition, lost: Callable[[], Mapping[str, int]]) -> None:
        self._exposition, self._lost = exposition, lost
        self._told: dict[str, int] = {}

    def refresh(self) -> None:
        for name, total in self._lost().items():
            if (more := total - self._told.get(name, 0)) > 0:
                self._exposition(c.DROPPED, name.replace(" ", "-")).inc(more)
                self._told[name] = total


class InstanceMetrics:
    """Counts events and shows the latest view. `take` and `refresh` may come from two threads."""

    def __init__(
        self,
        exposition: Exposition,
        version: str,
        host_version: str,
        wall_clock: Callable[[], float] = time.time,
        forget_process: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self._show, self._wall_clock = exposition, wall_clock
        self._recoveries = Recoveries()
        self._seen: dict[int, EngineStatus] = {}
        self._suspects: dict[int, int] = {}
        self._forget_process, self._pids = forget_process, dict[str, int | None]()
        self._view: InstanceView | None = None
        exposition(c.BUILD, version, host_version).set(1)
        exposition(c.RECOMPUTED).inc(0)
        for action in c.REPAIRS:
            for outcome in (c.SUCCEEDED, c.RECOVERY_FAILED):
                exposition(c.RECOVERIES, action, outcome).inc(0)
        for what in c.Outcome:
            exposition(c.REQUESTS, what).inc(0)
        for phase in c.Phase:
            exposition(c.PHASES, phase)

    # ---- events

    def take(self, event: Event, view: InstanceView) -> None:
        """Count an event, and show the view after the event."""
        self._count(event)
        for news in self._recoveries.take(event, view):
            if isinstance(news, PhaseEnded):
                self._show(c.PHASES, news.phase).observe(news.seconds)
            else:
                self._show(c.RECOVERIES, news.action, news.outcome).inc()
        self._view = view
        self._show_view(view)

    def _count(self, event: Event) -> None:
        engine = NO_ENGINE if event.engine_id is None else str(event.engine_id)
        match event.kind:
            case EventKind.FAULT_REPORTED | EventKind.RECOVERY_FAILED if event.fault is not None:
                self._show(c.FAULTS, event.fault.fault_class, engine).inc()
            case EventKind.ENGINE_LOST if event.command_id is None:
                self._show(c.FAULTS, c.LOST_ENGINE, engine).inc()
            case EventKind.PROCESS_LOST:
                self._show(c.FAULTS, c.LOST_PROCESS, NO_ENGINE).inc()
            case EventKind.ENGINE_RECOVERED if event.report is not None:
                self._show(c.REQUESTS, c.Outcome.REWOUND).inc(event.report.requests)
                self._show(c.REQUESTS, c.Outcome.FAILED).inc(event.report.failed_requests)
                self._show(c.RECOMPUTED).inc(event.report.tokens_to_recompute)
            case EventKind.REQUEST_ENDED:
                self._show(c.REQUESTS, c.Outcome.FAILED).inc()
            case EventKind.REQUESTS_SUSPECTED if event.engine_id is not None:
                suspects, known = event.suspects or 0, self._suspects.get(event.engine_id, 0)
                self._show(c.REQUESTS, c.Outcome.QUARANTINED).inc(max(0, suspects - known))
                self._suspects[event.engine_id] = suspects

    # ---- the view

    def refresh(self) -> None:
        """Show what changes without an event: budgets that come back."""
        if (view := self._view) is not None:
            for engine in view.engines:
                if engine.budgets:
                    self._show_budgets(engine, view.settings)

    def _show_view(self, view: InstanceView) -> None:
        for engine in view.engines:
            if self._seen.get(engine.engine_id) != engine:
                self._show_engine(engine, self._seen.get(engine.engine_id), view.settings)
                self._seen[engine.engine_id] = engine
        for process in view.processes:
            self._show(c.PROCESS_UP, process.name).set(process.pid is not None)
            if (pid := self._pids.get(process.name)) is not None and pid != process.pid:
                self._forget_process(pid)
            self._pids[process.name] = process.pid
        self._show(c.READY_GAUGE).set(view.ready)
        self._show(c.DEFEATED).set(view.defeat is not None)
        for rung, limit in _limits(view.settings).items():
            self._show(c.BUDGET_LIMIT, rung).set(limit)

    def _show_engine(self, engine: EngineStatus, before: EngineStatus | None, settings: RuntimeSettings) -> None:
        name = str(engine.engine_id)
        if before is None or before.state is not engine.state:
            for state in EngineState if before is None else (before.state, engine.state):
                self._show(c.ENGINE_STATE, name, state).set(state is engine.state)
            self._show(c.ENGINE_HEALTHY, name).set(engine.state is EngineState.HEALTHY)
        self._show(c.PROTECTED, name).set(engine.state.is_attached and bool(engine.hooks))
        self._show(c.PAUSED_BY_OPERATOR, name).set(engine.paused_by_operator)
        self._show(c.UNREBUILDABLE, name).set(bool(engine.unrebuildable))
        self._show_budgets(engine, settings)
        standbys = engine.standbys
        if standbys is not UNSET or (before is not None and before.standbys is not UNSET):
            ready, wanted = (0, 0) if standbys is UNSET else (standbys.ready, standbys.wanted)
            self._show(c.STANDBYS, name, c.READY).set(ready)
            self._show(c.STANDBYS, name, c.MISSING).set(max(0, wanted - ready))

    def _show_budgets(self, engine: EngineStatus, settings: RuntimeSettings) -> None:
        now = self._wall_clock()
        spent = {b.rung: b for b in engine.budgets}
        for rung, limit in _limits(settings).items():
            budget = spent.get(rung)
            back = 0 if budget is None else sum(at <= now for at in budget.refills_at)
            remaining = limit if budget is None else min(limit, budget.remaining + back)
            self._show(c.BUDGET, rung, str(engine.engine_id)).set(remaining)


def _limits(settings: RuntimeSettings) -> dict[str, int]:
    return {
        Action.RETRY: settings.max_retries,
        Action.RESTART_WORKERS: settings.max_worker_restarts,
        Action.RESTART_ENGINE: settings.max_engine_restarts,
    }


# ---- recoveries as the event stream tells them: phases with their durations, and how each recovery ended


@dataclass(frozen=True)
class PhaseEnded:
    phase: c.Phase
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
                yield RecoveryEnded(Action.RESTART_PROCESS, c.SUCCEEDED)
        elif event.engine_id is not None:
            yield from self._of_group(event, view, event.engine_id)

    def _of_group(self, event: Event, view: InstanceView, engine_id: int) -> Iterator[News]:
        group = _group_of(view, engine_id)
        incident = self._open.get(group[0])
        match event.kind:
            case EventKind.FAULT_REPORTED if incident is None:
                self._open[group[0]] = _Open(event.at)
                if event.fault is not None and event.fault.at:
                    yield PhaseEnded(c.Phase.DETECT, max(0.0, event.at - event.fault.at))
            case EventKind.ENGINE_LOST if event.command_id is None:
                incident = self._open.setdefault(group[0], _Open(event.at))
                incident.action = Action.RESTART_ENGINE
                if event.state is EngineState.LEFT_OUT:
                    del self._open[group[0]]
            case EventKind.ENGINE_PAUSED if incident is not None:
                incident.paused_at = event.at
            case EventKind.DECISION_MADE if incident is not None:
                if event.decision is not None and event.decision.action in c.REPAIRS:
                    incident.action = event.decision.action
                    yield from _decided(incident, event.at)
            case EventKind.RECOVERY_STARTED if incident is not None:
                yield from _decided(incident, event.at)  # where a command decided
            case EventKind.RECOVERY_FAILED if incident is not None:
                if event.command_id not in incident.failed_commands:  # told by each engine core of the group
                    incident.failed_commands.add(event.command_id)
                    yield RecoveryEnded(incident.action, c.RECOVERY_FAILED)
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
            yield PhaseEnded(c.Phase.REPAIR, incident.repair_s)
            yield PhaseEnded(c.Phase.RESTORE, incident.restore_s)
            yield RecoveryEnded(incident.action, c.SUCCEEDED)


def _decided(incident: _Open, at: float) -> Iterator[News]:
    if incident.paused_at is not None and not incident.is_contained:
        incident.is_contained = True
        yield PhaseEnded(c.Phase.CONTAIN, max(0.0, incident.paused_at - incident.began_at))
        yield PhaseEnded(c.Phase.DECIDE, max(0.0, at - incident.paused_at))


def _group_of(view: InstanceView, engine_id: int) -> tuple[int, ...]:
    engine = view.engine(engine_id)
    return (engine_id,) if engine is None else tuple(sorted((engine_id, *engine.lockstep_with)))
