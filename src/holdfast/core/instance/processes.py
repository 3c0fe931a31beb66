"""Processes beside the engine cores: the data-parallel coordinator, and each of several API servers.

A lost process is replaced, or the instance ends. No engine core pauses for that. Pure: the owner's watch reports what
became of the processes, and is told what to start.
"""

from __future__ import annotations

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.deadlines import replacement_bound_s
from holdfast.core.instance.defeat import end_instance_for_process
from holdfast.core.instance.state import InstanceState, Process, publish_of_process
from holdfast.core.policy.incident import backoff_s, process_restart_intensity
from holdfast.core.policy.ladder import Action, Decision
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, ReplaceProcess, Send
from holdfast.core.protocol.events import EventKind

COORDINATOR = "coordinator"
_API_SERVER = "api-server-"
# Introduced only once, an engine core could reach a new coordinator before its peers do.
TELL_AGAIN_AFTER_S = (1.0, 5.0)


def api_server(index: int) -> str:
    """Return the name of an API server."""
    return f"{_API_SERVER}{index}"


def index_of_api_server(name: str) -> int | None:
    """Return the index of an API server, None for another process."""
    return int(name.removeprefix(_API_SERVER)) if name.startswith(_API_SERVER) else None


def process_attached(state: InstanceState, name: str, pid: int | None) -> list[Effect]:
    """Take the report that a process runs and is watched."""
    state.roster.processes.setdefault(name, Process(name)).pid = pid
    return [publish_of_process(state, EventKind.PROCESS_ATTACHED, name)]


def process_lost(state: InstanceState, name: str, why: str, unrecoverable_reason: str, now: float) -> list[Effect]:
    """Take the loss of a process, or of a replacement that did not start.

    `unrecoverable_reason` says why no replacement can start; else empty.
    """
    process = state.roster.processes.get(name, Process(name))
    intensity = process_restart_intensity(state.config)
    used = process.restart_budget.used(intensity, now, process.opened_at)
    decision = decide_restart(used, state.config)
    if unrecoverable_reason:
        decision = Decision(Action.END, unrecoverable_reason)
    reason = f"{name} was lost: {why}; {decision.reason}"
    if decision.action is Action.END:
        return end_instance_for_process(state, name, reason)
    process.restart_budget = process.restart_budget.spend(intensity, now, process.opened_at)
    process.lost_at = now if process.lost_at is None else process.lost_at
    process.pid = None
    process.failed_start = None
    process.replacement_due_at = now + replacement_bound_s(decision.after_s, state.config)
    state.roster.processes[name] = process
    lost = publish_of_process(state, EventKind.PROCESS_LOST, name, reason=reason)
    return [*_forget_requests_of(state, name), lost, ReplaceProcess(name, decision.after_s)]


def process_returned(state: InstanceState, name: str, now: float, pid: int | None) -> list[Effect]:
    """Take the report that the replacement of a lost process works."""
    process = state.roster.processes.get(name)
    if process is None or process.lost_at is None:
        return []
    interruption_s, process.lost_at = now - process.lost_at, None
    process.pid = pid
    process.restarts += 1
    restarted = publish_of_process(state, EventKind.PROCESS_RESTARTED, name, interruption_s=interruption_s)
    if name != COORDINATOR:
        return [restarted]
    state.introduce_coordinator_at = tuple(now + after_s for after_s in TELL_AGAIN_AFTER_S)
    return [*_introduce_coordinator(state), restarted]


def introduce_coordinator_again(state: InstanceState, now: float) -> list[Effect]:
    """Have the engine cores introduce themselves to a new coordinator again, when that is due."""
    due = [at for at in state.introduce_coordinator_at if at <= now]
    state.introduce_coordinator_at = tuple(at for at in state.introduce_coordinator_at if at > now)
    return _introduce_coordinator(state) if due else []


def lose_late(state: InstanceState, now: float) -> list[Effect]:
    """Treat every replacement that was not started, or has not reported within its bound, as lost too."""
    late = [p for p in state.roster.processes.values() if p.lost_at is not None and now >= p.replacement_due_at]
    effects: list[Effect] = []
    for process in late:
        if not state.has_ended:
            why = process.failed_start or "its replacement did not report in time"
            effects += process_lost(state, process.name, why, "", now)
    return effects


def decide_restart(used: int, config: HoldfastConfig) -> Decision:
    """Decide whether a lost process is replaced after `used` restarts that count: restart, or the end.

    The fault policy does not matter: no command is about such a process, and without the process requests are lost
    that have no fault.
    """
    limit = config.max_api_server_restarts
    if not limit:
        return Decision(Action.END, "restarts of this process are off (--max-api-server-restarts 0)")
    if exhausted := process_restart_intensity(config).exhausted(used):
        return Decision(Action.END, exhausted)
    tries = used + 1
    reason = f"starting a replacement; restart {tries} of {limit}"
    return Decision(Action.RESTART_PROCESS, reason, after_s=backoff_s(used), tries=tries, limit=limit)


def _forget_requests_of(state: InstanceState, name: str) -> list[Effect]:
    """Have the engine cores abort the requests of a lost API server."""
    index = index_of_api_server(name)
    if index is None:
        return []
    return [Send(engine_id, m.ClientLost(client_index=index)) for engine_id in state.roster.engine_ids]


def _introduce_coordinator(state: InstanceState) -> list[Effect]:
    """Have every engine core report the present state to the new coordinator."""
    return [Send(engine_id, m.CoordinatorReplaced()) for engine_id in state.roster.engine_ids]
