"""What an instance tells: events, numbered without gaps, each with the view of the instance after it.

Only reads the engines and groups that it tells of.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.config import runtime_settings
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.roster import Roster
from holdfast.core.instance.settings import Settings
from holdfast.core.protocol.effects import Publish
from holdfast.core.protocol.events import Event, EventKind, InstanceView


class EventLog:
    """Numbers the events of one instance."""

    def __init__(
        self, roster: Roster, wall_clock: Callable[[], float], *, settings: Settings, notify_address: str
    ) -> None:
        self._roster = roster
        self._wall_clock = wall_clock
        self._settings = settings
        self._notify_address = notify_address
        self._sequence = 0

    def view(self) -> InstanceView:
        return InstanceView(
            engines=tuple(group.view_of(engine) for group in self._roster.groups for engine in group.engines),
            settings=runtime_settings(self._settings.config),
            sequence=self._sequence,
            notify_address=self._notify_address,
            defeat=self._roster.defeat,
            processes=tuple(self._roster.processes.values()),
        )

    def publish(self, kind: EventKind, group: LockstepGroup, engine: Engine, **about: object) -> Publish:
        """The next event of an engine; `about` are further fields of `Event`."""
        return self._publish(kind, engine_id=engine.engine_id, state=engine.state, epoch=group.epoch, **about)

    def publish_of(self, process: str, kind: EventKind, **about: object) -> Publish:
        """The next event of a process beside the engine cores."""
        return self._publish(kind, process=process, **about)

    def publish_of_instance(self, kind: EventKind, **about: object) -> Publish:
        """Return the next event of the instance as a whole."""
        return self._publish(kind, **about)

    def _publish(self, kind: EventKind, **about: object) -> Publish:
        self._sequence += 1
        event = Event(sequence=self._sequence, at=self._wall_clock(), kind=kind, **about)  # type: ignore[arg-type]
        return Publish(event, self.view())
