"""Commands under way: one may concern several lockstep groups and ends when it has ended on all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.core.protocol.effects import Effect, Settle


@dataclass
class _Command:
    groups: set[int]
    awaits_pause: bool
    error: str | None = None


class Commands:
    """Who still owes an end to which command."""

    def __init__(self) -> None:
        self._open: dict[str, _Command] = {}

    def knows(self, command_id: str) -> bool:
        return command_id in self._open

    def begin(self, command_id: str, groups: Iterable[int], *, awaits_pause: bool = False) -> None:
        self._open[command_id] = _Command(set(groups), awaits_pause)

    def ended(self, command_id: str | None, group_id: int, error: str | None = None) -> list[Effect]:
        """One group is done with a command; the first error of any is the command's."""
        command = self._open.get(command_id or "")
        if command is None or command_id is None:
            return []
        command.groups.discard(group_id)
        command.error = command.error or error
        if command.groups:
            return []
        del self._open[command_id]
        return [Settle(command_id, error=command.error)]

    def paused(self, group_id: int) -> list[Effect]:
        """A group stands paused: that ends the commands that waited for it."""
        waiting = [c for c, command in self._open.items() if command.awaits_pause and group_id in command.groups]
        return [effect for command_id in waiting for effect in self.ended(command_id, group_id)]

    def await_pause(self, group_id: int) -> bool:
        """Whether somebody waits for a group to stand paused."""
        return any(command.awaits_pause and group_id in command.groups for command in self._open.values())

    def fail(self, group_id: int, error: str) -> list[Effect]:
        """What is under way on a group will not be followed there any more."""
        concerned = [c for c, command in self._open.items() if group_id in command.groups]
        return [effect for command_id in concerned for effect in self.ended(command_id, group_id, error)]

    def end_all(self, error: str) -> list[Effect]:
        """Nothing that is under way will be followed any more."""
        settled: list[Effect] = [Settle(command_id, error=error) for command_id in self._open]
        self._open.clear()
        return settled
