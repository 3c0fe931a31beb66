"""Defeat: end the whole instance when no repair is left."""

from __future__ import annotations

from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.state import InstanceState, fail_armings, publish, publish_of_process
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, End, Send
from holdfast.core.protocol.events import EventKind


def end_instance(state: InstanceState, group: LockstepGroup, engine: Engine, reason: str, now: float) -> list[Effect]:
    """End the whole instance because of an engine core that no repair can help."""
    group.open_incident(now).reason = reason
    settled = _fail_commands(state, reason)
    ended = publish(state, EventKind.INSTANCE_DEFEATED, group, engine, fault=engine.fault, reason=reason)
    return [*settled, ended, *_stop_engines(state, reason)]


def end_instance_for_process(state: InstanceState, process: str, reason: str) -> list[Effect]:
    """End the whole instance because of a process beside the engine cores."""
    settled = _fail_commands(state, reason)
    ended = publish_of_process(state, EventKind.INSTANCE_DEFEATED, process, reason=reason)
    return [*settled, ended, *_stop_engines(state, reason)]


def _fail_commands(state: InstanceState, reason: str) -> list[Effect]:
    state.roster.end(reason)
    armings = [effect for engine in state.roster.engines for effect in fail_armings(engine, reason)]
    return state.commands.fail_all(reason) + armings


def _stop_engines(state: InstanceState, reason: str) -> list[Effect]:
    stop = m.EndEngine(command_id=state.new_command_id(), reason=reason)
    workers = tuple(pid for engine in state.roster.engines for pid in engine.worker_pids)
    return [*(Send(i, stop) for i in state.roster.engine_ids), End(reason, workers)]
