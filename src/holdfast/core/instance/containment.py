"""Containment: record a fault in the incident, and pause every engine core of the lockstep group."""

from __future__ import annotations

from holdfast.core.faults.faults import Fault, FaultClass, deeper
from holdfast.core.instance.event_log import publish
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.state import InstanceState
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Send
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState, Trigger


def record_fault(state: InstanceState, group: LockstepGroup, engine: Engine, fault: Fault, now: float) -> list[Effect]:
    """Record a fault in the incident of a group. Publish the fault if it is deeper, or a separate cause."""
    if group.is_expected(fault):
        return []
    is_first = group.incident is None
    incident = group.open_incident(now)
    is_own_cause = engine.fault is None and (is_first or fault.fault_class is not FaultClass.COMMUNICATOR)
    engine.faults += is_own_cause
    engine.fault = deeper(engine.fault, fault)
    engine.note_sick_rank(fault)
    is_news = incident.deepen(fault) or is_own_cause
    return [publish(state, EventKind.FAULT_REPORTED, group, engine, fault=fault)] if is_news else []


def contain(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Pause the healthy engine cores of a group in which a peer has stopped, so that none waits forever."""
    stopped = group.in_state(EngineState.FAULTED, EngineState.PAUSED, EngineState.RESTARTING)
    if not stopped:
        return []
    group.open_incident(now)
    reason = f"engine {stopped[0].engine_id} of the same lockstep group has stopped"
    effects: list[Effect] = []
    for engine in group.in_state(EngineState.HEALTHY):
        order = m.PauseEngine(command_id=state.new_command_id(), epoch=group.epoch)
        effects += pause(state, group, engine, order, reason, now)
    return effects


def pause(
    state: InstanceState, group: LockstepGroup, engine: Engine, order: m.PauseEngine, reason: str, now: float
) -> list[Effect]:
    """Order an engine core of a group to pause. A hard pause breaks collectives."""
    engine.begin_to_stop(Trigger.PAUSE_ORDERED, now)
    group.open_incident(now).collectives_broken |= not order.soft
    ordered = publish(state, EventKind.PAUSE_ORDERED, group, engine, command_id=order.command_id, reason=reason)
    return [Send(engine.engine_id, order), ordered]


def pause_replacement(state: InstanceState, group: LockstepGroup, engine: Engine, now: float) -> list[Effect]:
    """Pause the replacement of an engine core that was paused by an operator."""
    incident = group.open_incident(now)
    incident.is_soft = True  # a new process has no step under way that would have to be broken
    order = m.PauseEngine(command_id=state.new_command_id(), epoch=group.epoch, soft=True)
    return pause(state, group, engine, order, "paused by operator before this process replaced another", now)


def make_pause_hard(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Order the engine cores of a group that is being paused softly to pause at once."""
    incident = group.open_incident(now)
    incident.is_soft, incident.collectives_broken = False, True
    order = m.PauseEngine(command_id=state.new_command_id(), epoch=group.epoch)
    return [Send(engine_id, order) for engine_id in group.engine_ids]


def send_keepalives(group: LockstepGroup, now: float) -> list[Effect]:
    """Tell the paused engine cores of a group that the owner lives, which renews their patience."""
    group.keepalive_at = now
    order = m.PauseEngine(command_id="", epoch=group.epoch, soft=True)
    return [Send(e.engine_id, order) for e in group.in_state(EngineState.PAUSED)]
