"""Events of an instance, numbered without gaps, each with the view of the instance after it.

Reads the state, and changes nothing but the number of the last event.
"""

from __future__ import annotations

from holdfast.core.config import runtime_settings
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.state import InstanceState
from holdfast.core.protocol.effects import Publish
from holdfast.core.protocol.events import Event, EventKind, InstanceView


def view_of(state: InstanceState) -> InstanceView:
    """Return the view of the instance that the status shows."""
    return InstanceView(
        engines=tuple(group.status_of(engine) for group in state.roster.groups for engine in group.engines),
        settings=runtime_settings(state.config),
        sequence=state.sequence,
        notify_address=state.notify_address,
        defeat=state.roster.defeat,
        processes=tuple(process.view() for process in state.roster.processes.values()),
    )


def publish(state: InstanceState, kind: EventKind, group: LockstepGroup, engine: Engine, **about: object) -> Publish:
    """Return the next event of an engine core; `about` are further fields of `Event`."""
    return _publish(state, kind, engine_id=engine.engine_id, state=engine.state, epoch=group.epoch, **about)


def publish_of_process(state: InstanceState, kind: EventKind, process: str, **about: object) -> Publish:
    """Return the next event of a process beside the engine cores."""
    return _publish(state, kind, process=process, **about)


def publish_of_instance(state: InstanceState, kind: EventKind, **about: object) -> Publish:
    """Return the next event of the instance as a whole."""
    return _publish(state, kind, **about)


def _publish(instance: InstanceState, kind: EventKind, /, **about: object) -> Publish:
    instance.sequence += 1
    sequence, at = instance.sequence, instance.wall_clock()
    event = Event(sequence=sequence, at=at, kind=kind, **about)  # type: ignore[arg-type]
    return Publish(event, view_of(instance))
