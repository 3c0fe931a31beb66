"""Commands under way. A command may concern several lockstep groups; the last group to finish ends the command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.core.instance.group import Engine
from holdfast.core.protocol.effects import Effect, Settle


@dataclass
class _Command:
    groups: set[int]
    awaits_pause: bool
    error: str | None = None


class OpenCommands:
    """Commands under way, and the lockstep groups in which each has not ended yet."""

    def __init__(self) -> None:
        self._open: dict[str, _Command] = {}

    def is_open(self, command_id: str) -> bool:
        return command_id in self._open

    def begin(self, command_id: str, groups: Iterable[int], *, awaits_pause: bool = False) -> None:
        """Follow a command in some groups. With `awaits_pause`, the command ends as soon as the groups are paused."""
        self._open[command_id] = _Command(set(groups), awaits_pause)

    def end_in_group(self, command_id: str | None, group_id: int, error: str | None = None) -> list[Effect]:
        """End a command in a single group. The first error of any group becomes the error of the command."""
        command = self._open.get(command_id or "")
        if command is None or command_id is None:
            return []
        command.groups.discard(group_id)
        command.error = command.error or error
        if command.groups:
            return []
        del self._open[command_id]
        return [Settle(command_id, error=command.error)]

    def end_pauses_of(self, group_id: int) -> list[Effect]:
        """End the commands that waited for a group to be paused."""
        waiting = [c for c, command in self._open.items() if command.awaits_pause and group_id in command.groups]
        return [effect for command_id in waiting for effect in self.end_in_group(command_id, group_id)]

    def await_pause_of(self, group_id: int) -> bool:
        """Return whether a command waits for a group to be paused."""
        return any(command.awaits_pause and group_id in command.groups for command in self._open.values())

    def fail_in_group(self, group_id: int, error: str) -> list[Effect]:
        """Fail every command that is under way in a group."""
        concerned = [c for c, command in self._open.items() if group_id in command.groups]
        return [effect for command_id in concerned for effect in self.end_in_group(command_id, group_id, error)]

    def fail_all(self, error: str) -> list[Effect]:
        """Fail every command that is under way."""
        settled: list[Effect] = [Settle(command_id, error=error) for command_id in self._open]
        self._open.clear()
        return settled


def fail_armings(engine: Engine, error: str) -> list[Effect]:
    """Fail every command to arm a fault that an engine core has not answered."""
    settled: list[Effect] = [Settle(command_id, error=error) for command_id in engine.armed]
    engine.armed.clear()
    return settled
