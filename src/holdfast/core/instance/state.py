"""State of an instance: the data that every phase reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.commands import OpenCommands
from holdfast.core.instance.roster import Roster


@dataclass
class InstanceState:
    """Data of an instance.

    `config` is replaced when an operator changes settings: read settings from here at each use. `settings_changed` says
    that this has happened since the start. `sequence` numbers the events.
    `introduce_coordinator_at` are the times at which engine cores introduce themselves again to a new coordinator.
    """

    config: HoldfastConfig
    roster: Roster
    wall_clock: Callable[[], float]
    new_command_id: Callable[[], str]
    notify_address: str = ""
    commands: OpenCommands = field(default_factory=OpenCommands)
    settings_changed: bool = False
    sequence: int = 0
    introduce_coordinator_at: tuple[float, ...] = ()

    @property
    def has_ended(self) -> bool:
        return self.roster.defeat is not None
